"""Finding cases: every layout that is read, and every one that is refused, with its message."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from brats_unet_h5 import LoadHDF5d, find_cases, scan_cases
from brats_unet_h5.mask_channels import tell_mask_channels
from bundlekit.cases.datalist import write_datalist
from bundlekit.cases.split import split_cases
from bundlekit.errors import BundleError
from tests.brats_unet_h5.conftest import (
    CLASS_SETS,
    ORDER,
    REGION_SETS,
    SHAPE,
    classes,
    image,
    one_hot,
    write_case,
    write_file,
    write_slices,
)

LABEL = np.asarray([0, 1, 2, 4], np.uint8)[classes()]


def loaded(root: Path, **settings: Any) -> tuple[np.ndarray, np.ndarray]:
    (case,) = find_cases(root, **settings)
    item = LoadHDF5d()(case)
    return item["image"].numpy(), item["label"].numpy()[0]


# --- one file per patient ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("datasets", "settings"),
    [
        ({"image": image(), "mask": LABEL}, {}),
        ({"image": np.moveaxis(image(), 0, -1), "mask": LABEL[..., None]}, {}),
        ({"Image": image().astype(np.float32), "Seg": LABEL[None].astype(np.int32)}, {}),
        ({"scan/data": image(), "scan/label": one_hot(classes(), CLASS_SETS)}, {}),
        ({"image": image(), "mask": np.moveaxis(one_hot(classes(), CLASS_SETS), 0, -1)}, {}),
        ({"image": image(), "mask": 255 * one_hot(classes(), REGION_SETS)}, {}),
        ({"image": image(), "mask": one_hot(classes(), ((1, 3), (1, 2, 3), (3,)))}, {}),  # MONAI's order TC, WT, ET
        ({"image": image(), "mask": one_hot(classes(), ((0,), *CLASS_SETS)).astype(float)}, {}),
        ({"image": image(), "mask": one_hot(classes(), ((2,), (1,), (3,)))}, {"mask_channels": ["ED", "NCR", "ET"]}),
        ({"image": image(), "mask": np.where(LABEL == 4, 3, LABEL)}, {}),
        ({"a": image(), "b": LABEL}, {}),  # nothing but shapes to go by
        ({"a": image(), "b": LABEL, "c": LABEL}, {"mask_key": "b"}),
        ({"image": image(), "image_b": image(seed=1), "mask": LABEL, "weights": np.ones((3, 3))}, {}),
        ({"p": image(), "q": image(seed=1), "mask": LABEL}, {"image_key": "p"}),
    ],
)
def test_layouts_of_one_file_give_the_same_arrays(
    datasets: dict[str, np.ndarray], settings: dict[str, Any], tmp_path: Path
) -> None:
    write_file(tmp_path / "deep" / "er" / "case.hdf5", datasets, modalities=ORDER)
    found, label = loaded(tmp_path, **settings)
    np.testing.assert_array_equal(found, image())
    np.testing.assert_array_equal(label, classes())


def test_channels_are_put_in_order_by_attribute_or_setting(tmp_path: Path) -> None:
    mixed = image()[[3, 0, 1, 2]]
    write_file(tmp_path / "a" / "case.h5", {"image": mixed, "mask": LABEL}, modalities=["flair", "t1n", "T1Gd", "t2w"])
    write_file(tmp_path / "b" / "case.h5", {"image": mixed, "mask": LABEL})
    np.testing.assert_array_equal(loaded(tmp_path / "a")[0], image())
    for order in (["flair", "t1", "t1ce", "t2"], "[flair,t1,t1ce,t2]", "T2-FLAIR, T1, T1c, T2"):
        np.testing.assert_array_equal(loaded(tmp_path / "b", channel_order=order)[0], image())


def test_the_order_of_training_is_for_files_that_do_not_tell(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Told now, then the datalist for that very file, then the file itself, then what training was told."""
    caplog.set_level(logging.INFO)
    trained = ["flair", "t1", "t1ce", "t2"]
    write_file(tmp_path / "silent" / "case.h5", {"image": image(), "mask": LABEL})
    write_slices(tmp_path / "slices")
    for folder in ("silent", "slices"):
        (case,) = find_cases(tmp_path / folder, trained_order=trained)
        assert case["channels"] == [1, 2, 3, 0]
        assert "in the order that training was told" in caplog.text
        caplog.clear()
        (case,) = find_cases(tmp_path / folder, trained_order=trained, channel_order="[t2,flair,t1,t1ce]")
        assert case["channels"] == [2, 3, 0, 1]
        assert "training was told" not in caplog.text

    write_case(tmp_path / "telling" / "case.h5")
    (case,) = find_cases(tmp_path / "telling", trained_order=ORDER)
    assert case["channels"] == [0, 1, 2, 3]
    assert "training was told" not in caplog.text
    (case,) = find_cases(tmp_path / "telling", trained_order=trained)
    assert case["channels"] == [0, 1, 2, 3], "the file knows better"
    assert "another order of the channels than training was told" in caplog.text
    split = {"training": find_cases(tmp_path / "telling", channel_order=trained), "validation": []}
    assert split["training"][0]["channels"] == [1, 2, 3, 0], "the user knows better still"
    write_datalist(split, str(tmp_path / "run" / "datalist.json"))
    (case,) = find_cases(None, datalist=tmp_path / "run" / "datalist.json", trained_order=trained)
    assert case["channels"] == [1, 2, 3, 0], "and is remembered for that very file"
    assert "datalist has another order" in caplog.text


