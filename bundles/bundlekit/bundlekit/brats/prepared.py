"""Whether a scan was prepared as the BraTS data sets are: skull-stripped, on a grid of about 1 mm."""

from __future__ import annotations

import logging

import numpy as np

from bundlekit.brats.naming import MODALITIES
from bundlekit.errors import BundleError, Finding
from bundlekit.images.nifti import voxel_ml
from bundlekit.images.stripping import LARGEST_BRAIN_ML, whole_head

_THICK_MM = 2.0  # slices; a volume of coarse cubes is accepted, with a warning
_RATIO = 1.5  # longest to shortest edge of a voxel
_USUAL_MM = (0.7, 1.5)
_log = logging.getLogger(__name__)


def refuse_unprepared(file: str, image: np.ndarray, affine: np.ndarray) -> None:
    """Refuse a scan as it leaves the scanner, of which a network trained on BraTS would make a wrong mask silently.

    Args:
        file: for the message.
        image: 4xHWD in the order T1, T1ce, T2, FLAIR; air of one value is 0.
        affine: 4x4, mm.

    Raises:
        BundleError: for a modality with the skull, and for slices of more than 2 mm whose voxels are no cubes.
    """
    edges = np.linalg.norm(affine[:3, :3], axis=0)
    fix = (
        "strip the skull, co-register the modalities and resample them to 1 mm first (e.g. with `python -m tools "
        "prepare` of the project, or FeTS), or go on knowingly with --allow_unprepared True"
    )
    findings = []
    spacing = "x".join(f"{edge:.3g}" for edge in edges)
    if edges.max() > _THICK_MM and edges.max() > _RATIO * edges.min():
        findings.append(Finding(file, f"voxels of {spacing} mm: thick slices", "cubes of about 1 mm", fix))
    if not findings and not (_USUAL_MM[0] <= edges.min() and edges.max() <= _USUAL_MM[1]):
        _log.warning(
            "%s: voxels of %s mm; the networks know 1 mm, and masks are worse at others. `python -m tools prepare` of "
            "the project brings scans to 1 mm, and `restore` the mask back.",
            file,
            spacing,
        )
    for modality, channel in zip(MODALITIES, image, strict=True):
        found = whole_head(channel, voxel_ml(affine))
        if found:
            expected = f"skull-stripped scans: a brain of at most {LARGEST_BRAIN_ML:.0f} ml, and air of one value"
            findings.append(Finding(f"{file} ({modality} of its case)", found, expected, fix))
            break
    if findings:
        raise BundleError(findings)
