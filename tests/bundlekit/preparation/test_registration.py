"""A known move is found, and what cannot be believed is doubted."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest

from bundlekit.preparation.registration import (
    Volume,
    _has_skull,
    _in_thin_slices,
    distance_mm,
    mutual_information,
    register,
    searched,
)
from tests.bundlekit.preparation.conftest import moved


def test_mutual_information_by_hand() -> None:
    coin = np.array([0.0, 0.0, 1.0, 1.0] * 50)
    assert mutual_information(coin, -coin) == pytest.approx(np.log(2))
    assert mutual_information(coin, np.array([0.0, 1.0] * 100)) == pytest.approx(0)


def test_distance_by_hand() -> None:
    shift = np.eye(4)
    shift[:3, 3] = (3, 4, 0)
    assert distance_mm(shift, np.eye(4), np.zeros((2, 3))) == pytest.approx(5)


def test_a_known_move_is_found_within_a_millimetre(glioma: dict[str, np.ndarray], move: np.ndarray) -> None:
    affine = glioma["affine"]
    t1ce, flair = (glioma[name].astype(np.float32) for name in ("t1ce", "flair"))
    scan, its_affine = moved(flair, affine, move)
    found = register(Volume(t1ce, affine, t1ce > 0), Volume(scan, its_affine, scan > 0))
    places = np.argwhere(t1ce > 0)[::50] @ affine[:3, :3].T + affine[:3, 3]
    assert distance_mm(np.eye(4), np.linalg.inv(move), places) > 15
    assert distance_mm(found.matrix, np.linalg.inv(move), places) < 1
    assert not found.doubts
    assert found.information > found.information_before
    assert found.overlap > 0.9


def test_thick_slices_become_thin_where_they_are() -> None:
    affine = nib.affines.from_matvec(np.diag([-1.0, 1.0, 5.0]), [10, 20, 30])
    places = np.arange(12) * 5.0 + 30
    voxels = np.broadcast_to(np.cos(places / 15), (8, 9, 12)).astype(np.float32) + 1
    brain = np.zeros((8, 9, 12), bool)
    brain[2:6, 3:6, 4:9] = True
    thin = _in_thin_slices(Volume(voxels, affine, brain))
    assert thin.voxels.shape == (8, 9, 36)
    np.testing.assert_allclose(np.linalg.norm(thin.affine[:3, :3], axis=0), [1, 1, 5 / 3])
    np.testing.assert_allclose(thin.voxels[..., 1::3], voxels, atol=1e-3)  # the middle part of a slice is the slice
    there = thin.affine[2, 2] * np.arange(36) + thin.affine[2, 3]
    np.testing.assert_allclose(thin.voxels[0, 0, 6:-6], np.cos(there / 15)[6:-6] + 1, atol=0.01)  # linearly 0.05 off
    assert thin.brain.sum() == 3 * brain.sum()
    assert thin.voxels.min() >= voxels.min()
    again = _in_thin_slices(thin)
    assert again.voxels is thin.voxels


def test_another_head_is_doubted(glioma: dict[str, np.ndarray]) -> None:
    affine = glioma["affine"]
    t1ce = glioma["t1ce"].astype(np.float32)
    axes = np.ogrid[-1:1:96j, -1:1:96j, -1:1:72j]
    box = (np.maximum(np.maximum(abs(axes[0]) * 3, abs(axes[1])), abs(axes[2])) < 0.8) + np.zeros(t1ce.shape)
    noise = np.random.default_rng(0).uniform(50, 100, t1ce.shape).astype(np.float32) * box.astype(np.float32)
    found = register(Volume(t1ce, affine, t1ce > 0), Volume(noise, affine, noise > 0))
    assert any("brains overlap by a Dice of" in doubt for doubt in found.doubts)


@pytest.mark.parametrize("kind", ["z-scored", "resampled by a spline"])
def test_a_stripped_scan_with_negative_voxels_has_no_skull(glioma: dict[str, np.ndarray], kind: str) -> None:
    """Air that is lifted by a bias field is none."""
    voxels, affine = glioma["t1"].astype(np.float32), glioma["affine"]
    brain = voxels > 0
    if kind == "z-scored":
        voxels = np.where(brain, (voxels - voxels[brain].mean()) / voxels[brain].std(), 0).astype(np.float32)
    else:
        voxels = np.where(brain, voxels - np.percentile(voxels[brain], 1), 0).astype(np.float32)
    scan = searched(voxels, affine, brain)
    assert not _has_skull(scan)
    assert not scan.voxels[~brain].any()
