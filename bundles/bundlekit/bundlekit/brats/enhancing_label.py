"""Which value of a data set's labels is enhancing tumour: 4 until BraTS 2021, 3 from 2023 on, and 4 or 3 elsewhere."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence

import numpy as np

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
    families = {usual: [case for case in cases if case["label_values"] == [0, 1, 2, usual]] for usual in (4, 3)}
    for usual, family in families.items():
        seen, file = (None, "") if et_label else _seen_et_label(family, usual)
        if seen == 4 != usual:
            expected = "3 (ET), with names of BraTS 2023 and later; there, 4 is the resection cavity of BraTS 2024"
            fix = "give --et_label 4 if it is enhancing tumour in all of them; cavities are another task"
            findings.append(Finding(file, "the value 4, and no label with names like it holds a 3", expected, fix))
            seen = None
        for case in family:
            case["label_values"] = [0, 1, 2, et_label or seen or usual]
    return findings


def _tell_one_class(labels: Sequence[str], values: set[float]) -> None:
    """Warn of labels that all hold 1 alone: of whole tumours, say, which are no masks of parts."""
    if values <= {0, 1} and 1 in values:
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
    labels = [case["label"] for case in family if case["label"]]
    values: set[float] = set()
    for file in labels:
        try:
            values |= (held := set(np.unique(without_rounding(read_array(file))).tolist()))
        except BundleError:  # named, with everything else, when the case is decoded
            continue
        seen = held & {3, 4}
        if seen == {usual}:
            return usual, file
        if len(seen) == 1:
            unusual = int(seen.pop()), file
            if unusual[0] == 3:  # under the older names nothing else is numbered 3
                return unusual
    _tell_one_class(labels, values)
    return unusual
