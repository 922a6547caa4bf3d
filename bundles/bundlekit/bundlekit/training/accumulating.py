"""Training steps that are the mean of several batches."""

from __future__ import annotations

import contextlib
from typing import Any

from monai.engines import SupervisedTrainer
from monai.engines.utils import IterationEvents
from torch.nn.parallel import DistributedDataParallel


class AccumulatingTrainer(SupervisedTrainer):
    """MONAI's trainer, for any number of batches in an epoch.

    MONAI divides each loss by `accumulation_steps`. The last step of an epoch may have fewer batches: its gradient is
    then brought to the mean of these, as that of the other steps is. Several processes exchange their gradients once a
    step, not at each batch.

    Args:
        kwargs: of `SupervisedTrainer`.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_event_handler(IterationEvents.BACKWARD_COMPLETED, self._mean_of_a_short_group)

    def _group(self) -> tuple[int, bool]:
        """Batches in the present step, and whether this is the last of them."""
        length = self.state.epoch_length or 0
        if not length:  # not known beforehand: MONAI then knows no last group
            return self.accumulation_steps, self.state.iteration % self.accumulation_steps == 0
        position = (self.state.iteration - 1) % length
        start = position - position % self.accumulation_steps
        size = min(self.accumulation_steps, length - start)
        return size, position - start + 1 == size

    def _iteration(self, engine: SupervisedTrainer, batchdata: dict[str, Any]) -> dict:
        waits = isinstance(self.network, DistributedDataParallel) and not self._group()[1]
        with self.network.no_sync() if waits else contextlib.nullcontext():  # type: ignore[operator]
            return super()._iteration(engine, batchdata)

    def _mean_of_a_short_group(self) -> None:
        size, last = self._group()
        if last and size < self.accumulation_steps:
            for group in self.optimizer.param_groups:
                for parameter in group["params"]:
                    if parameter.grad is not None:
                        parameter.grad.mul_(self.accumulation_steps / size)