@pytest.mark.parametrize(
    "values", [[0, 1, 1, 4], [0, 100, 200, 300], [0, 1, 2], ["BG", "NCR", "ED", "ET"], [0, 1, 2, 2.5]]
)
def test_label_values_that_no_mask_has_are_named(tmp_path: Path, values: list[Any]) -> None:
    write_case(tmp_path / "a.h5", label_values=values)
    with pytest.raises(BundleError, match=r"a\.h5[\s\S]*the attribute label_values[\s\S]*four different whole numbers"):
        find_cases(tmp_path)


@pytest.mark.parametrize("names", ["NCR", ["wt", "tc"], ["NCR", "ED", "ET", "BG"]])
def test_channels_of_a_mask_that_a_datalist_names_have_to_fit(tmp_path: Path, names: Any) -> None:
    write_file(tmp_path / "a.h5", {"image": image(), "mask": one_hot(classes(), CLASS_SETS)}, modalities=ORDER)
    entry = {"image": "a.h5", "mask_channels": names}
    (tmp_path / "list.json").write_text(json.dumps({"training": [entry]}))
    with pytest.raises(BundleError, match=r"in the datalist, mask_channels is .* for masks of 3 channels"):
        find_cases(None, datalist=tmp_path / "list.json")
    (tmp_path / "list.json").write_text(json.dumps({"training": [{**entry, "mask_channels": "classes"}]}))
    assert find_cases(None, datalist=tmp_path / "list.json")[0]["mask_channels"] == ["NCR", "ED", "ET"]


def test_a_mask_of_true_and_false_is_of_one_class(tmp_path: Path) -> None:
    write_file(tmp_path / "a.h5", {"image": image(), "mask": classes() > 0}, modalities=ORDER)
    (case,) = find_cases(tmp_path)
    with pytest.raises(BundleError, match="a mask of true and false"):
        LoadHDF5d()(case)


def test_parts_of_a_file_with_other_axes_are_refused(tmp_path: Path) -> None:
    write_case(tmp_path / "a.h5", affine=np.array([[0, 0, 1, 0], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1.0]]))
    (case,) = find_cases(tmp_path)
    with pytest.raises(BundleError, match="axes that lead to ASR"):
        LoadHDF5d(for_chunks=True)(case)
    LoadHDF5d()(case)


