"""Which value of a data set's labels is enhancing tumour: 4 until BraTS 2021, 3 from 2023 on, and 4 or 3 elsewhere."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable, Sequence

import numpy as np

from bundlekit.brats.naming import SCHEMES
from bundlekit.cases.case import Case
from bundlekit.errors import BundleError, Finding
from bundlekit.images.nifti import read_array, without_rounding

_log = logging.getLogger(__name__)


def set_et_label(cases: Sequence[Case], et_label: int | None) -> list[Finding]:
    """Give the cases their value of enhancing tumour: forced, else as seen in the labels, else by the names.

    The families of names are looked at apart, so that a folder may hold several. Under the names of 2023 and later a 4
    may be the resection cavity of BraTS 2024: labels that hold it and no 3 decide nothing.

    Args:
        cases: `label_values` changes in place.
        et_label: 3 or 4 for all cases but Decathlon's, which have numbers of their own; None: found out.

    Returns:
        A finding where somebody has to say what the 4 is.
    """
    findings = []
    for scheme in SCHEMES:
        values = [0, 1, 2, scheme.et_label]
        family = [case for case in cases if case["label_values"] == values]
        seen, file = (None, "") if et_label else _seen_et_label(family, usual=scheme.et_label)
        if not et_label and seen is None and any(case["label"] for case in family):
            _tell_one_class(family)
        if seen == 4 != scheme.et_label:
            expected = "3 (ET), with names of BraTS 2023 and later; there, 4 is the resection cavity of BraTS 2024"
            fix = "give --et_label 4 if it is enhancing tumour in all of them; cavities are another task"
            findings.append(Finding(file, "the value 4, and no label with names like it holds a 3", expected, fix))
            seen = None
        for case in family:
            case["label_values"] = [*values[:3], et_label or seen or scheme.et_label]
    return findings


def _tell_one_class(family: Sequence[Case]) -> None:
    """Warn of labels that all hold 1 alone: of whole tumours, say, which are no masks of parts."""
    labels = [case["label"] for case in family if case["label"]]
    seen: set[float] = set()
    for label in labels:
        with contextlib.suppress(BundleError):  # named when the case is decoded
            seen |= set(np.unique(without_rounding(read_array(label))).tolist())
    if seen <= {0, 1} and 1 in seen:
        text = (
            "the %d label(s), first %s, hold 0 and 1 alone: 1 is taken for NCR (NETC of metastases), and ED and ET for "
            "absent, which scores 1. Masks of whole tumours cannot train or score these classes"
        )
        _log.warning(text, len(labels), labels[0])


def _seen_et_label(family: Iterable[Case], usual: int) -> tuple[int | None, str]:
    """3 or 4, whichever the first label files hold, and the file.

    The unusual one only if no file of the family holds the usual. A 4 beside a 3 is the resection cavity of BraTS 2024;
    the case is refused, by name, when it is decoded.
    """
    unusual: tuple[int | None, str] = (None, "")
    for case in family:
        file = case["label"]
        try:
            seen = {3, 4} & set(np.unique(without_rounding(read_array(file))).tolist()) if file else set()
        except BundleError:  # named, with everything else, when the case is decoded
            continue
        if seen == {usual}:
            return usual, file
        if len(seen) == 1:
            unusual = int(seen.pop()), file
            if unusual[0] == 3:  # under the older names nothing else is numbered 3
                return unusual
    return unusual
