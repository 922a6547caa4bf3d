"""Tests of finding, checking and splitting: every layout that users have, then everything that can be wrong with it."""

from __future__ import annotations

import gzip
import json
import os
import struct
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from bundlekit.brats import enhancing_label
from bundlekit.brats.cases import find_cases, scan_cases
from bundlekit.brats.naming import role_of
from bundlekit.cases.case import Case, require_cases
from bundlekit.cases.datalist import write_datalist
from bundlekit.cases.patients import patient_of
from bundlekit.cases.split import select_cases, split_cases
from bundlekit.errors import BundleError
from bundlekit.images import writing
from bundlekit.images.nifti import open_nifti, read_array
from bundlekit.images.writing import on_grid_of, signed
from bundlekit.label_maps import find_label_maps
from tests.bundlekit.conftest import (
    LPS,
    NAMES_2018,
    NAMES_2023,
    SHAPE,
    findings_by,
    names,
    scan,
    segmentation,
    write_case,
    write_decathlon,
    write_nifti,
)

findings_of = partial(findings_by, scan_cases, find_cases)


# --- results among the data -------------------------------------------------------------------------------------------


def with_result(root: Path, corrected: bool = False) -> Path:
    """A case without a label, and what inference wrote for it into a folder below; a voxel of it may be mended."""
    source = write_case(root / "a", values=None) / "a_t1.nii.gz"
    image = on_grid_of(source, segmentation())
    image.header["descrip"] = signed("segmented by brats_resunet", segmentation())
    if corrected:
        image.dataobj[0, 0, 0] = 1
    (root / "masks").mkdir()
    nib.save(image, root / "masks" / "a_seg.nii.gz")
    return root / "masks" / "a_seg.nii.gz"


def test_a_mask_of_inference_is_no_reference(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    mask = with_result(tmp_path)
    (finding,) = findings_of(tmp_path)
    assert finding.file == str(mask)
    assert finding.found == "a mask segmented by brats_resunet and left as it was, which is no reference"
    (case,) = find_cases(tmp_path, labelled=False)
    assert case["label"] == ""
    assert not caplog.text
    entry = {"image": [f"a/a{part}.nii.gz" for part in NAMES_2018[:4]], "label": "masks/a_seg.nii.gz"}
    (tmp_path / "datalist.json").write_text(json.dumps({"training": [entry]}))
    (case,) = find_cases(None, datalist=tmp_path / "datalist.json")
    assert case["label"] == str(mask), "somebody chose it"
    assert "1 label(s) of the datalist are masks as inference wrote them" in caplog.text


def test_a_corrected_mask_is_a_reference(tmp_path: Path) -> None:
    mask = with_result(tmp_path, corrected=True)
    for labelled in (True, False):
        (case,) = find_cases(tmp_path, labelled=labelled)
        assert case["label"] == str(mask)


def test_only_labels_with_our_name_are_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("b", "c"):
        write_case(tmp_path / name)
    with_result(tmp_path, corrected=True)
    decoded: list[str] = []
    monkeypatch.setattr(writing, "read_array", lambda path: decoded.append(path) or read_array(path))
    assert names(find_cases(tmp_path)) == ["a", "b", "c"]
    assert [Path(path).name for path in decoded] == ["a_seg.nii.gz"]


# --- layouts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize(
    ("name", "parts", "et"),
    [
        ("Brats17_TCIA_147_1", NAMES_2018, 4),
        ("Brats18_CBICA_AAB_1", NAMES_2018, 4),
        ("BraTS19_TMC_06290_1", NAMES_2018, 4),
        ("BraTS20_Training_001", NAMES_2018, 4),
        ("BraTS2021_00006", NAMES_2018, 4),
        ("BRATS2021_00006", tuple(part.upper() for part in NAMES_2018), 4),
        ("BraTS-GLI-00005-000", NAMES_2023, 3),
        ("BraTS-GLI-00005-000", tuple(part.upper() for part in NAMES_2023), 3),
        ("my case.v2_t1_day-1", NAMES_2018, 4),
    ],
)
def test_names_of_all_years(tmp_path: Path, name: str, parts: tuple[str, ...], et: int, suffix: str) -> None:
    folder = write_case(tmp_path / name, parts, suffix, values=(0, 1, 2, et))
    (case,) = find_cases(tmp_path)
    assert case == {
        "case": name,
        "patient": patient_of(name),
        "image": [str(folder / f"{name}{part}{suffix}") for part in parts[:4]],
        "channels": [0, 1, 2, 3],
        "label": str(folder / f"{name}{parts[4]}{suffix}"),
        "label_values": [0, 1, 2, et],
        "subset": "",
    }


def test_upper_case_suffix(tmp_path: Path) -> None:
    folder = write_case(tmp_path / "a", suffix=".nii")
    for file in list(folder.iterdir()):
        file.rename(file.with_suffix(".NII"))
    assert names(find_cases(tmp_path)) == ["a"]


def flat(root: Path) -> None:
    for name in ("a", "b"):
        write_case(root / name)
        for file in list((root / name).iterdir()):
            file.rename(root / file.name)
        (root / name).rmdir()


def by_grade(root: Path) -> None:
    write_case(root / "HGG" / "b")
    write_case(root / "LGG" / "a")


def kaggle(root: Path) -> None:
    """Each file in a folder that is named like it."""
    for name in ("a", "b"):
        folder = write_case(root / name, suffix=".nii")
        for file in list(folder.iterdir()):
            content = file.read_bytes()
            file.unlink()
            file.mkdir()
            (file / file.name).write_bytes(content)


def with_hidden_files(root: Path) -> None:
    for name in ("b", "a"):
        folder = write_case(root / name)
        (folder / f"._{name}_t1.nii.gz").write_bytes(b"\0\5\x16\7macOS")
        (folder / ".DS_Store").write_bytes(b"")
        (folder / "notes.txt").write_text("T1 is blurred")
    write_case(root / ".Trash" / "a")
    write_case(root / "__MACOSX" / "a")
    for file in (root / "__MACOSX" / "a").iterdir():
        file.rename(file.with_name("._" + file.name))


def with_extra_modalities(root: Path) -> None:
    for name in ("a", "b"):
        write_nifti(write_case(root / name) / f"{name}_t1_brain.nii.gz", scan())


def linked(root: Path) -> None:
    for name in ("a", "b"):
        write_case(root.parent / "elsewhere" / name)
    root.mkdir()
    (root / "all").symlink_to(root.parent / "elsewhere")


@pytest.mark.parametrize("layout", [flat, by_grade, kaggle, with_hidden_files, with_extra_modalities, linked])
def test_folders(tmp_path: Path, layout: Callable[[Path], None]) -> None:
    layout(tmp_path / "data")
    cases = find_cases(tmp_path / "data")
    assert names(cases) == ["a", "b"]
    for case in cases:
        for file, part in zip([*case["image"], case["label"]], NAMES_2018, strict=True):
            assert Path(file).is_file()
            assert Path(file).name.startswith(f"{case['case']}{part}.nii")


def test_sorted_by_case_whatever_the_folders(tmp_path: Path) -> None:
    wanted = ["Case_2", "a", "a_10", "a_2", "b"]
    for position, name in enumerate(reversed(wanted)):
        write_case(tmp_path / "named" / str(position) / name)
        write_nifti(tmp_path / "4d" / str(position) / f"{name}.nii.gz", scan(0, (*SHAPE, 4)))
    assert names(find_cases(tmp_path / "named")) == wanted
    assert names(find_cases(tmp_path / "4d", labelled=False)) == wanted


