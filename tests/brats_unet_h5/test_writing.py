"""Masks in HDF5, which a user may correct as those in NIfTI."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import h5py
import nibabel as nib
import numpy as np
import pytest
import torch
from ignite.engine import Engine
from monai.data import Dataset
from torch.utils.data import DataLoader

from brats_unet_h5 import LoadHDF5d, find_cases
from brats_unet_h5.hdf5_masks import WriteHDF5Segmentations
from bundlekit.errors import BundleError
from tests.brats_unet_h5.conftest import SHAPE, classes, write_case


@pytest.fixture
def writer(tmp_path: Path) -> WriteHDF5Segmentations:
    return WriteHDF5Segmentations(str(tmp_path / "out"), write_h5=True, written_by="one")


@pytest.fixture
def write(tmp_path: Path, writer: WriteHDF5Segmentations) -> Callable[[int], Path]:
    """Write the mask of a case, all of one class; the HDF5 file."""
    source = write_case(tmp_path / "data" / "case.h5", affine=np.eye(4))
    item = {
        "case": "case", "source": str(source), "label_file": "", "label_values": torch.tensor([0, 1, 2, 4]),
        "native_affine": torch.eye(4), "grid_known": True,
    }  # fmt: skip

    def write(value: int) -> Path:
        output = {"pred": torch.full((1, *SHAPE), value)}
        writer(SimpleNamespace(state=SimpleNamespace(batch=[item], output=[output])))  # type: ignore[arg-type]
        return writer.files_of("case")[-1]

    return write


def test_a_mask_of_an_earlier_run_is_replaced(write: Callable[[int], Path]) -> None:
    write(1)
    with h5py.File(write(3)) as file:
        assert (file["mask"][...] == 4).all()


@pytest.mark.parametrize("way", ["corrected", "nobody's", "cut off"])
def test_a_mask_that_somebody_corrected_stays(
    write: Callable[[int], Path], writer: WriteHDF5Segmentations, way: str
) -> None:
    path = write(1)
    if way == "corrected":
        with h5py.File(path, "r+") as file:
            file["mask"][0, 0, 0] = 4
    elif way == "nobody's":
        with h5py.File(path, "w") as file:
            file["mask"] = classes()
    else:
        path.write_bytes(path.read_bytes()[:-200])
    before = path.read_bytes()
    engine = Engine(lambda *_: pytest.fail("nothing is computed"))
    engine.logger.disabled = True
    writer.attach(engine)
    loader = DataLoader(Dataset([{"case": "case"}]), batch_size=None)
    for begin in (partial(engine.run, loader), partial(write, 1)):  # before the run, and while it goes on
        with pytest.raises(BundleError, match=r"case_seg\.h5[\s\S]*as it was written[\s\S]*--write_h5"):
            begin()
    assert path.read_bytes() == before
    writer.write_h5 = False
    write(1)
    assert path.read_bytes() == before


def test_the_mask_has_the_affine_of_its_image(tmp_path: Path, writer: WriteHDF5Segmentations) -> None:
    """Whatever affine another dataset of the file has, of which the names come first."""
    path = write_case(tmp_path / "data" / "case.h5")
    with h5py.File(path, "r+") as file:
        file["atlas"] = np.zeros(SHAPE)
        file["atlas"].attrs["affine"] = np.diag([2.0, 2, 2, 1])
        file["image"].attrs["affine"] = np.diag([1.0, 1, 3, 1])
    [case] = find_cases(path.parent, image_key="image", mask_key="mask")
    item = LoadHDF5d(with_label=False, allow_unprepared=True)(case)
    output = {"pred": torch.zeros((1, *SHAPE))}
    writer(SimpleNamespace(state=SimpleNamespace(batch=[item], output=[output])))  # type: ignore[arg-type]
    np.testing.assert_array_equal(nib.load(writer.files_of("case")[0]).affine, np.diag([1.0, 1, 3, 1]))
    with h5py.File(writer.files_of("case")[-1]) as file:
        np.testing.assert_array_equal(file.attrs["affine"], np.diag([1.0, 1, 3, 1]))
