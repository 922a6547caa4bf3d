"""A training whose loss is no number any more."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from ignite.engine import Engine, Events

from bundlekit.errors import BundleError
from bundlekit.training.diverging import StopAtNaN
from tests.bundlekit.training.conftest import narrow, save


def run(losses: Sequence[float], scaler: Any = None) -> Engine:
    engine = Engine(lambda engine, batch: {"loss": torch.tensor(batch["loss"])})
    engine.scaler = scaler  # type: ignore[attr-defined]
    StopAtNaN().attach(engine)
    engine.run([{"loss": loss, "case": ["a", "b", "a"]} for loss in losses])
    return engine


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_training_ends_at_a_loss_that_is_not_finite(loss: float) -> None:
    with pytest.raises(BundleError, match=rf"a, b[\s\S]*a loss of {loss} in iteration 3, epoch 1[\s\S]*learning_rate"):
        run([0.5, 0.4, loss, 0.3])


def test_the_cases_of_a_batch_that_monai_took_apart_are_named() -> None:
    engine = Engine(lambda engine, batch: [{"loss": torch.tensor(float("nan"))}])
    engine.add_event_handler(
        Events.ITERATION_COMPLETED, lambda: setattr(engine.state, "batch", [{"case": "a"}, {"case": "b"}])
    )
    StopAtNaN().attach(engine)
    with pytest.raises(BundleError, match="a, b"):
        engine.run([{}])


def test_mixed_precision_may_overflow_a_few_times() -> None:
    scaler = SimpleNamespace(is_enabled=lambda: True)
    inf = float("inf")
    assert run([*[inf] * 10, 0.5, *[inf] * 10, 0.4], scaler).state.iteration == 22
    with pytest.raises(BundleError, match="iteration 11"):
        run([inf] * 11, scaler)
    with pytest.raises(BundleError, match="iteration 1,"):
        run([inf], SimpleNamespace(is_enabled=lambda: False))  # as on a CPU


def test_weights_that_are_not_finite_are_not_saved(tmp_path: Path) -> None:
    save(tmp_path, narrow())
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    network = narrow(seed=2)
    network.heads[0].bias.data[0] = float("nan")
    with pytest.raises(BundleError, match=r"NaN or infinite weights after epoch 2, in heads.0.bias"):
        save(tmp_path, network, 2)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
