"""Checkpoints: what is in them, which network is the best, and a disk that fails."""

from __future__ import annotations

import errno
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import ignite.distributed as idist
import pytest
import torch

from bundlekit.cases.datalist import write_trained_cases
from bundlekit.errors import BundleError
from bundlekit.training.saving import RecordPretraining, RecordRun, require_new_run
from bundlekit.weights.loading import read_checkpoint
from bundlekit.weights.settings import read_settings, write_settings
from tests.bundlekit.conftest import leftovers
from tests.bundlekit.training.conftest import Run, narrow, save
from tests.conftest import assert_equal


def test_content_of_the_files(tmp_path: Path) -> None:
    run = Run(tmp_path, epochs=2).run()
    saved = read_checkpoint(str(tmp_path / "last.pt"))
    assert saved.keys() == {"model", "optimizer", "lr_scheduler", "trainer", "scaler", "best"}
    assert_equal(saved["model"], run.network.state_dict())
    assert saved["trainer"] == {"epoch": 2, "iteration": 8, "epoch_length": 4, "max_epochs": 2, "ended": True}
    assert saved["best"] == {
        "metric": float(run.validator.state.best_metric),
        "epoch": int(run.validator.state.best_metric_epoch),
    }
    assert read_checkpoint(str(tmp_path / "model.pt")).keys() == run.network.state_dict().keys()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last.pt", "model.pt"]


def test_best_model_is_replaced_on_improvement_alone(tmp_path: Path) -> None:
    validator = SimpleNamespace(state=SimpleNamespace(best_metric=-1, best_metric_epoch=-1))
    stored = []
    for epoch, best in enumerate([-1, 2, 2, 4, 4], start=1):  # first validated after epoch 2, better after epoch 4
        validator.state.best_metric, validator.state.best_metric_epoch = best / 10, best
        save(tmp_path, narrow(seed=epoch), epoch, validator)
        weights = read_checkpoint(str(tmp_path / "model.pt"))
        stored.append(
            next(n for n in range(9) if torch.equal(narrow(seed=n).heads[0].weight, weights["heads.0.weight"]))
        )
        assert torch.equal(
            read_checkpoint(str(tmp_path / "last.pt"))["model"]["heads.0.weight"], narrow(seed=epoch).heads[0].weight
        )
    assert stored == [1, 2, 2, 4, 4]


def test_without_validator_the_newest_model_is_kept(tmp_path: Path) -> None:
    for epoch in (1, 2):
        save(tmp_path, narrow(seed=epoch), epoch)
        assert_equal(read_checkpoint(str(tmp_path / "model.pt")), narrow(seed=epoch).state_dict())
    assert read_checkpoint(str(tmp_path / "last.pt"))["best"] == {}


def test_rank_0_alone_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(idist, "get_rank", lambda: 1)
    save(tmp_path, narrow())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("where", ["write", "fsync", "replace"])
def test_disk_that_fails_keeps_the_files_of_the_epoch_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    save(tmp_path, narrow(seed=1))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert before.keys() == {"model.pt", "last.pt"}

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    target = {"write": "torch.save", "fsync": "bundlekit.files.os.fsync", "replace": "bundlekit.files.os.replace"}
    monkeypatch.setattr(target[where], full)
    with pytest.raises(BundleError, match="No space left on device") as caught:
        save(tmp_path, narrow(seed=2), 2)
    assert caught.value.findings[0].file == str(tmp_path / "model.pt")
    assert "resume" in caught.value.findings[0].fix
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("free_kib", [0, 4, 12, 64])  # torch.save words a full disk in two ways
def test_disk_that_is_full(small_disk: Callable[[int], Path], free_kib: int) -> None:
    folder = small_disk(1024)
    save(folder, narrow((8, 16), seed=1))
    before = {name: (folder / name).read_bytes() for name in ("model.pt", "last.pt")}
    assert len(before["model.pt"]) > 64 * 1024
    small_disk(free_kib)
    with pytest.raises(BundleError, match="No space left on device"):
        save(folder, narrow((8, 16), seed=2), 2)
    assert leftovers(folder) == []
    assert {name: (folder / name).read_bytes() for name in before} == before


def test_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "models").write_bytes(b"")
    with pytest.raises(BundleError, match="--ckpt_dir"):
        save(tmp_path / "models", narrow())


