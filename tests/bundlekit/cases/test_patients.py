"""Names that are of one patient, and names that are not."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
from ignite.engine import Engine

from bundlekit.cases.datalist import trained_cases, write_datalist, write_trained_cases
from bundlekit.cases.patients import join_longitudinal, patient_of
from bundlekit.cases.split import fold_cases, select_cases, split_cases
from bundlekit.errors import BundleError
from bundlekit.training.saving import RecordPretraining


@pytest.mark.parametrize(
    ("patient", "scans"),
    [
        ("sub-01", ["sub-01", "sub-01_ses-1", "sub-01_ses-2_run-1_desc-preproc", "sub-01_ses-1.long.sub-01"]),
        ("base", ["bert.long.base"]),
        ("sub1", ["sub1_ses1", "sub1_ses2", "sub1-session-3", "sub1_visit2", "sub1_tp02", "sub1_FU1"]),
        ("Patient-001", ["Patient-001_week-000-1", "Patient-001_week-040", "Patient-001_baseline"]),
        ("BraTS-GLI-00001", ["BraTS-GLI-00001-000", "BraTS-GLI-00001-101"]),
        ("brats-met-00001", ["brats-met-00001-000"]),
        ("Brats18_TCIA01_147", ["Brats18_TCIA01_147_1"]),
        ("Brats17_2013_10", ["Brats17_2013_10_1"]),
        ("OAS1_0061", ["OAS1_0061_MR1", "OAS1_0061_MR2"]),
        ("OAS2_0001", ["OAS2_0001_MR1", "OAS2_0001_MR2"]),
        ("OAS30001", ["OAS30001_MR_d0129", "OAS30001_MR_d0757"]),
        ("1001", ["1001", "1001_3"]),
        ("002_S_0295", ["002_S_0295", "002_S_0295_2006-04-18", "ADNI_002_S_0295_MR_MPR", "002_S_0295.m12"]),
        ("UPENN-GBM-00001", ["UPENN-GBM-00001_11", "UPENN-GBM-00001_21"]),
        ("UCSF-PDGM-0431", ["UCSF-PDGM-0431", "UCSF-PDGM-0431_FU001d"]),
        ("UCSD-PTGBM-0002", ["UCSD-PTGBM-0002_01", "UCSD-PTGBM-0002_02"]),
        ("RHUH-0001", ["RHUH-0001_0", "RHUH-0001_1", "RHUH-0001_2"]),
        ("1000011", ["1000011_20252_2_0", "1000011_20252_3_0"]),
        ("TCGA-02-0054", ["TCGA-02-0054", "TCGA-02-0054_1999.10.01"]),
    ],
)
def test_scans_of_one_patient(patient: str, scans: list[str]) -> None:
    assert {patient_of(scan) for scan in scans} == {patient}


@pytest.mark.parametrize(
    "name",
    [
        "BraTS2021_00006", "BraTS20_Training_001", "Brats18_CBICA_AAB_1", "BRATS_001", "BraTS-MEN-RT-0001-1",
        "IXI012-HH-1211", "IBSR_01", "training_seg_01", "subject_1", "case_1_2", "1000", "VirtualGlioma_00000",
        "amos_0001", "img0001", "s0001", "FLARE22_Tr_0001", "volume-0", "session_1", "A00028185", "ses-1",
        "glioma_TP53_001", "2021_1", "2021_2", "site_ses1_sub02", "study_fu2_pat3",
    ],
)  # fmt: skip
def test_other_names_stay_apart(name: str) -> None:
    assert patient_of(name) == name


def test_a_time_point_is_of_the_patient_of_its_longitudinal_stream() -> None:
    names = ["s1_a", "s1_a.long.s1", "s1_b", "s1_b.long.s1", "s1", "s2", "x.long.y.long.z", "x.long.y"]
    cases = [{"case": name, "patient": patient_of(name)} for name in names]
    cases.append({"case": "s3", "patient": "told by a datalist"})
    cases.append({"case": "s3.long.b", "patient": "b"})
    join_longitudinal(cases)
    patients = {case["case"]: case["patient"] for case in cases}
    assert [patients[name] for name in names] == ["s1"] * 5 + ["s2", "z", "y"]
    assert patients["s3"] == "told by a datalist"


def test_scans_of_one_patient_stay_on_one_side() -> None:
    names = ["OAS1_0061_MR1", "OAS1_0061_MR2", "OAS1_0062_MR1"]
    cases = [{"case": name, "patient": patient_of(name), "subset": ""} for name in names]
    split = split_cases(cases, train_fraction=0.4)
    assert [case["case"] for case in split["validation"]] == ["OAS1_0062_MR1"]


def test_a_record_that_told_two_scans_apart_keeps_nobody_from_being_known(tmp_path: Path) -> None:
    (tmp_path / "datalist.json").write_text(
        json.dumps({"training": [{"case": "OAS1_0061_MR1", "patient": "OAS1_0061_MR1"}]})
    )
    cases = [{"case": f"OAS1_006{n}_MR2", "patient": f"OAS1_006{n}", "subset": ""} for n in (1, 2)]
    (unseen,) = select_cases(cases, trained=tmp_path / "datalist.json")
    assert unseen["case"] == "OAS1_0062_MR2"


def test_cases_that_trained_shipped_weights_are_known(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "trained_on.json").write_text(json.dumps(["BraTS2021_00006"]))
    trained = tmp_path / "datalist.json"  # which is not there
    cases = [{"case": name, "patient": name, "subset": ""} for name in ("BraTS2021_00006", "x", "y")]
    assert select_cases(cases, "all", trained=trained) == cases
    assert "1 of these cases trained the network: their scores flatter it" in caplog.text
    assert select_cases(cases, trained=trained) == cases[1:]
    assert trained_cases(tmp_path) == {"BraTS2021_00006": ""}


@pytest.mark.parametrize("recorded", ["by name", "with patients"])
def test_cases_that_trained_are_known_where_a_datalist_names_the_patients(tmp_path: Path, recorded: str) -> None:
    """Shipped weights come with the names of their cases, which tell nothing of patients that a datalist names."""
    cases = [
        {"case": name, "patient": patient, "image": [], "label": "", "subset": ""}
        for name, patient in (("scanA", "P1"), ("scanB", "P2"), ("scanC", "P3"), ("again", "P1"))
    ]
    trained = tmp_path / "datalist.json"  # which is not there
    write_trained_cases({"scanA": "P1" if recorded == "with patients" else "", "scanB": ""}, tmp_path)
    assert json.loads((tmp_path / "trained_on.json").read_text()) == [
        {"case": "scanA", "patient": "P1"} if recorded == "with patients" else "scanA",
        "scanB",
    ]
    assert [case["case"] for case in select_cases(cases, trained=trained)] == ["scanC"]
    assert [case["case"] for case in select_cases(cases, "training", trained=trained)] == ["scanA", "scanB", "again"]
    # the second scan alone is known by its patient, if that is recorded
    split = select_cases(cases[2:], trained=trained)
    assert [case["case"] for case in split] == (["scanC"] if recorded == "with patients" else ["scanC", "again"])


def test_a_record_that_names_patients_knows_the_cases_of_a_folder(tmp_path: Path) -> None:
    """There, a case is its own patient."""
    listed = {"training": [{"case": "scanA", "patient": "P1"}], "validation": []}
    (tmp_path / "datalist.json").write_text(json.dumps(listed))
    cases = [{"case": name, "patient": name, "subset": ""} for name in ("scanA", "scanB")]
    (unseen,) = select_cases(cases, trained=tmp_path / "datalist.json")
    assert unseen["case"] == "scanB"


def test_patients_that_a_datalist_tells_apart_stay_apart(tmp_path: Path) -> None:
    """Though the names of their cases look like two visits of one."""
    cases = [
        {"case": f"sub1_ses{n}", "patient": patient, "image": [], "label": "", "subset": part}
        for n, patient, part in ((1, "P1", "training"), (2, "P2", "validation"))
    ]
    write_datalist({"training": cases[:1], "validation": cases[1:]}, str(tmp_path / "datalist.json"))
    assert select_cases(cases, trained=tmp_path / "datalist.json") == cases[1:]


def test_what_a_fine_tuning_began_with_is_recorded(tmp_path: Path) -> None:
    earlier, run = tmp_path / "earlier", tmp_path / "run"
    earlier.mkdir()
    (earlier / "datalist.json").write_text(json.dumps({"training": [{"case": "b"}], "validation": [{"case": "c"}]}))
    (earlier / "trained_on.json").write_text(json.dumps(["a"]))
    engine = Engine(lambda engine, batch: None)
    RecordPretraining(str(earlier / "model.pt"), str(run)).attach(engine)
    engine.run([0], max_epochs=2)
    assert trained_cases(run) == {"a": "", "b": ""}
    (earlier / "trained_on.json").write_text("{")
    with pytest.raises(BundleError, match=r"trained_on\.json"):
        trained_cases(earlier)


def test_a_resumed_fine_tuning_keeps_what_its_start_recorded(tmp_path: Path) -> None:
    """Other weights may lie where those were that it began with."""
    run, other = tmp_path / "run", tmp_path / "other"
    run.mkdir()
    other.mkdir()
    write_trained_cases({"a": "A"}, run)
    write_trained_cases({"z": ""}, other)
    recording = RecordPretraining(str(other / "model.pt"), str(run))
    recording(SimpleNamespace(state=SimpleNamespace(epoch=2)))  # type: ignore[arg-type]
    assert trained_cases(run) == {"a": "A"}
    (run / "trained_on.json").unlink()
    recording(SimpleNamespace(state=SimpleNamespace(epoch=2)))  # type: ignore[arg-type]
    assert trained_cases(run) == {"a": "A"}


def test_a_fine_tuned_fold_keeps_its_validation_part(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Where weights that began the training knew it, the scores are said to flatter."""
    cases = [{"case": name, "patient": name, "image": [], "label": "", "subset": ""} for name in "abcd"]
    split = {"training": cases[:2], "validation": cases[2:]}
    write_datalist(split, str(tmp_path / "datalist.json"))
    write_trained_cases({"b": "", "c": ""}, tmp_path)
    trained = tmp_path / "datalist.json"
    listed = [{**case, "subset": part} for part, some in split.items() for case in some]  # as a datalist is read
    assert [case["case"] for case in select_cases(listed, trained=trained)] == ["c", "d"]
    assert "weights that began the training knew 1 of these cases, their scores flatter: c" in caplog.text
    assert [case["case"] for case in select_cases(listed, "training", trained=trained)] == ["a", "b"]
    assert len(select_cases(listed, "all", trained=trained)) == 4
    assert "3 of these cases trained the network" in caplog.text
    assert [case["case"] for case in select_cases(cases, trained=trained)] == ["d"], "of a folder"
    moved = [{**case, "subset": "validation"} for case in cases]
    assert [case["case"] for case in select_cases(moved, trained=trained)] == ["c", "d"], "what trained here, trained"
    trained.unlink()
    assert [case["case"] for case in select_cases(listed, trained=trained)] == ["a", "d"], "weights that were shipped"


@pytest.mark.parametrize("folds", [False, True])
def test_one_file_of_two_patients_is_refused(tmp_path: Path, folds: bool) -> None:
    """A link makes them; one scan would train and validate."""
    cases = []
    for name in "abc":
        path = tmp_path / f"{name}.nii.gz"
        path.symlink_to(tmp_path / "a.nii.gz") if name == "b" else path.write_text(name)
        cases.append({"case": name, "patient": name, "image": [str(path)], "label": "", "subset": ""})
    divide = partial(fold_cases, fold=0, num_folds=2) if folds else split_cases
    with pytest.raises(BundleError, match=r"one file under two names, of the cases a and b[\s\S]*remove the link"):
        divide(cases)
    cases[1]["patient"] = "a"
    assert sum(map(len, divide(cases).values())) == 3
