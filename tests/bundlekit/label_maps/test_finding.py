"""Label maps that are found, whose they are, and everything that can be wrong with them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bundlekit.cases.datalist import write_datalist
from bundlekit.cases.split import split_cases
from bundlekit.errors import BundleError
from bundlekit.label_maps import find_label_maps, scan_label_maps
from tests.bundlekit.label_maps.conftest import numbers, write


def write_all(root: Path, *names: str) -> None:
    for name in names:
        write(root / name)


def test_nothing_given() -> None:
    assert find_label_maps(None) == []
    assert find_label_maps("", None) == []


def test_every_file_is_a_case(tmp_path: Path) -> None:
    write_all(tmp_path, "b.nii.gz", "x/training_seg_01.nii", "c.mgz", "sub-01_desc-aseg_dseg.nii.gz", ".Trash/d.nii")
    cases = find_label_maps(tmp_path)
    assert [case["case"] for case in cases] == ["b", "c", "sub-01_desc-aseg_dseg", "training_seg_01"]
    for case in cases:
        assert (case["image"], case["numbering"], case["subset"]) == ([], "freesurfer", "")
        assert Path(case["label"]).is_file()
    assert find_label_maps(tmp_path / "b.nii.gz") == cases[:1]
    assert find_label_maps(tmp_path, numbering="freesurfer") == cases
    with pytest.raises(BundleError, match="'bids'"):
        find_label_maps(tmp_path, numbering="bids")


@pytest.mark.parametrize(
    ("there", "taken"),
    [
        (("norm", "aseg", "wmparc", "aparc+aseg"), "aseg"),
        (("norm", "wmparc", "aparc+aseg"), "aparc+aseg"),
        (("T1", "wmparc", "aseg.presurf"), "wmparc"),
        (("T1", "aseg.presurf", "ribbon"), "aseg.presurf"),
    ],
)
def test_a_freesurfer_subject_has_one(tmp_path: Path, there: tuple[str, ...], taken: str) -> None:
    write_all(tmp_path, *(f"bert/mri/{name}.mgz" for name in there), "bert/mri/orig/001.mgz")
    (case,) = find_label_maps(tmp_path)
    assert (case["case"], case["patient"]) == ("bert", "bert")
    assert case["label"] == str(tmp_path / "bert" / "mri" / f"{taken}.mgz")


@pytest.mark.parametrize(
    ("name", "patient"),
    [
        ("training_seg_01.nii.gz", "training_seg_01"),
        ("scan 1_synthseg.nii.gz", "scan 1"),
        ("1001_3_synthseg.nii.gz", "1001"),
        ("sub-01_ses-2_T1w_synthseg.nii.gz", "sub-01"),
        ("sub-01_ses-2_desc-aseg_dseg.nii.gz", "sub-01"),
        ("IBSR_01_seg_ana.nii.gz", "IBSR_01"),
        ("IBSR_01_ana_strip_synthseg.nii.gz", "IBSR_01"),
        ("P01_T1_synthseg.nii.gz", "P01"),
        ("P01_t1w_synthseg.nii.gz", "P01"),
        ("P01_FLAIR_synthseg.nii.gz", "P01"),
        ("P01_T1ce_synthseg.nii.gz", "P01"),
        ("BraTS-GLI-00001-000-t2f_synthseg.nii.gz", "BraTS-GLI-00001"),
        ("1000_SS_synthseg.nii.gz", "1000"),
        ("a_seg.nii.gz", "a"),
        ("a_label.nii", "a"),
        ("sub-01/mri/aseg.mgz", "sub-01"),
        ("x.long.anna/mri/aseg.mgz", "anna"),
    ],
)
def test_the_patient_is_that_of_the_scan(tmp_path: Path, name: str, patient: str) -> None:
    write(tmp_path / name)
    (case,) = find_label_maps(tmp_path)
    assert case["patient"] == patient


def test_a_scan_and_its_time_point_are_of_one_patient(tmp_path: Path) -> None:
    write_all(tmp_path, *(f"{name}/mri/aseg.mgz" for name in ("a", "a.long.base", "base")))
    assert {case["patient"] for case in find_label_maps(tmp_path)} == {"base"}


def test_one_map_under_two_names_is_refused_before_a_split(tmp_path: Path) -> None:
    write_all(tmp_path, *(f"{name}.nii.gz" for name in "abcd"))
    (tmp_path / "e.nii.gz").symlink_to(tmp_path / "a.nii.gz")
    with pytest.raises(BundleError, match="one file under two names, of the cases a and e"):
        split_cases(find_label_maps(tmp_path), train_fraction=0.5)


def test_one_name_twice_and_damaged_files(tmp_path: Path) -> None:
    write_all(tmp_path, "x/a.nii.gz", "y/a.nii.gz")
    (tmp_path / "b.nii.gz").write_bytes(b"damaged")
    write(tmp_path / "c.nii.gz", np.stack([numbers()] * 2, -1))
    cases, findings = scan_label_maps(tmp_path)
    assert [case["case"] for case in cases] == ["a", "a"]
    found = [finding.found for finding in findings]
    assert len(found) == 3
    assert "case a more than once" in found[0]
    assert "cannot be read" in found[1]
    assert "4-D" in found[2]
    with pytest.raises(BundleError, match=r"^3 problem\(s\)") as caught:
        find_label_maps(tmp_path)
    assert all(str(finding) in str(caught.value) for finding in findings)


def test_a_folder_of_that_name_is_not_yet_a_subject(tmp_path: Path) -> None:
    write_all(tmp_path, "study/mri/anna.mgz", "study/mri/bert.nii.gz")
    assert [case["case"] for case in find_label_maps(tmp_path)] == ["anna", "bert"]


def test_no_label_map(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="label maps"):
        find_label_maps(tmp_path)
    with pytest.raises(BundleError, match="no such file or folder"):
        find_label_maps(tmp_path / "none")


def test_round_trip_through_a_datalist(tmp_path: Path) -> None:
    write_all(tmp_path / "data", "a.nii.gz", "bert/mri/norm.mgz", "bert/mri/aseg.mgz", "c.nii")
    cases = find_label_maps(tmp_path / "data")
    write_datalist(split_cases(cases), str(tmp_path / "list.json"))
    again = find_label_maps(tmp_path / "data", datalist=tmp_path / "list.json")
    assert [{**case, "subset": ""} for case in again] == cases
    assert {case["subset"] for case in again} == {"training", "validation"}


def listed(folder: Path, *entries: Any) -> Path:
    (folder / "list.json").write_text(json.dumps({"training": entries}))
    return folder / "list.json"


def test_datalist_by_hand(tmp_path: Path) -> None:
    write_all(tmp_path, "l/1001_3_synthseg.nii.gz", "l/b.nii.gz", "l/c.nii.gz")
    entries = [{"label": "l/1001_3_synthseg.nii.gz"}, {"label": "l/b.nii.gz", "case": "sub-07_ses-1"}]
    cases = find_label_maps(None, listed(tmp_path, *entries, {"label": "l/c.nii.gz", "patient": "p"}))
    assert [(case["case"], case["patient"]) for case in cases] == [
        ("1001_3_synthseg", "1001"),
        ("c", "p"),
        ("sub-07_ses-1", "sub-07"),
    ]


@pytest.mark.parametrize(
    ("entry", "found"),
    [
        ({"image": "a.nii.gz", "label": "a.nii.gz"}, "image: 'a.nii.gz'"),
        ({"case": "a"}, "no label"),
        ({"label": "a.nii.gz", "numbering": "bids"}, "numbering 'bids'"),
        ({"label": "b.nii.gz"}, "no such file"),
    ],
)
def test_datalist_with_a_mistake(tmp_path: Path, entry: dict[str, str], found: str) -> None:
    write(tmp_path / "a.nii.gz")
    _, (finding,) = scan_label_maps(tmp_path, listed(tmp_path, entry))
    assert found in finding.found
