"""A fine-tuning is judged against the weights it starts from."""

from __future__ import annotations

import copy
from typing import Any

from ignite.engine import Engine, Events
from monai.engines import Evaluator
from torch import nn

from bundlekit.weights.loading import load_network, read_checkpoint


class ScoreFirst:
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
        """Validate; raises `BundleError` as `read_checkpoint` and `load_network` do."""
        own = copy.deepcopy(self.network.state_dict())
        saved = read_checkpoint(self.weights)
        load_network(self.network, saved.get("model", saved), self.weights)
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
