"""A run goes on with the command that started it, and with no other."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest

from bundlekit.command_line import read_command_line
from bundlekit.errors import BundleError
from bundlekit.training.command import (
    how_to_resume,
    recorded_split,
    require_own_folder,
    require_same_command,
    write_resume,
)
from tests.conftest import ROOT

CONFIGS = ROOT / "bundles" / "brats_resunet" / "configs"
TRAIN, RESUME = str(CONFIGS / "train.yaml"), str(CONFIGS / "resume.yaml")


@pytest.fixture(autouse=True)
def started(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Folder of a run that was started with some settings."""
    monkeypatch.chdir(tmp_path)
    typed(monkeypatch, TRAIN, "--dataset_dir", "data", "--cross_entropy", "1", "--overwrite", "--cache_days", "$None")
    (tmp_path / "run").mkdir()
    write_resume("run")
    return tmp_path / "run"


def typed(monkeypatch: pytest.MonkeyPatch, config: str, *more: str) -> None:
    arguments = ["run", "training", "--config_file", config, *more]
    monkeypatch.setattr(sys, "argv", ["/x/monai/bundle/__main__.py", *arguments])


def test_the_command_is_kept_with_every_setting(started: Path) -> None:
    kept = json.loads((started / "resume.json").read_text())
    assert kept["run_id"] == "training"
    assert kept["config_file"] == [TRAIN, RESUME]
    assert kept["dataset_dir"] == str(started.parent / "data")
    assert kept["ckpt_dir"] == str(started)
    assert (kept["cross_entropy"], kept["learning_rate"], kept["cache_days"]) == (1, 1e-4, "$None")
    assert not {"overwrite", "datalist", "rank", "world_size", "loss", "imports"} & kept.keys()


