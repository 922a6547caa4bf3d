"""BIDS data sets in, BIDS derivatives out."""

from __future__ import annotations

import csv
import json
import re
import shutil
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from bundlekit.cohort import app, running
from bundlekit.cohort.bids import begin_derivative, find_entries, folder_of, write_volumes_tsv
from bundlekit.errors import BundleError
from bundlekit.report.table import COLUMNS
from tests.bundlekit.cohort.test_running import in_this_process
from tests.conftest import ROOT

pytest.importorskip("ancpbids", reason="the extra `cohort` is not installed")
FOUR = ["T1", "T1ce", "T2", "FLAIR"]
SUFFIXES = {"t1": "T1w", "t1ce": "ce-gd_T1w", "t2": "T2w", "flair": "FLAIR"}

__all__ = ["in_this_process"]


def dataset(root: Path, *files: str) -> Path:
    """An empty BIDS data set."""
    root.mkdir(parents=True, exist_ok=True)
    (root / "dataset_description.json").write_text(json.dumps({"Name": "test", "BIDSVersion": "1.10.0"}))
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_bytes(b"")
    return root


def anat(session: str, *ends: str) -> list[str]:
    folder = session.replace("_", "/")
    return [f"{folder}/anat/{session}_{end}.nii.gz" for end in ends]


def test_a_session_is_a_case_of_four_scans(tmp_path: Path) -> None:
    whole = anat("sub-01_ses-1", "T1w", "ce-gd_T1w", "T2w", "FLAIR")
    root = dataset(tmp_path, *whole, *anat("sub-02", "T1w", "T2w", "FLAIR"), "derivatives/x/sub-03/anat/sub-03_T1w.nii")
    entries, findings = find_entries(root, FOUR)
    assert entries == [{"case": "sub-01_ses-1", "patient": "sub-01", "image": [str(root / file) for file in whole]}]
    (finding,) = findings
    assert "no T1ce (_ce-*_T1w) beside T1, T2, FLAIR" in finding.found
    entries, findings = find_entries(root, FOUR, fill_missing=True)
    assert not findings
    assert entries[1]["image"] == [str(root / f"sub-02/anat/sub-02_{end}.nii.gz") if end else ""
                                   for end in ("T1w", "", "T2w", "FLAIR")]  # fmt: skip
    _, (finding,) = find_entries(dataset(tmp_path / "one", *anat("sub-03", "T1w")), FOUR, fill_missing=True)
    assert finding.file.endswith("sub-03/anat")
    assert "at most 2 may be missing" in finding.expected


def test_several_scans_of_a_kind_are_told_and_chosen(tmp_path: Path) -> None:
    root = dataset(tmp_path, *anat("sub-01", "run-01_T1w", "run-02_T1w", "ce-gd_T1w", "T2w", "FLAIR"))
    entries, findings = find_entries(root, FOUR)
    assert not entries
    assert "more than one T1: sub-01_run-01_T1w.nii.gz, sub-01_run-02_T1w.nii.gz" in findings[0].found
    for run in ("02", "2", 2):
        entries, findings = find_entries(root, FOUR, filters={"T1": {"run": run}})
        assert not findings
        assert entries[0]["image"][0].endswith("sub-01_run-02_T1w.nii.gz")
    for filters, told in (
        ({"T1w": {}}, "names T1w; expected some of T1, T1ce"),
        ({"T1": {"acquisition": None}}, "has acquisition for T1; expected entities .* acq, "),
    ):
        with pytest.raises(BundleError, match=told):
            find_entries(root, FOUR, filters=filters)


