"""HDF5 cases in the layouts that users have: hand-made ones of 960 voxels, and the virtual cohort converted."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

SHAPE = (12, 10, 8)
ORDER = ["T1", "T1ce", "T2", "FLAIR"]

Write = Callable[..., Path]


def image(shape: Sequence[int] = SHAPE, seed: int = 0) -> np.ndarray:
    """4xHWD int16, all voxels of a brain in a frame of air different, so that any mistake of axis or order shows."""
    out = np.zeros((4, *shape), np.int16)
    inside = tuple(slice(1, n - 1) for n in shape)
    brain = out[(slice(None), *inside)]
    out[(slice(None), *inside)] = np.random.default_rng(seed).permutation(brain.size).reshape(brain.shape) + 1
    return out


def classes(shape: Sequence[int] = SHAPE) -> np.ndarray:
    """HWD uint8 class indices with all four classes inside the brain, of four different sizes."""
    out = np.zeros(shape, np.uint8)
    out[2:9, 2:8, 2:6] = 2
    out[3:7, 3:7, 3:5] = 1
    out[4:6, 4:6, 3:5] = 3
    return out


def one_hot(label: np.ndarray, values: Sequence[Sequence[int]]) -> np.ndarray:
    """CHWD uint8, a channel for each set of class indices."""
    return np.stack([np.isin(label, value) for value in values]).astype(np.uint8)


CLASS_SETS = ((1,), (2,), (3,))
REGION_SETS = ((1, 2, 3), (1, 3), (3,))


def write_file(path: Path, datasets: Mapping[str, Any], **attributes: Any) -> Path:
    """An HDF5 file of the given datasets and attributes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for name, array in datasets.items():
            chunks = tuple(min(4, n) for n in np.shape(array)) if np.ndim(array) else None
            file.create_dataset(name, data=array, chunks=chunks, fletcher32=bool(np.ndim(array)))
        file.attrs.update(attributes)
    return path


def write_case(path: Path, **attributes: Any) -> Path:
    """A sound case as a file that explains itself."""
    values = np.asarray([0, 1, 2, 4], np.uint8)
    return write_file(path, {"image": image(), "mask": values[classes()]}, **{"modalities": ORDER, **attributes})


def write_slices(folder: Path, number: int = 1, mask: np.ndarray | None = None, air: float = -0.4) -> Path:
    """A volume in slices, as the widespread export has it: float64 HxWx4, z-scored with air, and uint8 HxWx3."""
    volume = image().astype(np.float64) / 1000 + air
    mask = one_hot(classes(), CLASS_SETS) if mask is None else mask
    for k in range(SHAPE[2]):
        parts = {"image": np.moveaxis(volume[..., k], 0, -1), "mask": np.moveaxis(mask[..., k], 0, -1)}
        write_file(folder / f"volume_{number}_slice_{k}.h5", parts)
    return folder
