"""Tests of the checkpoints: a run that is stopped and resumed is the run itself, and no bad file does harm."""

from __future__ import annotations

import errno
import os
import pickle
from collections.abc import Callable, Sequence
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ignite.distributed as idist
import pytest
import torch
from ignite.engine import Engine, Events
from ignite.metrics import Average
from monai.data import DataLoader, Dataset, DistributedSampler
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.handlers import LrScheduleHandler, ValidationHandler
from monai.inferers import SimpleInferer
from torch import nn

from brats_resunet.network import ResUNet
from bundlekit.errors import BundleError
from bundlekit.training.resuming import ResumeRun
from bundlekit.training.saving import RecordRun, SaveCheckpoints, require_new_run
from bundlekit.training.stopping import StopInTime
from bundlekit.weights.loading import LoadWeights, load_network, read_checkpoint
from tests.bundlekit.conftest import leftovers
from tests.conftest import assert_equal

CHANNELS = (2, 4)


def narrow(channels: Sequence[int] = CHANNELS, seed: int = 0, heads: int = 0) -> ResUNet:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return ResUNet(channels=channels, supervised_levels=heads)


def batches(cases: int = 4) -> DataLoader:
    """One patch of 4 channels and 4x4x4 voxels a batch, in another order each epoch."""
    noise = torch.Generator().manual_seed(7)
    data = Dataset(
        [
            {"image": torch.randn(4, 4, 4, 4, generator=noise), "label": torch.randn(4, 4, 4, 4, generator=noise)}
            for _ in range(cases)
        ]
    )
    return DataLoader(data, sampler=DistributedSampler(data, num_replicas=1, rank=0, shuffle=True, seed=1))


class Run:
    """A trainer as `configs/train.yaml` builds it: schedule, validation, checkpoints, in this order."""

    def __init__(
        self,
        folder: Path,
        epochs: int = 4,
        cases: int = 4,
        seed: int = 0,
        resume: Path | None = None,
        score: Callable = lambda output: (output[0]["pred"] - output[0]["label"]).square().mean(),
    ) -> None:
        self.network = narrow(seed=seed)
        self.optimizer = torch.optim.AdamW(self.network.parameters(), lr=0.01)
        self.lr_scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, T_max=epochs)
        self.rates: list[float] = []
        self.validator = SupervisedEvaluator(
            device=torch.device("cpu"),
            val_data_loader=batches(1),
            network=self.network,
            inferer=SimpleInferer(),
            key_val_metric={"score": Average(score)},
            metric_cmp_fn=lambda current, best: current < best,
        )
        state = (self.network, self.optimizer, self.lr_scheduler, self.validator)
        handlers: list[Any] = [
            LrScheduleHandler(self.lr_scheduler, print_lr=False),
            ValidationHandler(1, self.validator),
            SaveCheckpoints(str(folder), *state),
        ]
        if resume is not None:
            handlers.append(ResumeRun(str(resume), *state))
        self.trainer = SupervisedTrainer(
            device=torch.device("cpu"),
            max_epochs=epochs,
            train_data_loader=batches(cases),
            network=self.network,
            optimizer=self.optimizer,
            loss_function=nn.MSELoss(),
            inferer=SimpleInferer(),
            train_handlers=handlers,
        )
        self.trainer.add_event_handler(
            Events.EPOCH_STARTED, lambda: self.rates.append(self.optimizer.param_groups[0]["lr"])
        )

    def run(self, stop_after: int | None = None) -> Run:
        if stop_after is not None:
            # as when it is killed: after the files are written, before anything else
            self.trainer.add_event_handler(Events.EPOCH_COMPLETED(once=stop_after), lambda engine: engine.terminate())
        self.trainer.run()
        return self


def save(folder: Path, network: nn.Module, epoch: int = 1, validator: Any = None) -> None:
    """What `SaveCheckpoints` does after an epoch."""
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=4)
    state = SimpleNamespace(epoch=epoch, iteration=4 * epoch, epoch_length=4, max_epochs=4)
    SaveCheckpoints(str(folder), network, optimizer, schedule, validator)(SimpleNamespace(state=state))  # type: ignore[arg-type]


# --- resume -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stop_after", [1, 2, 3])
def test_resumed_run_is_the_run_itself(tmp_path: Path, stop_after: int) -> None:
    straight = Run(tmp_path / "straight").run()
    stopped = Run(tmp_path / "stopped").run(stop_after)
    assert stopped.trainer.state.epoch == stop_after
    resumed = Run(tmp_path / "stopped", seed=99, resume=tmp_path / "stopped" / "last.pt").run()
    assert_equal(resumed.network.state_dict(), straight.network.state_dict())
    assert_equal(resumed.optimizer.state_dict(), straight.optimizer.state_dict())
    assert_equal(resumed.lr_scheduler.state_dict(), straight.lr_scheduler.state_dict())
    assert stopped.rates + resumed.rates == straight.rates
    for engine in ("trainer", "validator"):
        for name in ("epoch", "best_metric", "best_metric_epoch"):
            assert getattr(getattr(resumed, engine).state, name) == getattr(getattr(straight, engine).state, name)
    assert resumed.trainer.state.iteration == straight.trainer.state.iteration == 16
    for name in ("last.pt", "model.pt"):
        assert_equal(
            read_checkpoint(str(tmp_path / "stopped" / name)), read_checkpoint(str(tmp_path / "straight" / name))
        )


