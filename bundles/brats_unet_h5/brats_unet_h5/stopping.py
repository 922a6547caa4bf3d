"""Early stopping that a resumed run goes on with."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ignite.engine import Engine, Events
from ignite.handlers import EarlyStopping

from bundlekit.errors import BundleError


class EarlyStop:
    """Ends the training once the validation loss has not become lower for a number of validations; Ignite's counter.

    What it counts belongs to the run: give it to `SaveCheckpoints` and `ResumeRun` under `also`.

    Args:
        patience: validations without a lower loss after which the run ends, 1 or more; None: it never ends early.
        metric: of the validator.

    Raises:
        ValueError: for a patience below 1.
    """

    def __init__(self, patience: int | None = 20, metric: str = "val_loss") -> None:
        if patience is not None and patience < 1:
            raise ValueError(f"stop_patience must be 1 or more, or null (never), got {patience}.")
        self.patience = patience
        self.metric = metric
        # never called before `watch` gives it the trainer that it ends
        self.counter = EarlyStopping(patience or 1, self._score, Engine(lambda engine, batch: None))

    def watch(self, trainer: Engine, validator: Engine) -> None:
        """Count the validations of `validator`, and end `trainer`."""
        self.counter.trainer = trainer
        if self.patience is not None:
            validator.add_event_handler(Events.COMPLETED, self.counter)

    def state_dict(self) -> dict[str, Any]:
        """What has been counted so far, as plain values."""
        best = self.counter.best_score
        return {"counter": int(self.counter.counter), "best_score": None if best is None else float(best)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on counting.

        Raises:
            BundleError: if the run had ended by that count.
        """
        if self.patience is not None and state["counter"] >= self.patience:
            raise BundleError(
                f"this run has stopped early: its loss has not become lower in {state['counter']} validations. Nothing "
                f"is left to do: evaluate it; or go on with more patience: --stop_patience {state['counter'] + 10}"
            )
        self.counter.counter, self.counter.best_score = state["counter"], state["best_score"]

    def _score(self, engine: Engine) -> float:
        loss = float(engine.state.metrics[self.metric])
        return -loss if math.isfinite(loss) else -math.inf  # nothing is better than NaN, and nothing worse


class StopEarly:
    """MONAI handler of the trainer that puts an `EarlyStop` to work.

    Args:
        early_stop: that counts.
        validator: whose metric it counts.
    """

    def __init__(self, early_stop: EarlyStop, validator: Engine) -> None:
        self.early_stop = early_stop
        self.validator = validator

    def attach(self, engine: Engine) -> None:
        """Register with a trainer."""
        self.early_stop.watch(engine, self.validator)
