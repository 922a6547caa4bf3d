"""What a validation says beside Dice."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from monai.handlers import IgniteMetricHandler
from monai.metrics import DiceMetric
from monai.transforms import Transform
from monai.utils import convert_to_tensor


def dice_of_each(names: Iterable[str], first: int = 0) -> dict[str, IgniteMetricHandler]:
    """A metric `val_dice_<name>`, the mean over cases, for each channel of `pred` and `label`; both empty 1, one 0.

    Args:
        names: of the channels, classes or regions.
        first: channel of the first of them; 1 behind a background.
    """
    return {
        f"val_dice_{name.replace(' ', '_')}": IgniteMetricHandler(
            metric_fn=DiceMetric(include_background=True, ignore_empty=False, reduction="mean"),
            output_transform=partial(_channel, channel),
        )
        for channel, name in enumerate(names, first)
    }


def _channel(channel: int, output: Sequence[Mapping[str, torch.Tensor]]) -> tuple[list, list]:
    """One channel of `pred` and `label` of every item."""
    part = slice(channel, channel + 1)
    return [item["pred"][part] for item in output], [item["label"][part] for item in output]


class AddLossd(Transform):
    """Add `loss`, the loss of one case's logits in single precision, before they become classes.

    Args:
        loss: as in training; takes logits BNHWD and class indices B1HWD.
    """

    def __init__(self, loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> None:
        self.loss = loss

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Compare `pred` (NHWD) with `label` (1HWD)."""
        pred, label = (convert_to_tensor(data[key], track_meta=False) for key in ("pred", "label"))
        with torch.no_grad():
            return {**data, "loss": self.loss(pred[None].float(), label[None].to(pred.device))}


class AddAccuracyd(Transform):
    """Add `accuracy`: the share of voxels whose class is right, of `pred` and `label`, class indices of one shape."""

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Compare the two."""
        pred, label = (convert_to_tensor(data[key], track_meta=False) for key in ("pred", "label"))
        return {**data, "accuracy": (pred == label.to(pred.device)).float().mean()}
