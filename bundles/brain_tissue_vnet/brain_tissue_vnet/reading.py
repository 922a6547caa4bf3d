"""Decode the files of a case once, and check every voxel."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import Transform

from bundlekit.cases.case import Case
from bundlekit.cases.served import is_served, load_served
from bundlekit.errors import BundleError, Finding
from bundlekit.images.air import air_at_zero, air_for_nan
from bundlekit.images.nifti import check_voxels, read_affine, read_volume, tells_orientation
from bundlekit.label_maps.numberings import CSF_OR_GM, GM, IGNORE, WM, detect, to_tissue

from .cases import find_cases

_TOLERANCE = 0.01  # of probabilities: they come resampled, and as scaled integers

_log = logging.getLogger(__name__)


def read_tissue(case: Case) -> tuple[np.ndarray, np.ndarray]:
    """The segmentation of a case as classes on its own grid, with its affine.

    Args:
        case: with `label` and `numbering` ("": found out from the numbers in the file), or with `label_parts`.

    Returns:
        HWD uint8 of the values in `numberings` (0 to 3, CSF_OR_GM, IGNORE), and the 4x4 affine (mm).

    Raises:
        BundleError: for numbers that the numbering does not have, a numbering that cannot be found out, and for
            probabilities that are none.
    """
    classes, affine, _ = _read_tissue(case)
    return classes, affine


class LoadTissued(Transform):
    """Decode and check one case (`cases.Case`): the only place where the bundle reads voxels of a T1 or its label.

    The output holds `image` (1xHWD float32 `MetaTensor`; a constant that the air holds is subtracted), `label` (1xHWD
    uint8 `MetaTensor`, 0 to 3 and IGNORE, which CSF_OR_GM is for a loss, only if `with_label`), and for those who write
    or score: `case`, `source` (the T1 file), `label_file` ("" if none), `label_values` (4 integers) and `numbering` (of
    the label, found out if the case does not say; "" for probability maps and without label).

    Where `image` is a path instead of a list, as from MONAI Label, the case it belongs to is found and checked as
    `find_cases` does, and other keys are kept.

    A label is taken at its numbering's word, but where white matter is not brighter than grey in the T1, the log warns:
    either the numbering is wrong (BIDS and FSL give 1, 2, 3 to different tissues) or the image is no adult's T1.

    Args:
        with_label: whether to decode the segmentation too.

    Raises:
        BundleError: for a file that is not whole, a NaN or infinite voxel, a constant image, an unknown number in the
            label; all findings of the case at once.
    """

    def __init__(self, with_label: bool = True) -> None:
        self.with_label = with_label

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Decode `data`, a case of `cases.find_cases`, or the case of a path."""
        if is_served(data):
            return load_served(self, find_cases, data)
        findings: list[Finding] = []
        (file,) = data["image"]
        image, label, numbering = None, None, data["numbering"]
        try:
            image = air_for_nan(read_volume(file), file)
            findings += check_voxels(file, image)
        except BundleError as error:
            findings += error.findings
        if self.with_label:
            try:
                label, _, numbering = _read_tissue(dict(data))  # type: ignore[arg-type]
            except BundleError as error:
                findings += error.findings
        if findings:
            raise BundleError(findings)
        assert image is not None
        affine = torch.from_numpy(read_affine(file))
        intensities = air_at_zero(image, file, lowest=True)
        result: dict[Hashable, Any] = {
            "image": MetaTensor(torch.from_numpy(intensities)[None], affine=affine),
            "case": data["case"],
            "source": file,
            "label_file": data["label"],
            "grid_known": tells_orientation(file),
            "label_values": torch.tensor([int(v) for v in data["label_values"]]),
            "numbering": numbering,
        }
        if label is not None:
            for_loss = np.where(label == CSF_OR_GM, np.uint8(IGNORE), label)
            result["label"] = MetaTensor(torch.from_numpy(for_loss)[None], affine=affine)
            _warn_of_contrast(image, label, data["label"], numbering)
        return result


def _read_tissue(case: Case) -> tuple[np.ndarray, np.ndarray, str]:
    """As `read_tissue`, and the numbering that was used."""
    file = case["label"]
    if case.get("label_parts"):
        return _most_probable(case["label_parts"]), read_affine(file), ""
    labels = read_volume(file)
    numbering = case["numbering"] or detect(labels, file)
    affine = read_affine(file)
    spacing_mm = np.linalg.norm(affine[:3, :3], axis=0)
    return to_tissue(labels, numbering, spacing_mm.tolist(), file), affine, numbering


def _most_probable(files: Sequence[str]) -> np.ndarray:
    """The class of the highest probability, of background (what is left to 1), CSF, GM and WM."""
    parts: list[np.ndarray] = []
    for file in files:
        part = _native(read_volume(file), np.float32)
        low, high = float(part.min()), float(part.max())
        if not (low >= -_TOLERANCE and high <= 1 + _TOLERANCE):  # NaN, too
            raise BundleError(
                Finding(file, f"values from {low:g} to {high:g}", "probabilities from 0 to 1", "rescale the file")
            )
        if parts and part.shape != parts[0].shape:
            found = f"a grid of {'x'.join(map(str, part.shape))} voxels"
            expected = f"that of {files[0]}: {'x'.join(map(str, parts[0].shape))}"
            raise BundleError(Finding(file, found, expected, "resample the maps of a case to one grid"))
        parts.append(part)
    return np.stack([1 - sum(parts), *parts]).argmax(axis=0).astype(np.uint8)


def _native(array: np.ndarray, dtype: type) -> np.ndarray:
    """A contiguous copy of this type in the machine's own byte order, made in one pass."""
    out: np.ndarray = np.empty(array.shape, dtype)
    out[...] = array
    return out


def _warn_of_contrast(image: np.ndarray, label: np.ndarray, file: str, numbering: str) -> None:
    grey, white = image[label == GM], image[label == WM]
    if grey.size and white.size and float(white.mean()) <= float(grey.mean()):
        _log.warning(
            "%s: in the T1, what the numbering %s calls white matter (mean %.4g) is not brighter than grey matter "
            "(mean %.4g). If that is a mistake, name the right one with --numbering NAME.",
            file,
            numbering or "of the probability maps",
            float(white.mean()),
            float(grey.mean()),
        )
