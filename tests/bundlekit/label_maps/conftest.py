"""Tiny label maps, written in a line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np

SHAPE = (6, 5, 4)
GRID = np.array([[-1, 0, 0, 10], [0, 2, 0, -20], [0, 0, 1.5, 30], [0, 0, 0, 1]], float)  # voxels of 1 x 2 x 1.5 mm


def numbers(values: Sequence[int] = (0, 2, 3, 24)) -> np.ndarray:
    """A label map in which each of the values has some voxels."""
    return np.resize(np.asarray(values, np.int16), int(np.prod(SHAPE))).reshape(SHAPE)


def write(path: Path, array: np.ndarray | None = None) -> Path:
    """A NIfTI or MGH file, by its suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = nib.MGHImage if path.suffix == ".mgz" else nib.Nifti1Image
    nib.save(kind(numbers() if array is None else array, GRID), path)
    return path
