"""Tiny hand-made T1 data sets in the layouts that users have."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np

SHAPE = (6, 5, 4)
GRID = np.array([[-1, 0, 0, 10], [0, 2, 0, -20], [0, 0, 1.5, 30], [0, 0, 0, 1]], float)  # voxels of 1 x 2 x 1.5 mm
PARTS = ("CSF", "GM", "WM")


def t1(seed: int = 0, shape: Sequence[int] = SHAPE) -> np.ndarray:
    """Voxels that are all different, int16, so that any mistake of axis or order shows."""
    count = int(np.prod(shape))
    return np.random.default_rng(seed).permutation(count).astype(np.int16).reshape(shape) - 7


def labels(values: Sequence[float] = (0, 1, 2, 3), shape: Sequence[int] = SHAPE, dtype: type = np.int16) -> np.ndarray:
    """A label map in which each of the values has some voxels."""
    return np.resize(np.asarray(values, dtype), int(np.prod(shape))).reshape(shape)


def write(path: Path, array: np.ndarray | None = None, affine: np.ndarray = GRID) -> Path:
    """A NIfTI or MGH file, by its suffix; of a T1 if no array is given."""
    path.parent.mkdir(parents=True, exist_ok=True)
    array = t1() if array is None else array
    kind = nib.MGHImage if path.suffix == ".mgz" else nib.Nifti1Image
    nib.save(kind(array, affine), path)
    return path


def write_all(root: Path, images: Sequence[str], label_maps: Sequence[str] = ()) -> None:
    """T1s and label maps 0 to 3, by their paths below `root`."""
    for name in images:
        write(root / name)
    for name in label_maps:
        write(root / name, labels())


def write_probabilities(folder: Path, start: str, maps: Sequence[np.ndarray], end: str = ".nii.gz") -> list[Path]:
    """<start>_label-CSF_probseg and so on."""
    return [
        write(folder / f"{start}_label-{part}_probseg{end}", array.astype(np.float32))
        for part, array in zip(PARTS, maps, strict=True)
    ]