def test_epochs_differ_so_that_a_resume_could_go_wrong(tmp_path: Path) -> None:
    run = Run(tmp_path)
    orders: list[list[int]] = []
    run.trainer.add_event_handler(
        Events.EPOCH_STARTED, lambda engine: orders.append(list(engine.state.dataloader.sampler))
    )
    run.run()
    assert len({tuple(order) for order in orders}) > 1
    assert len(set(run.rates)) == 4


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


def test_scaler_of_mixed_precision_is_resumed(tmp_path: Path) -> None:
    class Scaler:
        def __init__(self, scale: float) -> None:
            self.scale = scale

        def state_dict(self) -> dict[str, float]:
            return {"scale": self.scale}

        def load_state_dict(self, state: dict[str, float]) -> None:
            self.scale = state["scale"]

    first = Run(tmp_path)
    state = SimpleNamespace(epoch=1, iteration=4, epoch_length=4, max_epochs=4)
    parts = (first.network, first.optimizer, first.lr_scheduler)
    SaveCheckpoints(str(tmp_path), *parts)(SimpleNamespace(state=state, scaler=Scaler(128)))  # type: ignore[arg-type]
    engine = SimpleNamespace(state=state, scaler=Scaler(1))
    ResumeRun(str(tmp_path / "last.pt"), *parts)(engine)  # type: ignore[arg-type]
    assert engine.scaler.scale == 128
    without = SimpleNamespace(state=state, scaler=None)
    ResumeRun(str(tmp_path / "last.pt"), *parts)(without)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("settings", "split", "message"),
    [
        ({"organs": {"a": 1, "b": 2}}, {"training": ["x", "y"], "validation": ["z"]}, ""),
        ({"organs": {"b": 2, "a": 1}}, {"training": ["x", "y"], "validation": ["z"]}, "the same settings"),
        ({"organs": {"a": 1, "b": 2}}, {"training": ["x", "z"], "validation": ["y"]}, "y, z changed sides"),
        ({"organs": {"a": 1, "b": 2}}, {"training": ["x", "y", "w"], "validation": ["z"]}, "w changed sides"),
    ],
)
def test_a_run_resumes_with_its_own_split_and_order_of_classes(
    settings: dict, split: dict, message: str, tmp_path: Path
) -> None:
    def cases(parts: dict[str, list[str]]) -> dict[str, list[dict]]:
        return {part: [{"case": name, "image": [], "label": ""} for name in names] for part, names in parts.items()}

    first = Run(tmp_path)
    state = SimpleNamespace(epoch=1, iteration=4, epoch_length=4, max_epochs=4)
    parts = (first.network, first.optimizer, first.lr_scheduler)
    SaveCheckpoints(str(tmp_path), *parts)(SimpleNamespace(state=state))  # type: ignore[arg-type]
    recorded = cases({"training": ["x", "y"], "validation": ["z"]})
    RecordRun(str(tmp_path), recorded, {"organs": {"a": 1, "b": 2}})(SimpleNamespace())  # type: ignore[arg-type]
    resume = ResumeRun(str(tmp_path / "last.pt"), *parts, settings=settings, split=cases(split))
    engine: Any = SimpleNamespace(state=state, scaler=None)
    if not message:
        resume(engine)
        return
    with pytest.raises(BundleError, match=message):
        resume(engine)


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


def test_best_model_survives_a_resume(tmp_path: Path) -> None:
    """A resumed run must not take its first epoch for the best one."""
    scores = iter([0.1, 0.5, 0.4, 0.3])
    for stop_after, resume in ((2, None), (None, tmp_path / "last.pt")):
        run = Run(tmp_path, score=lambda _: next(scores), resume=resume).run(stop_after)
        assert run.validator.state.best_metric == pytest.approx(0.1)
        assert run.validator.state.best_metric_epoch == 1
        model = read_checkpoint(str(tmp_path / "model.pt"))
        assert not torch.equal(model["heads.0.weight"], run.network.heads[0].weight)
    assert next(scores, None) is None


def test_without_validator_the_newest_model_is_kept(tmp_path: Path) -> None:
    for epoch in (1, 2):
        save(tmp_path, narrow(seed=epoch), epoch)
        assert_equal(read_checkpoint(str(tmp_path / "model.pt")), narrow(seed=epoch).state_dict())
    assert read_checkpoint(str(tmp_path / "last.pt"))["best"] == {}


