"""Open HDF5 files for as long as a read takes, and say clearly what is wrong with one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from bundlekit.errors import FIND_MOVED, BundleError, Finding


@contextmanager
def open_h5(path: str) -> Iterator[h5py.File]:
    """A file open for reading, closed again at the end of the block.

    Nothing keeps a file open between two reads: a handle that is carried into a loader's worker process by a fork
    reads wrong data there. Opening takes about a millisecond.

    Raises:
        BundleError: if the file is missing, no HDF5 file, cut off, or cannot be decoded within the block.
    """
    try:
        with h5py.File(path, "r", locking=False) as file:  # file systems of clusters often cannot lock; nobody writes
            yield file
    except BundleError:
        raise
    except (OSError, RuntimeError) as error:  # h5py raises them for anything that HDF5 complains of
        if not Path(path).is_file():
            found, fix = "no such file", FIND_MOVED
        elif not h5py.is_hdf5(path):
            found, fix = "not an HDF5 file", "take it out of the folder, or download it again"
        else:
            found, fix = f"cannot be read to its end ({_short(error)})", "copy or download the file again"
        raise BundleError(Finding(path, found, "a whole HDF5 file", fix)) from error


def datasets_of(file: h5py.File) -> dict[str, h5py.Dataset]:
    """All numeric datasets of two dimensions or more, by path ("image", "scan/image")."""
    found: dict[str, h5py.Dataset] = {}

    def note(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset) and len(item.shape or ()) > 1 and item.dtype.kind in "biuf":
            found[name] = item

    file.visititems(note)
    return found


def described(datasets: dict[str, h5py.Dataset]) -> str:
    """Datasets as a user reads them: `image 240x240x4 float64, mask 240x240x3 uint8`."""
    parts = (f"{name} {'x'.join(map(str, item.shape))} {item.dtype}" for name, item in datasets.items())
    return ", ".join(parts) or "no dataset of two dimensions or more"


def attribute(file: h5py.File, key: str, name: str) -> np.ndarray | None:
    """An attribute of a dataset, or else of the file; None where neither has it."""
    for place in (file[key], file):
        if name in place.attrs:
            return np.asarray(place.attrs[name])
    return None


def names_in(file: h5py.File, key: str, name: str) -> list[str] | None:
    """An attribute that is a list of names, or one string with commas."""
    value = attribute(file, key, name)
    if value is None:
        return None
    texts = [item.decode() if isinstance(item, bytes) else str(item) for item in value.ravel().tolist()]
    return [part.strip() for text in texts for part in text.split(",") if part.strip()]


def affine_in(path: str, key: str) -> np.ndarray | None:
    """Voxel-to-world matrix (4x4, mm) that the file keeps as attribute `affine`; None where there is none.

    Raises:
        BundleError: if it is no invertible 4x4 matrix.
    """
    with open_h5(path) as file:
        value = attribute(file, key, "affine")
    if value is None:
        return None
    if value.shape != (4, 4) or not np.isfinite(value).all() or abs(np.linalg.det(value[:3, :3])) < 1e-6:
        found = f"attribute affine of shape {value.shape}, not invertible or not finite"
        raise BundleError(Finding(path, found, "an invertible 4x4 matrix in mm", "mend the attribute, or remove it"))
    return value.astype(np.float64)


def _short(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text if len(text) < 120 else text[:117] + "..."
