"""How good the weights are that a training starts from."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from copy import deepcopy
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
        unchanged: objects that count validations, such as a schedule or an early stopping; with `state_dict` and
            `load_state_dict`.
    """

    def __init__(self, validator: Engine, unchanged: Sequence[Any] = ()) -> None:
        self.validator = validator
        self.unchanged = list(unchanged)

    def attach(self, engine: Engine) -> None:
        """Register with a trainer."""
        engine.add_event_handler(Events.EPOCH_STARTED(once=1), self)

    def __call__(self, engine: Engine) -> None:
        """Run the validator, if nothing has been learned yet."""
        if engine.state.iteration:
            return
        before = [deepcopy(part.state_dict()) for part in self.unchanged]
        validator: Any = self.validator
        validator.run(0)
        for part, state in zip(self.unchanged, before, strict=True):
            part.load_state_dict(state)
        if idist.get_rank() == 0:
            scores = ", ".join(f"{name} {float(value):.4f}" for name, value in validator.state.metrics.items())
            _log.info("before the first step: %s", scores)
        validator.state.best_metric, validator.state.best_metric_epoch = -1, -1  # as MONAI starts
