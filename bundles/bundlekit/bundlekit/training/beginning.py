"""How good the weights are that a training starts from."""

from __future__ import annotations

import logging
from typing import Any

import ignite.distributed as idist
from ignite.engine import Engine, Events

_log = logging.getLogger(__name__)


class ScoreBefore:
    """MONAI handler: validate once before the first step, to have something to compare the first epochs with.

    It decides nothing: the best network is one of the training. A resumed run has no first step. MONAI's
    `ValidationHandler(exec_at_start=True)` does it before handlers that load weights, and takes its score for the best.

    Args:
        validator: evaluator that the trainer runs between epochs.
    """

    def __init__(self, validator: Engine) -> None:
        self.validator = validator

    def attach(self, engine: Engine) -> None:
        """Register with a trainer."""
        engine.add_event_handler(Events.EPOCH_STARTED(once=1), self)

    def __call__(self, engine: Engine) -> None:
        """Run the validator, if nothing has been learned yet."""
        if engine.state.iteration:
            return
        validator: Any = self.validator
        validator.run(0)
        state = validator.state
        if idist.get_rank() == 0:
            scores = ", ".join(f"{name} {float(value):.4f}" for name, value in state.metrics.items())
            _log.info("before the first step: %s", scores)
        state.best_metric, state.best_metric_epoch = -1, -1  # as MONAI starts
