"""Tests of the reader: voxel by voxel against nibabel and ITK, then every kind of damage, then whole cases."""

from __future__ import annotations

import gzip
import itertools
import json
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import itk
import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from bundlekit.brats.cases import find_cases
from bundlekit.brats.reading import LoadCased, read_label
from bundlekit.cases.datalist import write_datalist
from bundlekit.errors import BundleError
from bundlekit.images.nifti import open_nifti, read_affine, read_array
from tests.bundlekit.conftest import (
    LPS,
    NAMES_2018,
    NAMES_2023,
    OBLIQUE,
    SHAPE,
    scan,
    segmentation,
    write_case,
    write_decathlon,
    write_nifti,
)


def write_raw(
    path: Path, array: np.ndarray, endian: str = "<", slope: float | None = None, inter: float = 0, affine: Any = LPS
) -> Path:
    """A file with these very voxels on disk and, in the header's own bytes, a slope and an intercept."""
    header = nib.Nifti1Header(endianness=endian)
    header.set_data_dtype(array.dtype)
    raw = bytearray(nib.Nifti1Image(array, affine, header).to_bytes())
    if slope is not None:
        raw[112:120] = struct.pack(f"{endian}ff", slope, inter)
    path.write_bytes(gzip.compress(bytes(raw)) if path.suffix == ".gz" else bytes(raw))
    return path


def itk_array(path: Path) -> np.ndarray:
    return itk.array_from_image(itk.imread(str(path))).T  # ITK's arrays are k, j, i


# --- voxels -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("endian", ["<", ">"])
@pytest.mark.parametrize("dtype", [np.int16, np.uint8, np.float32])
def test_voxels_type_and_axes_are_those_of_the_file(tmp_path: Path, dtype: type, endian: str, suffix: str) -> None:
    array = (scan() % 251).astype(dtype)
    path = write_raw(tmp_path / f"scan{suffix}", array, endian, affine=OBLIQUE)
    got = read_array(str(path))
    assert got.dtype.newbyteorder("=") == dtype
    np.testing.assert_array_equal(got, array)
    np.testing.assert_array_equal(got, np.asarray(nib.load(path).dataobj))
    np.testing.assert_array_equal(got, itk_array(path))


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("endian", ["<", ">"])
@pytest.mark.parametrize("dtype", [np.int16, np.uint8, np.float32])
def test_intensity_scaling_is_applied(tmp_path: Path, dtype: type, endian: str, suffix: str) -> None:
    array = (scan() % 251).astype(dtype)
    path = write_raw(tmp_path / f"scan{suffix}", array, endian, slope=0.25, inter=-3)
    got = read_array(str(path))
    np.testing.assert_array_equal(got, array * 0.25 - 3)  # exact: a power of two
    np.testing.assert_array_equal(got, nib.load(path).get_fdata())
    np.testing.assert_array_equal(got, itk_array(path))


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_channels_of_a_4d_file_are_its_last_axis(tmp_path: Path, suffix: str) -> None:
    array = np.stack([scan(seed) for seed in range(4)], axis=-1)
    path = write_raw(tmp_path / f"scan{suffix}", array)
    got = read_array(str(path))
    assert got.shape == (*SHAPE, 4)
    np.testing.assert_array_equal(got, array)
    np.testing.assert_array_equal(got, itk_array(path))