def test_every_scan_is_a_case_of_a_bundle_of_one_channel(tmp_path: Path) -> None:
    root = dataset(tmp_path, *anat("sub-01", "run-1_T1w", "run-2_T1w", "T2w"), *anat("sub-02_ses-a", "ce-gd_T1w"))
    assert [entry["case"] for entry in find_entries(root, ["T1"])[0]] == ["sub-01_run-1", "sub-01_run-2"]
    names = [entry["case"] for entry in find_entries(root, ["MRI"])[0]]
    assert names == ["sub-01_desc-T2w", "sub-01_run-1", "sub-01_run-2", "sub-02_ses-a_ce-gd"]
    assert [entry["case"] for entry in find_entries(root, ["MRI"], participants=["sub-02"])[0]] == names[-1:]
    with pytest.raises(BundleError, match=r"no scan of 03; there are 01, 02\."):
        find_entries(root, ["MRI"], participants=["03"])
    assert folder_of("sub-02_ses-a_ce-gd") == Path("sub-02/ses-a/anat")


def test_another_bundles_derivative_is_left_alone(tmp_path: Path) -> None:
    begin_derivative(tmp_path, "one", "1", tmp_path / "raw")
    begin_derivative(tmp_path, "one", "2", tmp_path / "raw")
    with pytest.raises(BundleError, match="a data set of one"):
        begin_derivative(tmp_path, "other", "1", tmp_path / "raw")


def test_scans_with_the_same_entities_have_names_that_do_not_depend_on_each_other(tmp_path: Path) -> None:
    root = dataset(tmp_path)
    names = []
    for scan in anat("sub-01", "T1w", "space-MNI_desc-preproc_FLAIR", "space-MNI_T2w", "PDw"):
        dataset(root, scan)
        before, names = names, [entry["case"] for entry in find_entries(root, ["MRI"])[0]]
        assert set(before) < set(names)
    described = [f"sub-01_{part}" for part in ("desc-PDw", "space-MNI_desc-T2w", "space-MNI_desc-preprocFLAIR")]
    assert names == ["sub-01", *described]


def test_scans_whose_names_bids_does_not_have_are_told(tmp_path: Path) -> None:
    odd = [*anat("sub-02", "mprage_T1w", "acq-1.5mm_T1w", "t1w"), "sub-03/anat/sub-03_T1w.NII.GZ", "sub-04/T1w.nii"]
    others = ["code/T1w.nii.gz", "sub-01/anat/sub-01_T1w.json", *anat("sub-01", "T1w_mask", "part-phase_T1w")]
    root = dataset(tmp_path, *anat("sub-01", "part-mag_T1w"), *odd, *others)
    entries, findings = find_entries(root, ["T1"])
    assert [entry["case"] for entry in entries] == ["sub-01_part-mag"]
    assert sorted(finding.file for finding in findings) == sorted(str(root / file) for file in odd)
    entries, findings = find_entries(root, ["T1"], participants=["03"])
    assert (entries, [finding.file for finding in findings]) == ([], [str(root / odd[3])])


def test_scans_lie_in_folders_of_participants(tmp_path: Path) -> None:
    others = [f"{folder}/sub-02/anat/sub-02_T1w.nii.gz" for folder in ("backup", "derivatives", "sourcedata")]
    root = dataset(tmp_path, *anat("sub-01", "T1w"), *others)
    entries, findings = find_entries(root, ["T1"])
    assert ([entry["case"] for entry in entries], findings) == (["sub-01"], [])


@pytest.mark.parametrize(
    ("file", "found", "expected"),
    [
        ("sub-04/anat/sub-05_T1w.nii.gz", "sub-05 in the folder sub-04/anat", "sub-05/, or a name .* sub-04_"),
        ("sub-06/ses-1/anat/sub-06_T1w.nii.gz", "sub-06 in the folder sub-06/ses-1/anat", "sub-06/, .* sub-06_ses-1_"),
        ("sub-06/anat/sub-06_ses-1_T1w.nii.gz", "sub-06_ses-1 in the folder sub-06/anat", "sub-06/ses-1/, .* sub-06_"),
        ("sub-07_T1w.nii.gz", "sub-07 in the folder .", "sub-07/"),
    ],
)
def test_a_scan_whose_name_and_folders_disagree_is_told(tmp_path: Path, file: str, found: str, expected: str) -> None:
    root = dataset(tmp_path, *anat("sub-01_ses-1", "T1w"), file)
    entries, (finding,) = find_entries(root, ["T1"])
    assert [entry["case"] for entry in entries] == ["sub-01_ses-1"]
    assert (finding.file, finding.found) == (str(root / file), f"a scan of {found}")
    assert re.fullmatch(f"it in {expected}", finding.expected)


