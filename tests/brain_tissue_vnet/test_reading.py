"""Tests of reading cases: labels in every numbering and as probabilities, then whole cases, then what is refused."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from brain_tissue_vnet.cases import find_cases
from brain_tissue_vnet.reading import LoadTissued, read_tissue
from bundlekit.cases.case import Case
from bundlekit.errors import BundleError
from bundlekit.label_maps.numberings import IGNORE
from tests.brain_tissue_vnet.conftest import GRID, SHAPE, labels, t1, write, write_all, write_probabilities
from tests.conftest import ROOT

SHARED = Path(os.environ.get("BRAIN_DATA", ROOT.parent / "shared" / "data"))


def labelled_case(folder: Path, label: np.ndarray, numbering: str = "", suffix: str = ".nii.gz") -> Case:
    write(folder / f"a_T1{suffix}")
    write(folder / f"a_seg{suffix}", label)
    (case,) = find_cases(folder, numbering=numbering or None)
    return case


# --- labels -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32, np.float32])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".mgz"])
def test_label_by_its_numbering(tmp_path: Path, suffix: str, dtype: type) -> None:
    case = labelled_case(tmp_path, labels((0, 1, 2, 3), dtype=dtype), "bids", suffix)
    got, affine = read_tissue(case)
    assert got.dtype == np.uint8
    np.testing.assert_array_equal(got, labels((0, 2, 3, 1)))
    np.testing.assert_allclose(affine, GRID)


def test_label_by_its_numbers(tmp_path: Path) -> None:
    case = labelled_case(tmp_path, labels((0, 1, 2, 3)))
    assert case["numbering"] == ""
    np.testing.assert_array_equal(read_tissue(case)[0], labels((0, 1, 2, 3)))
    case = labelled_case(tmp_path, labels((2, 3, 4, 16)))
    np.testing.assert_array_equal(read_tissue(case)[0], labels((3, 2, 1, IGNORE)))
    case = labelled_case(tmp_path, labels((0, 1, 2, 4)))  # BraTS
    with pytest.raises(BundleError, match="a_seg") as caught:
        read_tissue(case)
    assert "--numbering" in caught.value.findings[0].fix


def test_unlabelled_rim_is_measured_with_the_spacing_of_the_file(tmp_path: Path) -> None:
    shape = (15, 9, 9)
    label = np.zeros(shape, np.int16)
    label[7, 4, 4] = 44
    write(tmp_path / "a_SS.nii", t1(shape=shape))
    write(tmp_path / "a_glm.nii", label)  # voxels of 1 x 2 x 1.5 mm
    (case,) = find_cases(tmp_path)
    got, _ = read_tissue(case)
    assert got[:, 4, 4].tolist() == [0, 0] + [255] * 5 + [3] + [255] * 5 + [0, 0]
    assert got[7, :, 4].tolist() == [0, 0, 255, 255, 3, 255, 255, 0, 0]
    assert got[7, 4, :].tolist() == [0, 255, 255, 255, 3, 255, 255, 255, 0]


def test_4d_label_of_one_frame(tmp_path: Path) -> None:
    case = labelled_case(tmp_path, labels()[..., None])
    assert read_tissue(case)[0].shape == SHAPE


def test_4d_label_of_more_frames_is_named(tmp_path: Path) -> None:
    case = labelled_case(tmp_path, labels())
    write(Path(case["label"]), np.stack([labels()] * 2, -1))
    with pytest.raises(BundleError) as caught:
        read_tissue(case)
    assert caught.value.findings[0].found == "an image of shape 6x5x4x2"


# --- probabilities ----------------------------------------------------------------------------------------------------


def probability_case(folder: Path, *maps: np.ndarray) -> Case:
    write_all(folder, ["sub-01_T1w.nii.gz"])
    write_probabilities(folder, "sub-01", maps)
    (case,) = find_cases(folder)
    return case


@pytest.mark.parametrize(
    ("csf", "gm", "wm", "expected"),
    [
        (0, 0, 0, 0),
        (1, 0, 0, 1),
        (0, 1, 0, 2),
        (0, 0, 1, 3),
        (0.1, 0.2, 0.1, 0),  # 0.6 are left for the background
        (0.3, 0.2, 0.24, 1),  # 0.26
        (0.2, 0.45, 0.35, 2),
        (0.0, 0.499, 0.501, 3),
        (-0.005, 0.0, 1.005, 3),  # resampled with a spline
    ],
)
def test_most_probable_class(tmp_path: Path, csf: float, gm: float, wm: float, expected: int) -> None:
    maps = [np.zeros(SHAPE), np.ones(SHAPE), np.zeros(SHAPE)]
    for array, value in zip(maps, (csf, gm, wm), strict=True):
        array[1, 2, 3] = value
    got, affine = read_tissue(probability_case(tmp_path, *maps))
    want = np.full(SHAPE, 2)
    want[1, 2, 3] = expected
    np.testing.assert_array_equal(got, want)
    assert got.dtype == np.uint8
    np.testing.assert_allclose(affine, GRID)


@pytest.mark.parametrize(("value", "found"), [(1.02, "from 0 to 1.02"), (-0.02, "from -0.02 to 1"), (255, "to 255")])
def test_what_is_no_probability_is_named(tmp_path: Path, value: float, found: str) -> None:
    case = probability_case(tmp_path, np.zeros(SHAPE), np.ones(SHAPE), np.zeros(SHAPE))
    array = np.zeros(SHAPE, np.float32)
    array[0, 0, 0], array[1, 1, 1] = value, 1
    write(Path(case["label_parts"][2]), array)
    with pytest.raises(BundleError) as caught:
        read_tissue(case)
    (finding,) = caught.value.findings
    assert finding.file == case["label_parts"][2]
    assert finding.found.endswith(found)


def test_probability_that_is_no_number_is_named(tmp_path: Path) -> None:
    case = probability_case(tmp_path, np.full(SHAPE, np.nan), np.ones(SHAPE), np.zeros(SHAPE))
    with pytest.raises(BundleError, match="values from nan to nan"):
        read_tissue(case)


def test_probability_maps_of_different_shapes_are_named(tmp_path: Path) -> None:
    case = probability_case(tmp_path, *[np.zeros(SHAPE)] * 3)
    write(Path(case["label_parts"][1]), np.zeros((5, 5, 5), np.float32))
    with pytest.raises(BundleError) as caught:
        read_tissue(case)
    (finding,) = caught.value.findings
    assert finding.file == case["label_parts"][1]
    assert "5x5x5" in finding.found
    assert "6x5x4" in finding.expected


# --- whole cases ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".nii.gz", ".mgz"])
def test_whole_case(tmp_path: Path, suffix: str) -> None:
    case = labelled_case(tmp_path, labels(), suffix=suffix)
    got = LoadTissued()(case)
    assert set(got) == {"image", "label", "case", "source", "label_file", "label_values", "numbering", "grid_known"}
    assert got["grid_known"]
    image, label = got["image"], got["label"]
    assert isinstance(image, MetaTensor)
    assert isinstance(label, MetaTensor)
    assert (image.dtype, label.dtype) == (torch.float32, torch.uint8)
    assert image.is_contiguous()
    np.testing.assert_array_equal(image, t1()[None])  # some are negative
    np.testing.assert_array_equal(label, labels()[None])
    for tensor in (image, label):
        np.testing.assert_allclose(tensor.affine, GRID)
    assert got["case"] == "a"
    assert got["source"] == str(tmp_path / f"a_T1{suffix}")
    assert got["label_file"] == str(tmp_path / f"a_seg{suffix}")
    assert got["label_values"].tolist() == [0, 1, 2, 3]
    assert got["numbering"] == "tissue"


def test_a_file_that_does_not_say_where_left_is_is_known(tmp_path: Path) -> None:
    case = labelled_case(tmp_path, labels())
    nib.save(nib.Nifti1Image(t1(), None), case["image"][0])  # neither sform nor qform
    assert not LoadTissued(with_label=False)(case)["grid_known"]


def test_numbering_is_passed_on(tmp_path: Path) -> None:
    assert LoadTissued()(labelled_case(tmp_path, labels(), "bids"))["numbering"] == "bids"
    case = probability_case(tmp_path / "p", np.ones(SHAPE), np.zeros(SHAPE), np.zeros(SHAPE))
    assert LoadTissued()(case)["numbering"] == ""


def test_t1_with_a_fourth_axis_of_one(tmp_path: Path) -> None:
    case = labelled_case(tmp_path, labels())
    write(Path(case["image"][0]), t1()[..., None])
    np.testing.assert_array_equal(LoadTissued()(case)["image"], t1()[None])


def test_case_without_label(tmp_path: Path) -> None:
    write_all(tmp_path, ["a_T1.nii.gz"])
    (case,) = find_cases(tmp_path, labelled=False)
    got = LoadTissued(with_label=False)(case)
    assert "label" not in got
    assert (got["label_file"], got["numbering"]) == ("", "")
    assert got["image"].shape == (1, *SHAPE)


def test_label_is_not_decoded_when_not_wanted(tmp_path: Path) -> None:
    case = labelled_case(tmp_path, labels())
    Path(case["label"]).write_bytes(b"damaged")
    assert "label" not in LoadTissued(with_label=False)(case)
    with pytest.raises(BundleError, match="a_seg"):
        LoadTissued()(case)


def test_all_findings_of_a_case_come_at_once(tmp_path: Path) -> None:
    case = labelled_case(tmp_path, labels((0, 1, 2, 77)), "tissue")
    for spoiled, found in [(np.full(SHAPE, 7, np.int16), "the value 7"), (np.full(SHAPE, np.nan), "120 voxel(s)")]:
        write(Path(case["image"][0]), spoiled)
        with pytest.raises(BundleError) as caught:
            LoadTissued()(case)
        findings = caught.value.findings
        assert [finding.file for finding in findings] == [case["image"][0], case["label"]]
        assert found in findings[0].found
        assert "77 (30 voxels)" in findings[1].found
    Path(case["image"][0]).write_bytes(b"")
    with pytest.raises(BundleError) as caught:
        LoadTissued()(case)
    assert len(caught.value.findings) == 2


@pytest.mark.parametrize(("numbering", "warned"), [("tissue", False), ("bids", True)])
def test_swapped_tissues_are_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, numbering: str, warned: bool
) -> None:
    """Label 1 CSF, 2 GM, 3 WM on a T1 that shows just these; in BIDS, 3 would be CSF and 2 white matter."""
    case = labelled_case(tmp_path, labels(), numbering)
    intensities = np.array([0, 90, 60, 100]) if warned else np.array([0, 20, 60, 100])
    write(Path(case["image"][0]), intensities[labels()].astype(np.int16))
    with caplog.at_level(logging.WARNING):
        LoadTissued()(case)
    assert [case["label"] in record.getMessage() for record in caplog.records] == [True] * warned


# --- real data --------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not (SHARED / "tissue_t1").is_dir(), reason="no real data")
def test_manual_case_of_oasis(caplog: pytest.LogCaptureFixture) -> None:
    cases = find_cases(SHARED / "tissue_t1")
    assert [case["case"] for case in cases] == ["1000", "1005", "1025", "1101", "1119"]
    with caplog.at_level(logging.WARNING):
        got = LoadTissued()(cases[0])
    assert not caplog.records
    image, label = got["image"], got["label"]
    assert got["numbering"] == "neuromorphometrics"
    means = [float(image[label == value].mean()) for value in (1, 2, 3)]
    assert means[0] < means[1] < means[2]
