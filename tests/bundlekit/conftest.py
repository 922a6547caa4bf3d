"""Tiny hand-made data sets in the layouts that users have, and a disk that is full."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

SHAPE = (12, 10, 8)
LPS = np.array([[-1, 0, 0, 0], [0, -1, 0, 239], [0, 0, 1, 0], [0, 0, 0, 1]], float)  # the affine of BraTS

# T1, T1ce, T2, FLAIR, label
NAMES_2018 = ("_t1", "_t1ce", "_t2", "_flair", "_seg")
NAMES_2023 = ("-t1n", "-t1c", "-t2w", "-t2f", "-seg")


def scan(seed: int = 0, shape: Sequence[int] = SHAPE) -> np.ndarray:
    """Voxels that are all different, int16, so that any mistake of axis or order shows."""
    count = int(np.prod(shape))
    return np.random.default_rng(seed).permutation(count).astype(np.int16).reshape(shape) + 1


def segmentation(values: Sequence[float] = (0, 1, 2, 4), shape: Sequence[int] = SHAPE) -> np.ndarray:
    """A label map of uint8 in which each of the values has some voxels."""
    return np.resize(np.asarray(values, np.uint8), int(np.prod(shape))).reshape(shape)


def write_nifti(path: Path, array: np.ndarray, affine: np.ndarray = LPS) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, affine), path)
    return path


def write_case(
    folder: Path,
    names: Sequence[str] = NAMES_2018,
    suffix: str = ".nii.gz",
    values: Sequence[float] | None = (0, 1, 2, 4),
    shape: Sequence[int] = SHAPE,
) -> Path:
    """A case in a folder of its own, named as the folder: four modalities and, unless `values` is None, a label."""
    for position, name in enumerate(names):
        if position < 4:
            write_nifti(folder / f"{folder.name}{name}{suffix}", scan(position, shape))
        elif values is not None:
            write_nifti(folder / f"{folder.name}{name}{suffix}", segmentation(values, shape))
    return folder


def write_decathlon(root: Path, training: Sequence[str] = ("BRATS_001",), test: Sequence[str] = ()) -> Path:
    """Task01 of the Medical Segmentation Decathlon: 4-D images FLAIR, T1, T1ce, T2; labels ED 1, NCR 2, ET 3."""
    for name in training:
        write_nifti(root / "imagesTr" / f"{name}.nii.gz", scan(1, (*SHAPE, 4)))
        write_nifti(root / "labelsTr" / f"{name}.nii.gz", segmentation((0, 1, 2, 3)))
    for name in test:
        write_nifti(root / "imagesTs" / f"{name}.nii.gz", scan(2, (*SHAPE, 4)))
    return root


def leftovers(folder: Path) -> list[str]:
    """Temporary files that a write has left behind."""
    return [path.name for path in folder.rglob("*") if path.name.endswith(".part")]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """A file system of 1 MiB: call it with the KiB that are to stay free, again and again, to get its folder."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(folder)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("cannot mount a file system")

    def leave(free_kib: int) -> Path:
        filler = folder / "filler"
        filler.unlink(missing_ok=True)
        space = os.statvfs(folder)
        filler.write_bytes(bytes(max(space.f_bavail * space.f_frsize - free_kib * 1024, 0)))
        return folder

    yield leave
    subprocess.run(["umount", str(folder)], check=True)