@pytest.mark.parametrize(
    ("lines", "left"),
    [
        ("", ["sub-01", "sub-01_run-2", "sub-02_ses-1"]),
        ("# sub-01/\n\n  \n.\n/\n*_T2w.nii.gz", ["sub-01", "sub-01_run-2", "sub-02_ses-1"]),
        ("sub-01/\n", ["sub-02_ses-1"]),
        ("/sub-01/anat", ["sub-02_ses-1"]),
        ("sub-02/ses-*/", ["sub-01", "sub-01_run-2"]),
        ("**/ses-1/**", ["sub-01", "sub-01_run-2"]),
        ("*_run-?_*", ["sub-01", "sub-02_ses-1"]),
        ("sub-01/*_T1w.nii.gz", ["sub-01", "sub-01_run-2", "sub-02_ses-1"]),  # a star ends at a folder
        ("*_T1w.nii.gz/", ["sub-01", "sub-01_run-2", "sub-02_ses-1"]),  # of folders alone
        ("/sub-*\n!/sub-02\n", ["sub-02_ses-1"]),
        ("sub-02/**/*_T1w*\n", ["sub-01", "sub-01_run-2"]),
        ("sub-0[!1]/\n", ["sub-01", "sub-01_run-2"]),
        ("sub-0[1-2]\n!sub-0[^1]\n", ["sub-02_ses-1"]),
        ("\ufeffsub-01/\n", ["sub-02_ses-1"]),  # of an editor under Windows
    ],
)
def test_what_bidsignore_lists_is_no_scan(tmp_path: Path, lines: str, left: list[str]) -> None:
    root = dataset(tmp_path, *anat("sub-01", "T1w", "run-2_T1w"), *anat("sub-02_ses-1", "T1w"))
    (root / ".bidsignore").write_text(lines)
    entries, findings = find_entries(root, ["T1"])
    assert ([entry["case"] for entry in entries], findings) == (left, [])


def test_a_bidsignore_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    root = dataset(tmp_path, *anat("sub-01", "T1w"))
    (root / ".bidsignore").write_text("sub-[z-a]/\n")
    with pytest.raises(BundleError, match=r"(?s)\.bidsignore.*a line that is none \(bad character range"):
        find_entries(root, ["T1"])


def test_scans_that_bids_has_no_name_for_are_taken_though_bidsignore_lists_them(tmp_path: Path) -> None:
    """As it has to, for the data set to be valid."""
    root = dataset(tmp_path, "sub-01/ct/sub-01_ct.nii.gz")
    (root / ".bidsignore").write_text("*_ct.nii.gz\n")
    assert [entry["case"] for entry in find_entries(root, ["CT"])[0]] == ["sub-01"]
    dataset(tmp_path, "sub-02/ct/sub-02_ct.nii.gz")
    (root / ".bidsignore").write_text("*_ct.nii.gz\nct/\nsub-*/ct\nsub-01/\n")  # who is listed is not taken
    assert [entry["case"] for entry in find_entries(root, ["CT"])[0]] == ["sub-02"]
    for every in ("sub-01/**", "sub-01/*"):
        (root / ".bidsignore").write_text(f"*_ct.nii.gz\nsub-*/ct/**\n**/ct/*\n{every}\n")
        assert [entry["case"] for entry in find_entries(root, ["CT"])[0]] == ["sub-02"]


def test_hidden_files_are_no_scans(tmp_path: Path) -> None:
    hidden = ["sub-01/anat/._sub-01_T1w.nii.gz", "sub-01/.git/annex/x_T1w.nii.gz"]
    root = dataset(tmp_path, *anat("sub-01", "T1w"), *hidden)
    entries, findings = find_entries(root, ["T1"])
    assert ([entry["case"] for entry in entries], findings) == (["sub-01"], [])


