"""A training that stops when its loss is no number any more."""

from __future__ import annotations

import math
from typing import Any

from ignite.engine import Engine, Events

from bundlekit.errors import BundleError, Finding

_OVERFLOWS = 10  # in a row, that mixed precision may have: its scaler leaves such steps out and lowers the scale


class StopAtNaN:
    """MONAI handler: end a training at a loss that is NaN or infinite, before anything of it is saved.

    In mixed precision such a step is left out, and only ten of them in a row end the training. Ignite's
    `TerminateOnNan` ends it as if it were done.
    """

    def __init__(self) -> None:
        self.in_a_row = 0

    def attach(self, engine: Engine) -> None:
        """Register with a trainer."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Look at the loss of this step.

        Raises:
            BundleError: naming the cases of the step.
        """
        output: Any = engine.state.output
        loss = float((output[0] if isinstance(output, list) else output)["loss"])
        self.in_a_row = 0 if math.isfinite(loss) else self.in_a_row + 1
        scaler = getattr(engine, "scaler", None)
        if self.in_a_row <= (_OVERFLOWS if scaler is not None and scaler.is_enabled() else 0):
            return
        batch: Any = engine.state.batch
        items = batch if isinstance(batch, list) else [batch]  # MONAI takes a batch apart after its step
        cases = [name for item in items if isinstance(item, dict) for name in _names(item.get("case", []))]
        raise BundleError(
            Finding(
                ", ".join(dict.fromkeys(map(str, cases))) or "training",
                f"a loss of {loss} in iteration {engine.state.iteration}, epoch {engine.state.epoch}",
                "a finite loss",
                "lower --learning_rate, or look for extreme values in the cases; the checkpoints so far are whole",
            )
        )


def _names(cases: Any) -> list[str]:
    return [str(case) for case in cases] if isinstance(cases, (list, tuple)) else [str(cases)]
