"""What is read, and how little of it: chunks, air, and the same voxels as from NIfTI."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from scipy import ndimage
from torch.utils.data import DataLoader

from brats_unet_h5 import LoadHDF5d, find_cases
from brats_unet_h5.reading import label_reader, read_classes, read_image, read_label
from bundlekit import brats
from bundlekit.cases.datalist import write_datalist
from bundlekit.errors import BundleError
from bundlekit.patches.dataset import PatchDataset
from tests.brats_unet_h5.conftest import (
    CLASS_SETS,
    ORDER,
    classes,
    image,
    one_hot,
    write_case,
    write_file,
    write_slices,
)
from tests.bundlekit.conftest import ball
from tests.conftest import ROOT

CONFIGS = ROOT / "bundles" / "brats_unet_h5" / "configs"
BOX = (slice(2, 7), slice(1, 9), slice(3, 6))


def dataset(data: Path, folder: Path, part: str = "train", read: str = "whole", **settings: Any) -> PatchDataset:
    parser = ConfigParser()
    overlays = ("native", "chunks") if read == "chunks" else ("native",)
    parser.read_config([str(CONFIGS / f"{name}.yaml") for name in ("train", *overlays)])
    common = {"dataset_dir": str(data), "cache_dir": str(folder), "patch_size": [24, 24, 24]}
    for key, value in {**common, "patches_per_case": 2, **settings}.items():
        parser[key] = value
    return parser.get_parsed_content(f"{part}::dataset")


def test_a_box_is_what_the_whole_holds(tmp_path: Path) -> None:
    write_case(tmp_path / "case.h5")
    write_slices(tmp_path, 2)
    for case in find_cases(tmp_path):
        np.testing.assert_array_equal(read_image(case, BOX), read_image(case)[(slice(None), *BOX)])
        np.testing.assert_array_equal(read_classes(case, BOX), classes()[BOX])


def test_only_the_chunks_of_the_box_are_read(tmp_path: Path) -> None:
    """Chunks are of 4 voxels: one that is damaged is noticed by its checksum, if it is read at all."""
    path = write_case(tmp_path / "case.h5")
    (case,) = find_cases(tmp_path)
    with h5py.File(path) as file:
        where = file["image"].id.get_chunk_info_by_coord((0, 0, 0, 0))
    with path.open("r+b") as raw:
        raw.seek(where.byte_offset)
        raw.write(b"\x55" * 8)
    np.testing.assert_array_equal(read_image(case, (slice(4, 8),) * 3), image()[:, 4:8, 4:8, 4:8])
    with pytest.raises(BundleError, match="cannot be read to its end"):
        read_image(case, (slice(3, 8),) * 3)


def test_labels_are_read_for_scoring(tmp_path: Path) -> None:
    affine = np.diag([2, 2, 2, 1.0])
    write_case(tmp_path / "case.h5", affine=affine)
    cases = find_cases(tmp_path)
    for read in (read_label, label_reader(cases)):
        label, found = read(cases[0]["label"], [0, 1, 2, 4])
        np.testing.assert_array_equal(label, classes())
        np.testing.assert_array_equal(found, affine)


def test_a_file_without_an_affine_is_known_as_such(tmp_path: Path) -> None:
    write_case(tmp_path / "with" / "case.h5", affine=np.diag([2, 2, 2, 1.0]))
    write_case(tmp_path / "without" / "case.h5")
    known = {name: LoadHDF5d()(find_cases(tmp_path / name)[0])["grid_known"] for name in ("with", "without")}
    assert known == {"with": True, "without": False}


def test_the_same_voxels_as_from_nifti(cohort: Path, h5_cohort: Path) -> None:
    nifti, h5 = brats.find_cases(cohort), find_cases(h5_cohort)
    assert [case["case"] for case in nifti] == [case["case"] for case in h5]
    for a, b in zip(nifti, h5, strict=True):
        one, other = brats.LoadCased()(a), LoadHDF5d()(b)
        for key in ("image", "label"):
            assert torch.equal(one[key].as_tensor(), other[key].as_tensor())
            assert torch.equal(one[key].affine, other[key].affine)
        assert torch.equal(one["label_values"], other["label_values"])


@pytest.mark.parametrize("settings", [{}, {"normalise": "zscore", "tumour_probability": 0.0}])
def test_patches_from_chunks_are_those_from_the_cache(
    settings: dict[str, Any], h5_cohort: Path, tmp_path: Path
) -> None:
    whole = dataset(h5_cohort, tmp_path, read="whole", **settings)
    chunks = dataset(h5_cohort, tmp_path, read="chunks", **settings)
    assert len(whole) == len(chunks) == 8
    for index in range(len(whole)):
        for key in ("image", "label"):
            assert torch.equal(whole[index][key], chunks[index][key])
    assert chunks[0]["image"].shape == (4, 24, 24, 24)


def test_a_cache_of_chunks_is_good_in_any_working_directory(
    h5_cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(h5_cohort.parent)
    first = dataset(Path(h5_cohort.name), tmp_path, read="chunks")[0]["image"]
    monkeypatch.chdir(tmp_path)
    assert torch.equal(dataset(h5_cohort, tmp_path, read="chunks")[0]["image"], first)


def test_ringing_of_a_spline_is_refused_in_chunks(tmp_path: Path) -> None:
    """Parts are read as they are in the file, in which inference sets the air to 0."""
    brain = np.stack([ball(40, 14, seed=seed) for seed in range(4)], -1)
    turned = np.stack([ndimage.rotate(brain[..., n], 6, (0, 1), reshape=False, order=3) for n in range(4)], -1)
    mask = np.zeros(turned.shape[:3], np.uint8)
    mask[18:22, 18:22, 18:22] = 1
    write_file(tmp_path / "a.h5", {"image": turned.astype(np.float32), "mask": mask}, modalities=ORDER)
    (case,) = find_cases(tmp_path)
    image = LoadHDF5d()(case)["image"]
    assert 0.9 < np.count_nonzero(image) / np.count_nonzero(brain) < 1.2
    with pytest.raises(BundleError, match=r"as a spline leaves them(?s:.*)train without chunks.yaml"):
        LoadHDF5d(for_chunks=True)(case)


@pytest.mark.parametrize("dtype", [np.uint8, np.int32])
def test_air_of_integer_files_in_chunks(dtype: Any, tmp_path: Path) -> None:
    for name in ("a", "b"):
        volume = np.where(image() == 0, 80, image() % 79).astype(dtype)  # a brain darker than air
        write_file(tmp_path / "data" / f"{name}.h5", {"image": volume, "mask": classes()}, modalities=ORDER)
    settings = {"patch_size": [8, 8, 8], "rotation_probability": 0.0, "et_label": 3}
    whole = dataset(tmp_path / "data", tmp_path / "cache", read="whole", **settings)
    chunks = dataset(tmp_path / "data", tmp_path / "cache", read="chunks", **settings)
    for index in range(len(whole)):
        assert torch.equal(whole[index]["image"], chunks[index]["image"])
    box = (slice(1, 11), slice(1, 9), slice(1, 7))
    prepared = LoadHDF5d()(find_cases(tmp_path / "data")[0])["image"].numpy()
    np.testing.assert_array_equal(prepared[(slice(None), *box)], (image() % 79 - 80.0)[(slice(None), *box)])


def test_slices_come_in_chunks_too(tmp_path: Path) -> None:
    for number in (1, 2):
        write_slices(tmp_path / "data", number, air=-0.3)
    settings = {"patch_size": [8, 8, 8], "rotation_probability": 0.0}
    whole = dataset(tmp_path / "data", tmp_path / "cache", read="whole", **settings)
    chunks = dataset(tmp_path / "data", tmp_path / "cache", read="chunks", **settings)
    for index in range(len(whole)):
        assert torch.equal(whole[index]["image"], chunks[index]["image"])
        assert torch.equal(whole[index]["label"], chunks[index]["label"])


def test_what_is_kept_of_a_case_read_in_chunks_is_small(h5_cohort: Path, tmp_path: Path) -> None:
    sizes = {}
    for read in ("whole", "chunks"):
        data = dataset(h5_cohort, tmp_path / read, read=read)
        for case in range(len(data.data)):
            data.cases[case]
        sizes[read] = sum(file.stat().st_size for file in (tmp_path / read).iterdir())
    assert sizes["chunks"] < sizes["whole"] / 5


def test_workers_read_the_same_and_the_cache_is_used(
    h5_cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = dataset(h5_cohort, tmp_path, read="chunks", cache="disk")
    alone = [data[index] for index in range(len(data))]
    for index, item in enumerate(DataLoader(data, batch_size=None, num_workers=2)):
        assert torch.equal(item["image"], alone[index]["image"])
    monkeypatch.setattr(LoadHDF5d, "__call__", lambda self, case: pytest.fail("decoded again"))
    assert torch.equal(dataset(h5_cohort, tmp_path, read="chunks")[1]["image"], alone[1]["image"])


# --- missing modalities -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [["T1", "T1ce", "FLAIR"], ["FLAIR", "T1ce"]])
def test_a_modality_that_the_file_does_not_have_is_zeros_on_demand(tmp_path: Path, order: list[str]) -> None:
    there = [ORDER.index(name) for name in order]
    values = np.asarray([0, 1, 2, 4], np.uint8)
    write_file(tmp_path / "a.h5", {"image": image()[there], "mask": values[classes()]}, modalities=order)
    with pytest.raises(BundleError, match=r"(?s)image dataset image of shape \dx12x10x8.*--fill_missing True"):
        find_cases(tmp_path)
    (case,) = find_cases(tmp_path, fill_missing=True)
    assert case["channels"] == [order.index(name) if name in order else -1 for name in ORDER]
    expected = image()
    expected[[n for n in range(4) if n not in there]] = 0
    np.testing.assert_array_equal(LoadHDF5d()(case)["image"].numpy(), expected)
    np.testing.assert_array_equal(read_image(case, BOX), expected[(slice(None), *BOX)])
    datalist = tmp_path / "datalist.json"
    write_datalist({"training": [case], "validation": []}, datalist)
    (again,) = find_cases(None, datalist, fill_missing=True)
    assert again["channels"] == case["channels"]
    with pytest.raises(BundleError, match=r"(?s)channels: \[.*--fill_missing True"):
        find_cases(None, datalist)


def test_a_mask_of_three_channels_is_no_image(tmp_path: Path) -> None:
    mask = one_hot(classes(), CLASS_SETS)
    write_file(tmp_path / "a.h5", {"scans": image(), "mask": mask}, modalities=ORDER)
    np.testing.assert_array_equal(read_image(find_cases(tmp_path, fill_missing=True)[0]), image())
    write_file(tmp_path / "a.h5", {"mask": mask})
    with pytest.raises(BundleError, match="a dataset with the image"):
        find_cases(str(tmp_path / "a.h5"), fill_missing=True, labelled=False, channel_order="t1,t1ce,flair")


def test_slices_of_a_datalist_are_put_in_order(tmp_path: Path) -> None:
    write_slices(tmp_path / "data", 1)
    names = sorted((path.name for path in (tmp_path / "data").iterdir()), reverse=True)
    datalist = tmp_path / "datalist.json"
    datalist.write_text(json.dumps({"training": [{"image": names}]}))
    (case,) = find_cases(tmp_path / "data", datalist)
    assert case["image"] == find_cases(tmp_path / "data")[0]["image"]


def test_names_have_to_be_as_many_as_channels(tmp_path: Path) -> None:
    values = np.asarray([0, 1, 2, 4], np.uint8)
    write_file(tmp_path / "a.h5", {"image": image()[:3], "mask": values[classes()]}, modalities=ORDER)
    with pytest.raises(BundleError, match="3 channels in image, and nothing that says which"):
        find_cases(tmp_path, fill_missing=True)
    assert find_cases(tmp_path, fill_missing=True, channel_order="t1,t2,flair")[0]["channels"] == [0, -1, 1, 2]
    with pytest.raises(BundleError, match=r"3 channel\(s\) in image, and other ones named: T1 is 0, T2 is 1"):
        find_cases(tmp_path, fill_missing=True, channel_order="t1,t2")
    with pytest.raises(ValueError, match="expected the four modalities"):
        find_cases(tmp_path, fill_missing=True, channel_order="t1")
    with pytest.raises(ValueError, match="expected the four modalities"):
        find_cases(tmp_path, channel_order="t1,t2,flair")


def test_channels_of_one_value_are_missing_on_demand(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    empty = image()
    empty[1], empty[2] = 7, 0
    values = np.asarray([0, 1, 2, 4], np.uint8)
    write_file(tmp_path / "a.h5", {"image": empty, "mask": values[classes()]}, modalities=ORDER)
    (case,) = find_cases(tmp_path, fill_missing=True)
    with pytest.raises(BundleError, match=r"(?s)\(T1ce\).*the value 7 in every voxel.*--fill_missing True"):
        LoadHDF5d()(case)
    item = LoadHDF5d(fill_missing=True, for_chunks=True)(case)
    assert "no T1ce, T2: one value everywhere" in caplog.text
    expected = image()
    expected[1:3] = 0
    np.testing.assert_array_equal(item["image"].numpy(), expected)
    np.testing.assert_array_equal(read_image(item["read_from"]), expected)
    empty[0] = 3
    write_file(tmp_path / "a.h5", {"image": empty, "mask": values[classes()]}, modalities=ORDER)
    with pytest.raises(BundleError, match=r"(?s)\(T1\).*the value 3"):
        LoadHDF5d(fill_missing=True)(case)
