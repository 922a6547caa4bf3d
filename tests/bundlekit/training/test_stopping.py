"""A training that ends in time."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from ignite.engine import Engine, Events

from bundlekit.training.stopping import StopInTime


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


def test_the_first_validation_prepares_cases_and_is_no_measure_either(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0

    def wait(passed: float) -> None:
        nonlocal now
        now += 60 * passed

    monkeypatch.setattr("bundlekit.training.stopping.time", SimpleNamespace(monotonic=lambda: now))
    engine = Engine(lambda engine, batch: wait(1))
    validator = Engine(lambda _, batch: wait(10 if engine.state.epoch == 2 else 1))
    engine.add_event_handler(Events.EPOCH_COMPLETED(every=2), lambda: validator.run([0]))
    StopInTime(24, validator).attach(engine)
    engine.run([0], max_epochs=8)
    assert engine.state.epoch == 8


@pytest.mark.parametrize("minutes", [0, -1, "1h", True, float("nan")])
def test_time_limit_must_be_positive(minutes: Any) -> None:
    with pytest.raises(ValueError, match="time_limit must be a number of minutes, more than 0, got"):
        StopInTime(minutes)
