"""Which value of a data set's labels is enhancing tumour: 4 until BraTS 2021, 3 from 2023 on, and 4 or 3 elsewhere."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from bundlekit.brats.naming import SCHEMES
from bundlekit.cases.case import Case
from bundlekit.errors import BundleError
from bundlekit.images.nifti import read_array


def set_et_label(cases: Sequence[Case], et_label: int | None) -> None:
    """Give the cases their value of enhancing tumour: forced, else as seen in the labels, else by the names.

    The families of names are looked at apart, so that a folder may hold several.

    Args:
        cases: `label_values` changes in place.
        et_label: 3 or 4 for all cases; None: found out.
    """
    for scheme in SCHEMES:
        values = [0, 1, 2, scheme.et_label]
        family = [case for case in cases if case["label_values"] == values]
        value = et_label or _seen_et_label(family, usual=scheme.et_label) or scheme.et_label
        for case in family:
            case["label_values"] = [*values[:3], value]


def _seen_et_label(family: Iterable[Case], usual: int) -> int | None:
    """3 or 4, whichever the first label files hold; the unusual one only if no file of the family holds the usual.

    A 4 beside a 3 is the resection cavity of BraTS 2024; the case is refused, by name, when it is decoded.
    """
    unusual = None
    for case in family:
        try:
            seen = {3, 4} & set(np.unique(read_array(case["label"])).tolist()) if case["label"] else set()
        except BundleError:  # named, with everything else, when the case is decoded
            continue
        if seen == {usual}:
            return usual
        if len(seen) == 1:
            unusual = int(seen.pop())
            if unusual == 3:  # under the older names nothing else is numbered 3
                return unusual
    return unusual
