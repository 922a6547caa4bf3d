"""Decode the files of a case once, and check every voxel."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import Transform
from nibabel.affines import apply_affine

from bundlekit.cases.case import Case
from bundlekit.cases.served import is_served, load_served
from bundlekit.errors import BundleError, Finding
from bundlekit.images.nifti import check_voxels, read_affine, read_volume, tells_orientation, whole_numbers

from .cases import find_cases
from .numberings import numbering_of, to_classes
from .organs import Classes

_PADDING_HU = -1100.0  # below air
_FAT_HU = -30.0  # every CT of a body has fat, lung or air below this
_LEAST_FAT = 0.005  # of the voxels
_LEAST_TISSUE = 0.01  # of the voxels, above fat
_LEAST_RANGE_HU = 200.0  # between the 0.5 and the 99.5 % percentile
_SAMPLE = 500_000  # voxels that are looked at for these

# organs that lie on one side of others in everybody: axis in RAS+, the organs with the larger coordinate, the others
_SIDES = (
    (0, "right", ("liver", "right kidney", "gallbladder"), ("spleen", "left kidney")),
    (1, "in front", ("liver", "stomach", "gallbladder"), ("right kidney", "left kidney", "kidneys")),
    (2, "above", ("liver", "spleen"), ("right kidney", "left kidney", "kidneys")),
)

_KIDNEYS = {"right kidney", "left kidney"}


def read_label(case: Case) -> tuple[np.ndarray, np.ndarray]:
    """The segmentation of a case as class indices on its own grid, with its affine.

    Args:
        case: as `cases.find_cases` gives it.

    Returns:
        HWD uint8, and the 4x4 affine (mm).

    Raises:
        BundleError: for numbers that the numbering does not have, and where parts of a label are of different grids or
            hold other values than 0 and 1.
    """
    file = case["label"]
    if case.get("label_parts"):
        return _merged(case), read_affine(file)
    numbering = numbering_of(case["numbering"], file)
    return to_classes(read_volume(file), numbering, case["classes"], file), read_affine(file)


class LoadCTd(Transform):
    """Decode and check one case (see `cases`): the only place where voxels of a CT or its label are read.

    The output holds `image` (1xHWD float32 `MetaTensor`, HU), `label` (1xHWD uint8 `MetaTensor`, class indices, only if
    `with_label`), and for those who write or score: `case`, `source` (the CT file), `label_file` ("" if none),
    `label_values`, `native_affine` (4x4) and `native_shape` (3).

    Args:
        with_label: whether to decode the segmentation too.
        check_orientation: refuse a case whose organs lie on the wrong side of each other by its affine (liver left of
            the spleen, kidneys in front of the liver or above it), which a flipped axis gives; False for situs
            inversus.

    Raises:
        BundleError: for a file that is not whole, a NaN or infinite voxel, intensities that are not in HU, an unknown
            number in the label, a flipped axis; all findings of the case at once.
    """

    def __init__(self, with_label: bool = True, check_orientation: bool = True) -> None:
        self.with_label = with_label
        self.check_orientation = check_orientation

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Decode `data`, one case as `cases.find_cases` gives it, or one that a server names by a path."""
        if is_served(data):
            return load_served(self, find_cases, data)
        findings: list[Finding] = []
        case = {str(key): value for key, value in data.items()}
        (file,) = case["image"]
        image, label = None, None
        try:
            image = read_volume(file)
            findings += check_voxels(file, image) or check_hu(file, image)
        except BundleError as error:
            findings += error.findings
        if self.with_label:
            try:
                label, affine = read_label(case)
                if self.check_orientation:
                    findings += check_sides(label, affine, case["classes"], case["label"])
            except BundleError as error:
                findings += error.findings
        if findings:
            raise BundleError(findings)
        assert image is not None
        native_affine = torch.from_numpy(read_affine(file))
        voxels: np.ndarray = np.empty(image.shape, np.float32)
        voxels[...] = image  # in the machine's own byte order, in one pass
        result: dict[Hashable, Any] = {
            "image": MetaTensor(torch.from_numpy(voxels)[None], affine=native_affine),
            "case": case["case"],
            "source": file,
            "label_file": case["label"],
            "grid_known": tells_orientation(file),
            "label_values": torch.tensor([int(v) for v in case["label_values"]]),
            "native_affine": native_affine,
            "native_shape": torch.tensor(image.shape),
        }
        if label is not None:
            result["label"] = MetaTensor(torch.from_numpy(label)[None], affine=native_affine)
        return result


