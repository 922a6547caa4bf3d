"""Cross-validation and its ensemble from end to end, stopped and gone on with."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from threading import Lock
from typing import IO, Any

import pytest
import torch

import tools.cv
from tests.bundles import BUNDLES, options
from tests.conftest import COMMANDS, ROOT, Run, bundle_run, config, printed
from tools.cv import _finished, _pool, _same_call, _same_cases, _scored, _steered, _visible, cv

ROW = BUNDLES["brats_resunet"]
SMALL = {**ROW.small, **ROW.training, "epochs": 2, "patches_per_case": 1, "num_workers": 0}


@pytest.fixture
def forked(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]) -> None:
    """`cv` in this process starts each fold as a fork, which spares a new interpreter; what it prints is printed."""
    one_at_a_time = Lock()

    def start(command: list[str], stdout: IO[str] | None = None, **_: Any) -> subprocess.CompletedProcess[str]:
        assert command[:2] == [sys.executable, "-m"]
        with one_at_a_time:
            done = COMMANDS.run(command[2:], str(ROOT), environment, timeout=300)
        print(printed(done), file=stdout)
        return done

    monkeypatch.setattr(tools.cv.subprocess, "run", start)


def rows_of(file: Path) -> list[dict[str, str]]:
    with file.open() as text:
        return list(csv.DictReader(text))


def begun(folder: Path) -> Path:
    """The folder, as after the first epoch of a fold."""
    (folder / "fold_0").mkdir(exist_ok=True)
    (folder / "fold_0" / "last.pt").touch()
    return folder


def test_two_folds_and_their_ensemble(
    run: Run, cohort: Path, tmp_path: Path, forked: None, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "cv"
    call = {"bundle": "brats_resunet", "dataset_dir": str(cohort), "out": str(out), "num_folds": 2, **SMALL}
    call |= {"save_probabilities": True, "runtime": "torch", "overlap": 0}  # which converts no network; fewest windows
    # the first fold by hand, as a run that was stopped in between
    one = ["--dataset_dir", cohort, "--cv_dir", out, "--num_folds", "2", *options(**SMALL)]
    run(*bundle_run("training", "train.yaml", "cross_validation.yaml"), *one, "--fold", "1")

    cv(**call, time_limit=0.001)
    assert "fold 0: stopped at its time limit; call again to go on" in capsys.readouterr().out
    assert not (out / "scores.csv").exists(), "the other fold has had one epoch of two"
    cv(**call)
    told = capsys.readouterr().out
    assert "fold 0: resumed and scored" in told
    assert f"loaded {out / 'fold_0' / 'last.pt'}" in told  # fold 1 was scored before
    assert (out / "scores.png").is_file()
    assert "fold 1: training" not in told, "it had come to its end"
    rows = rows_of(out / "scores.csv")
    names = sorted(folder.name for folder in cohort.iterdir() if folder.is_dir())
    assert sorted(row["case"] for row in rows) == names, "every case once"
    assert {row["fold"] for row in rows} == {"0", "1"}
    for row in rows:
        split = json.loads((out / f"fold_{row['fold']}" / "datalist.json").read_text())
        assert row["case"] in {entry["case"] for entry in split["validation"]}
    summary = json.loads((out / "summary.json").read_text())
    wt = [float(row["dice_WT"]) for row in rows]
    assert summary["metrics"]["dice_WT"]["mean"] == pytest.approx(sum(wt) / len(wt), abs=1e-5)
    assert summary["n_cases"] == len(names)
    assert set(summary["mean_dice_of_folds"]) == {"fold_0", "fold_1"}
    assert "empty_region_rule" in summary
    assert summary["network"] == "last.pt, of the last epoch: the fold that it is scored on has not chosen it"

    cv(**call)
    assert capsys.readouterr().out.count("finished before") == 2
    assert len(list(out.glob("fold_*/*_probabilities.nii.gz"))) == len(names), "evaluation's own settings reach it"
    for other, message in (
        ({"num_folds": 3}, "holds a cross-validation with num_folds 2; now num_folds 3"),
        ({"which": "best"}, "with which last; now which best"),
        ({"learning_rate": 0.5}, "'learning_rate': 0.5"),
    ):
        with pytest.raises(ValueError, match=message):
            cv(**{**call, **other})

    ensemble = bundle_run("inferring", "inference.yaml", "inference_ensemble.yaml")
    folds = ["--cv_dir", out, "--num_folds", "2", "--num_workers", "0", "--runtime", "torch"]
    folds += ["--overlap", "0"]
    run(*ensemble, "--dataset_dir", cohort / names[0], "--output_dir", tmp_path / "masks", *folds, "--flips", "True")
    assert (tmp_path / "masks" / f"{names[0]}_seg.nii.gz").is_file()

    scored = bundle_run("evaluating", "inference.yaml", "evaluate.yaml", "inference_ensemble.yaml")
    other = bundle_run("evaluating", "inference.yaml", "inference_ensemble.yaml", "evaluate.yaml")
    for order in (scored, other):
        done = run(*order, "--dataset_dir", cohort, "--output_dir", tmp_path / "s", *folds, status=1)
        assert "all 5 case(s) trained the network" in done.stderr


def test_what_the_folds_note_is_kept_of_all(tmp_path: Path) -> None:
    for fold in range(2):
        place = tmp_path / f"fold_{fold}"
        place.mkdir()
        (place / "model.pt").touch()
        (place / "settings.json").write_text("{}")
        parts = {"training": [{"case": f"{1 - fold}"}], "validation": [{"case": f"{fold}"}]}
        (place / "datalist.json").write_text(json.dumps(parts))
        (place / "scores.csv").write_text(f"case,dice_WT\n{fold},0.5\n")
        chosen, by = [["a", "b"], ["b", "c"]][fold], ["PyTorch", "OpenVINO"][fold]
        summary = {"metrics": {"mean_dice": {"mean": 0.5}}, "rule": "same", "chosen_on": chosen, "computed_by": by}
        (place / "summary.json").write_text(json.dumps(summary | ({"only": 1} if not fold else {})))
    (tmp_path / "fold_1" / "trained_on.json").write_text(json.dumps([{"case": "1_T1_synthseg", "patient": "1"}, "7"]))
    _pool(tmp_path, 2, "last.pt")
    pooled = json.loads((tmp_path / "summary.json").read_text())
    found = [pooled[key] for key in ("rule", "chosen_on", "computed_by", "only")]
    assert found == ["same", ["a", "b", "c"], "PyTorch; OpenVINO", 1]
    assert pooled["known_to_the_pretraining"] == ["1"]


def test_scores_of_a_network_that_was_trained_again_are_none(tmp_path: Path) -> None:
    for name in ("model.pt", "last.pt", "scores.csv", "summary.json"):
        (tmp_path / name).touch()
    assert _scored(tmp_path, "last.pt")
    os.utime(tmp_path / "last.pt", (time.time() + 9, time.time() + 9))
    assert not _scored(tmp_path, "last.pt")
    assert _scored(tmp_path, "model.pt")
    (tmp_path / "summary.json").unlink()
    assert not _scored(tmp_path, "model.pt")


def test_a_run_that_came_to_its_end_is_not_resumed(tmp_path: Path) -> None:
    last = tmp_path / "last.pt"
    assert not _finished(last)
    for ended in (False, True):
        torch.save({"trainer": {"epoch": 2, "max_epochs": 5, "ended": ended}}, last)
        assert _finished(last) == ended


def test_failure_names_fold_and_cause(run: Run, cohort: Path, tmp_path: Path) -> None:
    """On the command line, with the interpreters that it starts, which are forks too."""
    python = str(COMMANDS.executable(tmp_path / "python"))
    code = f"import runpy, sys; sys.executable = {python!r}; runpy.run_module('tools', run_name='__main__')"
    command = ["-c", code, "cv", "brats_resunet", "--dataset_dir", cohort, "--out", tmp_path / "cv"]
    done = run(*command, "--num_folds", "9", *options(**SMALL), status=1)
    assert "cannot be divided into 9 folds" in done.stderr
    assert "ERROR: training of fold 0 failed: see above" in done.stderr
    assert "Traceback" not in done.stderr
    assert "fold 1: training" not in done.stdout, "nothing more is started"


def test_failure_of_several_at_a_time_tells_the_cause(cohort: Path, tmp_path: Path, forked: None, capsys) -> None:
    """It stands in a log of the fold."""
    call = {"bundle": "brats_resunet", "dataset_dir": str(cohort), "out": str(tmp_path), "num_folds": 9, "jobs": 2}
    with pytest.raises(ValueError, match="cannot be divided into 9 folds"):
        cv(**call, **SMALL)
    assert "fold 2: training" not in capsys.readouterr().out, "nothing more is started"


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"ckpt_dir": "x"}, "cross-validation sets this itself"),
        ({"epohcs": 2}, r"did you mean --epochs\?"),
        ({"configs": "smaller"}, r"brats_resunet has no smaller.yaml; there are:"),
        ({"num_folds": 1}, "expected 2 or more"),
        ({"configs": "pretrain_label_maps"}, "trains on label maps alone, which cannot be evaluated"),
        ({"bundle": "brain_tissue_vnet", "n4": True}, "--n4: an overlay of train.yaml sets it"),
        ({"bundle": "brain_mask_unet"}, "brain_mask_unet has no cross-validation"),
        ({"which": "first"}, "which is 'first'; expected last or best"),
        ({"checkpoint": "x.pt"}, "cross-validation sets this itself"),
        ({"shard": "1/2"}, "no setting --shard"),
        ({"subset": "all"}, "no setting --subset"),
        ({"trained": "x.json"}, "no setting --trained"),
    ],
)
def test_bad_calls_are_refused(more: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        cv(**{"bundle": "brats_resunet", "dataset_dir": str(tmp_path), "out": str(tmp_path / "cv"), **more})
    assert not (tmp_path / "cv").exists()


def test_a_cross_validation_of_earlier_versions_goes_on_with_the_network_that_it_scored(tmp_path: Path) -> None:
    begun(tmp_path).joinpath("cv.json").write_text('{"bundle": "a"}')
    _same_call(tmp_path, {"bundle": "a", "which": "best"})
    with pytest.raises(ValueError, match="with which best; now which last"):
        _same_call(tmp_path, {"bundle": "a", "which": "last"})


def test_a_later_call_goes_on_with_the_settings_of_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of the scores, too; a list of the command line is a tuple, and one of cv.json a list."""

    def stop(*_: Any) -> None:
        raise ValueError("stopped")

    monkeypatch.setattr(tools.cv, "_call", stop)
    call = {"bundle": "brats_resunet", "dataset_dir": "data", "out": str(tmp_path), "patch_size": (16, 16, 16)}
    for more in ({"flips": True}, {"flips": True, "num_workers": 3}, {"flips": True, "output_dir": None}):
        with pytest.raises(ValueError, match="sets this itself" if "output_dir" in more else "^stopped$"):
            cv(**call, **more)
    with pytest.raises(ValueError, match=r"^stopped$"):
        cv(**call, num_folds=2)  # nothing has been trained: another call may be right
    with pytest.raises(ValueError, match=r"^stopped$"):
        cv(**call, flips=True)
    begun(tmp_path)
    for more in ({}, {"flips": False}, {"flips": True, "minimum_core_ml": 1}):
        with pytest.raises(ValueError, match=r"holds a cross-validation with scoring .*flips"):
            cv(**call, **more)