def test_a_data_set_by_a_path_with_dots_or_a_link(tmp_path: Path) -> None:
    root = dataset(tmp_path / "data", *anat("sub-01", "T1w"))
    (tmp_path / "other").mkdir()
    (tmp_path / "link").symlink_to(root)
    for way in (tmp_path / "other" / ".." / "data", tmp_path / "link"):
        (entry,), _ = find_entries(way, ["T1"])
        assert entry["image"] == [str(root / "sub-01/anat/sub-01_T1w.nii.gz")]


def test_a_damaged_description_is_told(tmp_path: Path) -> None:
    root = dataset(tmp_path, *anat("sub-01", "T1w"))
    (root / "dataset_description.json").write_text('{"Name": ')
    for use in (lambda: find_entries(root, ["T1"]), lambda: begin_derivative(root, "one", "1", root)):
        with pytest.raises(BundleError, match=r"dataset_description.json\n.*cannot be read"):
            use()


def test_files_of_the_user_stay_in_a_derivative(tmp_path: Path) -> None:
    begin_derivative(tmp_path, "one", "1", tmp_path / "raw")
    begin_derivative(tmp_path, "one", "2", tmp_path / "raw")
    assert "Made by one 2" in (tmp_path / "README.md").read_text()
    for name in ("README.md", ".bidsignore"):
        (tmp_path / name).write_text("mine")
    begin_derivative(tmp_path, "one", "3", tmp_path / "raw")
    assert [(tmp_path / name).read_text() for name in ("README.md", ".bidsignore")] == ["mine", "mine"]
    description = tmp_path / "dataset_description.json"
    now = json.loads(description.read_text())
    now["GeneratedBy"].append({"Name": "another"})
    description.write_text(json.dumps({**now, "License": "CC0"}))
    begin_derivative(tmp_path, "one", "4", tmp_path / "raw")
    kept = json.loads(description.read_text())
    assert (kept["License"], kept["GeneratedBy"][0]["Version"]) == ("CC0", "4")
    assert [one["Name"] for one in kept["GeneratedBy"]] == ["one", "another"]


def test_other_results_in_the_folder_are_no_participants(tmp_path: Path) -> None:
    rows = [{**dict.fromkeys(COLUMNS, ""), "case": case} for case in ("BraTS_1", "sub-01_ses-1")]
    write_volumes_tsv(tmp_path, rows)
    lines = [line.split("\t")[:3] for line in (tmp_path / "volumes.tsv").read_text().splitlines()]
    assert lines == [["participant_id", "session_id", "case"], ["sub-01", "ses-1", "sub-01_ses-1"]]


@pytest.fixture
def prepared(cohort: Path, tmp_path: Path) -> Path:
    """Three of the virtual gliomas in BIDS, one of them without T2."""
    root = dataset(tmp_path / "bids")
    for number, folder in enumerate(sorted(cohort.iterdir())[:3], 1):
        to = root / f"sub-{number:02}" / "anat"
        to.mkdir(parents=True)
        for end, suffix in SUFFIXES.items():
            shutil.copy(folder / f"{folder.name}_{end}.nii.gz", to / f"sub-{number:02}_{suffix}.nii.gz")
    (root / "sub-03" / "anat" / "sub-03_T2w.nii.gz").unlink()
    return root


