"""How the files of BraTS data sets are named. A further scheme of names is a further entry of `SCHEMES`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from bundlekit.images.nifti import open_nifti

MODALITIES = ("T1", "T1ce", "T2", "FLAIR")
NIFTI = re.compile(r"\.nii(\.gz)?$", re.IGNORECASE)


RESTORED = "_seg_on_"  # in the name of a mask on the grid of an original scan, before the modality


@dataclass(frozen=True, eq=False)
class NamingScheme:
    """Names of the form `<case><separator><suffix>.nii[.gz]`, of any case of letters.

    Args:
        years: of the challenges that name their files so.
        separator: between case and suffix.
        suffixes: suffix -> modality, or "label" for the segmentation; of several for one, the first is the scheme's
            own and the others are what people call it elsewhere.
        et_label: value of enhancing tumour that goes with these names.
    """

    years: str
    separator: str
    suffixes: Mapping[str, str]
    et_label: int

    def match(self, name: str) -> tuple[str, str] | None:
        """Case and role (modality or "label") of a file name; None if it is not of this scheme."""
        # the shortest case is that before the longest suffix: P01_T2_FLAIR is P01's FLAIR
        pattern = rf"(?P<case>.+?){re.escape(self.separator)}(?P<suffix>{'|'.join(self.suffixes)})\.nii(\.gz)?"
        found = re.fullmatch(pattern, name, re.IGNORECASE | re.ASCII)
        return (found["case"], self.suffixes[found["suffix"].lower()]) if found else None

    def file_of(self, case: str, role: str) -> str:
        """Name of the file that holds a role."""
        suffix = next(suffix for suffix, holds in self.suffixes.items() if holds == role)
        return f"{case}{self.separator}{suffix}.nii.gz"


# a T1 after contrast medium, by its gadolinium or by its time
_T1CE = dict.fromkeys(("t1ce", "t1c", "t1gd", "t1post", "t1pc", "t1_ce", "t1_gd", "t1_post", "t1-ce", "t1-gd"), "T1ce")
_T1CE |= {"t1-post": "T1ce"}
_OTHERS = {"t1pre": "T1", "t1_pre": "T1", "t1-pre": "T1", "t2_flair": "FLAIR", "t2-flair": "FLAIR", "t2flair": "FLAIR"}
_OF_2023 = {"t1n": "T1", "t1c": "T1ce", "t2w": "T2", "t2f": "FLAIR"}

SCHEMES = (  # "_T2w" is BIDS's, too, so that it says nothing about the year
    NamingScheme(
        "2018-2021", "_", {"t1": "T1", **_T1CE, "t2": "T2", "t2w": "T2", "flair": "FLAIR", "seg": "label"} | _OTHERS, 4
    ),
    NamingScheme("2023+", "-", {**_OF_2023, **_T1CE, "seg": "label"} | _OTHERS, 3),
    NamingScheme("2023+", "_", {**_OF_2023, "seg": "label"}, 3),
)

# Medical Segmentation Decathlon Task01 stores FLAIR, T1w, T1gd, T2w in one 4-D file and numbers ED 1, NCR 2, ET 3
DECATHLON_IMAGES = ("imagesTr", "imagesTs")
DECATHLON_CHANNELS = [1, 2, 3, 0]
DECATHLON_LABELS = [0, 2, 1, 3]

EXPECTED = (
    "<case>_{t1,t1ce,t2,flair}.nii[.gz] (BraTS 2018-2021), <case>-{t1n,t1c,t2w,t2f}.nii[.gz] (BraTS 2023+, or with _), "
    "imagesTr/<case>.nii.gz (Medical Segmentation Decathlon Task01) or 4-D NIfTI files"
)
"""The schemes, as a message tells them."""


def scheme_of(name: str) -> NamingScheme | None:
    """The scheme that a file is named by, None if no scheme has such a name."""
    fitting = {scheme: found[0] for scheme in SCHEMES if (found := scheme.match(name))}
    return min(fitting, key=lambda scheme: len(fitting[scheme]), default=None)  # P01-T2_FLAIR is P01's FLAIR


def newest_scheme(names: Iterable[str]) -> NamingScheme:
    """The newest scheme that a case's files are named by, since `_t1c` and `_seg` are older names, too.

    The oldest if no file is named by any.
    """
    found = [scheme for name in names if (scheme := scheme_of(name))]
    return max(found, key=lambda scheme: scheme.years, default=SCHEMES[0])


def role_of(name: str) -> tuple[str, str] | None:
    """Case and role (modality or "label") of a BraTS file name; None for a mask that was brought back to a scan."""
    if RESTORED in name.lower():
        return None
    scheme = scheme_of(name)
    return scheme.match(name) if scheme else None


def label_values_of(*names: str) -> list[int]:
    """Values of background, NCR, ED and ET that go with the names of a case's files."""
    return [0, 1, 2, newest_scheme(names).et_label]


def may_be_4d(file: Path) -> bool:
    """Whether a file of another name may hold all modalities: what cannot be read is, to be named later."""
    if file.parent.name in (*DECATHLON_IMAGES, "labelsTr", "labelsTs"):
        return file.parent.name in DECATHLON_IMAGES
    try:
        return len(open_nifti(file).shape) != 3
    except Exception:
        return True
