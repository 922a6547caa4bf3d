"""Which scans are of one patient, by the names of the cases: they stay on one side of every split."""

from __future__ import annotations

import re
from collections.abc import Sequence

from bundlekit.cases.case import Case

_OF_ONE_PATIENT = (
    r"(sub-[a-z0-9]+)(?:[_.].*)?",  # BIDS: sub-01_ses-2
    r".+\.long\.(.+)",  # FreeSurfer: sub01_a.long.sub01
    r"(BraTS-[a-z]+-\d+)-\d{3}",  # BraTS 2023+: BraTS-GLI-00001-000
    r"(BraTS1[789]_.+_\d+)_\d+",  # BraTS 2017-2019: Brats18_TCIA01_147_1
    r"(OAS[12]_\d{4}|OAS3\d{4})[_-].*",  # OASIS: OAS1_0061_MR2, OAS30001_MR_d0129
    r"(1\d{3})_\d",  # OASIS in MICCAI 2012: 1001_3
    r"(?:ADNI\d?_)?(\d{3}_S_\d{4,5})(?:[_.-].*)?",  # ADNI: 002_S_0295_2006-04-18
    r"(UPENN-GBM-\d{5})_\d{2}(?:[_.-].*)?",  # UPENN-GBM-00001_21
    r"(UCSD-PTGBM-\d{4})_\d{2}(?:[_.-].*)?",  # UCSD-PTGBM-0002_01
    r"(RHUH-\d{4})_\d(?:[_.-].*)?",  # RHUH-0001_0
    r"(UCSF-PDGM-\d+)(?:[_.-].*)?",  # UCSF-PDGM-0431_FU001d
    r"(\d{7})_\d+_\d+_\d+",  # UK Biobank: 1000011_20252_2_0
    r"(TCGA-[a-z0-9]{2}-[a-z0-9]{4})(?:[_.-].*)?",  # TCGA-02-0054_1999.10.01
    # sub1_ses2, Patient-001_week-040, x_followup, but not site_ses1_sub02; what was named above is not asked again
    r"(.+?)[_-](?:(?:ses|sess|session|visit|tp(?!53)|timepoint|week|month|fu)[_-]?\d(?!.*[_-](?:sub|subj|subject|pat|patient)[_-]?\d).*"
    r"|baseline|follow-?up\d*)",
)
_PATTERN = re.compile("|".join(f"(?:{pattern})" for pattern in _OF_ONE_PATIENT), re.IGNORECASE)

_CONTRAST = re.compile(
    r"(?<=.)(?:_(?:T1(?:w|ce|c|gd|post)?|T2w?|FLAIR|PDw?|SS|ana(?:_strip)?)|-t1[ncw]|-t2[wf])$", re.IGNORECASE
)


def without_contrast(name: str) -> str:
    """A scan's name without its contrast or stripping, which say nothing of the patient: "P01" of "P01_T1ce"."""
    return _CONTRAST.sub("", name)


def patient_of(case: str) -> str:
    """Name that all scans of one patient share, e.g. "sub-01" for "sub-01_ses-2"; else the case's own."""
    match = _PATTERN.fullmatch(case)
    return next(filter(None, match.groups())) if match else case


def join_longitudinal(cases: Sequence[Case]) -> None:
    """Give FreeSurfer's time points the patient of their longitudinal stream, in place.

    `a` and `a.long.base` are one scan, which the name `a` does not tell. A patient that a datalist names stays.
    """
    names = [str(case["case"]).rpartition(".long.") for case in cases]
    base_of = {point: base for point, stream, base in names if stream}
    for case in cases:
        if case["patient"] == case["case"] and case["case"] in base_of:
            case["patient"] = base_of[case["case"]]