@pytest.mark.parametrize("pieces", [1, 3])
def test_gzip_in_several_members_and_with_padding(tmp_path: Path, pieces: int) -> None:
    raw = write_raw(tmp_path / "scan.nii", scan()).read_bytes()
    path = tmp_path / "packed" / "scan.nii.gz"
    path.parent.mkdir()
    cuts = [len(raw) * n // pieces for n in range(pieces + 1)]
    path.write_bytes(b"".join(gzip.compress(raw[a:b]) for a, b in itertools.pairwise(cuts)) + bytes(64))
    np.testing.assert_array_equal(read_array(str(path)), scan())


@pytest.mark.parametrize("affine", [LPS, OBLIQUE, np.diag([2, 3, -4, 1.0])], ids=["brats", "oblique", "flipped"])
@pytest.mark.parametrize("codes", [(1, 1), (0, 1), (2, 0)], ids=["both", "sform", "qform"])
def test_affine_is_nibabels(tmp_path: Path, affine: np.ndarray, codes: tuple[int, int]) -> None:
    image = nib.Nifti1Image(scan(), affine)
    image.set_qform(affine, codes[0])
    image.set_sform(affine, codes[1])
    nib.save(image, tmp_path / "scan.nii.gz")
    got = read_affine(str(tmp_path / "scan.nii.gz"))
    assert got.dtype == np.float64
    np.testing.assert_array_equal(got, nib.load(tmp_path / "scan.nii.gz").affine)
    np.testing.assert_allclose(got, affine, atol=1e-5)


# --- damage -----------------------------------------------------------------------------------------------------------


def half(raw: bytes) -> bytes:
    return raw[: len(raw) // 2]


def without_the_last_4(raw: bytes) -> bytes:
    return raw[:-4]


def flipped(raw: bytes) -> bytes:
    middle = len(raw) // 2
    return raw[:middle] + bytes([raw[middle] ^ 0x10]) + raw[middle + 1 :]


def wrong_checksum(raw: bytes) -> bytes:
    return raw[:-8] + bytes([raw[-8] ^ 1]) + raw[-7:]


def nothing(raw: bytes) -> bytes:
    return b""


def text(raw: bytes) -> bytes:
    return b"404: not found\n" * 100


@pytest.mark.parametrize(
    ("suffix", "damage"),
    [(".nii.gz", damage) for damage in (half, without_the_last_4, flipped, wrong_checksum, nothing, text)]
    + [(".nii", damage) for damage in (half, without_the_last_4, nothing, text)],
)
def test_damaged_file_is_named(tmp_path: Path, suffix: str, damage: Any) -> None:
    path = write_raw(tmp_path / f"scan{suffix}", scan())
    np.testing.assert_array_equal(read_array(str(path)), scan())
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(BundleError) as caught:
        read_array(str(path))
    assert [finding.file for finding in caught.value.findings] == [str(path)]
    assert "cannot be decoded" in str(caught.value)


def test_no_flipped_byte_changes_a_voxel_unnoticed(tmp_path: Path) -> None:
    array = (scan(shape=(3, 4, 5)) % 7).astype(np.uint8)
    path = write_raw(tmp_path / "scan.nii.gz", array)
    raw = path.read_bytes()
    refused = 0
    for position in range(len(raw)):
        path.write_bytes(raw[:position] + bytes([raw[position] ^ 0x10]) + raw[position + 1 :])
        try:
            got = read_array(str(path))
        except BundleError:
            refused += 1
        else:
            np.testing.assert_array_equal(got, array, err_msg=f"byte {position}")
    assert refused > 0.9 * len(raw)  # the others are the time, the name of the system and unused codes


def test_other_formats_that_nibabel_knows_are_refused(tmp_path: Path) -> None:
    nib.save(nib.Spm99AnalyzeImage(scan(), np.eye(4)), tmp_path / "scan.img")
    with pytest.raises(ValueError, match=r"pair of \.hdr and \.img"):
        open_nifti(tmp_path / "scan.img")
    with pytest.raises(BundleError, match="pair of"):
        read_array(str(tmp_path / "scan.img"))


def test_mgh_files_of_freesurfer_are_read_too(tmp_path: Path) -> None:
    nib.save(nib.MGHImage(scan().astype(np.float32), LPS), tmp_path / "scan.mgz")
    np.testing.assert_array_equal(read_array(str(tmp_path / "scan.mgz")), scan())
    np.testing.assert_array_equal(read_affine(str(tmp_path / "scan.mgz")), LPS)


# --- labels -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32, np.float64])
@pytest.mark.parametrize(
    ("label_values", "voxels", "classes"),
    [
        ([0, 1, 2, 4], [0, 1, 2, 4], [0, 1, 2, 3]),
        ([0, 1, 2, 3], [0, 1, 2, 3], [0, 1, 2, 3]),
        ([0, 2, 1, 3], [0, 1, 2, 3], [0, 2, 1, 3]),  # Decathlon: 1 is ED, 2 is NCR
        ([0, 1, 2, 4], [0, 0, 0, 0], [0, 0, 0, 0]),
        ([0, 1, 2, 4], [4, 2, 4, 2], [3, 2, 3, 2]),
    ],
)
def test_label_values_become_classes(
    tmp_path: Path, label_values: list[int], voxels: list[int], classes: list[int], dtype: type
) -> None:
    path = write_nifti(tmp_path / "seg.nii.gz", np.resize(voxels, SHAPE).astype(dtype), OBLIQUE)
    label, affine = read_label(str(path), label_values)
    assert label.dtype == np.uint8
    np.testing.assert_array_equal(label, np.resize(classes, SHAPE))
    np.testing.assert_allclose(affine, OBLIQUE, atol=1e-5)


@pytest.mark.parametrize(
    ("voxels", "label_values", "found", "mention_2024"),
    [
        ([0, 1, 2, 4, 5], [0, 1, 2, 4], "label value(s) 5 in 192 voxel(s)", False),
        ([0, 1, 2, 3, 4], [0, 1, 2, 4], "label value(s) 3 in 192 voxel(s)", True),
        ([0, 1, 2, 3, 4], [0, 1, 2, 3], "label value(s) 4 in 192 voxel(s)", True),
        ([0, 1, -1, 0.5], [0, 1, 2, 4], "label value(s) -1, 0.5 in 480 voxel(s)", False),
        ([0, 1, 2, np.nan], [0, 1, 2, 4], "label value(s) nan in 240 voxel(s)", False),
    ],
)
def test_unknown_label_values_are_named(
    tmp_path: Path, voxels: list[float], label_values: list[int], found: str, mention_2024: bool
) -> None:
    path = write_nifti(tmp_path / "seg.nii.gz", np.resize(voxels, SHAPE).astype(np.float32))
    with pytest.raises(BundleError) as caught:
        read_label(str(path), label_values)
    (finding,) = caught.value.findings
    assert finding.file == str(path)
    assert finding.found == found
    assert finding.expected == f"only 0 (background), 1 (NCR), 2 (ED), {label_values[3]} (ET)"
    assert "--et_label" in finding.fix
    assert ("2024" in finding.fix) == mention_2024


def test_a_slope_in_the_header_leaves_labels_whole(tmp_path: Path) -> None:
    image = nib.Nifti1Image(segmentation().astype(np.int16) * 10, OBLIQUE)
    image.header.set_slope_inter(0.1, 0)
    path = str(tmp_path / "seg.nii.gz")
    nib.save(image, path)
    with gzip.open(path) as file:
        content = bytearray(file.read())
    content[112:116] = np.float32(0.1).tobytes()  # as a program writes it that keeps the numbers of the file
    content[352:] = (segmentation().astype("<i2") * 10).tobytes(order="F")
    Path(path).write_bytes(gzip.compress(bytes(content)))
    assert not np.array_equal(nib.load(path).get_fdata(), segmentation())
    np.testing.assert_array_equal(read_label(path, [0, 1, 2, 4])[0], np.searchsorted([0, 1, 2, 4], segmentation()))


def test_the_numbers_of_decathlon_cannot_be_forced(tmp_path: Path) -> None:
    path = write_nifti(tmp_path / "seg.nii.gz", segmentation())
    with pytest.raises(BundleError) as caught:
        read_label(str(path), [0, 2, 1, 3])
    assert "--et_label" not in caught.value.findings[0].fix


def test_label_with_a_fourth_axis_of_one(tmp_path: Path) -> None:
    path = write_nifti(tmp_path / "seg.nii.gz", segmentation()[..., None])
    label, _ = read_label(str(path), [0, 1, 2, 4])
    assert label.shape == SHAPE


# --- whole cases ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("names", "values"), [(NAMES_2018, (0, 1, 2, 4)), (NAMES_2023, (0, 1, 2, 3))])
def test_case_of_four_files(tmp_path: Path, names: tuple[str, ...], values: tuple[int, ...]) -> None:
    folder = write_case(tmp_path / "case", names, values=values)
    (case,) = find_cases(folder)
    got = LoadCased()(case)
    image, label = got["image"], got["label"]
    assert isinstance(image, MetaTensor)
    assert isinstance(label, MetaTensor)
    assert (image.dtype, label.dtype) == (torch.float32, torch.uint8)
    assert image.is_contiguous()
    for channel, suffix in enumerate(names[:4]):
        np.testing.assert_array_equal(image[channel], read_array(str(folder / f"case{suffix}.nii.gz")))
    np.testing.assert_array_equal(label, segmentation((0, 1, 2, 3))[None])
    for meta in (image, label):
        np.testing.assert_array_equal(meta.affine, LPS)
    assert got["case"] == "case"
    assert got["source"] == str(folder / f"case{names[0]}.nii.gz")
    assert got["label_file"] == str(folder / f"case{names[4]}.nii.gz")
    assert got["label_values"].tolist() == list(values)


def test_case_without_label(tmp_path: Path) -> None:
    (case,) = find_cases(write_case(tmp_path / "case", values=None), labelled=False)
    got = LoadCased(with_label=False)(case)
    assert "label" not in got
    assert got["label_file"] == ""
    assert got["image"].shape == (4, *SHAPE)


def test_label_is_not_decoded_when_not_wanted(tmp_path: Path) -> None:
    (case,) = find_cases(write_case(tmp_path / "case"))
    Path(case["label"]).write_bytes(b"damaged")
    assert "label" not in LoadCased(with_label=False)(case)
    with pytest.raises(BundleError, match="case_seg"):
        LoadCased()(case)


def test_decathlon_channels_and_labels_come_in_the_networks_order(tmp_path: Path) -> None:
    root = write_decathlon(tmp_path / "Task01_BrainTumour")
    (case,) = find_cases(root)
    got = LoadCased()(case)
    stored = scan(1, (*SHAPE, 4))  # FLAIR, T1, T1ce, T2
    for channel, position in enumerate([1, 2, 3, 0]):
        np.testing.assert_array_equal(got["image"][channel], stored[..., position])
    np.testing.assert_array_equal(got["label"][0], segmentation((0, 2, 1, 3)))


@pytest.mark.parametrize(
    ("count", "order", "channels"),
    [(4, None, [0, 1, 2, 3]), (5, [3, 1, 0, 2], [3, 1, 0, 2]), (5, [4, 0, 1, 2], [4, 0, 1, 2])],
)
def test_channel_order_of_a_4d_file(
    tmp_path: Path, count: int, order: list[int] | None, channels: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    write_nifti(tmp_path / "scans" / "a.nii.gz", scan(1, (*SHAPE, count)))
    (case,) = find_cases(tmp_path / "scans", labelled=False, channel_order=order)
    image = LoadCased(with_label=False)(case)["image"]
    assert image.shape == (4, *SHAPE)
    for channel, position in enumerate(channels):
        np.testing.assert_array_equal(image[channel], scan(1, (*SHAPE, count))[..., position])
    assert ("nothing says which channel is which" in caplog.text) == (order is None)


def test_more_channels_than_modalities_are_asked_about(tmp_path: Path) -> None:
    write_nifti(tmp_path / "dwi.nii.gz", scan(1, (*SHAPE, 7)))
    with pytest.raises(BundleError, match=r"7 channels[\s\S]*--channel_order"):
        find_cases(tmp_path, labelled=False)
    (tmp_path / "list.json").write_text(json.dumps({"testing": [{"image": ["dwi.nii.gz"], "channels": [0, 1, 2, 3]}]}))
    (case,) = find_cases(tmp_path, tmp_path / "list.json", labelled=False)
    assert case["channels"] == [0, 1, 2, 3]


def test_oblique_geometry_reaches_the_image(tmp_path: Path) -> None:
    for position, name in enumerate(NAMES_2018[:4]):
        write_nifti(tmp_path / f"case{name}.nii.gz", scan(position), OBLIQUE)
    (case,) = find_cases(tmp_path, labelled=False)
    affine = LoadCased(with_label=False, allow_unprepared=True)(case)["image"].affine
    np.testing.assert_array_equal(affine, nib.load(case["image"][0]).affine)
    np.testing.assert_allclose(affine, OBLIQUE, atol=1e-5)


@pytest.mark.parametrize("spoil", [np.nan, np.inf, -np.inf])
def test_one_voxel_that_is_no_number(tmp_path: Path, spoil: float) -> None:
    (case,) = find_cases(write_case(tmp_path / "case"))
    array = scan().astype(np.float32)
    array[3, 4, 5] = spoil
    write_nifti(Path(case["image"][2]), array)
    with pytest.raises(BundleError) as caught:
        LoadCased()(case)
    (finding,) = caught.value.findings
    assert finding.file == case["image"][2]
    assert finding.found == "1 voxel(s) that are NaN or infinite"


@pytest.mark.parametrize("value", [0, 7])
def test_constant_modality(tmp_path: Path, value: int) -> None:
    (case,) = find_cases(write_case(tmp_path / "case"))
    write_nifti(Path(case["image"][3]), np.full(SHAPE, value, np.int16))
    with pytest.raises(BundleError) as caught:
        LoadCased()(case)
    (finding,) = caught.value.findings
    assert (finding.file, finding.found) == (case["image"][3], f"the value {value} in every voxel")


def test_all_findings_of_a_case_come_at_once(tmp_path: Path) -> None:
    (case,) = find_cases(write_case(tmp_path / "case"))
    t1, t1ce, t2, flair = map(Path, case["image"])
    t1.write_bytes(half(t1.read_bytes()))
    write_nifti(t1ce, np.full(SHAPE, np.nan, np.float32))
    write_nifti(flair, np.zeros(SHAPE, np.int16))
    write_nifti(Path(case["label"]), segmentation((0, 5)))
    with pytest.raises(BundleError) as caught:
        LoadCased()(case)
    findings = caught.value.findings
    assert [finding.file for finding in findings] == [str(t1), str(t1ce), str(flair), case["label"]]
    assert all(finding.found and finding.expected and finding.fix for finding in findings)
    assert str(t2) not in str(caught.value)
    with pytest.raises(BundleError) as caught:
        LoadCased(with_label=False)(case)
    assert len(caught.value.findings) == 3


def test_bad_channel_of_a_4d_file_is_named_by_its_place_in_the_file(tmp_path: Path) -> None:
    array = scan(1, (*SHAPE, 4)).astype(np.float32)
    array[..., 0] = 0
    array[2, 2, 2, 3] = np.nan
    path = write_nifti(tmp_path / "scans" / "a.nii.gz", array)
    (case,) = find_cases(tmp_path / "scans", labelled=False, channel_order=[1, 2, 3, 0])
    with pytest.raises(BundleError) as caught:
        LoadCased(with_label=False)(case)
    assert [finding.file for finding in caught.value.findings] == [f"{path} (channel 3)", f"{path} (channel 0)"]


# --- a missing modality -----------------------------------------------------------------------------------------------


def test_a_missing_modality_is_zeros_where_that_is_asked_for(tmp_path: Path) -> None:
    folder = write_case(tmp_path / "data" / "BraTS-MET-00001-000", NAMES_2023, values=(0, 1, 2, 3))
    (folder / "BraTS-MET-00001-000-t2w.nii.gz").unlink()
    with pytest.raises(BundleError, match=r"add the missing file.*--fill_missing True"):
        find_cases(folder)
    (case,) = find_cases(folder, fill_missing=True)
    assert case["image"][2] == ""
    whole = LoadCased()(case)
    assert whole["image"].shape == (4, *SHAPE)
    assert not bool(whole["image"][2].any())
    for position in (0, 1, 3):
        np.testing.assert_array_equal(whole["image"][position], scan(position))
    # the same through the datalist that training writes
    datalist = tmp_path / "datalist.json"
    write_datalist({"training": [case], "validation": []}, str(datalist))
    (again,) = find_cases(None, datalist, fill_missing=True)
    assert again["image"] == case["image"]
    with pytest.raises(BundleError, match="4 files"):
        find_cases(None, datalist)
    (folder / "BraTS-MET-00001-000-t1n.nii.gz").unlink()
    (case,) = find_cases(folder, fill_missing=True)
    assert [bool(file) for file in case["image"]] == [False, True, False, True]
    assert LoadCased()(case)["image"].flatten(1).any(1).tolist() == [False, True, False, True]
    write_datalist({"training": [case], "validation": []}, str(datalist))
    assert find_cases(None, datalist, fill_missing=True)[0]["image"] == case["image"]
    (folder / "BraTS-MET-00001-000-t2f.nii.gz").unlink()
    with pytest.raises(BundleError, match="add the missing file"):
        find_cases(folder, fill_missing=True)
    # nor through a datalist, where one file is not a 4-D one if others stand beside it
    datalist.write_text(json.dumps({"training": [{**case, "image": ["", case["image"][1], "", ""]}]}))
    with pytest.raises(BundleError, match=r"expected: 4 files \(T1, T1ce, T2, FLAIR\) or one 4-D file"):
        find_cases(None, datalist, fill_missing=True)


def raw_scan(tmp_path: Path, edges: Sequence[float], air: int = 3) -> Path:
    """A case whose air is noise, with voxels of these edges (mm)."""
    folder = tmp_path / "a"
    for seed, part in enumerate(NAMES_2018[:4]):
        voxels = scan(seed, (30, 30, 20)) // 20 + air
        write_nifti(folder / f"a{part}.nii.gz", voxels, np.diag([*edges, 1.0]))
    return folder


@pytest.mark.parametrize(
    ("edges", "found"),
    [((6, 6, 6), "a head with its skull"), ((1, 1, 6.5), "thick slices"), ((0.4, 0.4, 2.5), "thick")],
)
def test_a_scan_as_it_leaves_the_scanner_is_refused(tmp_path: Path, edges: Sequence[float], found: str) -> None:
    (case,) = find_cases(raw_scan(tmp_path, edges), labelled=False)
    with pytest.raises(BundleError, match=rf"a_t1\.nii\.gz[\s\S]*{found}[\s\S]*--allow_unprepared True"):
        LoadCased(with_label=False)(case)
    assert LoadCased(with_label=False, allow_unprepared=True)(case)["image"].shape == (4, 30, 30, 20)


@pytest.mark.parametrize("edges", [(1, 1, 1), (0.6, 0.6, 1.8), (3, 3, 3.3)])
def test_a_part_of_a_brain_is_not(tmp_path: Path, edges: Sequence[float]) -> None:
    (case,) = find_cases(raw_scan(tmp_path, edges), labelled=False)
    LoadCased(with_label=False)(case)
