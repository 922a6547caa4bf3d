"""Folds of a cross-validation."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bundlekit.cases.split import fold_cases, repeated, select_cases, split_cases
from bundlekit.errors import BundleError


def scans(n: int, per_patient: int = 1) -> list[dict]:
    return [
        {"case": f"c{i:03}", "patient": f"p{i // per_patient:03}", "image": [], "label": "", "subset": ""}
        for i in range(n)
    ]


@pytest.mark.parametrize(("n", "per_patient", "num_folds"), [(10, 1, 5), (11, 1, 3), (20, 2, 5), (2, 1, 2)])
def test_every_case_validates_once(n: int, per_patient: int, num_folds: int) -> None:
    cases = scans(n, per_patient)
    folds = [fold_cases(cases, fold, num_folds) for fold in range(num_folds)]
    assert sorted(c["case"] for split in folds for c in split["validation"]) == [c["case"] for c in cases]
    sizes = [len({c["patient"] for c in split["validation"]}) for split in folds]
    assert max(sizes) - min(sizes) <= 1
    for split in folds:
        sides = [{c["patient"] for c in split[part]} for part in ("training", "validation")]
        assert not sides[0] & sides[1]
        assert len(split["training"]) + len(split["validation"]) == n


def test_folds_follow_from_patients_and_seed_alone() -> None:
    cases = scans(12)
    moved = [{**case, "subset": "validation" if i % 2 else "training"} for i, case in enumerate(cases[::-1])]
    names = [{c["case"] for c in fold_cases(some, 1, 4)["validation"]} for some in (cases, moved)]
    assert names[0] == names[1]
    other = {c["case"] for c in fold_cases(cases, 1, 4, seed=1)["validation"]}
    assert other != names[0]


@pytest.mark.parametrize(
    ("n", "fold", "num_folds", "message"),
    [(6, 3, 3, "fold 0 to num_folds - 1"), (6, -1, 3, "fold is -1"), (6, 0, 1, "2 or more"), (2, 0, 3, "3 folds")],
)
def test_impossible_folds(n: int, fold: int, num_folds: int, message: str) -> None:
    with pytest.raises(BundleError, match=message):
        fold_cases(scans(n), fold, num_folds)


def test_parts_are_in_the_order_of_the_cases_whatever_the_patients() -> None:
    """A resumed run takes its parts from datalist.json and has the cases sorted: it has to draw the same ones."""
    patients = {"P1": "a", "P10": "b", "P1_ses-2": "a", "P2": "c", "P3": "d"}
    cases = [{"case": name, "patient": patient, "image": [], "subset": ""} for name, patient in patients.items()]
    split = split_cases(cases, train_fraction=0.7)
    assert [case["case"] for case in split["training"]] == ["P1", "P10", "P1_ses-2", "P2"]
    marked = [{**case, "subset": "validation" if case["case"] == "P3" else "training"} for case in cases]
    assert split_cases(marked) == {
        part: [{**case, "subset": part} for case in side] for part, side in split.items()
    }  # as resumed


def test_a_case_of_a_rare_kind_is_seen_more_often() -> None:
    split = {"training": scans(4)[:3], "validation": scans(4)[3:]}
    names = [case["case"] for case in repeated(split, {"c001": 3, "c003": 5, "c002": 1})]
    assert names == ["c000", "c001", "c002", "c001", "c001"]  # c003 does not train
    assert [case["case"] for case in repeated(split, "{c001: 2}")][-1] == "c001", "as Fire hands on c-001"
    assert repeated(split, {}) == repeated(split, None) == split["training"]
    assert repeated({"training": [], "validation": []}, {"c001": 2}) == []  # to be inspected without data


@pytest.mark.parametrize(
    ("repeats", "message"),
    [
        ({"c009": 2}, "repeats names c009; expected names of the 4 cases, in quotes, such as {'c000': 3}"),
        ({"c001": 0}, "0 for c001; expected a whole number, 1 or more"),
        ({"c001": 1.5}, "1.5 for c001"),
        ({"c001": True}, "True for c001"),
        (3, "repeats is 3; expected names of cases with numbers"),
    ],
)
def test_repeats_that_say_nothing(repeats: object, message: str) -> None:
    split = {"training": scans(4)[:3], "validation": scans(4)[3:]}
    with pytest.raises(BundleError, match=message):
        repeated(split, repeats)  # type: ignore[arg-type]


def test_a_data_set_that_trained_nothing_has_no_training_part(tmp_path: Path) -> None:
    (tmp_path / "datalist.json").write_text(json.dumps({"training": [{"case": "other", "patient": "other"}]}))
    with pytest.raises(BundleError, match=r"none of the 4 case\(s\) trained the network"):
        select_cases(scans(4), "training", trained=str(tmp_path / "datalist.json"))


def test_people_of_the_same_names_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Two data sets may both have a sub-01: by the name alone it trained."""
    entries = [{"case": f"sub-{n:02}", "image": [f"/first/sub-{n:02}.nii"]} for n in range(4)]
    (tmp_path / "datalist.json").write_text(json.dumps({"training": entries}))
    trained = str(tmp_path / "datalist.json")
    for folder, told in (("first", False), ("second", True)):
        cases = [
            {**case, "case": name, "patient": name, "image": [f"/{folder}/{name}.nii"]}
            for case, name in zip(scans(6), (f"sub-{n:02}" for n in range(6)), strict=True)
        ]
        assert [case["case"] for case in select_cases(cases, trained=trained)] == ["sub-04", "sub-05"]
        assert ("are not scored: sub-00, sub-01, sub-02, sub-03; if they are other people" in caplog.text) is told
    with pytest.raises(BundleError, match=r"say their names.*--trained '\$None' --subset all"):
        select_cases(cases[:4], trained=trained)


def test_a_split_without_validation_names_the_patients() -> None:
    with pytest.raises(BundleError, match=r"4 case\(s\) of 1 patient\(s\) \(p000\) give 4 for training"):
        split_cases(scans(4, 4))