def test_affine_label_values_and_patients(tmp_path: Path) -> None:
    affine = np.diag([-1, -1, 2, 1.0])
    for name in ("BraTS-GLI-00001-000", "BraTS-GLI-00001-001", "BraTS-GLI-00002-000"):
        write_case(tmp_path / f"{name}.h5", affine=affine)
    cases = find_cases(tmp_path)
    assert [case["label_values"] for case in cases] == [[0, 1, 2, 4]] * 3
    np.testing.assert_array_equal(LoadHDF5d()(cases[0])["image"].affine, affine)
    split = split_cases(cases)
    assert not {c["patient"] for c in split["training"]} & {c["patient"] for c in split["validation"]}
    assert find_cases(tmp_path, et_label=3)[0]["label_values"] == [0, 1, 2, 3]


def test_a_case_without_mask_is_fine_where_none_is_needed(tmp_path: Path) -> None:
    write_file(tmp_path / "case.h5", {"image": image()}, modalities=ORDER)
    (case,) = find_cases(tmp_path / "case.h5", labelled=False)
    assert case["label"] == ""
    assert LoadHDF5d(with_label=False)(case)["label_file"] == ""


@pytest.mark.parametrize(
    ("others", "attributes"),
    [
        ({"target": np.zeros((3, 5))}, {}),
        ({"mask": np.zeros((2, 2, 2), np.uint8)}, {}),
        ({"mask": classes(), "labels": classes()}, {}),
        ({"mask": classes()[None].repeat(3, 0)}, {"mask_channels": ["NCR", "ED"]}),
    ],
)
def test_a_mask_that_cannot_be_used_stops_no_inference(
    others: dict[str, Any], attributes: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_file(tmp_path / "case.h5", {"image": image(), **others}, modalities=ORDER, **attributes)
    (case,) = find_cases(tmp_path / "case.h5", labelled=False)
    assert case["label"] == ""
    assert "what could be a mask is left out" in caplog.text
    with pytest.raises(BundleError):
        find_cases(tmp_path / "case.h5")


def test_datalist_of_an_earlier_start_gives_the_same_cases(tmp_path: Path) -> None:
    for name in "abc":
        write_file(tmp_path / f"{name}.h5", {"image": image(), "mask": one_hot(classes(), ((1, 3), (1, 2, 3), (3,)))})
    write_slices(tmp_path)
    cases = find_cases(tmp_path, channel_order=["flair", "t1", "t1ce", "t2"])
    split = split_cases(cases)
    write_datalist(split, str(tmp_path / "run" / "datalist.json"))
    again = find_cases(None, datalist=tmp_path / "run" / "datalist.json", channel_order=["flair", "t1", "t1ce", "t2"])
    subsets = {case["case"]: part for part, some in split.items() for case in some}
    assert again == [{**case, "subset": subsets[case["case"]]} for case in cases]


def test_short_datalist_and_bad_ones(tmp_path: Path) -> None:
    write_case(tmp_path / "a.h5")
    write_slices(tmp_path)
    content = {"training": ["a.h5"], "validation": [{"image": "volume_1_slice_3.h5", "case": "other"}]}
    (tmp_path / "list.json").write_text(json.dumps(content))
    cases = find_cases(None, datalist=tmp_path / "list.json")
    assert [(c["case"], c["subset"], len(c["image"])) for c in cases] == [
        ("a", "training", 1),
        ("other", "validation", 8),
    ]
    for text, message in (
        ("[", "cannot be read as JSON"),
        ("{}", "no case"),
        ('{"training": [{"image": 3}]}', "image: 3"),
        ('{"training": [{"image": ["a.h5", "b.h5"]}]}', "all slices of a volume"),
    ):
        (tmp_path / "list.json").write_text(text)
        with pytest.raises(BundleError, match=message):
            find_cases(None, datalist=tmp_path / "list.json")


def test_a_label_of_another_file_is_refused(tmp_path: Path) -> None:
    """The mask is read from the file of the image alone: another one would train nobody."""
    write_case(tmp_path / "a.h5")
    write_case(tmp_path / "other" / "a_seg.h5")
    for label in ("other/a_seg.h5", "nowhere.h5"):
        content = {"training": ["a.h5"], "validation": [{"image": "a.h5", "case": "b", "label": label}]}
        (tmp_path / "list.json").write_text(json.dumps(content))
        with pytest.raises(BundleError, match=rf"label: '{label}'[\s\S]*dataset `mask`"):
            find_cases(None, datalist=tmp_path / "list.json")
        assert len(find_cases(None, datalist=tmp_path / "list.json", labelled=False)) == 2
    content["validation"][0]["label"] = "a.h5"  # as datalist.json has it
    (tmp_path / "list.json").write_text(json.dumps(content))
    assert [case["label"] for case in find_cases(None, datalist=tmp_path / "list.json")] == [str(tmp_path / "a.h5")] * 2


# --- slices -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sets", [CLASS_SETS, REGION_SETS])
def test_slices_are_assembled(sets: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_slices(tmp_path / "content" / "data", mask=one_hot(classes(), sets))
    with caplog.at_level(logging.WARNING):
        found, label = loaded(tmp_path)
    np.testing.assert_allclose(found, image() / 1000, rtol=1e-5)  # less the air, which is exactly 0 then
    assert ((found == 0) == (image() == 0)).all()
    np.testing.assert_array_equal(label, classes())
    assert "T1, T1Gd, T2, FLAIR" in caplog.text
    found, _ = loaded(
        tmp_path / "content" / "data" / "volume_1_slice_2.h5", channel_order=["flair", "t1", "t1ce", "t2"]
    )
    np.testing.assert_allclose(found, image()[[1, 2, 3, 0]] / 1000, rtol=1e-5)


def test_slices_of_brats_are_155(tmp_path: Path) -> None:
    for k in range(3):
        write_file(
            tmp_path / f"volume_9_slice_{k}.h5",
            {"image": np.zeros((240, 240, 4), np.uint8), "mask": np.zeros((240, 240, 3), np.uint8)},
        )
    _, findings = scan_cases(tmp_path, mask_channels="classes")
    assert "3 slices of volume_9, without slice 3, 4, 5" in findings[0].found
    assert findings[0].expected == "slices 0 to 154"


def test_slices_may_be_numbered_from_1(tmp_path: Path) -> None:
    def write(volume: int, numbers: Sequence[int]) -> None:
        for k in numbers:
            arrays = {"image": np.zeros((24, 24, 4), np.uint8), "mask": np.zeros((24, 24, 3), np.uint8)}
            write_file(tmp_path / f"volume_{volume}_slice_{k}.h5", arrays)

    write(1, range(1, 7))
    write(2, [1, 2, 4, 5, 6])
    cases, findings = scan_cases(tmp_path, mask_channels="classes")
    assert [case["case"] for case in cases] == ["volume_1"]
    assert [(one.found, one.expected) for one in findings] == [
        ("5 slices of volume_2, without slice 3", "slices 1 to 6")
    ]
    write(3, range(6))  # where one has a slice 0, all do
    _, findings = scan_cases(tmp_path, mask_channels="classes")
    assert {one.expected for one in findings} == {"slices 0 to 6"}


# --- what is refused --------------------------------------------------------------------------------------------------


def edit(root: Path, **datasets: Any) -> None:
    write_file(root / "case.h5", {"image": image(), "mask": LABEL} | datasets, modalities=ORDER)


def damaged(root: Path, keep: float) -> None:
    path = write_case(root / "case.h5")
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])


