"""Virtual CTs of a few thousand voxels, and hand-made ones in the layouts that users have."""

from __future__ import annotations

import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

GRID = np.array([[-2, 0, 0, 90], [0, -2, 0, 80], [0, 0, 3, -60], [0, 0, 0, 1]], float)  # LPS voxels of 2 x 2 x 3 mm


@pytest.fixture
def data(abdomens: Path, tmp_path: Path) -> Path:
    """A copy of the cohort that a test may spoil."""
    return Path(shutil.copytree(abdomens, tmp_path / "data"))


def hu(shape: tuple[int, ...] = (12, 10, 8), seed: int = 0) -> np.ndarray:
    """Voxels between air and bone."""
    return np.random.default_rng(seed).integers(-1000, 600, shape).astype(np.int16)


def write(path: Path, array: np.ndarray | None = None, affine: np.ndarray = GRID) -> Path:
    """A NIfTI file; of a CT if no array is given."""
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(hu() if array is None else array, affine), path)
    return path


def labels(values: tuple[int, ...], shape: tuple[int, ...] = (12, 10, 8)) -> np.ndarray:
    """A label map in which each of the values has some voxels, in no order that anatomy has."""
    return np.random.default_rng(1).choice(np.asarray(values, np.uint8), shape)