def test_rank_0_alone_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(idist, "get_rank", lambda: 1)
    save(tmp_path, narrow())
    assert list(tmp_path.iterdir()) == []


def resume_error(tmp_path: Path, path: Path, **run: Any) -> str:
    """Message of the refusal; the network is as it was and the checkpoint too."""
    before = path.read_bytes() if path.is_file() else None
    resumed = Run(tmp_path / "new", resume=path, **run)
    weights = deepcopy(resumed.network.state_dict())
    with pytest.raises(BundleError) as caught:
        resumed.run()
    (finding,) = caught.value.findings
    assert finding.file == str(path)
    assert finding.found
    assert finding.expected
    assert finding.fix
    assert_equal(resumed.network.state_dict(), weights)
    assert not (tmp_path / "new").exists()
    assert before == (path.read_bytes() if path.is_file() else None)
    return str(caught.value)


def test_run_that_has_finished_is_not_resumed(tmp_path: Path) -> None:
    Run(tmp_path, epochs=2).run()
    for epochs in (1, 2):
        message = resume_error(tmp_path, tmp_path / "last.pt", epochs=epochs)
        assert "has finished epoch 2" in message
        assert "nothing is left to do" in message


def test_other_number_of_epochs_is_not_resumed(tmp_path: Path) -> None:
    """The learning rate's schedule would no longer end where it began to aim at."""
    Run(tmp_path, epochs=4).run(1)
    message = resume_error(tmp_path, tmp_path / "last.pt", epochs=6)
    assert "a run of 4 epochs" in message
    assert "--epochs 4" in message


def test_other_number_of_iterations_is_not_resumed(tmp_path: Path) -> None:
    Run(tmp_path).run(1)
    message = resume_error(tmp_path, tmp_path / "last.pt", cases=5)
    assert "a run of 4 iterations per epoch" in message
    assert "5, from the present cases" in message


def test_other_widths_are_not_resumed_and_the_message_gives_the_option(tmp_path: Path) -> None:
    save(tmp_path, narrow((3, 5, 7)))
    message = resume_error(tmp_path, tmp_path / "last.pt")
    assert "a Res-UNet of channels [3, 5, 7]" in message
    assert "a Res-UNet of channels [2, 4]" in message
    assert '--channels "[3,5,7]"' in message


def test_weights_alone_are_no_run(tmp_path: Path) -> None:
    save(tmp_path, narrow())
    message = resume_error(tmp_path, tmp_path / "model.pt")
    assert "the state of a run" in message
    assert "--resume_from" in message


