"""Tests of the numberings: every class of every table by hand, then what is refused, then the unlabelled rim."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from bundlekit.errors import BundleError
from bundlekit.images.nifti import read_array
from bundlekit.label_maps.numberings import (
    BACKGROUND,
    CSF,
    CSF_OR_GM,
    EXTRA_CEREBRAL,
    GM,
    IGNORE,
    NUMBERINGS,
    STRUCTURES,
    TISSUE_OF_STRUCTURE,
    WM,
    check_numbering,
    detect,
    ids_of,
    to_structures,
    to_tissue,
)
from tests.conftest import ROOT

SHARED = Path(os.environ.get("BRAIN_DATA", ROOT.parent / "shared" / "data"))
ONE_MM = (1.0, 1.0, 1.0)


def classes(ids: Sequence[float], numbering: str, dtype: type = np.int32) -> list[int]:
    """Classes of numbers that lie side by side, with none but labelled voxels around."""
    out = to_tissue(np.asarray(ids, dtype).reshape(1, 1, -1), numbering, ONE_MM, "label.nii.gz")
    assert out.dtype == np.uint8
    return out.ravel().tolist()


# numbering -> class -> numbers, from the publications
EXPECTED = {
    "tissue": {BACKGROUND: [0], CSF: [1], GM: [2], WM: [3]},
    "bids": {BACKGROUND: [0, 4, 5, 6], CSF: [3], GM: [1, 8, 9], WM: [2], IGNORE: [7, 10, 11]},
    "mrbrains": {BACKGROUND: [0], CSF: [5, 6], GM: [1, 2], WM: [3, 4], IGNORE: [7, 8, 9, 10]},
    "neuromorphometrics": {
        BACKGROUND: [74],
        CSF: [4, 11, 15, 46, 49, 50, 51, 52],
        GM: [23, 30, 31, 32, 36, 37, 47, 48, 55, 56, 57, 58, 59, 60, 75, 76],
        WM: [40, 41, 44, 45],
        CSF_OR_GM: [38, 39, 71, 72, 73, 100, 101, 150, 207],
        IGNORE: [35, 42, 43, 61, 62, 63, 64, 69],
    },
    "freesurfer": {
        BACKGROUND: [258, 500, 502, 506, 507, 508, 509, 511, 512, 514, 515, 516, 530, 599],
        CSF: [4, 5, 14, 15, 24, 31, 43, 44, 63, 72, 136, 137, 163, 164],
        GM: [
            3, 42, 8, 47, 10, 49, 11, 50, 12, 51, 13, 52, 17, 53, 18, 54, 26, 58, 1000, 1035, 2000, 2035, 11100,
            12175,
        ],
        WM: [2, 41, 7, 46, 25, 57, 77, 78, 79, 251, 252, 253, 254, 255, 3000, 3035, 4000, 4035, 5001, 5002],
        IGNORE: [16, 28, 60, 30, 62, 80, 81, 82, 85],
    },
}  # fmt: skip


@pytest.mark.parametrize("dtype", [np.int16, np.int32, np.uint16, np.int64, np.float32, np.float64, ">i2", ">f4"])
@pytest.mark.parametrize("numbering", EXPECTED)
def test_class_of_every_number(numbering: str, dtype: type) -> None:
    for tissue, ids in EXPECTED[numbering].items():
        assert classes(ids, numbering, dtype) == [tissue] * len(ids)


def test_every_numbering_is_tested() -> None:
    assert set(EXPECTED) == set(NUMBERINGS)
    for name, numbering in NUMBERINGS.items():
        assert set(numbering.classes.values()) == set(EXPECTED[name])
        assert numbering.name == name
        assert numbering.source


def test_the_same_number_is_another_tissue_elsewhere() -> None:
    assert [classes([1, 2, 3], name) for name in ("tissue", "bids", "mrbrains")] == [[1, 2, 3], [2, 3, 1], [2, 2, 3]]


def test_ids_of_ranges() -> None:
    assert ids_of("4, 11, 49-52") == (4, 11, 49, 50, 51, 52)


def test_bool_mask_is_read_as_0_and_1() -> None:
    assert classes([False, True], "tissue", bool) == [0, 1]


# --- refused ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ids", "numbering", "found"),
    [
        ([0, 1, 4, 4, 3], "tissue", "4 (2 voxels)"),
        ([0, 1, 12], "bids", "12 (1 voxels)"),
        ([0, -1, 1], "tissue", "-1 (1 voxels)"),
        ([0, 44, 16], "neuromorphometrics", "16 (1 voxels)"),
        ([2, 3, 70000], "freesurfer", "70000 (1 voxels)"),
        (list(range(4, 14)), "tissue", "11 (1 voxels) and 2 more"),
    ],
)
def test_unknown_numbers_are_named(ids: list[int], numbering: str, found: str) -> None:
    with pytest.raises(BundleError) as caught:
        classes(ids, numbering)
    (finding,) = caught.value.findings
    assert finding.file == "label.nii.gz"
    assert finding.found.endswith(found)
    assert numbering in finding.expected
    assert "--numbering" in finding.fix
    assert all(name in finding.fix for name in NUMBERINGS)


@pytest.mark.parametrize("value", [0.5, np.nan, np.inf])
@pytest.mark.parametrize("call", [lambda array, file: to_tissue(array, "tissue", ONE_MM, file), to_structures, detect])
def test_fractions_are_refused(call: Callable[[np.ndarray, str], object], value: float) -> None:
    array = np.array([[[0, 1, 2, value]]], np.float32)
    with pytest.raises(BundleError) as caught:
        call(array, "a.nii")
    (finding,) = caught.value.findings
    assert finding.file == "a.nii"
    assert finding.found == f"1 voxel(s) that are not whole numbers, e.g. {value:g}"


@pytest.mark.parametrize("call", [lambda array, file: to_tissue(array, "tissue", ONE_MM, file), detect])
def test_whole_numbers_whose_header_has_a_slope_are_whole(call: Callable[[np.ndarray, str], object]) -> None:
    array = np.array([[[0, 1, 2, 3]]], np.float64)
    expected = call(array, "a.nii")
    found = call(array * (1 + 5.9e-8), "a.nii")
    np.testing.assert_array_equal(np.asarray(found, dtype=object), np.asarray(expected, dtype=object))


@pytest.mark.parametrize("call", [lambda array, file: to_tissue(array, "tissue", ONE_MM, file), detect])
@pytest.mark.parametrize("kind", [np.uint64, np.int64, np.uint16])
def test_wide_integers_are_numbers_like_others(call: Callable[[np.ndarray, str], object], kind: type) -> None:
    array = np.array([[[0, 1, 2, 3]]], np.uint8)
    expected, found = call(array, "a.nii"), call(array.astype(kind), "a.nii")
    np.testing.assert_array_equal(np.asarray(found, dtype=object), np.asarray(expected, dtype=object))


def test_unknown_numbering_is_refused() -> None:
    assert check_numbering("bids", "x") == "bids"
    with pytest.raises(BundleError, match="numbering 'spm'"):
        check_numbering("spm", "--numbering")
    with pytest.raises(BundleError, match="numbering 'spm'"):
        classes([0], "spm")


# --- which numbering --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        ([0, 1, 2, 3], "tissue"),
        ([0, 2], "tissue"),
        ([0], "tissue"),
        ([0, 1, 2, 3, 11], "bids"),
        ([0, 2, 3, 4, 10, 16, 41, 42], "freesurfer"),
        ([0, 4, 41, 1005, 2030], "freesurfer"),
        ([0, 4, 16, 1005, 3005], "freesurfer"),
        ([0, 4, 11, 44, 45, 100, 207], "neuromorphometrics"),
    ],
)
def test_detection(ids: list[int], expected: str) -> None:
    assert detect(ids, "x") == expected
    array = np.resize(np.asarray(ids, np.float32), (5, 5, 5))
    assert detect(array, "x") == expected


@pytest.mark.parametrize(
    ("ids", "found"),
    [
        ([0, 1, 2, 3, 5], "bids and mrbrains"),
        ([0, 1, 2, 4], "bids and mrbrains"),  # also BraTS, which has no tissues
        ([0, 16, 28], "no known numbering"),  # FreeSurfer has these, but without cortex and white matter nothing tells
        ([0, 44, 45], "no known numbering"),
        ([0, 2, 3, 100], "no known numbering"),
        ([0, 1, 1000000], "no known numbering"),
        ([-1, 0, 1], "no known numbering"),
    ],
)
def test_what_cannot_be_told_is_refused(ids: list[int], found: str) -> None:
    with pytest.raises(BundleError) as caught:
        detect(ids, "x.nii")
    (finding,) = caught.value.findings
    assert finding.file == "x.nii"
    assert found in finding.found
    assert f"the numbers {min(ids)}, " in finding.found
    assert "--numbering" in finding.fix


# --- what a protocol leaves unlabelled --------------------------------------------------------------------------------


def test_rim_of_unlabelled_voxels_is_ignored_in_mm() -> None:
    label = np.zeros((21, 11, 9), np.int16)
    label[10, 5, 4] = 44
    out = to_tissue(label, "neuromorphometrics", (1.0, 2.0, 3.0), "x")
    i, j, k = np.indices(label.shape)
    distance_mm = np.sqrt((i - 10.0) ** 2 + (2.0 * (j - 5)) ** 2 + (3.0 * (k - 4)) ** 2)
    expected = np.where(distance_mm <= 5, IGNORE, BACKGROUND)
    expected[10, 5, 4] = WM
    np.testing.assert_array_equal(out, expected)
    line = [int(v) for v in out[:, 5, 4]]
    assert line == [0] * 5 + [255] * 5 + [3] + [255] * 5 + [0] * 5
    assert [int(v) for v in out[10, :, 4]] == [0] * 3 + [255] * 2 + [3] + [255] * 2 + [0] * 3  # 2 and 4 mm, not 6
    assert [int(v) for v in out[10, 5, :]] == [0] * 3 + [255, 3, 255] + [0] * 3  # 3 mm, not 6
    assert out[13, 7, 4] == IGNORE  # 3 and 4 mm
    assert out[14, 7, 4] == BACKGROUND  # 4 and 4 mm


def test_rim_reaches_into_holes_and_stops_at_the_border() -> None:
    label = np.full((3, 3, 3), 100, np.int16)
    label[1, 1, 1] = 0
    out = to_tissue(label, "neuromorphometrics", ONE_MM, "x")
    assert out[1, 1, 1] == IGNORE
    assert (out == CSF_OR_GM).sum() == 26


@pytest.mark.parametrize("numbering", NUMBERINGS)
def test_nothing_labelled_is_background(numbering: str) -> None:
    assert not to_tissue(np.zeros((3, 4, 5), np.int16), numbering, ONE_MM, "x").any()


@pytest.mark.parametrize("numbering", ["tissue", "bids", "mrbrains"])
def test_no_rim_where_the_protocol_labels_all_csf(numbering: str) -> None:
    label = np.zeros((9, 9, 9), np.int16)
    label[4, 4, 4] = 1
    out = to_tissue(label, numbering, ONE_MM, "x")
    assert (out == BACKGROUND).sum() == out.size - 1


@pytest.mark.parametrize(("sulcal", "rim"), [(0, IGNORE), (1, IGNORE), (2, BACKGROUND)])
def test_freesurfer_has_a_rim_unless_sulcal_csf_is_labelled(sulcal: int, rim: int) -> None:
    """aseg labels none, or a few voxels deep in the brain; SynthSeg labels all of it."""
    label = np.zeros((14, 14, 14), np.int16)
    label[2:7, 2:7, 2:10] = 2  # 200 voxels
    label[2, 2, 2 : 2 + sulcal] = 24
    out = to_tissue(label, "freesurfer", (2.0, 2.0, 2.0), "x")
    assert out[7, 4, 4] == rim  # 2 mm
    assert out[9, 4, 4] == BACKGROUND  # 6 mm
    assert (out == CSF).sum() == sulcal


# --- structures -------------------------------------------------------------------------------------------------------


def test_no_number_is_in_two_structures() -> None:
    ids = [number for structure in STRUCTURES for number in structure.ids]
    assert len(ids) == len(set(ids)) == len(NUMBERINGS["freesurfer"].classes)
    names = [structure.name for structure in STRUCTURES]
    assert len(names) == len(set(names))


def test_structure_of_a_number_has_the_tissue_that_its_numbering_says() -> None:
    ids = list(NUMBERINGS["freesurfer"].classes)
    indices = to_structures(np.asarray(ids).reshape(-1, 1, 1), "x").ravel()
    assert set(indices.tolist()) == set(range(len(STRUCTURES)))
    for number, index in zip(ids, indices, strict=True):
        assert number in STRUCTURES[index].ids
        assert TISSUE_OF_STRUCTURE[index] == STRUCTURES[index].tissue == NUMBERINGS["freesurfer"].classes[number]


def test_extra_cerebral_structures_come_first() -> None:
    """So that `index > EXTRA_CEREBRAL[-1]` is the brain and its CSF."""
    assert list(EXTRA_CEREBRAL) == list(range(len(EXTRA_CEREBRAL)))
    for index, structure in enumerate(STRUCTURES):
        assert structure.brain == (index not in EXTRA_CEREBRAL)
        assert (structure.tissue == BACKGROUND) == (index in EXTRA_CEREBRAL)
    assert STRUCTURES[0].name == "background"
    assert 0 in STRUCTURES[0].ids


@pytest.mark.parametrize(
    ("ids", "name"),
    [
        ([24], "sulcal CSF"),
        ([4, 5, 43, 44], "lateral ventricle"),
        ([14, 15, 72], "third to fifth ventricle"),
        ([31, 63, 136, 137, 163, 164], "choroid plexus"),
        ([2, 41, 251, 255, 3001, 4035, 5001], "cerebral white matter"),
        ([25, 57, 77, 78, 79], "white matter lesion"),
        ([3, 42, 1001, 2035, 11175], "cerebral cortex"),
        ([7, 46], "cerebellar white matter"),
        ([8, 47], "cerebellar cortex"),
        ([10, 49], "thalamus"),
        ([13, 52], "pallidum"),
        ([16], "brain stem"),
        ([28, 60], "ventral DC"),
        ([500, 531, 599], "other extra-cerebral tissue"),
    ],
)
def test_numbers_of_one_structure(ids: list[int], name: str) -> None:
    got = to_structures(np.asarray(ids, np.float32).reshape(1, -1, 1), "x")
    assert {STRUCTURES[index].name for index in got.ravel()} == {name}


def test_extra_cerebral_tissues_are_kept_apart() -> None:
    ids = [0, 502, 506, 507, 508, 509, 511, 512, 514, 515, 516, 530, 599]
    assert to_structures(np.asarray(ids).reshape(1, 1, -1), "x").ravel().tolist() == list(EXTRA_CEREBRAL)


def test_unknown_structure_is_refused() -> None:
    with pytest.raises(BundleError) as caught:
        to_structures(np.array([[[0, 2, 99, 99, -3]]]), "map.nii.gz")
    (finding,) = caught.value.findings
    assert finding.file == "map.nii.gz"
    assert finding.found.endswith("-3 (1 voxels), 99 (2 voxels)")


# --- whole volumes ----------------------------------------------------------------------------------------------------


def test_a_whole_head_takes_a_moment() -> None:
    label = np.resize(np.array([0, 0, 2, 3, 24, 41, 507], np.int16), (192, 192, 192))
    start = time.process_time()
    structures = to_structures(label, "x")
    to_tissue(label, "freesurfer", ONE_MM, "x")
    assert time.process_time() - start < 3  # 0.5 s; a loop over the numbers takes longer than that
    assert set(np.unique(structures).tolist()) == {0, 3, 13, 17, 19}


@pytest.mark.skipif(not (SHARED / "tissue_t1").is_dir(), reason="no real data")
def test_manual_labels_of_oasis() -> None:
    label = read_array(str(SHARED / "tissue_t1" / "1000_glm.nii.gz"))
    assert detect(label, "x") == "neuromorphometrics"
    out = to_tissue(label, "neuromorphometrics", ONE_MM, "x")
    count = {value: int((out == value).sum()) for value in (CSF, GM, WM, CSF_OR_GM)}
    assert 500e3 < count[WM] < 650e3
    assert 600e3 < count[CSF_OR_GM] < 1000e3
    assert 30e3 < count[GM] < 70e3  # deep grey matter alone
    assert 10e3 < count[CSF] < 80e3  # ventricles alone
    assert (out[label == 0] != CSF).all()


@pytest.mark.skipif(not (SHARED / "tissue_labelmaps").is_dir(), reason="no real data")
def test_label_maps_of_synthseg() -> None:
    label = read_array(str(SHARED / "tissue_labelmaps" / "training_seg_01.nii.gz"))
    assert detect(label, "x") == "freesurfer"
    structures = to_structures(label, "x")
    tissue = to_tissue(label, "freesurfer", ONE_MM, "x")
    np.testing.assert_array_equal(np.asarray(TISSUE_OF_STRUCTURE, np.uint8)[structures], tissue)  # so, no rim
    assert 400e3 < (tissue == WM).sum() < 600e3
    assert 400e3 < (tissue == CSF).sum() < 600e3


def test_a_mask_is_no_label_of_tissues() -> None:
    with pytest.raises(BundleError, match="0 and 1 alone: a mask, of the brain for instance"):
        detect([0, 1], "P01_seg.nii.gz")
    assert detect([0, 2], "P01_seg.nii.gz") == "tissue"