@pytest.mark.usefixtures("in_this_process")
def test_the_app_makes_a_derivative(
    prepared: Path, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = prepared / "derivatives" / "tumour"
    settings = ["--set", f"ckpt_dir={tiny_model}", "runtime=torch", "save_probabilities=true"]
    bundle = ["--bundle", str(ROOT / "bundles" / "brats_resunet"), *settings]
    level = [str(prepared / "sub-01" / ".."), str(out), "participant"]
    assert app.main([*level, "--participant-label", "01", "--jobs", "1", *bundle]) == 0
    assert app.main([*level, "--jobs", "1", *bundle]) == 3  # sub-03 lacks a scan
    told = capsys.readouterr()
    assert "1 computed, 1 were done already, 1 failed" in told.out
    assert "sub-03/anat: found no T2 (_T2w) beside T1, T1ce, FLAIR" in told.err
    stems = [f"sub-0{number}/anat/sub-0{number}" for number in (1, 2)]
    ends = ("dseg.nii.gz", "dseg.json", "dseg.tsv", "probseg.nii.gz", "probseg.json")
    made = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    assert made == {f"{stem}_{end}" for stem in stems for end in ends} | {
        *(f"records/sub-0{number}.json" for number in (1, 2)),
        *("dataset_description.json", ".bidsignore", "README.md", "volumes.json"),
    }
    mask = nib.load(out / f"{stems[0]}_dseg.nii.gz")
    np.testing.assert_array_equal(mask.affine, nib.load(prepared / "sub-01/anat/sub-01_T1w.nii.gz").affine)
    assert (out / f"{stems[0]}_dseg.tsv").read_text() == "index\tname\n0\tbackground\n1\tNCR\n2\tED\n4\tET\n"
    sidecar = json.loads((out / f"{stems[0]}_dseg.json").read_text())
    assert sidecar["Sources"][1] == "bids:raw:sub-01/anat/sub-01_ce-gd_T1w.nii.gz"
    assert json.loads((out / f"{stems[0]}_probseg.json").read_text())["LabelMap"] == ["WT", "TC", "ET"]
    description = json.loads((out / "dataset_description.json").read_text())
    assert description["GeneratedBy"][0]["Name"] == "brats_resunet"
    assert description["DatasetLinks"]["raw"] == prepared.as_uri()
    assert app.main([str(prepared), str(out), "group"]) == 0
    with (out / "volumes.tsv").open() as file:
        rows: list[dict[str, Any]] = list(csv.DictReader(file, delimiter="\t"))
    assert [row["participant_id"] for row in rows] == ["sub-01"] * 6 + ["sub-02"] * 6
    assert {row["session_id"] for row in rows} == {"n/a"}


def test_the_app_refuses_with_one_line(prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    level = [str(prepared), str(tmp_path / "out"), "participant"]
    for arguments, told in (
        (level, "--bundle is missing"),
        ([*level, "--bundle", "nothing_here"], "--bundle nothing_here: no bundle's folder"),
        ([*level, "--bundle", "brats_resunet", "--set", "flips"], "expected name=value"),
        ([*level, "--bundle", "brats_resunet", "--set", "flips=@x"], "--set flips=@x: no value in YAML"),
        ([*level, "--bundle", "brats_resunet", "--configs", "inference.yaml", "none.yaml"], "none.yaml"),
        ([str(tmp_path), *level[1:], "--bundle", "brats_resunet"], "expected a BIDS data set"),
        ([*level[:2], "group"], "run the level `participant` first"),
    ):
        assert app.main(arguments) == 1
        assert told in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert running.FAILURES not in [path.name for path in prepared.iterdir()]


def test_the_table_of_a_group_is_written_into_a_derivative_of_ours_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = dataset(tmp_path / "raw")
    (root / "volumes.tsv").write_text("mine")
    assert app.main([str(root), str(root), "group"]) == 1
    told = capsys.readouterr().err
    assert str(root / "dataset_description.json") in told
    assert "expected: a derivative that the level `participant` has written" in told
    assert (root / "volumes.tsv").read_text() == "mine"
    begin_derivative(tmp_path / "out", "one", "1", root)
    assert app.main([str(root), str(tmp_path / "out"), "group"]) == 0


def test_a_bundle_without_its_configs_is_told(
    prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the wheel has it."""
    (tmp_path / "site" / "some_bundle").mkdir(parents=True)
    (tmp_path / "site" / "some_bundle" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path / "site")
    assert app.main([str(prepared), str(tmp_path / "out"), "participant", "--bundle", "some_bundle"]) == 1
    told = capsys.readouterr().err
    assert "its Python alone is installed, without configs and weights" in told
    assert "give the folder of its unpacked zip" in told