def without(root: Path, name: str) -> None:
    with h5py.File(write_case(root / "case.h5"), "a") as file:
        del file[name]


def sliced(root: Path, spoil: Callable[[Path], object]) -> None:
    write_slices(root, 1)
    write_slices(root, 2)
    spoil(root)


@pytest.mark.parametrize(
    ("make", "settings", "words"),
    [
        (lambda r: None, {}, ["no HDF5 file", "--dataset_dir"]),
        (lambda r: (r / "x_t1.nii.gz").write_bytes(b""), {}, ["1 NIfTI file", "convert h5"]),
        (lambda r: (r / "case.h5").write_text("text"), {}, ["case.h5", "not an HDF5 file"]),
        (lambda r: damaged(r, 0.5), {}, ["case.h5", "cannot be read to its end", "copy or download"]),
        (lambda r: without(r, "image"), {}, ["mask 12x10x8 uint8", "a dataset with the image", "--image_key"]),
        (lambda r: without(r, "mask"), {}, ["image 4x12x10x8 int16", "a dataset with the mask", "--mask_key"]),
        (lambda r: edit(r), {"image_key": "scan"}, ["a dataset 'scan' (image_key)", "image 4x12x10x8 int16"]),
        (lambda r: edit(r, image=image()[0]), {}, ["image of shape 12x10x8", "rank 3", "4 channels first or last"]),
        (lambda r: edit(r, image=image()[:3]), {}, ["image of shape 3x12x10x8", "4 channels"]),
        (lambda r: edit(r, image=image()[..., :4]), {}, ["4 first and 4 last"]),
        (lambda r: edit(r, mask=LABEL[:-1]), {}, ["mask of shape 11x10x8", "12x10x8 voxels", "resample"]),
        (lambda r: edit(r, images=image()), {}, ["image, images", "may be the image"]),
        (
            lambda r: write_file(r / "case.h5", {"image": image(), "mask": LABEL}),
            {},
            ["which is T1, T1ce, T2 and FLAIR", '--channel_order "[t1,t1ce,t2,flair]"'],
        ),
        (lambda r: edit(r), {"channel_order": ["t1", "t2", "flair"]}, ["channel_order is", "four modalities"]),
        (lambda r: edit(r), {"et_label": 5}, ["et_label is 5"]),
        (lambda r: edit(r), {"patch_size": [16, 16, 16]}, ["12x10x8 voxels", "patch_size 16x16x16"]),
        (
            lambda r: edit(r, mask=one_hot(classes() * 0, CLASS_SETS)),
            {},
            ["3 channels in mask", "--mask_channels classes"],
        ),
        (
            lambda r: edit(r, mask=one_hot(classes(), CLASS_SETS)),
            {"mask_channels": ["a", "b"]},
            ["mask_channels is ['a', 'b']", "3 channels"],
        ),
        (lambda r: (edit(r), edit(r / "again")), {}, ["case case more than once"]),
        (lambda r: write_case(r / "case.h5", affine=np.zeros((4, 4))), {}, ["attribute affine", "invertible"]),
        (
            lambda r: sliced(r, lambda r: (r / "volume_2_slice_5.h5").unlink()),
            {},
            ["volume_2, without slice 5", "slices 0 to 7", "download the missing"],
        ),
        (
            lambda r: sliced(r, lambda r: [(r / f"volume_2_slice_{k}.h5").unlink() for k in (6, 7)]),
            {},
            ["without slice 6, 7"],
        ),
    ],
)
def test_bad_folders_give_one_clear_message(
    make: Callable[[Path], object], settings: dict[str, Any], words: list[str], tmp_path: Path
) -> None:
    make(tmp_path)
    with pytest.raises((BundleError, ValueError)) as error:
        find_cases(tmp_path, **settings)
    for word in words:
        assert word in str(error.value)