def test_it_resumes_by_itself(started: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = json.loads((started / "resume.json").read_text())
    arguments = ["run", "--args_file", "run/resume.json", "--num_workers", "0", "--epochs", "200", "--time_limit", "9"]
    arguments += ["--stop_patience", "40"]
    monkeypatch.setattr(sys, "argv", ["/x/monai/bundle/__main__.py", *arguments])
    command = read_command_line()
    assert command is not None
    assert command.run_id == "training"
    require_same_command("run")
    write_resume("run")
    after = json.loads((started / "resume.json").read_text())
    assert after == before | {"epochs": 200, "time_limit": 9, "stop_patience": 40}, (
        "for the rest it stays that of the start"
    )


@pytest.mark.parametrize("moved", [False, True])
def test_a_folder_that_was_copied_or_moved_goes_on_in_itself(
    started: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, moved: bool
) -> None:
    (shutil.move if moved else shutil.copytree)(started, tmp_path / "other")
    (tmp_path / "link").symlink_to(tmp_path / "other")
    arguments = ["/x/monai/bundle/__main__.py", "run", "--args_file", "other/resume.json"]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(BundleError, match=rf"copied or moved[\s\S]*add --ckpt_dir {tmp_path / 'other'}") as caught:
        recorded_split(str(started), "last.pt")  # before any data are looked for
    assert (f"in {started}, take" in str(caught.value)) == (not moved)
    monkeypatch.setattr(sys, "argv", [*arguments, "--ckpt_dir", "link"])
    require_own_folder("link")
    write_resume("other")
    assert json.loads((tmp_path / "other" / "resume.json").read_text())["ckpt_dir"] == str(tmp_path / "other")
    monkeypatch.setattr(sys, "argv", arguments)
    require_own_folder("other")


def test_several_processes_are_resumed_by_torchrun(started: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert how_to_resume("run") == "python -m monai.bundle run --args_file run/resume.json"
    typed(monkeypatch, f"['{TRAIN}','{CONFIGS / 'multi_gpu.yaml'}']", "--dataset_dir", "data")
    write_resume("run")
    assert how_to_resume("run") == "torchrun --nproc_per_node N -m monai.bundle run --args_file run/resume.json"
    assert "configs/resume.yaml" in how_to_resume("elsewhere")
    (started / "resume.json").write_text("{")
    assert "--args_file run/resume.json" in how_to_resume("run")


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ([], "a run with cross_entropy 1"),
        (["--cross_entropy", "1"], "cache_days"),
        (["--cross_entropy", "1", "--cache_days", "$None", "--seed", "3"], "now seed 3"),
        (["--cross_entropy", "1", "--cache_days", "$None", "--draw", "lesion"], "a run with draw voxel"),
        (["--cross_entropy", "1", "--cache_days", "$None"], ""),
    ],
)
def test_other_settings_are_refused(more: list[str], told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    typed(monkeypatch, f"['{TRAIN}','{RESUME}']", "--dataset_dir", "elsewhere", "--cache", "memory", *more)
    if told in ("", "cache_days"):  # which may change
        require_same_command("run")
        return
    with pytest.raises(BundleError, match=told) as error:
        require_same_command("run")
    assert "--args_file run/resume.json" in str(error.value)


@pytest.mark.parametrize(
    ("files", "more", "told"),
    [
        ([TRAIN, RESUME], [], "loss::loss::batch True"),
        ([TRAIN, RESUME], ["--loss::loss::batch", "False"], "now loss::loss::batch False"),
        ([TRAIN, RESUME], ["--loss#loss#batch", "True"], ""),
        ([TRAIN, RESUME], ["--loss::loss::batch", "True", "--loss::loss::smooth_nr", "2"], "smooth_nr not given"),
        ([TRAIN, CONFIGS / "compact.yaml", RESUME], ["--loss::loss::batch", "True"], r"now [\s\S]*compact"),
        ([TRAIN, CONFIGS / "multi_gpu.yaml", RESUME], ["--loss::loss::batch", "True"], ""),
        ([TRAIN, RESUME], ["--loss::loss::batch", "True", "--train::dataloader::num_workers", "0"], ""),
        ([TRAIN, "machine.yaml", RESUME], ["--loss::loss::batch", "True"], ""),
    ],
)
def test_what_lies_deeper_and_overlays_count_too(
    files: list[Path], more: list[str], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("machine.yaml").write_text("num_workers: 1\ncache_dir: /cache\n")
    typed(monkeypatch, TRAIN, "--loss::loss::batch", "True")
    write_resume("run")
    typed(monkeypatch, str([str(file) for file in files]), *more)
    if not told:
        require_same_command("run")
        return
    with pytest.raises(BundleError, match=told):
        require_same_command("run")


def test_a_run_from_a_copy_of_the_config_resumes_with_the_bundles_own(
    started: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    mine = tmp_path / "mine.yml"
    shutil.copy(TRAIN, mine)
    typed(monkeypatch, f"['{mine}','{CONFIGS / 'finetune.yaml'}']")
    write_resume("run")
    assert json.loads((started / "resume.json").read_text())["config_file"][-1] == RESUME
    monkeypatch.chdir(CONFIGS.parent)
    typed(monkeypatch, str(mine))
    write_resume(str(started))
    assert json.loads((started / "resume.json").read_text())["config_file"][-1] == RESUME


def test_the_split_is_found_beside_a_checkpoint_that_lies_elsewhere(started: Path, tmp_path: Path) -> None:
    (started / "datalist.json").write_text("{}")
    assert recorded_split(str(tmp_path / "new"), str(started / "last.pt")) == str(started / "datalist.json")
    assert recorded_split(str(tmp_path / "new"), str(tmp_path / "last.pt")) is None
    assert recorded_split(str(started)) == str(started / "datalist.json"), "resume.yaml of earlier versions"


def test_other_programs_keep_nothing(started: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (started / "resume.json").unlink()
    monkeypatch.setattr(sys, "argv", ["pytest"])
    write_resume("run")
    require_same_command("run")
    assert list(started.iterdir()) == []


def test_a_damaged_record_is_named(started: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (started / "resume.json").write_text("{")
    with pytest.raises(BundleError, match=r"resume\.json[\s\S]*cannot be read"):
        require_same_command("run")