def test_interrupt_leaves_no_half_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("bundlekit.files.os.fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        save(tmp_path, narrow())
    assert list(tmp_path.iterdir()) == []


def test_files_may_be_read_as_the_umask_says(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        save(tmp_path, narrow())
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o640}


def test_an_earlier_run_is_not_replaced_unasked(tmp_path: Path) -> None:
    require_new_run(str(tmp_path))
    (tmp_path / "model.pt").touch()  # weights to fine-tune from are no run
    require_new_run(str(tmp_path))
    (tmp_path / "last.pt").touch()
    with pytest.raises(BundleError, match=r"last\.pt[\s\S]*resume\.yaml[\s\S]*--overwrite True"):
        require_new_run(str(tmp_path))
    require_new_run(str(tmp_path), overwrite=True)


def test_files_are_written_without_a_change_of_the_umask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is the whole process's: what other threads wrote in that moment would be open to everybody."""
    monkeypatch.setattr(os, "umask", lambda mask: pytest.fail("changed"))
    save(tmp_path, narrow())


def record(folder: Path) -> RecordRun:
    split = {"training": [{"case": n, "patient": n[0], "image": [], "label": ""} for n in ("a1", "a2", "b1")],
             "validation": [{"case": "c1", "patient": "c", "image": [], "label": ""}]}  # fmt: skip
    return RecordRun(str(folder), split, {"channels": [2, 4]})


def test_cases_and_patients_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        record(tmp_path)(SimpleNamespace(state=SimpleNamespace(epoch=1)))  # type: ignore[arg-type]
    assert "3 cases of 2 patients for training, 1 case of 1 patient for validation" in caplog.text


def test_an_earlier_run_is_put_aside_before_its_settings_are_replaced(tmp_path: Path) -> None:
    """A run that ends in its first epoch leaves no weights beside settings that are not theirs."""
    before = {}
    for name in ("model.pt", "last.pt", "settings.json", "SHA256SUMS", "trained_on.json", "datalist.json"):
        (tmp_path / name).write_text(f'["{name}"]')
        before[name] = (tmp_path / name).read_bytes()
    record(tmp_path)(SimpleNamespace(state=SimpleNamespace(epoch=1)))  # type: ignore[arg-type]
    assert {file.name for file in tmp_path.iterdir()} == {"datalist.json", "settings.json", "earlier"}
    (kept,) = (tmp_path / "earlier").iterdir()
    assert {file.name: file.read_bytes() for file in kept.iterdir()} == before


def test_a_resumed_run_keeps_its_weights(tmp_path: Path) -> None:
    (tmp_path / "last.pt").write_text("")
    record(tmp_path)(SimpleNamespace(state=SimpleNamespace(epoch=2)))  # type: ignore[arg-type]
    assert (tmp_path / "last.pt").is_file()


def test_a_resumed_run_keeps_what_was_chosen_with_its_network(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    split = {"training": [], "validation": [{"case": "b", "patient": "b", "image": [], "label": "", "subset": ""}]}
    settings = {"channels": [4, 8], "after_training": {"minimum_core_ml": 0.02}}
    write_settings({**settings, "after_training": {"minimum_core_ml": 0.5, "minimum_lesion_ml": 0.1}}, str(tmp_path))
    for epoch, kept in ((2, {"minimum_core_ml": 0.02, "minimum_lesion_ml": 0.1}), (1, {"minimum_core_ml": 0.02})):
        RecordRun(str(tmp_path), split, settings)(SimpleNamespace(state=SimpleNamespace(epoch=epoch)))  # type: ignore[arg-type]
        assert read_settings(tmp_path / "last.pt") == {"channels": [4, 8], "after_training": kept}
    assert caplog.text.count("choose them again") == 1
    assert "minimum_lesion_ml stay as they were chosen" in caplog.text


@pytest.mark.parametrize("gone", ["all", "resume.json", "trained_on.json"])
def test_what_is_deleted_while_training_is_written_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, gone: str
) -> None:
    folder, engine = tmp_path / "run", SimpleNamespace(state=SimpleNamespace(epoch=1))
    write_trained_cases({"z1": ""}, tmp_path)
    handlers = [record(folder), RecordPretraining(str(tmp_path / "model.pt"), str(folder))]

    def call() -> None:
        for handler in handlers:
            handler(engine)  # type: ignore[operator]

    folder.mkdir()
    (folder / "resume.json").write_text("{}")  # of a run that is resumed
    call()
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert before.keys() == {"datalist.json", "settings.json", "resume.json", "trained_on.json"}
    shutil.rmtree(folder) if gone == "all" else (folder / gone).unlink()
    call()
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert gone == "trained_on.json" or "gone and written again" in caplog.text
    # a best network that is gone is not waited for: the next one may never be as good
    validator = SimpleNamespace(state=SimpleNamespace(best_metric=0.5, best_metric_epoch=1))
    save(folder, narrow(), 2, validator)
    assert_equal(read_checkpoint(str(folder / "model.pt")), narrow().state_dict())
    assert "model.pt is gone" in caplog.text