def nan_image() -> np.ndarray:
    out = image().astype(np.float32)
    out[2, 3, 3, 3] = np.nan
    return out


@pytest.mark.parametrize(
    ("make", "settings", "words"),
    [
        (lambda r: edit(r, image=nan_image()), {}, ["case.h5 (T2)", "1 voxel(s) that are NaN"]),
        (lambda r: edit(r, image=image() * np.array([1, 0, 1, 1])[:, None, None, None]), {}, ["(T1ce)", "every voxel"]),
        (lambda r: edit(r, mask=np.where(LABEL == 1, 7, LABEL)), {}, ["label value(s) 7", "4 (ET)"]),
        (lambda r: edit(r, mask=np.where(LABEL == 1, 3, LABEL)), {}, ["label value(s)", "--et_label"]),
        (
            lambda r: edit(r, mask=one_hot(classes(), REGION_SETS)),
            {"mask_channels": "classes"},
            ["voxel(s) of two classes", "--mask_channels"],
        ),
        (
            lambda r: edit(r, mask=one_hot(classes(), CLASS_SETS)),
            {"mask_channels": "regions"},
            ["outside the one around it", "ET in TC in WT"],
        ),
        (lambda r: edit(r, mask=2 * one_hot(classes(), CLASS_SETS)), {}, ["mask value(s) 0, 2", "only 0 and 1"]),
        (
            lambda r: sliced(r, lambda r: (r / "volume_1_slice_5.h5").write_bytes(b"cut")),
            {},
            ["volume_1_slice_5.h5", "not an HDF5 file"],
        ),
        (
            lambda r: sliced(r, lambda r: write_file(r / "volume_1_slice_5.h5", {"image": np.zeros((12, 10, 4))})),
            {},
            ["volume_1_slice_5.h5", "no dataset mask", "other slices"],
        ),
        (
            lambda r: sliced(
                r,
                lambda r: write_file(
                    r / "volume_1_slice_5.h5", {"image": np.zeros((6, 5, 4)), "mask": np.zeros((6, 5, 3))}
                ),
            ),
            {},
            ["volume_1_slice_5.h5", "image of shape 6x5x4"],
        ),
    ],
)
def test_bad_voxels_give_one_clear_message(
    make: Callable[[Path], object], settings: dict[str, Any], words: list[str], tmp_path: Path
) -> None:
    make(tmp_path)
    with pytest.raises(BundleError) as error:
        LoadHDF5d()(find_cases(tmp_path, **settings)[0])
    for word in words:
        assert word in str(error.value)


