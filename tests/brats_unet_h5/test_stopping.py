"""Plateau and early stopping: they act, and a resumed run is the run itself, its end included."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import monai
import pytest
import torch
from ignite.engine import Engine, Events
from monai.bundle import ConfigParser

from brats_unet_h5 import EarlyStop
from bundlekit.errors import BundleError
from bundlekit.training.resuming import ResumeRun
from bundlekit.training.saving import SaveCheckpoints
from tests.conftest import ROOT, assert_equal

CONFIGS = ROOT / "bundles" / "brats_unet_h5" / "configs"


def run(losses: list[float], patience: int | None, stop: EarlyStop | None = None) -> tuple[int, EarlyStop]:
    """Validate a run of the given losses; the number of epochs it lasted."""
    stop = stop or EarlyStop(patience)
    trainer, validator = Engine(lambda engine, batch: None), Engine(lambda engine, batch: None)
    stop.watch(trainer, validator)
    left = iter(losses)
    validator.add_event_handler(Events.EPOCH_COMPLETED, lambda e: e.state.metrics.update(val_loss=next(left)))
    trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda e: validator.run([0]))
    trainer.run([0], max_epochs=len(losses))
    return trainer.state.epoch, stop


@pytest.mark.parametrize(
    ("losses", "patience", "epochs"),
    [
        ([3, 2, 1, 0.5], 1, 4),
        ([3, 3, 3, 3, 3], 2, 3),
        ([3, 2, 2.5, 1, 1.5, 1.5, 1.5, 0], 3, 7),
        ([1, 2, 3, 4], None, 4),
        ([1, math.nan, 1.5, 1.5], 3, 4),
        ([1, math.nan, 1.5, 0.5], 3, 4),
        ([math.nan, 2, 3, 1], 2, 4),
    ],
)
def test_stops_after_so_many_validations_without_a_lower_loss(
    losses: list[float], patience: int | None, epochs: int
) -> None:
    assert run(losses, patience)[0] == epochs


def test_count_goes_on_where_it_was() -> None:
    _, first = run([3, 2, 2, 2], 3)
    again = EarlyStop(3)
    again.load_state_dict(first.state_dict())
    assert run([2, 1, 1], 3, again)[0] == 1
    _, ended = run([1, 1, 1], 2)
    with pytest.raises(BundleError, match=r"has stopped early.*\n?.*--stop_patience 12"):
        EarlyStop(2).load_state_dict(ended.state_dict())
    EarlyStop(5).load_state_dict(ended.state_dict())
    with pytest.raises(ValueError, match="stop_patience must be 1 or more"):
        EarlyStop(0)


def test_names_of_a_checkpoints_parts_are_not_taken_twice() -> None:
    for make in (SaveCheckpoints, ResumeRun):
        with pytest.raises(ValueError, match="also must use other names"):
            make("x", torch.nn.Identity(), None, None, also={"model": EarlyStop()})


class Training:
    """`train.yaml`, in this process, that can be killed after an epoch."""

    def __init__(self, data: Path, out: Path, cache: Path, *more: str, **settings: Any) -> None:
        parser = ConfigParser()
        parser.read_config([str(CONFIGS / name) for name in ("train.yaml", *more)])
        for key, value in {
            "dataset_dir": str(data), "ckpt_dir": str(out), "output_dir": str(out), "cache_dir": str(cache),
            "channels": [2, 4], "uniform_shape": [16, 16, 16], "num_workers": 0, "epochs": 9, "learning_rate": 1.0,
            "plateau_patience": 0, "stop_patience": 2, **settings,
        }.items():  # fmt: skip
            parser[key] = value
        monai.utils.set_determinism(seed=0)
        self.trainer = parser.get_parsed_content("train::trainer")
        self.optimizer = parser.get_parsed_content("optimizer")
        self.rates: list[float] = []
        self.trainer.add_event_handler(
            Events.EPOCH_STARTED, lambda: self.rates.append(self.optimizer.param_groups[0]["lr"])
        )

    def run(self, kill_after: int | None = None) -> Training:
        if kill_after is not None:
            self.trainer.add_event_handler(Events.EPOCH_COMPLETED(once=kill_after), lambda e: e.terminate())
        self.trainer.run()
        return self


def test_interrupted_run_is_the_run_itself_and_ends_when_it_does(h5_cohort: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    straight = Training(h5_cohort, tmp_path / "straight", cache).run()
    length = straight.trainer.state.epoch
    assert 3 < length < 9, "it is to stop early for this test to say anything"
    assert straight.rates[-1] < straight.rates[0], "the plateau has lowered the rate"
    for kill_after in (2, length - 1):
        out = tmp_path / f"killed{kill_after}"
        killed = Training(h5_cohort, out, cache).run(kill_after)
        resumed = Training(h5_cohort, out, cache, "resume.yaml").run()
        assert resumed.trainer.state.epoch == length
        assert killed.rates + resumed.rates == straight.rates
        for name in ("last.pt", "model.pt"):
            mine, theirs = (torch.load(folder / name, weights_only=True) for folder in (out, tmp_path / "straight"))
            assert_equal(mine, theirs)
    last = torch.load(tmp_path / "straight" / "last.pt", weights_only=True)
    assert last["early_stop"]["counter"] == 2
    assert last["trainer"]["ended"], "so that nobody resumes it"
    assert last["lr_scheduler"]["factor"] == 0.5
    with pytest.raises(BundleError, match="has stopped early"):
        Training(h5_cohort, tmp_path / "straight", cache, "resume.yaml").run()
