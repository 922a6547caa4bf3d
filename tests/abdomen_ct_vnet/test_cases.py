"""Layouts that users have, and what is said of those that are incomplete."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from abdomen_ct_vnet.cases import find_cases, scan_cases
from bundlekit.errors import BundleError
from tests.abdomen_ct_vnet.conftest import GRID, labels, write


def make(root: Path, images: list[str], label_maps: list[str]) -> Path:
    for name in images:
        write(root / name)
    for name in label_maps:
        write(root / name, labels((0, 1, 2, 3)))
    return root


@pytest.mark.parametrize(
    ("image", "label", "case", "numbering"),
    [
        ("imagesTr/FLARE22_Tr_0001_0000.nii.gz", "labelsTr/FLARE22_Tr_0001.nii.gz", "FLARE22_Tr_0001", "flare22"),
        ("FLARE22_Tr_0002_0000.nii", "FLARE22_Tr_0002.nii.gz", "FLARE22_Tr_0002", "flare22"),
        ("images/FLARETs_0001_0000.nii.gz", "labels/FLARETs_0001.nii.gz", "FLARETs_0001", "flare22"),
        ("averaged/img/img0001.nii.gz", "averaged/label/label0001.nii.gz", "img0001", "btcv"),
        ("imagesTr/amos_0001.nii.gz", "labelsTr/amos_0001.nii.gz", "amos_0001", "amos"),
        ("a/imagesVa/amos_0008.nii.gz", "a/labelsVa/amos_0008.nii.gz", "amos_0008", "amos"),
    ],
)
def test_layouts(tmp_path: Path, image: str, label: str, case: str, numbering: str) -> None:
    make(tmp_path, [image], [label])
    (found,) = find_cases(tmp_path)
    assert (found["case"], found["numbering"]) == (case, numbering)
    assert (found["image"], found["label"]) == ([str(tmp_path / image)], str(tmp_path / label))
    assert found["label_values"] == [0, 1, 2, 3]
    (alone,) = find_cases(tmp_path / image)
    assert alone == found
    (plain,) = find_cases(tmp_path / image, labelled=False, output_numbering="dataset")
    assert (plain["case"], plain["label"]) == (case, "")


def test_totalsegmentator_needs_the_files_of_its_classes_alone(tmp_path: Path) -> None:
    parts = ["liver", "kidney_right", "kidney_left", "spleen", "heart"]
    write(tmp_path / "s0001" / "ct.nii.gz")
    for part in parts:
        write(tmp_path / "s0001" / "segmentations" / f"{part}.nii.gz", labels((0, 1)))
    (case,) = find_cases(tmp_path)
    assert case["part_organs"] == ["liver", "right kidney", "left kidney", "spleen"]
    assert [Path(file).name for file in case["label_parts"]] == [f"{part}.nii.gz" for part in parts[:4]]
    with pytest.raises(BundleError, match=r"segmentations/pancreas\.nii\.gz"):
        find_cases(tmp_path, organs=["liver", "pancreas"])
    entry = {"image": case["image"][0], "label_parts": case["label_parts"], "part_organs": case["part_organs"]}
    (tmp_path / "list.json").write_text(json.dumps({"training": [entry]}))
    (listed,) = find_cases(None, tmp_path / "list.json")  # whose parts need no numbering
    assert listed["label_parts"] == case["label_parts"]
    assert len(find_cases(tmp_path, labelled=False, organs=["pancreas"])) == 1


def test_organs_that_flare22_lacks_are_written_in_another_numbering(tmp_path: Path) -> None:
    make(tmp_path / "a", ["imagesTr/amos_0001.nii.gz"], ["labelsTr/amos_0001.nii.gz"])
    assert find_cases(tmp_path / "a", organs=["bladder", "prostate or uterus"])[0]["label_values"] == [0, 14, 15]
    assert find_cases(tmp_path / "a", organs=["spleen"], output_numbering="dataset")[0]["label_values"] == [0, 1]
    write(tmp_path / "t" / "s1" / "ct.nii.gz")
    write(tmp_path / "t" / "s1" / "segmentations" / "colon.nii.gz", labels((0, 1)))
    cases, findings = scan_cases(tmp_path / "t", organs=["colon"])
    assert ([case["label_values"] for case in cases], findings) == ([[0, 20]], [])
    make(tmp_path / "p", ["images/x.nii.gz"], ["labels/x.nii.gz"])
    own = {"tumour": 3, "liver": 1}
    assert find_cases(tmp_path / "p", numbering=own, organs=["tumour"])[0]["label_values"] == [0, 3]
    for numbering in (None, "dataset"):
        (case,) = find_cases(tmp_path / "p", labelled=False, organs=["tumour"], output_numbering=numbering)
        assert case["label_values"] == [0, 1], "nobody says what else"
    with pytest.raises(BundleError, match="amos, which has no colon"):
        find_cases(tmp_path / "a", organs=["colon"])


def test_a_plain_folder_is_asked_for_its_numbering(tmp_path: Path) -> None:
    make(tmp_path, ["imagesTr/a_0000.nii.gz", "imagesTr/b_0000.nii.gz"], ["labelsTr/a.nii.gz", "labelsTr/b.nii.gz"])
    with pytest.raises(BundleError, match=r"2 label\(s\) whose numbering[\s\S]*--numbering flare22"):
        find_cases(tmp_path)
    assert [case["numbering"] for case in find_cases(tmp_path, numbering="btcv")] == ["btcv"] * 2
    own = {"liver": 1, "right kidney": 2, "left kidney": 3, "spleen": 4}
    assert find_cases(tmp_path, numbering=own)[0]["numbering"] == own
    assert [case["case"] for case in find_cases(tmp_path, labelled=False)] == ["a", "b"]


def test_files_that_are_left_out_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make(tmp_path, ["pat1/ct.nii.gz", "pat2/abdomen.nii.gz"], [])
    assert [case["case"] for case in find_cases(tmp_path, labelled=False)] == ["pat1"]
    assert "1 file(s) are named otherwise" in caplog.text
    assert "pat2/abdomen.nii.gz" in caplog.text


def test_any_file_is_segmented(tmp_path: Path) -> None:
    make(tmp_path, ["one.nii.gz", "deep/two.nii", "one_seg.nii.gz"], [])
    assert [case["case"] for case in find_cases(tmp_path, labelled=False)] == ["one", "two"]
    with pytest.raises(BundleError, match="no case"):
        find_cases(tmp_path)


def test_files_of_several_frames_are_no_scans(tmp_path: Path) -> None:
    write(tmp_path / "a.nii.gz")
    write(tmp_path / "b.nii.gz", np.zeros((12, 10, 8, 2), np.int16))
    assert [case["case"] for case in find_cases(tmp_path, labelled=False)] == ["a"]


def test_scans_that_are_named_as_others_name_labels_are_segmented(tmp_path: Path) -> None:
    make(tmp_path, ["FLARE22_Ts_0001.nii.gz", "FLARE22_Ts_0002.nii.gz"], [])
    assert [case["case"] for case in find_cases(tmp_path, labelled=False)] == ["FLARE22_Ts_0001", "FLARE22_Ts_0002"]
    make(tmp_path, ["other.nii.gz"], [])
    assert [case["case"] for case in find_cases(tmp_path, labelled=False)] == ["other"]


def test_datalist(tmp_path: Path) -> None:
    make(tmp_path, ["x.nii.gz", "y.nii.gz"], ["xl.nii.gz", "yl.nii.gz"])
    entries = [{"image": f"{n}.nii.gz", "label": f"{n}l.nii.gz", "numbering": "amos", "patient": "p"} for n in "xy"]
    (tmp_path / "list.json").write_text(json.dumps({"training": entries[:1], "validation": entries[1:]}))
    found = find_cases(None, tmp_path / "list.json")
    assert [(c["case"], c["patient"], c["subset"], c["numbering"]) for c in found] == [
        ("x", "p", "training", "amos"),
        ("y", "p", "validation", "amos"),
    ]
    (tmp_path / "list.json").write_text(json.dumps({"training": [{"image": "x.nii.gz"}]}))
    with pytest.raises(BundleError, match="no label"):
        find_cases(None, tmp_path / "list.json")


@pytest.mark.parametrize(
    ("images", "label_maps", "message"),
    [
        (["imagesTr/amos_0001.nii.gz"], [], "a CT without a segmentation"),
        ([], ["labelsTr/amos_0001.nii.gz"], "a segmentation without its CT"),
        (["a/FLARE22_Tr_0001_0000.nii", "b/FLARE22_Tr_0001_0000.nii"], ["FLARE22_Tr_0001.nii"], "more than once"),
        ([], [], "no case"),
    ],
)
def test_incomplete_data(tmp_path: Path, images: list[str], label_maps: list[str], message: str) -> None:
    make(tmp_path, images, label_maps)
    with pytest.raises(BundleError, match=message):
        find_cases(tmp_path)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_label_whose_affine_is_flipped(tmp_path: Path, axis: int) -> None:
    flip = np.eye(4)
    flip[axis, axis] = -1
    write(tmp_path / "imagesTr" / "amos_0001.nii.gz")
    write(tmp_path / "labelsTr" / "amos_0001.nii.gz", labels((0, 1)), GRID @ flip)
    with pytest.raises(BundleError, match="resample the files of a case to one grid"):
        find_cases(tmp_path)


def test_a_tilted_gantry_is_refused_from_the_header(tmp_path: Path) -> None:
    sheared, turned, rounded = np.eye(4), np.eye(4), np.zeros((4, 4))
    sheared[1, 2] = np.tan(np.radians(10))
    turned[1:3, 1:3] = [[np.cos(0.3), -np.sin(0.3)], [np.sin(0.3), np.cos(0.3)]]
    rounded[0, 1] = 0.004  # of 2 mm
    for number, affine in enumerate((sheared @ GRID, turned @ GRID, GRID + rounded), 1):
        write(tmp_path / "imagesTr" / f"amos_000{number}.nii.gz", affine=affine)
        write(tmp_path / "labelsTr" / f"amos_000{number}.nii.gz", labels((0, 1)), affine)
    cases, (finding,) = scan_cases(tmp_path)
    assert [case["case"] for case in cases] == ["amos_0002", "amos_0003"]
    assert finding.file == str(tmp_path / "imagesTr" / "amos_0001.nii.gz")
    assert "two axes at 80.0 degrees" in finding.found
    assert "gantry" in finding.fix
    with pytest.raises(BundleError, match="sheared"):
        find_cases(tmp_path, labelled=False)


def test_grids_and_damaged_headers(tmp_path: Path) -> None:
    make(tmp_path, [f"imagesTr/amos_000{i}.nii.gz" for i in (1, 2, 3)], ["labelsTr/amos_0002.nii.gz"])
    write(tmp_path / "labelsTr" / "amos_0001.nii.gz", labels((0, 1), (12, 10, 7)))
    (tmp_path / "labelsTr" / "amos_0003.nii.gz").write_bytes(b"no nifti")
    cases, findings = scan_cases(tmp_path)
    assert [case["case"] for case in cases] == ["amos_0002"]
    assert sorted(Path(finding.file).name for finding in findings) == ["amos_0001.nii.gz", "amos_0003.nii.gz"]


def test_a_numbering_that_lacks_an_organ(tmp_path: Path) -> None:
    make(tmp_path, ["img/img0001.nii.gz"], ["label/label0001.nii.gz"])
    with pytest.raises(BundleError, match="btcv, which has no duodenum"):
        find_cases(tmp_path, organs="flare22")
