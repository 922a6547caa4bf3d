"""Native in, native out: preprocessing and its inverse on scans of any orientation, obliquity and voxel size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from scipy.spatial.transform import Rotation

from brain_tissue_vnet.cases import find_cases
from tests.conftest import ROOT

CONFIG = ROOT / "bundles" / "brain_tissue_vnet" / "configs" / "inference.yaml"
CENTRE_MM = np.array([12.0, -20.0, 31.0])
HEAD_MM, CORE_MM = 62.0, 24.0


def affine_of(spacing: tuple[float, float, float], angles: tuple[float, float, float], flips=(1, 1, 1)) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", angles, degrees=True).as_matrix() @ np.diag(np.multiply(spacing, flips))
    return affine


def phantom(path: Path, spacing: tuple[float, float, float], angles=(0, 0, 0), flips=(1, 1, 1), axes=(0, 1, 2)) -> Any:
    """A dark ball with a bright one in it, off its centre, drawn in millimetres; returns the file's image."""
    shape = np.ceil(140 / np.asarray(spacing)).astype(int)
    affine = affine_of(spacing, angles, flips)
    affine[:3, 3] = CENTRE_MM - affine[:3, :3] @ ((shape - 1) / 2)
    index = np.indices(shape).reshape(3, -1)
    world = affine[:3, :3] @ index + affine[:3, 3:]
    distance = np.linalg.norm(world - CENTRE_MM[:, None], axis=0).reshape(shape)
    core = np.linalg.norm(world - np.add(CENTRE_MM, (9, 5, -7))[:, None], axis=0).reshape(shape)
    array = np.where(core < CORE_MM, 300, np.where(distance < HEAD_MM, 100, 0)).astype(np.int16)
    image = nib.Nifti1Image(np.transpose(array, axes), affine @ np.eye(4)[:, [*axes, 3]])
    nib.save(image, path)
    return image


def there_and_back(path: Path, **settings: Any) -> np.ndarray:
    """The bright ball, found by a threshold in place of the network, on the scan's own grid."""
    parser = ConfigParser()
    parser.read_config(str(CONFIG))
    parser.update({"dataset_dir": str(path), "clahe": 0, "normalise": "percentile", "checkpoint": "none/model.pt"})
    parser.update(settings)
    (case,) = parser.get_parsed_content("cases")
    data = parser.get_parsed_content("preprocessing")(case)
    image = data["image"]
    white = (image > 0.5).float() * 40 - 20
    logits = torch.zeros(4, *image.shape[1:])
    logits[3], logits[0] = white[0], -white[0]
    data["pred"] = type(image)(logits, meta=dict(image.meta))
    out = parser.get_parsed_content("postprocessing")(data)
    return np.asarray(out["pred"])[0] == 3


@pytest.mark.parametrize("fit", ["none", "pad", "resize"])
@pytest.mark.parametrize(
    "scan",
    [
        {"spacing": (1, 1, 1)},
        {"spacing": (0.9, 0.9, 3.0), "angles": (12, -20, 8), "flips": (-1, 1, 1)},
        {"spacing": (2.0, 1.2, 0.8), "angles": (-5, 30, 40), "flips": (1, -1, -1), "axes": (2, 0, 1)},
        {"spacing": (0.75, 1.5, 1.5), "axes": (1, 2, 0)},
        {"spacing": (3, 3, 3)},
    ],
)
def test_mask_comes_back_within_half_a_voxel(tmp_path: Path, scan: dict[str, Any], fit: str) -> None:
    image = phantom(tmp_path / "scan.nii.gz", **scan)
    truth = np.asarray(image.dataobj) == 300
    mask = there_and_back(tmp_path / "scan.nii.gz", fit=fit, uniform_shape=[144, 160, 144])
    assert mask.shape == truth.shape
    shift = np.argwhere(mask).mean(0) - np.argwhere(truth).mean(0)
    assert np.abs(shift).max() < 0.5, "voxels of the scan"
    assert np.abs(shift * nib.affines.voxel_sizes(image.affine)).max() < 0.5, "mm"
    assert 2 * (mask & truth).sum() / (mask.sum() + truth.sum()) > (0.93 if max(scan["spacing"]) < 2 else 0.85)


@pytest.mark.parametrize("fit", ["none", "pad", "resize"])
def test_image_and_label_stay_on_each_other_in_training(tmp_path: Path, fit: str) -> None:
    image = phantom(tmp_path / "a_T1.nii.gz", (1.1, 0.9, 1.6), angles=(12, -20, 8), flips=(-1, 1, 1))
    label = (np.asarray(image.dataobj) == 300).astype(np.uint8) * 3
    nib.save(nib.Nifti1Image(label, image.affine), tmp_path / "a_seg.nii.gz")
    parser = ConfigParser()
    overlays = ["pad.yaml"] if fit == "pad" else []
    parser.read_config([str(CONFIG.with_name(name)) for name in ("train.yaml", *overlays)])
    parser.update({"clahe": 0, "normalise": "percentile", "uniform_shape": [176, 160, 150]})
    parser["fit"] = "none" if fit == "pad" else fit
    (case,) = find_cases(tmp_path)
    data = parser.get_parsed_content("validate::preprocessing")(case)
    bright, marked = (np.argwhere(np.asarray(v)[0]) for v in (data["image"] > 0.5, data["label"] == 3))
    assert np.abs(bright.mean(0) - marked.mean(0)).max() < 0.2, "voxels; a label resampled half a voxel off has 0.45"
    assert len(marked) == pytest.approx(len(bright), rel=0.06)


def test_resampling_nothing_changes_nothing(tmp_path: Path) -> None:
    image = phantom(tmp_path / "scan.nii.gz", (1, 1, 1), flips=(-1, -1, 1))
    mask = there_and_back(tmp_path / "scan.nii.gz", fit="none")
    np.testing.assert_array_equal(mask, np.asarray(image.dataobj) == 300)


def test_own_voxel_size_can_be_kept(tmp_path: Path) -> None:
    image = phantom(tmp_path / "scan.nii.gz", (0.9, 0.9, 3.0), angles=(12, -20, 8))
    mask = there_and_back(tmp_path / "scan.nii.gz", fit="none", spacing=None)
    np.testing.assert_array_equal(mask, np.asarray(image.dataobj) == 300)


def test_a_4d_scan_of_one_frame(tmp_path: Path) -> None:
    image = phantom(tmp_path / "flat.nii.gz", (1.5, 1.5, 1.5))
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj)[..., None], image.affine), tmp_path / "scan.nii.gz")
    (tmp_path / "flat.nii.gz").unlink()
    truth = np.asarray(image.dataobj) == 300
    mask = there_and_back(tmp_path / "scan.nii.gz", fit="none")
    assert mask.shape == truth.shape
    assert 2 * (mask & truth).sum() / (mask.sum() + truth.sum()) > 0.93