def test_settings_of_scores_that_an_earlier_version_did_not_record_are_recorded(tmp_path: Path) -> None:
    begun(tmp_path).joinpath("cv.json").write_text('{"bundle": "a", "which": "last"}')
    _same_call(tmp_path, {"bundle": "a", "which": "last", "scoring": {"flips": True}})
    with pytest.raises(ValueError, match=r"with scoring \{'flips': True\}; now scoring \{\}"):
        _same_call(tmp_path, {"bundle": "a", "which": "last", "scoring": {}})


@pytest.mark.parametrize(("outer", "expected"), [(None, "1"), ("", "1"), ("2,3", "3"), ("GPU-a,GPU-b", "GPU-b")])
def test_gpus_are_those_that_this_process_may_use(
    outer: str | None, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if outer is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", outer)
    assert _visible(1) == expected
    if outer:
        with pytest.raises(ValueError, match="--gpus has 2; CUDA_VISIBLE_DEVICES leaves 2"):
            _visible(2)


def test_what_else_the_fold_has_steered() -> None:
    steered = [bundle for bundle in BUNDLES if _steered(config(bundle, "train"))]
    assert steered == ["brats_unet_h5"]
    train = config("brats_unet_h5", "train")
    assert _steered({**train, "schedule": "cosine"}), "early stopping is left"
    assert _steered({**train, "stop_patience": "$None"})
    assert not _steered({**train, "schedule": "cosine", "stop_patience": "$None"})


def folds_of(root: Path, *parts: tuple[str, str]) -> None:
    for fold, (training, validation) in enumerate(parts):
        (root / f"fold_{fold}").mkdir(parents=True)
        lists = {"training": [{"case": c} for c in training], "validation": [{"case": c} for c in validation]}
        (root / f"fold_{fold}" / "datalist.json").write_text(json.dumps(lists))


def test_folds_must_be_one_division_of_one_data_set(tmp_path: Path) -> None:
    folds_of(tmp_path / "good", ("abcd", "ef"), ("cdef", "ab"))
    assert _same_cases(tmp_path / "good", 3) == {0: ["e", "f"], 1: ["a", "b"]}
    folds_of(tmp_path / "grown", ("abcd", "ef"), ("cdefg", "ab"))
    with pytest.raises(ValueError, match=r"fold 1 was trained on other cases than fold 0 \(g\)"):
        _same_cases(tmp_path / "grown", 2)
    folds_of(tmp_path / "overlapping", ("abcd", "ef"), ("abdf", "ce"))
    with pytest.raises(ValueError, match="left out by several folds"):
        _same_cases(tmp_path / "overlapping", 2)
