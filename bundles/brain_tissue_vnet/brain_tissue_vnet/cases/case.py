"""A case of the bundle as a plain dict, and what can be wrong with its files.

Plain, so that it can be hashed, cached and written as JSON:

    case          name of the scan, e.g. "sub-01_ses-1"; unique within the data set
    patient       name that all scans of one patient share, e.g. "sub-01"
    image         list with the T1 file
    label         file of the segmentation, "" where there is none
    label_parts   where the segmentation is three probability maps: CSF, GM and WM in this order; `label` is the first
    numbering     what the label's numbers mean, a name in `numberings.NUMBERINGS`; "" where that is found out when the
                  label is decoded, for probability maps, and where there is no label
    label_values  the numbers that results are written with: 0 background, 1 CSF, 2 GM, 3 WM
    subset        "training" or "validation" where a datalist says so, else ""
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from bundlekit.cases.case import Case
from bundlekit.cases.patients import patient_of
from bundlekit.errors import Finding

PARTS = ("CSF", "GM", "WM")
"""Tissues of a label in probability maps, in the order of `label_parts`."""


def make_case(name: str, image: Path, label: Path | str = "", numbering: str = "") -> Case:
    """A case of one T1, "" where it has no label."""
    return {
        "case": name,
        "patient": patient_of(name),
        "image": [str(image)],
        "label": str(label),
        "numbering": numbering,
        "label_values": [0, 1, 2, 3],
        "subset": "",
    }


def without_image(label: Path, expected: str) -> Finding:
    """A label whose T1 is not there."""
    return Finding(
        str(label),
        "a segmentation without its T1",
        expected,
        "add the T1; results of an earlier run belong outside the data set folder",
    )


def doubled_files(folder: Path, case: str, what: str, paths: Iterable[Path]) -> Finding:
    """More than one file for the same `what` of a case."""
    return Finding(
        str(folder),
        f"case {case} has more than one {what}: {', '.join(str(path) for path in paths)}",
        "one T1 and one segmentation for each case",
        "keep one of them; results of an earlier run belong outside the data set folder",
    )
