"""Heads with their skull, told by the volume that is not air."""

from __future__ import annotations

import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from bundlekit.images.intensities import air_of, without_air
from bundlekit.images.stripping import whole_head
from tests.bundlekit.conftest import ball
from tests.conftest import ROOT

SHARED = Path(os.environ.get("BRAIN_DATA", ROOT.parent / "shared" / "data"))
VOXELS = np.count_nonzero(ball())


@pytest.mark.parametrize("millilitres", [1100, 1900, 2050])
def test_a_stripped_brain_of_any_size(millilitres: float) -> None:
    assert not whole_head(ball(), millilitres / VOXELS)
    assert not whole_head(-ball(), millilitres / VOXELS)


def test_a_part_of_a_brain_that_fills_its_field() -> None:
    assert not whole_head(np.ones((96, 96, 96)), 0.001)


def test_ringing_of_a_spline_is_air() -> None:
    brain = ball(64, 24)
    moved = ndimage.shift(brain, 0.3, order=3)
    voxel_ml = 1100 / np.count_nonzero(brain)
    assert np.count_nonzero(moved) * voxel_ml > 4000
    assert not whole_head(moved, voxel_ml)


def test_nothing_but_air() -> None:
    assert not whole_head(np.zeros((4, 4, 4), np.float32), 1.0)


def test_a_large_head_and_noise_in_the_air() -> None:
    assert "2300 ml" in whole_head(ball(), 2300 / VOXELS)
    assert "98% of the field" in whole_head(ball(air=4), 1400 / VOXELS)


def test_a_head_that_the_field_cuts_off() -> None:
    cut = ball()[:, :, 12:]
    assert whole_head(cut, 1900 / np.count_nonzero(cut))
    assert not whole_head(cut, 1600 / np.count_nonzero(cut)), "a part of a brain"


def told(file: Path) -> str:
    image = nib.load(file)
    voxels = np.asarray(image.dataobj)[None]
    return whole_head(without_air(voxels, air_of(voxels))[0], abs(np.linalg.det(image.affine[:3, :3])) / 1000)


@pytest.mark.skipif(not SHARED.is_dir(), reason="no real data")
def test_real_heads_and_brains() -> None:
    heads = [*SHARED.glob("whole_head_t1/IXI?1*_T1.nii.gz"), *SHARED.glob("raw_scans/TCGA-02-0054/*_T1.nii.gz")]
    brains = [*SHARED.glob("tissue_t1/1000_SS.nii.gz"), *SHARED.glob("brats_glioma/*0006/*_t1.nii.gz")]
    assert heads or not (SHARED / "whole_head_t1").is_dir()
    assert brains or not (SHARED / "tissue_t1").is_dir()
    assert [file.name for file in heads if not told(file)] == []
    assert [file.name for file in brains if told(file)] == []
