"""What a validation says beside Dice."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import Any

import torch
from monai.transforms import Transform
from monai.utils import convert_to_tensor


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
