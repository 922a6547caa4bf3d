"""The score of the weights that a training starts from."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import pytest
import torch
from ignite.engine import Engine, Events

from bundlekit.training.beginning import ScoreBefore
from tests.bundlekit.training.conftest import Run


def test_it_is_told_and_decides_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    plain, scored = Run(tmp_path / "plain", epochs=2), Run(tmp_path / "scored", epochs=2)
    network = scored.network.eval()
    with torch.no_grad():
        (expected,) = [
            (network(batch["image"]) - batch["label"]).square().mean() for batch in scored.validator.data_loader
        ]
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(scored.optimizer)
    steps: list[float] = []

    def step(engine: Engine) -> None:
        steps.append(plateau.best)
        plateau.step(engine.state.metrics["score"])

    scored.validator.add_event_handler(Events.COMPLETED, step)
    ScoreBefore(scored.validator, [plateau]).attach(scored.trainer)
    with caplog.at_level(logging.INFO):
        plain.run()
        scored.run()
    (told,) = re.findall(r"before the first step: score ([0-9.]+)", caplog.text)
    assert float(told) == pytest.approx(float(expected), abs=1e-4)
    assert scored.validator.state.best_metric_epoch == plain.validator.state.best_metric_epoch >= 1
    assert steps[:2] == [float("inf")] * 2, "the first one is forgotten"
    assert plateau.last_epoch == 2
    assert scored.validator.state.best_metric == plain.validator.state.best_metric


def test_a_resumed_run_has_no_first_step(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    Run(tmp_path).run(1)
    resumed = Run(tmp_path, resume=tmp_path / "last.pt")
    ScoreBefore(resumed.validator).attach(resumed.trainer)
    with caplog.at_level(logging.INFO):
        resumed.run()
    assert "before the first step" not in caplog.text
    assert resumed.trainer.state.epoch == 4
