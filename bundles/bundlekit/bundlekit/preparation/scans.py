"""The scans of one head, as they come from files. Another format is another way to make a `Scan`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bundlekit.brats.naming import EXPECTED, MODALITIES, role_of
from bundlekit.cases.case import MOST_MISSING
from bundlekit.cases.folders import nothing_found, walk
from bundlekit.cases.headers import check_headers
from bundlekit.errors import BundleError, Finding
from bundlekit.files import sha256_of
from bundlekit.images.air import air_at_zero, air_for_nan
from bundlekit.images.nifti import check_voxels, is_dicom, read_affine, read_volume, tells_orientation
from bundlekit.images.stripping import whole_head
from bundlekit.preparation.grids import Grid

if TYPE_CHECKING:
    from bundlekit.preparation.dicom_series import Stack  # at run time of those who have DICOM

# a DICOM file without a mark begins with the group 0008, or that of the meta header, little endian
_UNMARKED = (
    b"\x02\x00\x00\x00",
    b"\x08\x00\x00\x00",
    b"\x08\x00\x01\x00",
    b"\x08\x00\x05\x00",
    b"\x08\x00\x08\x00",
    b"\x08\x00\x16\x00",
)


_FILES = "name the scans: --t1 FILE --t1ce FILE --t2 FILE --flair FILE"


@dataclass
class Scan:
    """One modality of a head.

    Args:
        modality: T1, T1ce, T2 or FLAIR.
        file: where it came from.
        voxels: HWD float32; air of one value is 0.
        grid: of the voxels.
        sha256: of the file; "" if it came from DICOM.
        stack: of DICOM slices that it came from; None: it came from a NIfTI file.
    """

    modality: str
    file: Path
    voxels: np.ndarray
    grid: Grid
    sha256: str
    stack: Stack | None = None

    @cached_property
    def skull(self) -> str:
        """What shows that it is a whole head, see `whole_head`; "" if it is stripped."""
        return whole_head(self.voxels, self.grid.voxel_ml)


def read_scan(modality: str, file: str | os.PathLike) -> Scan:
    """A scan of a NIfTI file, checked.

    Raises:
        BundleError: for a file that is missing, not whole, not 3-D, or whose voxels are no image or not at right
            angles.
    """
    path = Path(file).expanduser()
    if path.is_dir() or (path.is_file() and is_dicom(path)):
        found = "a folder" if path.is_dir() else "one file of DICOM"
        fix = f"give the folder of the DICOM study first, and here the number of its series: DIR --{modality.lower()} 5"
        raise BundleError(Finding(str(path), found, f"a NIfTI file with the {modality}", fix))
    if not path.is_file():
        raise BundleError(Finding(str(path), "no such file", f"the {modality}", f"check --{modality.lower()}"))
    (findings,) = check_headers([{"image": [str(path)], "label": ""}])
    if not findings and not tells_orientation(path):
        found = "a header that does not tell how the head lies (sform_code and qform_code are 0)"
        fix = "convert it again from DICOM, e.g. by dcm2niix, or set its sform, e.g. by nibabel; left and right matter"
        findings = [Finding(str(path), found, "an sform or a qform", fix)]
    if findings:
        raise BundleError(findings)
    array = air_for_nan(read_volume(str(path)), str(path))
    findings = check_voxels(str(path), array)
    grid = Grid(array.shape, read_affine(str(path)))  # type: ignore[arg-type]
    if grid.sheared:
        expected = "axes at right angles, which a rigid move keeps"
        findings.append(Finding(str(path), "a sheared affine", expected, "resample it without shear, or mend it"))
    if findings:
        raise BundleError(findings)
    return Scan(modality, path, air_at_zero(array, str(path)), grid, sha256_of(path))


def find_scans(folder: str | os.PathLike, out: str | os.PathLike | None = None) -> tuple[str, dict[str, str]]:
    """Name and files (by modality) of the one case of a folder, by its BraTS-like names.

    Args:
        folder: searched to any depth.
        out: folder of results, which may lie in it: what is in there is no scan. None: there is none.

    Raises:
        BundleError: if there is none or more than one, or more than one file of a modality.
    """
    root = Path(folder).expanduser()
    if not root.is_dir():
        found, fix = ("a file", _FILES) if root.is_file() else ("no such folder", "check its name")
        if root.suffix.lower() in (".zip", ".tar", ".tgz", ".7z"):
            fix = "unpack it, and give the folder"
        raise BundleError(Finding(str(root), found, "a folder with the scans of one head", fix))
    cases: dict[str, dict[str, str]] = {}
    findings = []
    results = Path(out).expanduser().resolve() if out is not None else None
    for where, names in walk(root):
        if results is not None and where.resolve() != root.resolve() and where.resolve().is_relative_to(results):
            continue
        for name in names:
            case, role = role_of(name) or ("", "label")
            if role == "label":
                continue
            files = cases.setdefault(case, {})
            if role in files:
                found = f"more than one {role} of {case}: {files[role]}"
                findings.append(Finding(str(where / name), found, "one file for each modality", "keep one of them"))
            files[role] = str(where / name)
    if findings:
        raise BundleError(findings)
    if not cases:
        expected = " or ".join(EXPECTED.split(", ")[:2])  # a file for each modality
        raise BundleError(nothing_found(root, f"{expected}, or a DICOM study", "no scan with such a name", _FILES))
    if len(cases) > 1:
        found = f"{len(cases)} cases: {', '.join(sorted(cases)[:6])}"
        raise BundleError(Finding(str(root), found, "the scans of one head", "give the folder of one case"))
    return next(iter(cases.items()))


def has_scans(folder: str | os.PathLike) -> bool:
    """Whether a folder has NIfTI scans with BraTS-like names in it or below it."""
    root = Path(folder).expanduser()
    roles = (role_of(name) for _, names in walk(root) for name in names) if root.is_dir() else iter(())
    return any(role and role[1] != "label" for role in roles)


def holds_dicom(path: str | os.PathLike) -> bool:
    """Whether a folder has a DICOM file in it or below it, or a file is one itself."""
    given = Path(path).expanduser()
    if given.is_file():
        return looks_like_dicom(given)
    return given.is_dir() and any(looks_like_dicom(where / name) for where, names in walk(given) for name in names)


def looks_like_dicom(file: Path) -> bool:
    """Whether a file begins as DICOM, with its mark or as files of before 1993."""
    if is_dicom(file):
        return True
    try:
        with file.open("rb") as opened:
            return opened.read(4) in _UNMARKED
    except OSError:
        return False


def refuse_missing(files: Mapping[str, str], fill_missing: bool, where: str) -> list[str]:
    """The modalities that are missing, if they may be.

    Args:
        files: by modality.
        fill_missing: accept that one or two are missing.
        where: for the message.

    Raises:
        BundleError: naming them.
    """
    missing = [modality for modality in MODALITIES if not files.get(modality)]
    if len(missing) > MOST_MISSING * fill_missing:
        fix = ", ".join(f"--{modality.lower()} FILE" for modality in missing)
        if len(missing) <= MOST_MISSING:
            fix += ", or go on without: --fill_missing True (zeros take its place then, and the mask is worse)"
        expected = f"{', '.join(MODALITIES)}" + (f"; at most {MOST_MISSING} may be missing" if fill_missing else "")
        raise BundleError(Finding(where, f"no {' and no '.join(missing)}", expected, f"give {fix}"))
    return missing


def are_prepared(scans: list[Scan], spacing_mm: float = 1.0) -> bool:
    """Whether the scans are as BraTS has them: on one grid of 1 mm (or of `spacing_mm`), and stripped."""
    first = scans[0].grid
    return (
        bool((np.abs(first.spacing / spacing_mm - 1) < 0.05).all())
        and all(scan.grid.same_as(first) for scan in scans)
        and not any(scan.skull for scan in scans)
    )
