"""A training that ends in time."""

from __future__ import annotations

import logging
import time

import ignite.distributed as idist
from ignite.engine import Engine, Events

_log = logging.getLogger(__name__)


class StopInTime:
    """MONAI handler: end a training after the last epoch that fits into a time, so that it leaves a finished one.

    An epoch fits if it ends in time when it, and a validation after it, take as long as the longest so far. The first
    epoch always runs, and does not count among those once there is another: it prepares cases. Until a validation was
    seen it is taken to last as long as an epoch. What was reached can be resumed; `last.pt` is of the last epoch,
    `model.pt` of the last that was validated or the best. Attach it after `SaveCheckpoints`. Ignite's `TimeLimit` ends
    a run after the step in which the time is up: in the midst of an epoch, with nothing saved of it.

    Args:
        minutes: from the first step, more than 0.
        validator: evaluator that the trainer runs between epochs, if it does.

    Raises:
        ValueError: for what is not such a number.
    """

    def __init__(self, minutes: float, validator: Engine | None = None) -> None:
        if isinstance(minutes, bool) or not isinstance(minutes, (int, float)) or not minutes > 0:
            raise ValueError(f"time_limit must be a number of minutes, more than 0, got {minutes!r}.")
        self.seconds = 60 * minutes
        self.validator = validator
        self.started = self.last = self.validating = 0.0
        self.epochs: list[float] = []  # seconds of each, without validation
        self.validations: list[float] = []

    def attach(self, engine: Engine) -> None:
        """Register with a trainer, and with the validator."""
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)
        if self.validator is not None:
            self.validator.add_event_handler(Events.STARTED, self._validation_starts)
            self.validator.add_event_handler(Events.COMPLETED, self._validation_ends)

    def _start(self, engine: Engine) -> None:
        self.started = self.last = time.monotonic()
        self.epochs, self.validations = [], []

    def _validation_starts(self, engine: Engine) -> None:
        self.validating = time.monotonic()

    def _validation_ends(self, engine: Engine) -> None:
        took = time.monotonic() - self.validating
        self.validations.append(took)
        self.last += took  # no part of the epoch

    def __call__(self, engine: Engine) -> None:
        """End the training if the next epoch does not fit; every process of it, if one has no time left."""
        now = time.monotonic()
        self.epochs.append(now - self.last)
        self.last = now
        needed = max(self.epochs[1:] or self.epochs)
        if self.validator is not None:
            needed += max(self.validations[1:] or self.validations, default=needed)
        left = self.seconds - (now - self.started) - needed
        if idist.all_reduce(left, op="MIN") < 0 and engine.state.epoch < (engine.state.max_epochs or 0):
            if idist.get_rank() == 0:
                _log.info(
                    "time limit: ended after epoch %d of %d; resume.json in ckpt_dir goes on from there",
                    engine.state.epoch,
                    engine.state.max_epochs,
                )
            engine.terminate()