def check_hu(file: str, image: np.ndarray) -> list[Finding]:
    """A finding if intensities cannot be Hounsfield units of a body.

    MRI, windowed or normalised images, an intercept that was lost or subtracted twice, air alone.
    """
    sample = image.ravel()[:: max(image.size // _SAMPLE, 1)]
    if (scanned := sample[sample > _PADDING_HU]).size:  # what fills the corners around the scan is no fat
        sample = scanned
    low, high = (float(v) for v in np.percentile(sample, [0.5, 99.5]))
    fat = float((sample < _FAT_HU).mean())
    tissue = float((sample > _FAT_HU).mean())
    if fat >= _LEAST_FAT and tissue >= _LEAST_TISSUE and high - low >= _LEAST_RANGE_HU:
        return []
    found = f"intensities from {low:g} to {high:g} (0.5 to 99.5 %), {fat:.1%} of the voxels below {_FAT_HU:g}"
    fix = "give the CT itself; an MRI, or an image that was windowed or normalised, cannot be used"
    if low >= 0 and high > 800:
        fix = "if it is a CT that lost its intercept, subtract 1024 (the DICOM header has it); an MRI cannot be used"
    elif tissue < _LEAST_TISSUE:
        found = f"intensities from {low:g} to {high:g} (0.5 to 99.5 %), {tissue:.1%} of the voxels above {_FAT_HU:g}"
        fix = "if its intercept was subtracted twice, add 1024; a volume of air alone cannot be used"
    return [Finding(file, found, "a CT in Hounsfield units: air about -1000, fat about -100, bone above 300", fix)]


def check_sides(label: np.ndarray, affine: np.ndarray, classes: Classes, file: str) -> list[Finding]:
    """Findings for axes along which the organs lie the wrong way round, by their centres of mass.

    Args:
        label: class indices, HWD.
        affine: 4x4, voxel to mm, RAS+.
        classes: what the indices mean; those of one organ, and the kidneys taken together, are looked at.
        file: name for the messages.
    """
    wanted = {name for _, _, first, second in _SIDES for name in (*first, *second)}
    centres: dict[str, np.ndarray] = {}
    for index, organs in enumerate(classes.values(), 1):
        name = "kidneys" if set(organs) == _KIDNEYS else organs[0] if len(organs) == 1 else ""
        if name in wanted:
            # the mean over each axis' profile costs a third of listing the voxels
            mask = label == index
            profiles = [mask.sum(axis=tuple({0, 1, 2} - {axis})) for axis in range(3)]
            if profiles[0].sum():
                centre = [float((p * np.arange(len(p))).sum() / p.sum()) for p in profiles]
                centres[name] = np.asarray(apply_affine(affine, centre))
    findings = []
    for axis, word, first, second in _SIDES:
        offsets = [
            (centres[a][axis] - centres[b][axis], a, b) for a in first for b in second if a in centres and b in centres
        ]
        if offsets and all(mm < 0 for mm, _, _ in offsets):
            mm, a, b = min(offsets)
            findings.append(
                Finding(
                    file,
                    f"{a} lies {-mm:.0f} mm on the other side of {b}, by the file's affine",
                    f"{a} {'to the ' if word == 'right' else ''}{word} of {b}",
                    "an axis is flipped, or left and right are exchanged: mend the affine or the voxels of CT and "
                    "label; for mirrored anatomy (situs inversus) give --check_orientation False",
                )
            )
    return findings


def _merged(case: Case) -> np.ndarray:
    index = {organ: i for i, organs in enumerate(case["classes"].values(), 1) for organ in organs}
    merged: np.ndarray | None = None
    for organ, file in zip(case["part_organs"], case["label_parts"], strict=True):
        part = whole_numbers(read_volume(file), file)
        if merged is None:
            merged = np.zeros(part.shape, np.uint8)
        values = np.unique(part)
        if part.shape != merged.shape or not np.isin(values, (0, 1)).all():
            found = f"shape {part.shape}" if part.shape != merged.shape else f"the values {values[:8].tolist()}"
            raise BundleError(
                Finding(file, found, f"a mask of 0 and 1 on a grid of {merged.shape}", "give the organ's own mask")
            )
        merged[part > 0] = index[organ]
    assert merged is not None
    return merged
