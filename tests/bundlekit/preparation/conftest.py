"""Scans that were moved by a known move, of a virtual glioma of 2.5 mm."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from bundlekit.preparation.grids import Grid, resample
from bundlekit.virtual.brats import make_case

MODALITIES = {"T1": "t1", "T1ce": "t1ce", "T2": "t2", "FLAIR": "flair"}


@pytest.fixture(scope="session", autouse=True)
def coarse_bias_fields() -> Iterator[None]:
    """Found by voxels of 10 mm in place of 4, in a fifth of the time: the scans of these tests have voxels of 2.5."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bundlekit.preparation.registration._FIELD_MM", 10.0)
        yield


@pytest.fixture(scope="session")
def glioma() -> dict[str, np.ndarray]:
    """A virtual case, see `make_case`."""
    return make_case(5, 0, (96, 96, 72))


@pytest.fixture(scope="session")
def move() -> np.ndarray:
    """From a point of the moved scan to that of the case: 12 degrees, 22 mm."""
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_rotvec(np.deg2rad([7, -8, 6])).as_matrix()
    matrix[:3, 3] = (14, -12, 12)
    return matrix


def moved(image: np.ndarray, affine: np.ndarray, move: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The image in a scan of coronal slices of 4 mm in a larger field, and its affine."""
    grid = Grid(image.shape, affine)
    middle = affine[:3, :3] @ ((np.asarray(image.shape) - 1) / 2) + affine[:3, 3]
    out = np.array([[-2.5, 0, 0, 0], [0, 0, 4.0, 0], [0, 2.5, 0, 0], [0, 0, 0, 1]])
    shape = (110, 110, 70)
    out[:3, 3] = middle - out[:3, :3] @ ((np.asarray(shape) - 1) / 2)
    return resample(image, grid.affine, Grid(shape, out), move), out


@pytest.fixture(scope="session")
def scans(tmp_path_factory: pytest.TempPathFactory, glioma: dict[str, np.ndarray], move: np.ndarray) -> Path:
    """A folder with the four scans, stripped; the FLAIR moved on a grid of its own. Not to be changed."""
    folder = tmp_path_factory.mktemp("scanner")
    for name in MODALITIES.values():
        voxels, affine = glioma[name].astype(np.float32), glioma["affine"]
        if name == "flair":
            voxels, affine = moved(voxels, affine, move)
        nib.save(nib.Nifti1Image(voxels, affine), folder / f"Head_01_{name}.nii.gz")
    return folder


@pytest.fixture
def scanner(tmp_path: Path, scans: Path) -> Path:
    """A copy of them that a test may spoil."""
    return Path(shutil.copytree(scans, tmp_path / "scanner"))


@pytest.fixture
def files(scanner: Path) -> dict[str, str]:
    """Of the modalities."""
    return {modality: str(scanner / f"Head_01_{name}.nii.gz") for modality, name in MODALITIES.items()}


@pytest.fixture
def no_mask() -> Callable[..., object]:
    """For scans that are stripped."""

    def mask(image: object) -> object:
        raise AssertionError("a stripped scan needs no brain mask")

    return mask