class Exploit:
    """Runs a command when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple:
        return os.system, (f"touch {self.marker}",)


def write_bad(path: Path, kind: str) -> None:
    save(path.parent, narrow())
    whole = (path.parent / "last.pt").read_bytes()
    marker = path.parent / "executed"
    if kind == "random":
        path.write_bytes(os.urandom(4096))
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "text":
        path.write_text("404: not found")
    elif kind == "half":
        path.write_bytes(whole[: len(whole) // 2])
    elif kind == "exploit":
        torch.save({"model": Exploit(marker), "optimizer": {}, "lr_scheduler": {}, "trainer": {}}, path)
    elif kind == "pickled exploit":
        path.write_bytes(pickle.dumps(Exploit(marker)))
    elif kind == "whole network":
        torch.save(narrow(), path)
    elif kind == "list":
        torch.save([torch.zeros(3)], path)
    elif kind == "tensor":
        torch.save(torch.zeros(3), path)
    elif kind == "folder":
        path.mkdir()
    else:
        assert kind == "missing"


BAD = ["random", "empty", "text", "half", "exploit", "pickled exploit", "whole network", "list", "tensor", "folder"]


@pytest.mark.parametrize("kind", [*BAD, "missing"])
@pytest.mark.parametrize("handler", ["resume", "load"])
def test_file_that_is_no_checkpoint(tmp_path: Path, kind: str, handler: str) -> None:
    path = tmp_path / "bad.pt"
    write_bad(path, kind)
    if handler == "resume":
        message = resume_error(tmp_path, path)
    else:
        network = narrow()
        with pytest.raises(BundleError) as caught:
            LoadWeights(str(path), network)(Engine(lambda *_: None))
        assert_equal(network.state_dict(), narrow().state_dict())
        message = str(caught.value)
        assert caught.value.findings[0].file == str(path)
    assert not (tmp_path / "executed").exists()
    if kind in ("missing", "folder"):
        assert "no such file" in message
        assert "--checkpoint" in message
        assert "--resume_from" in message


def test_exploit_would_work_without_protection(tmp_path: Path) -> None:
    write_bad(tmp_path / "bad.pt", "exploit")
    torch.load(tmp_path / "bad.pt", weights_only=False)
    assert (tmp_path / "executed").exists()


# --- weights ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["model.pt", "last.pt"])
def test_weights_are_loaded_when_an_engine_starts(tmp_path: Path, name: str) -> None:
    save(tmp_path, narrow(seed=3))
    network = narrow(seed=4)
    seen: list[bool] = []
    engine = Engine(lambda *_: seen.append(torch.equal(network.heads[0].weight, narrow(seed=3).heads[0].weight)))
    LoadWeights(str(tmp_path / name), network).attach(engine)
    engine.run([0])
    assert seen == [True]
    assert_equal(network.state_dict(), narrow(seed=3).state_dict())


@pytest.mark.parametrize(
    ("state", "found", "fix"),
    [
        (narrow((4, 8, 16)).state_dict(), "a Res-UNet of channels [4, 8, 16]", '--channels "[4,8,16]"'),
        (narrow((2, 4, 8)).state_dict(), "a Res-UNet of channels [2, 4, 8]", '--channels "[2,4,8]"'),
        (narrow((2, 4, 8), heads=1).state_dict(), "a Res-UNet of channels [2, 4, 8]", '--channels "[2,4,8]"'),
        (ResUNet(in_channels=3, channels=CHANNELS, supervised_levels=0).state_dict(), "differs in encoder.0", "bundle"),
        (ResUNet(out_channels=5, channels=CHANNELS, supervised_levels=0).state_dict(), "differs in heads.0", "bundle"),
        (nn.Conv3d(4, 4, 3).state_dict(), "another network (weight, bias", "bundle"),
        ({f"module.{k}": v for k, v in narrow().state_dict().items()}, "another network (module.encoder", "bundle"),
        ({}, "another network", "bundle"),
    ],
)
def test_weights_of_another_network(state: dict[str, torch.Tensor], found: str, fix: str) -> None:
    network = narrow()
    with pytest.raises(BundleError) as caught:
        load_network(network, state, "x.pt")
    (finding,) = caught.value.findings
    assert finding.file == "x.pt"
    assert found in finding.found
    assert finding.expected == "a Res-UNet of channels [2, 4]"
    assert fix in finding.fix
    assert_equal(network.state_dict(), narrow().state_dict())


def test_missing_and_additional_weights_are_refused() -> None:
    network, whole = narrow((2, 4, 8), heads=1), narrow((2, 4, 8), heads=1).state_dict()
    for state, key in [
        ({k: v for k, v in whole.items() if k != "heads.1.bias"}, "heads.1.bias"),
        ({**whole, "heads.2.weight": torch.zeros(1)}, "heads.2.weight"),
    ]:
        with pytest.raises(BundleError, match=f"differs in {key}"):
            load_network(network, state, "x.pt")


# --- disks that are full ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["write", "fsync", "replace"])
def test_disk_that_fails_keeps_the_files_of_the_epoch_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    save(tmp_path, narrow(seed=1))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert before.keys() == {"model.pt", "last.pt"}

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    target = {
        "write": "torch.save",
        "fsync": "bundlekit.files.os.fsync",
        "replace": "bundlekit.files.os.replace",
    }
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


@pytest.mark.parametrize(
    ("minutes", "first", "validation", "epochs"),
    [
        (100, 1, 0, 8),
        (2.5, 1, 0, 2),
        (0.01, 1, 0, 1),
        (41, 20, 0, 8),  # the first epoch prepares cases and is no measure of the third
        (14, 1, 5, 4),  # validations after the second and the fourth
        (9, 1, 5, 2),  # the second of them would not fit
    ],
)
def test_training_ends_in_time(
    monkeypatch: pytest.MonkeyPatch, minutes: float, first: float, validation: float, epochs: int
) -> None:
    """Of eight epochs of a minute each but the first."""
    now = 0.0

    def wait(passed: float) -> None:
        nonlocal now
        now += 60 * passed

    monkeypatch.setattr("bundlekit.training.stopping.time", SimpleNamespace(monotonic=lambda: now))
    engine = Engine(lambda engine, batch: wait(first if engine.state.epoch == 1 else 1))
    validator = Engine(lambda engine, batch: wait(validation))
    if validation:
        engine.add_event_handler(Events.EPOCH_COMPLETED(every=2), lambda: validator.run([0]))
    StopInTime(minutes, validator if validation else None).attach(engine)
    engine.run([0], max_epochs=8)
    assert engine.state.epoch == epochs
    assert now <= 60 * minutes or epochs == 1


@pytest.mark.parametrize("minutes", [0, -1, "1h", True, float("nan")])
def test_time_limit_must_be_positive(minutes: Any) -> None:
    with pytest.raises(ValueError, match="time_limit must be a number of minutes, more than 0, got"):
        StopInTime(minutes)