@pytest.mark.parametrize("given", ["", "b", "b/b_t1ce.nii.gz", "b/b_seg.nii.gz"])
def test_folder_case_or_one_file_of_a_case(tmp_path: Path, given: str) -> None:
    everything = [write_case(tmp_path / "data" / name) for name in ("a", "b")]
    for name in ("a", "b"):  # two cases in one folder, too
        write_nifti(tmp_path / "data" / "b" / f"{name}x_t1.nii.gz", scan())
        for part in NAMES_2018[1:]:
            write_nifti(tmp_path / "data" / "b" / f"{name}x{part}.nii.gz", segmentation())
    got = find_cases(str(tmp_path / "data" / given))
    assert names(got) == {"": ["a", "ax", "b", "bx"], "b": ["ax", "b", "bx"]}.get(given, ["b"])
    assert len(everything) == 2


def test_folder_below_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    write_case(tmp_path / "data" / "a")
    write_datalist({"training": find_cases("~/data")}, str(tmp_path / "list.json"))
    assert names(find_cases("~/data")) == ["a"]
    assert names(find_cases("~/data", datalist="~/list.json")) == ["a"]


def test_a_label_that_cannot_be_used_keeps_no_case_from_inference(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in "abc":
        write_case(tmp_path / name)
    (tmp_path / "a" / "a_seg.nii.gz").write_bytes(b"no NIfTI")
    write_nifti(tmp_path / "b" / "b_seg.nii.gz", segmentation()[:-1])
    cases = find_cases(tmp_path, labelled=False)
    assert [bool(case["label"]) for case in cases] == [False, False, True]
    assert "a: its label is left aside" in caplog.text
    with pytest.raises(BundleError, match=r"2 problem[\s\S]*a_seg[\s\S]*b_seg"):
        find_cases(tmp_path)


def test_files_of_a_datalist_that_were_moved_are_found(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    for name in "ab":
        write_case(tmp_path / "first" / name)
    write_datalist({"training": find_cases(tmp_path / "first")}, str(tmp_path / "datalist.json"))
    (tmp_path / "first").rename(tmp_path / "second")
    cases = find_cases(tmp_path / "second", datalist=tmp_path / "datalist.json")
    assert [case["case"] for case in cases] == ["a", "b"]
    assert {Path(file).parents[1] for case in cases for file in [*case["image"], case["label"]]} == {
        tmp_path / "second"
    }
    assert "10 files of" in caplog.text
    with pytest.raises(BundleError, match="no such file"):
        find_cases(None, datalist=tmp_path / "datalist.json")


def test_a_file_is_not_found_for_two_that_folders_told_apart(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """`p1/t1.nii.gz` and `p2/t1.nii.gz`, and then a folder with a `t1.nii.gz`: whose is it?"""
    kinds = ("t1", "t1ce", "t2", "flair")
    listed = [{"case": p, "image": [f"/gone/{p}/{kind}.nii.gz" for kind in kinds]} for p in ("p1", "p2")]
    (tmp_path / "list.json").write_text(json.dumps({"testing": listed}))
    for kind in kinds:
        write_nifti(tmp_path / "p1" / f"{kind}.nii.gz", scan())
    with pytest.raises(BundleError, match=r"(?s)/gone/p1/t1\.nii\.gz.*no such file.*/gone/p2/"):
        find_cases(tmp_path / "p1", datalist=tmp_path / "list.json", labelled=False)
    assert "/gone/p2/t1.nii.gz is gone, and" in caplog.text
    (one,) = find_cases(tmp_path / "p1", datalist=only(tmp_path / "one.json", listed[:1]), labelled=False)
    assert one["image"] == [str(tmp_path / "p1" / f"{kind}.nii.gz") for kind in kinds]


def test_a_scan_is_not_found_for_its_label_of_the_same_name(tmp_path: Path) -> None:
    root = write_decathlon(tmp_path / "Task01_BrainTumour", ["BRATS_001"])
    listed = [{"image": "/gone/imagesTr/BRATS_001.nii.gz", "label": "/gone/labelsTr/BRATS_001.nii.gz"}]
    path = only(tmp_path / "list.json", listed)
    (case,) = find_cases(root / "imagesTr", datalist=path, labelled=False)
    assert (case["image"], case["label"]) == ([str(root / "imagesTr" / "BRATS_001.nii.gz")], "")
    (case,) = find_cases(root, datalist=path, labelled=False)
    assert case["label"] == str(root / "labelsTr" / "BRATS_001.nii.gz")


def only(path: Path, listed: list[dict[str, Any]]) -> Path:
    path.write_text(json.dumps({"testing": listed}))
    return path


def test_labels_are_taken_but_not_needed_when_unlabelled(tmp_path: Path) -> None:
    write_case(tmp_path / "a")
    write_case(tmp_path / "b", values=None)
    with_label, without = find_cases(tmp_path, labelled=False)
    assert Path(with_label["label"]).name == "a_seg.nii.gz"
    assert without["label"] == ""
    assert [Path(finding.file).name for finding in findings_of(tmp_path)] == ["b"]


def test_decathlon(tmp_path: Path) -> None:
    root = write_decathlon(tmp_path / "Task01_BrainTumour", ["BRATS_002", "BRATS_001"], test=["BRATS_485"])
    (root / "imagesTr" / "._BRATS_001.nii.gz").write_bytes(b"macOS")
    cases = find_cases(root)
    assert names(cases) == ["BRATS_001", "BRATS_002"]
    for case in cases:
        assert case["image"] == [str(root / "imagesTr" / f"{case['case']}.nii.gz")]
        assert case["label"] == str(root / "labelsTr" / f"{case['case']}.nii.gz")
        assert case["channels"] == [1, 2, 3, 0]
        assert case["label_values"] == [0, 2, 1, 3]  # NCR is 2, ED is 1
    cases = find_cases(root, labelled=False)
    assert names(cases) == ["BRATS_001", "BRATS_002", "BRATS_485"]
    assert [bool(case["label"]) for case in cases] == [True, True, False]
    assert all(case["channels"] == [1, 2, 3, 0] and case["label_values"] == [0, 2, 1, 3] for case in cases)
    assert names(find_cases(root / "imagesTr")) == ["BRATS_001", "BRATS_002"]


def test_decathlon_without_a_label(tmp_path: Path) -> None:
    root = write_decathlon(tmp_path, ["BRATS_001", "BRATS_002"])
    (root / "labelsTr" / "BRATS_002.nii.gz").unlink()
    (finding,) = findings_of(root)
    assert finding.file == str(root / "imagesTr" / "BRATS_002.nii.gz")
    assert str(root / "labelsTr" / "BRATS_002.nii.gz") in finding.found


@pytest.mark.parametrize("et_label", [3, 4])
def test_numbering_of_the_decathlon_is_not_forced(tmp_path: Path, et_label: int) -> None:
    (case,) = find_cases(write_decathlon(tmp_path), et_label=et_label)
    assert case["label_values"] == [0, 2, 1, 3]


def test_one_file_of_the_decathlon_is_read_as_its_folder_is(tmp_path: Path) -> None:
    root = write_decathlon(tmp_path, ["BRATS_001", "BRATS_002"], test=["BRATS_485"])
    for labelled, name in [(True, "imagesTr/BRATS_002"), (False, "imagesTr/BRATS_002"), (False, "imagesTs/BRATS_485")]:
        everything = {case["case"]: case for case in find_cases(root, labelled=labelled)}
        (case,) = find_cases(root / f"{name}.nii.gz", labelled=labelled)
        assert case == everything[Path(name).name]


def test_folder_of_4d_files(tmp_path: Path) -> None:
    for name in ("b.nii", "a.nii.gz"):
        write_nifti(tmp_path / name, scan(0, (*SHAPE, 4)))
    write_nifti(tmp_path / "mask.nii.gz", scan())  # 3-D: not a case
    cases = find_cases(tmp_path, labelled=False)
    assert names(cases) == ["a", "b"]
    for case in cases:
        assert (case["channels"], case["label"], case["label_values"]) == ([0, 1, 2, 3], "", [0, 1, 2, 4])
    assert find_cases(tmp_path / "b.nii", labelled=False) == cases[1:]


@pytest.mark.parametrize("given", ["", "a.nii.gz"])
def test_4d_files_without_labels_are_refused_where_labels_are_needed(tmp_path: Path, given: str) -> None:
    file = write_nifti(tmp_path / "a.nii.gz", scan(0, (*SHAPE, 4)))
    (finding,) = findings_of(tmp_path / given)
    assert finding.file == str(file)
    assert str(file) not in finding.found  # "no a.nii.gz" of a file that is there helps nobody


@pytest.mark.parametrize(("et_label", "expected"), [(None, [0, 1, 2, 4]), (3, [0, 1, 2, 3]), (4, [0, 1, 2, 4])])
def test_number_that_a_4d_file_without_label_gets(tmp_path: Path, et_label: int | None, expected: list[int]) -> None:
    write_nifti(tmp_path / "a.nii.gz", scan(0, (*SHAPE, 4)))
    assert find_cases(tmp_path, labelled=False, et_label=et_label)[0]["label_values"] == expected


def test_channel_order_is_for_4d_files_alone(tmp_path: Path) -> None:
    write_decathlon(tmp_path / "4d")
    write_case(tmp_path / "named" / "a")
    assert find_cases(tmp_path / "4d", channel_order=[3, 2, 1, 0])[0]["channels"] == [3, 2, 1, 0]
    assert find_cases(tmp_path / "named", channel_order=[3, 2, 1, 0])[0]["channels"] == [0, 1, 2, 3]


# --- value of enhancing tumour ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32])
@pytest.mark.parametrize(
    ("parts", "labels", "et_label", "expected"),
    [
        (NAMES_2018, [(0, 1, 2, 4), (0, 1, 2, 4)], None, 4),
        (NAMES_2018, [(0, 1, 2, 3), (0, 1, 2, 3)], None, 3),  # what the voxels say beats the names
        (NAMES_2023, [(0, 1, 2, 3), (0, 1, 2, 3)], None, 3),
        (NAMES_2018, [(0, 1, 2), (0, 3)], None, 3),  # the first case has no enhancing tumour
        (NAMES_2023, [(0, 1, 2, 4), (0, 4)], 4, 4),
        (NAMES_2018, [(0, 1, 2, 3, 4), (0, 3)], None, 3),  # both: a broken case decides nothing
        (NAMES_2018, [(0, 1, 2, 3, 4), (0, 4)], None, 4),
        (NAMES_2018, [(0, 1, 2), (0, 0)], None, 4),  # none anywhere: the names
        (NAMES_2023, [(0, 1, 2), (0, 0)], None, 3),
        (NAMES_2018, [None, None], None, 4),
        (NAMES_2023, [None, None], None, 3),
        (NAMES_2018, [(0, 1, 2, 4), (0, 1, 2, 4)], 3, 3),  # forced
        (NAMES_2023, [None, None], 4, 4),
    ],
)
def test_value_of_enhancing_tumour(
    tmp_path: Path, parts: tuple[str, ...], labels: list[Any], et_label: int | None, expected: int, dtype: type
) -> None:
    for name, values in zip("ab", labels, strict=True):
        folder = write_case(tmp_path / name, parts, values=None)
        if values is not None:
            write_nifti(folder / f"{name}{parts[4]}.nii.gz", segmentation(values).astype(dtype))
    cases = find_cases(tmp_path, labelled=labels[0] is not None, et_label=et_label)
    assert [case["label_values"] for case in cases] == [[0, 1, 2, expected]] * 2
    assert all(type(value) is int for case in cases for value in case["label_values"])


@pytest.mark.parametrize("labels", [[(0, 1, 2, 4), (0, 1, 2, 4)], [(0, 1, 2), (0, 4)]])
def test_a_resection_cavity_alone_is_no_enhancing_tumour(tmp_path: Path, labels: list[tuple[int, ...]]) -> None:
    """BraTS 2024 numbers it 4; under the names of 2023 and later a 4 without any 3 may be that."""
    for name, values in zip("ab", labels, strict=True):
        write_case(tmp_path / name, NAMES_2023, values=values)
    (finding,) = findings_of(tmp_path)
    assert finding.found.startswith("the value 4")
    assert "--et_label 4" in finding.fix
    assert [case["label_values"] for case in find_cases(tmp_path, labelled=False)] == [[0, 1, 2, 3]] * 2
    assert find_cases(tmp_path, et_label=4)[0]["label_values"] == [0, 1, 2, 4]


def test_damaged_label_decides_nothing(tmp_path: Path) -> None:
    damaged = write_case(tmp_path / "a") / "a_seg.nii.gz"
    damaged.write_bytes(damaged.read_bytes()[:-4])
    write_case(tmp_path / "b", values=(0, 1, 2, 3))
    assert [case["label_values"][3] for case in find_cases(tmp_path)] == [3, 3]


def test_looks_into_as_few_labels_as_it_can(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[str] = []

    def read(path: str) -> np.ndarray:
        looked.append(Path(path).name)
        return segmentation({"a_seg.nii.gz": (0, 1)}.get(Path(path).name, (0, 1, 2, 4)))

    monkeypatch.setattr(enhancing_label, "read_array", read)
    for name in "abcd":
        write_case(tmp_path / name)
    find_cases(tmp_path)
    assert looked == ["a_seg.nii.gz", "b_seg.nii.gz"]
    looked.clear()
    find_cases(tmp_path, et_label=4)
    assert looked == []


def test_no_voxel_is_read_where_there_is_no_label(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise AssertionError("a voxel was read")

    for name in "ab":
        write_case(tmp_path / name, values=None)
    wrong = scan()[:-1]
    write_nifti(tmp_path / "b" / "b_t2.nii.gz", wrong)
    monkeypatch.setattr(enhancing_label, "read_array", fail)
    monkeypatch.setattr("nibabel.arrayproxy.ArrayProxy._get_unscaled", fail)
    with pytest.raises(AssertionError, match="a voxel was read"):
        np.asarray(open_nifti(tmp_path / "b" / "b_t2.nii.gz").dataobj)
    cases, findings = scan_cases(tmp_path, labelled=False, patch_size=[8, 8, 8])
    assert names(cases) == ["a"]
    assert len(findings) == 1


# --- datalists --------------------------------------------------------------------------------------------------------


def entry(name: str, parts: Sequence[str] = NAMES_2018, **more: Any) -> dict[str, Any]:
    files = [f"{name}/{name}{part}.nii.gz" for part in parts]
    return {"image": files[:4], "label": files[4], **more}


@pytest.fixture
def listed(tmp_path: Path) -> Callable[..., Path]:
    """Write `data/list.json` beside the cases a, b (2018) and c (2023), a 4-D file d and the Decathlon's e and t."""
    data = tmp_path / "data"
    for name in "ab":
        write_case(data / name)
    write_case(data / "c", NAMES_2023, values=(0, 1, 2, 3))
    write_nifti(data / "d.nii.gz", scan(0, (*SHAPE, 4)))
    write_nifti(data / "d_label.nii.gz", segmentation())
    write_decathlon(data, ["e"], test=["t"])

    def write(**content: Any) -> Path:
        (data / "list.json").write_text(json.dumps(content))
        return data / "list.json"

    return write


def test_datalist_relative_to_itself_or_to_the_folder(listed: Callable[..., Path], tmp_path: Path) -> None:
    path = listed(training=[entry("b"), entry("a")], validation=[entry("c", NAMES_2023)])
    cases = find_cases(None, datalist=path)
    assert names(cases) == ["a", "b", "c"]
    assert [case["subset"] for case in cases] == ["training", "training", "validation"]
    assert cases[0]["image"][3] == str(tmp_path / "data" / "a" / "a_flair.nii.gz")
    assert cases[0]["label"] == str(tmp_path / "data" / "a" / "a_seg.nii.gz")
    moved = path.rename(tmp_path / "list.json")
    assert find_cases(tmp_path / "data", datalist=moved) == cases


def test_datalist_with_absolute_paths(listed: Callable[..., Path], tmp_path: Path) -> None:
    data = tmp_path / "data"
    absolute = {"image": [str(data / file) for file in entry("a")["image"]], "label": str(data / entry("a")["label"])}
    assert find_cases("/nowhere", datalist=listed(training=[absolute])) == find_cases(
        None, datalist=listed(training=[entry("a")])
    )


def test_datalist_of_4d_files(listed: Callable[..., Path]) -> None:
    four = {"image": "d.nii.gz", "label": "d_label.nii.gz"}
    decathlon = {"image": ["./imagesTr/e.nii.gz"], "label": "./labelsTr/e.nii.gz"}
    own = {**four, "case": "own", "patient": "someone", "channels": [3, 2, 1, 0], "label_values": [0, 2, 1, 4]}
    d, e, mine = find_cases(None, datalist=listed(training=[four, decathlon, own]))
    assert (d["case"], d["patient"], d["channels"], d["label_values"]) == ("d", "d", [0, 1, 2, 3], [0, 1, 2, 4])
    assert (e["case"], e["channels"], e["label_values"]) == ("e", [1, 2, 3, 0], [0, 2, 1, 3])
    assert (mine["case"], mine["patient"], mine["channels"]) == ("own", "someone", [3, 2, 1, 0])
    assert mine["label_values"] == [0, 2, 1, 4]


@pytest.mark.parametrize("as_string", [False, True])  # as in the Decathlon's own dataset.json
@pytest.mark.parametrize("key", ["test", "testing"])
def test_test_part_of_a_datalist(listed: Callable[..., Path], key: str, as_string: bool) -> None:
    test = "./imagesTs/t.nii.gz" if as_string else {"image": "./imagesTs/t.nii.gz"}
    path = listed(**{"training": [entry("a")], key: [test], "name": "BRATS", "numTest": 1})
    assert names(find_cases(None, datalist=path)) == ["a"]
    cases = find_cases(None, datalist=path, labelled=False)
    assert names(cases) == ["a", "t"]
    assert [case["subset"] for case in cases] == ["training", ""]
    assert cases[1]["channels"] == [1, 2, 3, 0]


@pytest.mark.parametrize(
    "content",
    [None, "", "{", '[{"image": "a.nii.gz"}]', "\xff", "[" * 100_000, '{"training": 5}', '{"validation": {"a": 1}}'],
    ids=["missing", "empty", "cut", "list", "binary", "nested", "number", "object"],
)
def test_datalist_that_is_none(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "list.json"
    if content is not None:
        path.write_bytes(content.encode("latin1"))
    with pytest.raises(BundleError) as caught:
        find_cases(tmp_path, datalist=path)
    (finding,) = caught.value.findings
    assert finding.file == str(path)
    assert "--datalist" in finding.fix


@pytest.mark.parametrize("content", [{}, {"training": []}, {"training": None}, {"other": ["a"]}])
def test_datalist_without_a_case(listed: Callable[..., Path], content: dict) -> None:
    path = listed(**content)
    with pytest.raises(BundleError, match="no case") as caught:
        find_cases(None, datalist=path)
    assert caught.value.findings[0].file == str(path)


@pytest.mark.parametrize("val", [[entry("b")], [{"label": "b_seg.nii.gz"}], ["b_t1.nii.gz"]])
def test_a_part_of_a_datalist_of_another_name_is_refused(val: list, listed: Callable[..., Path]) -> None:
    path = listed(training=[entry("a")], val=val)
    with pytest.raises(BundleError, match=r"entries under 'val'[\s\S]*call it training, validation or testing"):
        find_cases(None, datalist=path)


def test_a_testing_part_that_is_not_used_is_told(listed: Callable[..., Path], caplog: pytest.LogCaptureFixture) -> None:
    path = listed(training=[entry("a")], testing=[entry("b")])
    assert names(find_cases(None, datalist=path)) == ["a"]
    assert "its testing is for scans without labels, and not used here" in caplog.text


def test_labels_of_one_class_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("a", "b"):
        write_case(tmp_path / name, values=(0, 1))
    find_cases(tmp_path)
    assert "the 2 label(s), first" in caplog.text
    assert "hold 0 and 1 alone" in caplog.text
    caplog.clear()
    write_case(tmp_path / "c", values=(0, 1, 2))
    find_cases(tmp_path)
    assert "alone" not in caplog.text


@pytest.mark.parametrize(
    ("name", "case", "role"),
    [
        ("P01_T2_FLAIR.nii.gz", "P01", "FLAIR"),
        ("P01_T2.nii.gz", "P01", "T2"),
        ("P01_t1pre.nii", "P01", "T1"),
        ("P01-t1-pre.nii", "P01", "T1"),
        ("PatientID_0003_Timepoint_1_brain_t1n.nii.gz", "PatientID_0003_Timepoint_1_brain", "T1"),
        ("PatientID_0003_Timepoint_1_brain_t2f.nii.gz", "PatientID_0003_Timepoint_1_brain", "FLAIR"),
        ("A_T1_ce.nii.gz", "A", "T1ce"),
        ("P01-T2_FLAIR.nii.gz", "P01", "FLAIR"),
    ],
)
def test_what_people_call_a_modality(name: str, case: str, role: str) -> None:
    assert role_of(name) == (case, role)


def test_files_of_unknown_names_beside_cases_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_case(tmp_path / "a")
    write_case(tmp_path / "b")
    for file in (tmp_path / "b").iterdir():
        file.rename(file.with_name(file.name.replace("b_", "b_scan_of_").replace(".nii", "_brain.nii")))
    assert names(find_cases(tmp_path)) == ["a"]
    assert "in folders without a known case are not taken" in caplog.text


def lone_label(folder: Path) -> None:
    for file in write_case(folder).iterdir():
        if "seg" not in file.name:
            file.unlink()


def test_a_lone_label_ends_no_inference(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_case(tmp_path / "a")
    lone_label(tmp_path / "b")
    assert names(find_cases(tmp_path, labelled=False)) == ["a"]
    assert "a segmentation without a scan, which is left aside" in caplog.text
    with pytest.raises(BundleError, match="a segmentation without a scan"):
        find_cases(tmp_path)


def test_a_lone_label_hides_no_4d_scans(tmp_path: Path) -> None:
    write_decathlon(tmp_path / "data")
    lone_label(tmp_path / "results")
    assert names(find_cases(tmp_path, labelled=False)) == ["BRATS_001"]


@pytest.mark.parametrize(
    ("parts", "values"),
    [
        (["_t1n", "_t1c", "_t2w", "_t2f"], [0, 1, 2, 3]),  # as MU-Glioma-Post has them
        (["_t1", "_t1c", "_t2", "_flair"], [0, 1, 2, 4]),
    ],
)
def test_enhancing_tumour_by_the_newest_of_the_names(parts: list[str], values: list[int], tmp_path: Path) -> None:
    write_case(tmp_path / "P01", parts, values=None)
    (case,) = find_cases(tmp_path, labelled=False)
    assert case["label_values"] == values


def test_a_label_of_another_name_is_told(tmp_path: Path) -> None:
    folder = write_case(tmp_path / "a")
    (folder / "a_seg.nii.gz").rename(folder / "a_mask.nii.gz")
    with pytest.raises(BundleError, match=r"rename the file if it is one of a_mask\.nii\.gz"):
        find_cases(tmp_path)
    with pytest.raises(BundleError):
        find_cases(folder / "a_mask.nii.gz", labelled=False)


def test_filling_tells_what_lies_beside(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = write_case(tmp_path / "a", values=None)
    (folder / "a_t1.nii.gz").rename(folder / "a_T1w.nii.gz")
    assert names(find_cases(tmp_path, labelled=False, fill_missing=True)) == ["a"]
    assert (
        "case a is taken without T1, though these lie beside it, whose names say nothing: a_T1w.nii.gz" in caplog.text
    )


@pytest.mark.parametrize(
    ("bad", "found"),
    [
        ({"image": ["a_t1.nii.gz", "a_t2.nii.gz"], "label": "x"}, "image: ['a_t1.nii.gz', 'a_t2.nii.gz']"),
        ({"label": "x"}, "image: None"),
        ({"image": None, "label": "x"}, "image: None"),
        ({"image": [1, 2, 3, 4], "label": "x"}, "image: [1, 2, 3, 4]"),
        (17, "image: 17"),
        ({"image": entry("b")["image"]}, "no label"),
        ({"image": entry("b")["image"], "label": ""}, "no label"),
        (entry("b", label_values=[0, 1]), "label_values: [0, 1]"),
        (entry("b", label_values=[0, 1, 2, -5]), "label_values: [0, 1, 2, -5]"),
        (entry("b", label_values=[0, 1, 2, 2]), "label_values: [0, 1, 2, 2]"),
        (entry("b", label_values=7), "label_values: 7"),
        (entry("b", label_values=[0, 1, 2, 256]), "label_values: [0, 1, 2, 256]"),
        (entry("b", channels=["t1", 1, 2, 3]), "channels: ['t1', 1, 2, 3]"),
    ],
)
def test_bad_entry_is_named_by_its_place(listed: Callable[..., Path], bad: Any, found: str) -> None:
    path = listed(training=[entry("a")], validation=[entry("c", NAMES_2023), bad])
    (finding,) = findings_of(None, datalist=path)
    assert (finding.file, finding.found) == (f"{path} (validation[1])", found)


@pytest.mark.parametrize(
    ("more", "found"),
    [
        ({"label": 5}, "label: 5"),
        ({"label": ["x"]}, "label: ['x']"),
        ({"label_parts": "x"}, "label_parts: 'x'"),
        ({"label_parts": [1]}, "label_parts: [1]"),
    ],
)
def test_a_label_that_is_no_file_is_named(listed: Callable[..., Path], more: dict[str, Any], found: str) -> None:
    path = listed(training=[entry("a"), {**entry("b"), **more}], validation=[{**entry("a"), "label": {}}, more])
    for search in (find_cases, find_label_maps):
        with pytest.raises(BundleError) as caught:
            search(None, datalist=path)
        assert [(finding.file, finding.found) for finding in caught.value.findings] == [
            (f"{path} (training[1])", found),
            (f"{path} (validation[1])", found),
        ]


def test_missing_file_of_a_datalist(listed: Callable[..., Path], tmp_path: Path) -> None:
    path = listed(training=[entry("a"), entry("gone")])
    findings = findings_of(None, datalist=path)
    files = [*entry("gone")["image"], entry("gone")["label"]]
    assert [finding.file for finding in findings] == [str(tmp_path / "data" / file) for file in files]


def test_case_that_is_listed_twice(listed: Callable[..., Path]) -> None:
    path = listed(training=[entry("a"), entry("b")], validation=[entry("a")])
    (finding,) = findings_of(None, datalist=path)
    assert finding.file == str(path)
    assert "a" in finding.found
    assert '"case"' in finding.fix
    path = listed(training=[entry("a"), entry("b")], validation=[entry("a", case="a again")])
    assert names(find_cases(None, datalist=path)) == ["a", "a again", "b"]


@pytest.mark.parametrize("layout", ["2018", "2023", "decathlon", "links"])
def test_split_that_is_written_is_the_split_that_is_read(tmp_path: Path, layout: str) -> None:
    root = tmp_path / "data"
    if layout == "decathlon":
        write_decathlon(root, [f"BRATS_{n:03}" for n in range(5)])
    elif layout == "links":  # as git-annex does it: links to content that has no suffix
        for n in range(5):
            for file in list(write_case(root / f"case{n}").iterdir()):
                content = tmp_path / "content" / str(abs(hash(file.name)))
                content.parent.mkdir(exist_ok=True)
                file.rename(content)
                file.symlink_to(content)
    else:
        for n in range(5):
            scans, et = (NAMES_2023, 3) if layout == "2023" else (NAMES_2018, 4)
            write_case(root / f"BraTS-GLI-{n // 2:05}-{n % 2:03}", scans, values=(0, 1, 2, et))
    split = split_cases(find_cases(root))
    write_datalist(split, str(tmp_path / "out" / "list.json"))
    for folder in (None, root):
        again = split_cases(find_cases(folder, datalist=tmp_path / "out" / "list.json"))
        for part in ("training", "validation"):
            assert split[part]
            assert again[part] == [{**case, "subset": part} for case in split[part]]


def test_cases_without_label_are_written_and_read(tmp_path: Path) -> None:
    write_case(tmp_path / "data" / "a", values=None)
    cases = find_cases(tmp_path / "data", labelled=False)
    write_datalist({"testing": cases}, str(tmp_path / "list.json"))
    assert find_cases(None, datalist=tmp_path / "list.json", labelled=False) == cases


def test_relative_folder_is_written_so_that_it_is_found_from_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_case(tmp_path / "data" / "a")
    monkeypatch.chdir(tmp_path)
    write_datalist({"training": find_cases("data")}, "out/list.json")
    monkeypatch.chdir("/")
    (case,) = find_cases(None, datalist=tmp_path / "out" / "list.json")
    assert case["label"] == str(tmp_path / "data" / "a" / "a_seg.nii.gz")


# --- split ------------------------------------------------------------------------------------------------------------


def made_up(case_names: Sequence[str], subset: str = "") -> list[Case]:
    return [{"case": name, "patient": patient_of(name), "subset": subset} for name in case_names]


@pytest.mark.parametrize(
    ("count", "training"),
    [(1251, 1000), (1002, 1000), (1001, 1000), (1000, 800), (10, 8), (5, 4), (4, 3), (3, 2), (2, 1)],
)
def test_sizes_of_the_split(count: int, training: int) -> None:
    cases = made_up([f"BraTS2021_{n:05}" for n in range(count)])
    split = split_cases(cases)
    assert split == {"training": cases[:training], "validation": cases[training:]}


def test_split_by_own_numbers() -> None:
    cases = made_up([f"case{n}" for n in range(10)])
    assert len(split_cases(cases, train_cases=3)["training"]) == 3
    assert len(split_cases(cases, train_fraction=0.5)["training"]) == 5
    assert len(split_cases(cases, train_fraction=0)["training"]) == 1
    assert len(split_cases(cases, train_fraction=1)["validation"]) == 1


@pytest.mark.parametrize(
    "case_names",
    [
        [f"BraTS-GLI-{n // 3:05}-{n % 3:03}" for n in range(1251)],
        [f"Brats18_TCIA01_{n // 2}_{n % 2 + 1}" for n in range(20)],
        [f"BraTS-GLI-{max(n - 5, 0):05}-{min(n, 5):03}" for n in range(10)],
        [f"BraTS-GLI-{min(n, 1):05}-{n:03}" for n in range(10)],
    ],
    ids=["boundary inside", "2018", "first has many", "last has many"],
)
@pytest.mark.parametrize("train_fraction", [0.1, 0.5, 0.8, 1])
def test_no_patient_is_on_both_sides(case_names: list[str], train_fraction: float) -> None:
    cases = made_up(sorted(case_names))
    split = split_cases(cases, train_fraction=train_fraction)
    assert split["training"] + split["validation"] == cases
    sides = [{case["patient"] for case in split[part]} for part in ("training", "validation")]
    assert sides[0]
    assert sides[1]
    assert not sides[0] & sides[1]


def test_patient_at_the_boundary_trains() -> None:
    split = split_cases(made_up([f"BraTS-GLI-{n // 3:05}-{n % 3:03}" for n in range(1251)]))
    assert len(split["training"]) == 1002


@pytest.mark.parametrize("case_names", [["a"], ["BraTS-GLI-00001-000", "BraTS-GLI-00001-001"]])
def test_too_few_cases_to_split(case_names: list[str]) -> None:
    with pytest.raises(
        BundleError, match=rf"^{len(case_names)} case\(s\) of 1 patient\(s\) .* different patients\. Add cases"
    ):
        split_cases(made_up(case_names))


def test_validation_part_of_a_datalist_is_the_split() -> None:
    training, validation, test = made_up("ab", "training"), made_up("c", "validation"), made_up("d")
    assert split_cases(training + validation + test) == {"training": training, "validation": validation}
    only_training = split_cases(made_up("abcde", "training"))
    assert [names(part) for part in only_training.values()] == [list("abcd"), ["e"]]
    with pytest.raises(BundleError, match="0 for training"):
        split_cases(validation)


def test_datalist_with_a_patient_on_both_sides() -> None:
    cases = made_up(["BraTS-GLI-00001-000"], "training") + made_up(["BraTS-GLI-00001-001"], "validation")
    with pytest.raises(BundleError, match=r"BraTS-GLI-00001$"):
        split_cases(cases)


@pytest.mark.parametrize(
    "part", ["_t1c", "_T1CE", "_T1Gd", "_t1post", "_T1_CE", "_t1-gd", "-t1c", "-t1ce", "-T1Gd", "-t1post"]
)
def test_other_names_of_a_t1_after_contrast_medium(tmp_path: Path, part: str) -> None:
    older = part[0] == "_"
    folder = write_case(tmp_path / "a", NAMES_2018 if older else NAMES_2023, values=(0, 1, 2, 4 if older else 3))
    (own,) = (file for file in folder.iterdir() if file.name.endswith(("_t1ce.nii.gz", "-t1c.nii.gz")))
    other = own.rename(folder / f"a{part}.nii.gz")
    (case,) = find_cases(tmp_path)
    assert case["image"][1] == str(other)
    assert case["case"] == "a"
    write_nifti(folder / f"a{part[0]}t1pc.nii.gz", scan())
    (finding,) = findings_of(tmp_path)
    assert "more than one T1ce" in finding.found


def test_a_file_that_may_be_the_missing_one_is_named(tmp_path: Path) -> None:
    folder = write_case(tmp_path / "a")
    (folder / "a_t1ce.nii.gz").rename(folder / "a_T1_contrast.nii.gz")
    (finding,) = findings_of(tmp_path)
    assert "a_T1_contrast.nii.gz" in finding.fix


# --- what can be wrong ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("no/such/folder",), "no such file or folder"),
        ((".", None, True, 7), "et_label is 7; expected 3, 4"),
        ((".", None, True, "4"), "et_label is '4'; expected 3, 4"),
    ],
)
def test_arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[Any, ...], message: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BundleError, match=message):
        find_cases(*arguments)


def test_a_4d_file_of_the_current_folder_is_a_case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "imagesTr"
    folder.mkdir()
    nib.save(nib.Nifti1Image(np.zeros((4, 4, 4, 4), np.float32), np.eye(4)), folder / "BRATS_001.nii.gz")
    expected = find_cases(folder, labelled=False)
    monkeypatch.chdir(folder)
    for given in ("BRATS_001.nii.gz", ".", "../imagesTr"):
        assert find_cases(given, labelled=False) == expected
    assert expected[0]["channels"] != [0, 1, 2, 3], "Decathlon's order, by the folder's name"
    (tmp_path / "annex").mkdir()
    (folder / "BRATS_001.nii.gz").rename(tmp_path / "annex" / "MD5E-s123.nii.gz")
    (folder / "BRATS_001.nii.gz").symlink_to(tmp_path / "annex" / "MD5E-s123.nii.gz")
    assert find_cases("../imagesTr/BRATS_001.nii.gz", labelled=False) == expected, "a link's own name counts"


@pytest.mark.parametrize("nothing", [None, ""])
def test_without_a_data_set_there_is_no_case(nothing: str | None, tmp_path: Path) -> None:
    """So that the bundle's pipelines can be built and inspected; what runs asks for a data set."""
    cases = find_cases(nothing)
    assert cases == []
    write_datalist(split_cases(cases), str(tmp_path / "list.json"))
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(BundleError, match="Add --dataset_dir"):
        require_cases(cases)
    require_cases(made_up(["a"]))


@pytest.mark.parametrize("content", [[], ["readme.txt", "scan.dcm", "._a_t1.nii.gz", ".b_t1.nii"]])
def test_folder_without_a_case(tmp_path: Path, content: list[str]) -> None:
    for name in content:
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(BundleError) as caught:
        find_cases(tmp_path)
    (finding,) = caught.value.findings
    assert (finding.file, finding.found) == (str(tmp_path), "no case")
    for name in ("t1ce", "t1c", "imagesTr", "4-D"):
        assert name in finding.expected


def spoil_affine(path: Path) -> None:
    raw = bytearray(gzip.decompress(path.read_bytes()))
    raw[252:256] = struct.pack("<hh", 0, 1)  # sform alone
    raw[280:328] = struct.pack("<12f", *[1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0])  # two axes that are one
    path.write_bytes(gzip.compress(bytes(raw)))


def spoil_affine_with_nan(path: Path) -> None:
    raw = bytearray(gzip.decompress(path.read_bytes()))
    raw[252:256] = struct.pack("<hh", 0, 1)
    raw[280:284] = struct.pack("<f", np.nan)
    path.write_bytes(gzip.compress(bytes(raw)))


def shift(path: Path) -> None:
    affine = LPS.copy()
    affine[0, 3] += 0.5
    write_nifti(path, scan(), affine)


def turn(path: Path) -> None:
    affine = LPS.copy()
    affine[:2, :2] = [[0, -1], [-1, 0]]
    write_nifti(path, scan(), affine)


SPOILERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "shape": (lambda path: write_nifti(path, scan()[:, :-1]), "grid 12x9x8"),
    "axes": (lambda path: write_nifti(path, scan().transpose(1, 0, 2)), "grid 10x12x8"),
    "shift": (shift, "affine [[-1.0, 0.0, 0.0, 0.5]"),
    "turn": (turn, "affine [[0.0, -1.0, 0.0, 0.0]"),
    "spacing": (lambda path: write_nifti(path, scan(), LPS @ np.diag([1, 1, 2, 1])), "affine"),
    "2-D": (lambda path: write_nifti(path, scan()[:, :, 0]), "a 2-D image of shape 12x10"),
    "one slice": (lambda path: write_nifti(path, scan()[:, :, :1]), "a 2-D image of shape 12x10x1"),
    "4-D": (lambda path: write_nifti(path, scan(0, (*SHAPE, 4))), "a 4-D image of shape 12x10x8x4"),
    "0 bytes": (lambda path: path.write_bytes(b""), "cannot be read"),
    "text": (lambda path: path.write_text("404: not found"), "cannot be read"),
    "packed text": (lambda path: path.write_bytes(gzip.compress(b"404: not found" * 50)), "cannot be read"),
    "cut header": (lambda path: path.write_bytes(path.read_bytes()[:60]), "cannot be read"),
    "affine": (spoil_affine, "not invertible"),
    "micrometres": (lambda path: write_nifti(path, scan(), LPS @ np.diag([1e3, 1e3, 1e3, 1])), "1e+03x1e+03x1e+03 mm"),
    "tiny voxels": (lambda path: write_nifti(path, scan(), LPS @ np.diag([0.05, 0.05, 0.05, 1])), "0.05x0.05x0.05 mm"),
    "dicom": (lambda path: path.write_bytes(bytes(128) + b"DICM"), "it is DICOM"),
    "affine of NaN": (spoil_affine_with_nan, "not invertible"),
}


@pytest.mark.parametrize("part", ["_t1ce", "_flair", "_seg"])
@pytest.mark.parametrize("spoiler", SPOILERS)
def test_one_bad_file_is_named(tmp_path: Path, spoiler: str, part: str) -> None:
    spoil, found = SPOILERS[spoiler]
    write_case(tmp_path / "a")
    bad = write_case(tmp_path / "b") / f"b{part}.nii.gz"
    spoil(bad)
    (finding,) = findings_of(tmp_path)
    assert finding.file == str(bad)
    assert found in finding.found
    cases, _ = scan_cases(tmp_path)
    assert names(cases) == ["a"]


def test_bad_first_modality_does_not_make_the_others_bad(tmp_path: Path) -> None:
    folder = write_case(tmp_path / "a")
    (folder / "a_t1.nii.gz").write_bytes(b"")
    assert [Path(finding.file).name for finding in findings_of(tmp_path)] == ["a_t1.nii.gz"]


@pytest.mark.parametrize("parts", [NAMES_2018, NAMES_2023])
@pytest.mark.parametrize("position", range(5))
def test_missing_file_is_named_as_it_should_be(tmp_path: Path, parts: tuple[str, ...], position: int) -> None:
    folder = write_case(tmp_path / "a", parts)
    (folder / f"a{parts[position]}.nii.gz").unlink()
    (finding,) = findings_of(tmp_path)
    role = ("T1", "T1ce", "T2", "FLAIR", "label")[position]
    assert finding.file == str(folder)
    assert finding.expected == f"also a{parts[position]}.nii.gz ({role})"
    for other in range(5):
        assert (f"a{parts[other]}.nii.gz" in finding.found) == (other != position)


def test_one_file_without_the_rest(tmp_path: Path) -> None:
    folder = write_case(tmp_path / "a")
    for part in NAMES_2018[1:]:
        (folder / f"a{part}.nii.gz").unlink()
    (finding,) = findings_of(folder / "a_t1.nii.gz")
    assert finding.expected.count(".nii.gz") == 4


@pytest.mark.parametrize("double", ["a/a_seg.nii", "a/old/a_seg.nii.gz", "eval/a_seg.nii.gz", "a/a-seg.nii.gz"])
def test_doubled_file(tmp_path: Path, double: str) -> None:
    write_case(tmp_path / "a")
    write_nifti(tmp_path / double, segmentation())
    (finding,) = findings_of(tmp_path)
    assert "more than one label" in finding.found
    assert str(tmp_path / "a" / "a_seg.nii.gz") in finding.found
    assert str(tmp_path / double) in finding.found


@pytest.mark.parametrize("second", ["a.nii", "b/a.nii.gz"])
def test_4d_files_of_one_name(tmp_path: Path, second: str) -> None:
    """Their results would have one name, too."""
    for name in ("a.nii.gz", second):
        write_nifti(tmp_path / name, scan(0, (*SHAPE, 4)))
    (finding,) = findings_of(tmp_path, labelled=False)
    assert str(tmp_path / "a.nii.gz") in finding.found
    assert str(tmp_path / second) in finding.found


@pytest.mark.parametrize(
    ("shape", "found"), [((*SHAPE, 2), "2 channels"), ((*SHAPE, 3), "3 channels"), (SHAPE, "a 3-D image")]
)
@pytest.mark.parametrize("given", ["imagesTr", "imagesTr/a.nii.gz", "a.nii.gz"])
def test_4d_file_of_too_few_channels(tmp_path: Path, shape: tuple[int, ...], found: str, given: str) -> None:
    file = write_nifti(tmp_path / (given if given.endswith("gz") else f"{given}/a.nii.gz"), scan(0, shape))
    (finding,) = findings_of(tmp_path / given, labelled=False)
    assert finding.file == str(file)
    assert found in finding.found
    assert "4 channels, one for each modality" in finding.expected or "a channel for each modality" in finding.expected


def test_label_of_another_grid_than_its_4d_image(tmp_path: Path) -> None:
    root = write_decathlon(tmp_path)
    write_nifti(root / "labelsTr" / "BRATS_001.nii.gz", segmentation(shape=(12, 10, 7)))
    (finding,) = findings_of(root)
    assert Path(finding.file).parent.name == "labelsTr"
    assert "12x10x8" in finding.expected


@pytest.mark.parametrize(
    ("patch_size", "fits"),
    [((12, 10, 8), True), ((13, 10, 8), False), ((12, 11, 8), False), ((12, 10, 9), False), ((1, 1, 1), True)],
)
@pytest.mark.parametrize("layout", ["named", "4-D"])
def test_patch_larger_than_a_volume(tmp_path: Path, patch_size: tuple[int, ...], fits: bool, layout: str) -> None:
    if layout == "named":
        write_case(tmp_path / "a")
    else:
        write_decathlon(tmp_path, ["a"])
    if fits:
        assert names(find_cases(tmp_path, patch_size=patch_size)) == ["a"]
    else:
        (finding,) = findings_of(tmp_path, patch_size=patch_size)
        assert finding.found == "a volume of 12x10x8 voxels"
        assert "x".join(map(str, patch_size)) in finding.expected
        assert "--patch_size" in finding.fix


def test_affines_that_agree_to_a_tenth_of_a_voxel(tmp_path: Path) -> None:
    folder = write_case(tmp_path / "a")
    affine, edge = LPS.copy(), float(np.abs(LPS[:3, :3]).sum(0).min())
    affine[0, 3] += 0.09 * edge
    write_nifti(folder / "a_t2.nii.gz", scan(), affine)
    assert names(find_cases(tmp_path)) == ["a"]
    affine[0, 3] += 0.02 * edge
    write_nifti(folder / "a_t2.nii.gz", scan(), affine)
    assert len(findings_of(tmp_path)) == 1


def test_all_that_is_wrong_comes_at_once(tmp_path: Path) -> None:
    for name in "abcdefg":
        write_case(tmp_path / name)
    (tmp_path / "a" / "a_t2.nii.gz").unlink()
    write_nifti(tmp_path / "b" / "again" / "b_t1.nii.gz", scan())
    shift(tmp_path / "c" / "c_t1ce.nii.gz")
    (tmp_path / "d" / "d_seg.nii.gz").write_bytes(b"")
    write_nifti(tmp_path / "e" / "e_flair.nii.gz", scan()[:, :, 0])
    spoil_affine(tmp_path / "f" / "f_t1.nii.gz")
    (tmp_path / "f" / "f_t2.nii.gz").write_text("text")
    findings = findings_of(tmp_path)
    assert {Path(finding.file).name for finding in findings} == {
        "a", "b", "c_t1ce.nii.gz", "d_seg.nii.gz", "e_flair.nii.gz", "f_t1.nii.gz", "f_t2.nii.gz",
    }  # fmt: skip
    assert len(findings) == 7
    cases, _ = scan_cases(tmp_path)
    assert names(cases) == ["g"]


def test_data_that_may_not_be_written_to(tmp_path: Path) -> None:
    folder = write_case(tmp_path / "data" / "a")
    before = {file.name: os.stat(file).st_mtime_ns for file in folder.iterdir()}
    for file in (*folder.iterdir(), folder):
        file.chmod(file.stat().st_mode & 0o555)
    assert names(find_cases(tmp_path / "data")) == ["a"]
    folder.chmod(0o755)
    assert {file.name: os.stat(file).st_mtime_ns for file in folder.iterdir()} == before


# --- what a training leaves for its evaluation ------------------------------------------------------------------------


def test_evaluation_goes_by_the_cases_that_trained(tmp_path: Path) -> None:
    for name in ("BraTS-GLI-00001-000", "BraTS-GLI-00002-000", "BraTS-GLI-00003-000"):
        write_case(tmp_path / "data" / name, NAMES_2023, values=(0, 1, 2, 3))
    first = split_cases(find_cases(tmp_path / "data"), train_fraction=0.7)
    trained = tmp_path / "datalist.json"
    write_datalist(first, str(trained))
    write_case(tmp_path / "data" / "BraTS-GLI-00000-000", NAMES_2023, values=(0, 1, 2, 3))  # would move the split
    write_case(tmp_path / "data" / "BraTS-GLI-00001-001", NAMES_2023, values=(0, 1, 2, 3))  # a patient that trained
    later = split_cases(find_cases(tmp_path / "data"), trained=trained)
    assert [case["case"] for case in later["validation"]] == ["BraTS-GLI-00000-000", "BraTS-GLI-00003-000"]
    assert [case["case"] for case in later["training"]] == [
        "BraTS-GLI-00001-000",
        "BraTS-GLI-00001-001",
        "BraTS-GLI-00002-000",
    ]
    with pytest.raises(BundleError, match="trained the network"):
        split_cases(first["training"], trained=trained)
    assert split_cases(find_cases(tmp_path / "data"), trained=tmp_path / "none.json")["training"]


def test_older_and_newer_names_in_one_folder_keep_their_own_number(tmp_path: Path) -> None:
    write_case(tmp_path / "a", NAMES_2018, values=(0, 1, 2, 4))
    write_case(tmp_path / "b", NAMES_2023, values=(0, 1, 2, 3))
    assert [case["label_values"][3] for case in find_cases(tmp_path)] == [4, 3]


def test_resection_cavities_do_not_become_enhancing_tumour(tmp_path: Path) -> None:
    write_case(tmp_path / "a", NAMES_2023, values=(0, 1, 2, 4))
    write_case(tmp_path / "b", NAMES_2023, values=(0, 1, 2, 3))
    assert [case["label_values"][3] for case in find_cases(tmp_path)] == [3, 3]


def test_a_result_inside_the_data_set_is_named(tmp_path: Path) -> None:
    write_decathlon(tmp_path)
    write_nifti(tmp_path / "out" / "BRATS_001_seg.nii.gz", segmentation())
    with pytest.raises(BundleError, match="results of an earlier run belong outside"):
        find_cases(tmp_path)


# --- the cases to score -----------------------------------------------------------------------------------------------


def of_patients(*patients: str) -> list[Case]:
    return [{"case": f"{p}-{i}", "patient": p, "subset": "", "image": [], "label": ""} for i, p in enumerate(patients)]


def test_select_cases(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cases = of_patients("a", "b", "c", "d", "e")
    trained = tmp_path / "datalist.json"
    names = lambda found: [case["patient"] for case in found]  # noqa: E731
    assert names(select_cases(cases)) == ["e"]
    assert names(select_cases(cases, "training")) == ["a", "b", "c", "d"]
    assert names(select_cases(cases, "all", trained=trained)) == ["a", "b", "c", "d", "e"]
    assert not caplog.records
    trained.write_text(json.dumps({"training": [{"patient": "b"}, {"patient": "c"}]}))
    assert names(select_cases(cases, trained=trained)) == ["a", "d", "e"]
    assert not caplog.records
    assert names(select_cases(cases, "training", trained=trained)) == ["b", "c"]
    assert names(select_cases(cases, "all", trained=trained)) == ["a", "b", "c", "d", "e"]
    assert caplog.text.count("2 of these cases trained the network") == 2
    assert names(select_cases(of_patients("b"), "training", trained=trained)) == ["b"]
    assert names(select_cases(of_patients("b"), "all", trained=trained)) == ["b"]
    with pytest.raises(BundleError, match="--subset training"):
        select_cases(of_patients("b"), trained=trained)
    with pytest.raises(BundleError, match="subset is 'test'; expected validation, training or all"):
        select_cases(cases, "test")
    assert select_cases([]) == []
