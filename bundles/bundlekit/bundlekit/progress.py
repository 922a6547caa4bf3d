"""Progress bar with the loss."""

from __future__ import annotations

import importlib.util
from typing import Any

from ignite.engine import Engine
from ignite.handlers import ProgressBar


class Progress(ProgressBar):
    """Ignite's progress bar as a MONAI handler: one line per epoch, with the loss; silent in log files.

    Args:
        desc: what stands before the bar.
    """

    def __init__(self, desc: str) -> None:
        super().__init__(persist=True, desc=desc, disable=None)  # None: a bar on a terminal, none in a log file

    def attach(self, engine: Engine, *args: Any, **kwargs: Any) -> None:  # type: ignore[override]
        """Register with a trainer or an evaluator."""
        super().attach(engine, output_transform=_loss)


def installed(package: str) -> bool:
    """Whether an optional package can be imported, for `_disabled_` in the configs."""
    return importlib.util.find_spec(package) is not None


def _loss(output: Any) -> dict[str, float]:
    first = output[0] if isinstance(output, list) and output else output
    return {"loss": float(first["loss"])} if isinstance(first, dict) and "loss" in first else {}
