"""Which scans of a BraTS data set are of one patient."""

from __future__ import annotations

import re

# BraTS 2023+ "BraTS-GLI-00001-000" and BraTS 2017-2019 "Brats18_TCIA01_147_1" end on the time point
_TIME_POINT = re.compile(r"^(BraTS-[A-Za-z]+-\d+)-\d{3}$|^(BraTS1[789]_.+_\d+)_\d+$", re.IGNORECASE)


def patient_of(case: str) -> str:
    """Name that all scans of one patient share, e.g. "BraTS-GLI-00001" for "BraTS-GLI-00001-000"."""
    match = _TIME_POINT.match(case)
    return next(filter(None, match.groups())) if match else case
