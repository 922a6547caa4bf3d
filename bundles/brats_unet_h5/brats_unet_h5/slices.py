"""Volumes of which each slice is a file of its own, `<volume>_slice_<k>.h5`."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from bundlekit.cases.case import Case
from bundlekit.errors import Finding

SLICE = re.compile(r"^(?P<case>.+)_slice_(?P<slice>\d+)\.(h5|hdf5)$", re.IGNORECASE)
_BRATS_GRID, _BRATS_SLICES = (240, 240), 155


def missing_slices(cases: Sequence[Case]) -> list[Finding]:
    """Findings for volumes with a gap or a slice twice; the first is slice 0, or 1 where no volume has a slice 0.

    How many slices there have to be is told by the other volumes, of BraTS's own grid by BraTS.

    Args:
        cases: complete, with `grid`; those that are one file are passed over.
    """
    volumes = [case for case in cases if case["layout"] == "slices"]
    numbers = {case["case"]: [_number(file) for file in case["image"]] for case in volumes}
    first = int(bool(numbers) and all(0 not in found for found in numbers.values()))
    counts = Counter(max(found) + 1 - first for found in numbers.values())
    usual = max(counts, key=lambda count: (counts[count], count), default=0)  # of most of them, else the largest
    findings = []
    for case in volumes:
        count = _BRATS_SLICES if tuple(case["grid"]) == _BRATS_GRID else usual
        found = numbers[case["case"]]
        last = max(count + first - 1, *found)
        missing = sorted(set(range(first, last + 1)) - set(found))
        if missing or len(set(found)) < len(found):
            what = f"{len(found)} slices of {case['case']}, without {_listed(missing)}" if missing else "a slice twice"
            fix = "export or download the missing files, or take the volume out of the folder"
            findings.append(Finding(case["image"][0], what, f"slices {first} to {last}", fix))
    return findings


def _number(file: str) -> int:
    named = SLICE.match(Path(file).name)
    return int(named["slice"]) if named is not None else 0


def _listed(numbers: Sequence[int]) -> str:
    text = ", ".join(map(str, numbers[:8]))
    return f"slice {text}" + (f" and {len(numbers) - 8} more" if len(numbers) > 8 else "")
