"""A run that is stopped and resumed is the run itself."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from ignite.engine import Engine, Events

from bundlekit.errors import BundleError
from bundlekit.training.resuming import ResumeRun
from bundlekit.training.saving import RecordRun, SaveCheckpoints
from bundlekit.weights.loading import read_checkpoint
from bundlekit.weights.settings import read_settings, record_setting
from tests.bundlekit.training.conftest import Run, narrow, resume_error, save
from tests.conftest import assert_equal


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


def test_what_was_chosen_with_a_network_goes_along_into_another_folder(tmp_path: Path) -> None:
    Run(tmp_path / "old").run(1)
    model = tmp_path / "old" / "model.pt"
    record_setting(model, "minimum_lesion_ml", 0.05)
    record_setting(model, "lowres", "lowres.pt")
    model.with_name("lowres.pt").write_bytes(b"second")
    new = Run(tmp_path / "new", resume=tmp_path / "old" / "last.pt").run()
    assert new.trainer.state.epoch == 4
    assert read_settings(tmp_path / "new" / "model.pt")["after_training"] == {
        "minimum_lesion_ml": 0.05,
        "lowres": "lowres.pt",
    }
    assert (tmp_path / "new" / "lowres.pt").read_bytes() == b"second"


def test_epochs_differ_so_that_a_resume_could_go_wrong(tmp_path: Path) -> None:
    run = Run(tmp_path)
    orders: list[list[int]] = []
    run.trainer.add_event_handler(
        Events.EPOCH_STARTED, lambda engine: orders.append(list(engine.state.dataloader.sampler))
    )
    run.run()
    assert len({tuple(order) for order in orders}) > 1
    assert len(set(run.rates)) == 4


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
        ({"organs": {"b": 2, "a": 1}}, {"training": ["x", "y"], "validation": ["z"]}, "the same; now"),
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
    recorded = cases({"training": ["x", "y"], "validation": ["z"]})
    RecordRun(str(tmp_path), recorded, {"organs": {"a": 1, "b": 2}})(SimpleNamespace(state=SimpleNamespace(epoch=1)))  # type: ignore[arg-type]
    SaveCheckpoints(str(tmp_path), *parts)(SimpleNamespace(state=state))  # type: ignore[arg-type]
    resume = ResumeRun(str(tmp_path / "last.pt"), *parts, settings=settings, split=cases(split))
    engine: Any = SimpleNamespace(state=state, scaler=None)
    if not message:
        resume(engine)
        return
    with pytest.raises(BundleError, match=message):
        resume(engine)


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


def test_a_run_does_not_go_on_over_another_one(tmp_path: Path) -> None:
    Run(tmp_path / "a").run(stop_after=2)
    Run(tmp_path / "b", seed=1).run(stop_after=3)
    before = {file.name: file.read_bytes() for file in (tmp_path / "b").iterdir() if file.is_file()}
    with pytest.raises(BundleError, match=rf"(?s){tmp_path / 'b'}.*another run.*give --ckpt_dir {tmp_path / 'a'}"):
        Run(tmp_path / "b", resume=tmp_path / "a" / "last.pt").run()
    assert {file.name: file.read_bytes() for file in (tmp_path / "b").iterdir() if file.is_file()} == before


def test_a_run_that_goes_on_elsewhere_takes_along_what_belongs_to_it(tmp_path: Path) -> None:
    """Its best network, or a worse one would be the best there."""
    scores = iter([0.1, 0.5, 0.4, 0.3])
    Run(tmp_path / "a", score=lambda _: next(scores)).run(stop_after=2)
    for name in ("resume.json", "trained_on.json"):
        (tmp_path / "a" / name).write_text("[]")
    Run(tmp_path / "b", score=lambda _: next(scores), resume=tmp_path / "a" / "last.pt").run()
    assert read_checkpoint(str(tmp_path / "b" / "last.pt"))["best"] == {"metric": pytest.approx(0.1), "epoch": 1}
    for name in ("model.pt", "resume.json", "trained_on.json"):
        assert (tmp_path / "b" / name).read_bytes() == (tmp_path / "a" / name).read_bytes()


def test_a_start_elsewhere_that_ended_in_its_first_epoch_is_tried_again(tmp_path: Path) -> None:
    Run(tmp_path / "a").run(stop_after=2)
    begun = Run(tmp_path / "b", resume=tmp_path / "a" / "last.pt")

    def killed(engine: Engine) -> None:
        raise KeyboardInterrupt

    begun.trainer.add_event_handler(Events.ITERATION_COMPLETED, killed)
    with pytest.raises(KeyboardInterrupt):
        begun.run()
    assert (tmp_path / "b" / "model.pt").is_file()
    assert not (tmp_path / "b" / "last.pt").exists()
    Run(tmp_path / "b", resume=tmp_path / "a" / "last.pt").run()
    assert (tmp_path / "b" / "last.pt").is_file()


def test_a_network_that_lies_alone_is_not_written_over(tmp_path: Path) -> None:
    Run(tmp_path / "a").run(stop_after=2)
    Run(tmp_path / "b", seed=1).run(stop_after=1)
    (tmp_path / "b" / "last.pt").unlink()
    with pytest.raises(BundleError, match=r"another run \(model.pt\)") as caught:
        Run(tmp_path / "b", resume=tmp_path / "a" / "last.pt").run()
    assert str(tmp_path / "b" / "last.pt") not in str(caught.value), "there is none to go on with"


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
