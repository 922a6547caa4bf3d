"""Dice plus binary cross-entropy of each region or class."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from monai.losses import DiceLoss
from monai.networks import one_hot
from torch.nn.modules.loss import _Loss

from bundlekit.brats.regions import REGIONS

from .network import TARGETS


class DiceBCELoss(_Loss):
    """MONAI's Dice loss plus binary cross-entropy, of WT, TC and ET or of the four classes, each channel by itself.

    MONAI's `DiceCELoss` is another one: with more than one channel its second term is the cross-entropy of a softmax.
    For classes p is the softmax, and the cross-entropy of p against "any other class" is taken as that of the logit
    x_c - log sum_{k != c} exp(x_k), whose sigmoid is p: exact where p comes close to 0 or 1. Both terms are computed in
    single precision.

    Args:
        target: "regions": logits of WT, TC and ET, each through a sigmoid; "classes": logits of background, NCR, ED and
            ET, through a softmax.
        bce: weight of the cross-entropy beside the Dice term, 0 or more.
        smooth: voxels added to numerator and denominator of the Dice term: a channel absent from truth and prediction
            costs 0.
        batch: pool the Dice term's sums over the batch, where most patches lack some channel.

    Raises:
        ValueError: for another target, or a negative weight.
    """

    def __init__(self, target: str = "regions", bce: float = 1.0, smooth: float = 1.0, batch: bool = False) -> None:
        super().__init__()
        if target not in TARGETS:
            raise ValueError(f"target must be one of {', '.join(TARGETS)}, got {target!r}.")
        if bce < 0 or smooth <= 0:
            raise ValueError(f"bce must be 0 or more and smooth above 0, got {bce} and {smooth}.")
        self.target = target
        self.bce = float(bce)
        self.dice_loss = DiceLoss(
            sigmoid=target == "regions",
            softmax=target == "classes",
            smooth_nr=smooth,
            smooth_dr=smooth,
            batch=batch,
        )

    def forward(self, input: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Loss of logits BNHW[D] against class indices B1HW[D], 0 to 3.

        Raises:
            ValueError: if the shapes do not belong together.
        """
        count = TARGETS[self.target]
        if input.shape[1] != count or target.shape != (input.shape[0], 1, *input.shape[2:]):
            raise ValueError(
                f"expected logits BNHW[D] with N = {count} for {self.target} and class indices B1HW[D], got "
                f"{tuple(input.shape)} and {tuple(target.shape)}."
            )
        logits = input.float()
        truth = target_masks(target, self.target).float()
        loss = self.dice_loss(logits, truth)
        if self.bce:
            single = logits if self.target == "regions" else one_against_rest(logits)
            loss = loss + self.bce * F.binary_cross_entropy_with_logits(single, truth)
        return loss


def target_masks(label: torch.Tensor, target: str) -> torch.Tensor:
    """Masks that the network's channels are compared with (BNHW[D]) of class indices (B1HW[D])."""
    if target == "classes":
        return one_hot(label, TARGETS[target])
    return torch.cat([sum((label == c for c in classes), label == -1) for classes in REGIONS.values()], dim=1)


def one_against_rest(logits: torch.Tensor) -> torch.Tensor:
    """Logits (BNHW[D]) whose sigmoid is the softmax of `logits`."""
    channels = range(logits.shape[1])
    rest = [torch.logsumexp(logits[:, [k for k in channels if k != c]], dim=1) for c in channels]
    return logits - torch.stack(rest, dim=1)
