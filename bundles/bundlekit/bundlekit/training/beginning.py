"""How good the weights are that a training starts from: told, or to be beaten."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import ignite.distributed as idist
from ignite.engine import Engine, Events
from monai.engines import Evaluator
from torch import nn

from bundlekit.weights.loading import load_weights

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


class RequireBetter:
    """MONAI handler: score weights before the first step, so that `model.pt` is written for a better network alone.

    That score is the validator's best one then, of epoch 0. Attach it after the handler that loads the weights to start
    from. MONAI's `ValidationHandler(exec_at_start=True)` validates twice at the start, the second time as epoch 1; and
    `SaveCheckpoints` could take that for the best network of the first epoch.

    Args:
        validator: evaluator with a key metric.
        network: that is trained, without its distributed wrapper.
        weights: `model.pt` to compare with; the network goes on with what it had before.
    """

    def __init__(self, validator: Evaluator, network: nn.Module, weights: str) -> None:
        self.validator = validator
        self.network = network
        self.weights = weights
        self.before = float("nan")
        self.after: float | None = None  # best of the epochs; None: none was validated yet

    def attach(self, engine: Engine) -> None:
        """Register with a trainer."""
        engine.add_event_handler(Events.STARTED, self)

    def __call__(self, engine: Engine) -> None:
        """Validate; raises `BundleError` as `load_weights` does."""
        own = deepcopy(self.network.state_dict())
        load_weights(self.network, self.weights)
        self.validator.run(1)
        self.network.load_state_dict(own)
        state: Any = self.validator.state
        self.before, state.best_metric_epoch = float(state.best_metric), 0
        self.validator.add_event_handler(Events.EPOCH_COMPLETED, self._note)

    def _note(self, validator: Evaluator) -> None:
        state: Any = validator.state
        score = float(state.metrics[state.key_metric_name])
        if self.after is None or validator.metric_cmp_fn(score, self.after):
            self.after = score
