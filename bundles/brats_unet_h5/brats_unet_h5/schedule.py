"""How the learning rate falls: steered by the validation loss, or over the epochs alone."""

from __future__ import annotations

from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, ReduceLROnPlateau

SCHEDULES = ("plateau", "cosine")


def build_schedule(
    schedule: str, optimizer: Optimizer, epochs: int, factor: float = 0.5, patience: int = 5
) -> LRScheduler:
    """PyTorch's scheduler of that name.

    Args:
        schedule: "plateau" (the write-up's: the rate falls once the validation loss is on a plateau), or "cosine" (to
            nothing over all epochs, for a training that no validation may steer, such as that of a fold).
        optimizer: whose learning rate falls.
        epochs: of the training; of "cosine" alone.
        factor: what the rate is multiplied with; of "plateau" alone, as the next.
        patience: validations without a lower loss until then.

    Raises:
        ValueError: for another schedule.
    """
    if schedule not in SCHEDULES:
        raise ValueError(f"schedule must be one of {', '.join(SCHEDULES)}, got {schedule!r}.")
    if schedule == "cosine":
        return CosineAnnealingLR(optimizer, T_max=epochs)
    return ReduceLROnPlateau(optimizer, factor=factor, patience=patience)