def test_results_among_the_data_are_passed_over(tmp_path: Path) -> None:
    write_case(tmp_path / "case.h5")
    write_case(tmp_path / "whole_seg.h5")  # a case all the same: it has an image
    write_file(tmp_path / "results" / "case_seg.h5", {"mask": LABEL})
    assert [case["case"] for case in find_cases(tmp_path)] == ["case", "whole_seg"]
    write_file(tmp_path / "mask.h5", {"mask": LABEL})
    (tmp_path / "cut_seg.h5").write_bytes(b"cut")
    files = {Path(finding.file).name for finding in scan_cases(tmp_path)[1]}
    assert files == {"mask.h5", "cut_seg.h5"}
    for root in (tmp_path / "results", tmp_path / "results" / "case_seg.h5"):
        with pytest.raises(BundleError, match=r"1 segmentation|a dataset with the image"):
            find_cases(root)


def test_what_masks_tell() -> None:
    label = classes(SHAPE)
    assert tell_mask_channels(one_hot(label, CLASS_SETS)) == ["NCR", "ED", "ET"]
    assert tell_mask_channels(one_hot(label, REGION_SETS)) == ["WT", "TC", "ET"]
    assert tell_mask_channels(one_hot(label, ((3,), (1, 2, 3), (1, 3)))) == ["ET", "WT", "TC"]
    assert tell_mask_channels(one_hot(label, ((0,), *CLASS_SETS))) == ["BG", "NCR", "ED", "ET"]
    assert tell_mask_channels(one_hot(label, (*CLASS_SETS, (0,)))) is None  # the background last: ask
    assert tell_mask_channels(one_hot(label, ((1,), (), ()))) is None  # one channel alone is both
    assert tell_mask_channels(one_hot(label, ((0,), (2,), (1, 3)))) is None  # the background is one of three
    assert tell_mask_channels(one_hot(label, ((1, 2), (2, 3), (3,)))) is None


def test_no_handle_stays_open(tmp_path: Path) -> None:
    write_case(tmp_path / "case.h5")
    LoadHDF5d(for_chunks=True)(find_cases(tmp_path)[0])
    open_files = [
        os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if Path(f"/proc/self/fd/{fd}").exists()
    ]
    assert not [name for name in open_files if name.endswith("case.h5")]
