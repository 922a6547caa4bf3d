"""Steps that are the mean of several batches."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from ignite.engine import Events
from ignite.metrics import Average
from monai.data import DataLoader, Dataset
from torch import nn

from bundlekit.training.accumulating import AccumulatingTrainer
from tests.bundles import BUNDLES
from tests.conftest import config


def trained(batches: int, accumulation_steps: int, epochs: int = 1, **more: Any) -> tuple[list[float], list[float]]:
    """Weight after each epoch, losses that the metric saw: of y = w x with loss (w x - y), so that the gradient is x.

    Batch i has x = i + 1; a step with rate 1 takes the mean of the x of its batches from w.
    """
    network = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(network.weight)
    data = Dataset([{"image": torch.tensor([float(i + 1)]), "label": torch.zeros(1)} for i in range(batches)])
    trainer = AccumulatingTrainer(
        device=torch.device("cpu"),
        max_epochs=epochs,
        train_data_loader=DataLoader(data, batch_size=1),
        network=network,
        optimizer=torch.optim.SGD(network.parameters(), lr=1.0),
        loss_function=lambda pred, label: pred - label,
        accumulation_steps=accumulation_steps,
        key_train_metric={"loss": Average(lambda output: output[0]["loss"])},
        **more,
    )
    weights: list[float] = []
    trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda: weights.append(float(network.weight.detach())))
    trainer.run()
    return weights, [trainer.state.metrics["loss"]]


@pytest.mark.parametrize(
    ("batches", "steps", "expected"),
    [
        (4, 1, -(1 + 2 + 3 + 4)),
        (4, 2, -(1.5 + 3.5)),
        (5, 2, -(1.5 + 3.5 + 5)),  # the last step is of one batch
        (6, 4, -(2.5 + 5.5)),
        (3, 8, -2.0),
    ],
)
def test_each_step_is_the_mean_of_its_batches(batches: int, steps: int, expected: float) -> None:
    first, second = trained(batches, steps, epochs=2)[0]
    assert first == pytest.approx(expected)
    assert second == pytest.approx(2 * expected), "of the next epoch, too"


def test_the_loss_that_is_shown_is_that_of_the_batches() -> None:
    assert trained(2, 8)[1] == pytest.approx([0.0]), "w stays 0 until the only step"


@pytest.mark.parametrize("bundle", BUNDLES)
def test_every_bundle_trains_so(bundle: str) -> None:
    assert config(bundle, "train")["train"]["trainer"]["_target_"] == "bundlekit.AccumulatingTrainer"
