"""Losses that several bundles train with and MONAI has not."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from monai.losses import DiceLoss, FocalLoss
from torch.nn.modules.loss import _Loss


class WeightedDiceFocalLoss(_Loss):
    """Weighted mean of each class's Dice loss, plus categorical focal loss, both MONAI's, on one softmax.

    MONAI's own `DiceFocalLoss` takes the focal part of a sigmoid and weighs both terms; upstream's is categorical. The
    focal term is averaged over voxels and summed over classes, as cross-entropy is.

    Focal loss: Lin et al., 2017, https://arxiv.org/abs/1708.02002.

    Args:
        class_weights: of background and the classes, 0 or more each. See `python -m tools weights`.
        gamma: 0 or more; how much voxels that are right already are turned down. 0 is cross-entropy.
        focal: weight of the focal term beside the Dice term; 0 leaves it out.
        weigh_focal: weigh the focal term by class, too.
        rescale: divide the Dice term by the sum of the weights: it lies between 0 and 1, and only their ratios matter.
            False: the mean over classes of weight times Dice loss, which grows with the weights beside the focal term.
        mean_one: with `rescale`, bring the focal term's weights to mean 1, too, so that it keeps its size whatever
            their sum. False: the focal term takes them as they are, and all of it grows with them.
        smooth: voxels added to numerator and denominator of the Dice term.
        batch: pool the Dice term's sums over the batch, since most patches lack some class.

    Raises:
        ValueError: for negative weights, or weights that are all 0.
    """

    def __init__(
        self,
        class_weights: Sequence[float],
        gamma: float = 2.0,
        focal: float = 1.0,
        weigh_focal: bool = False,
        rescale: bool = True,
        mean_one: bool = True,
        smooth: float = 1.0,
        batch: bool = True,
    ) -> None:
        super().__init__()
        weights = [float(w) for w in class_weights]
        if min([*weights, focal, gamma]) < 0 or sum(weights) == 0:
            raise ValueError(f"weights and gamma must be 0 or more, got {weights}, focal {focal}, gamma {gamma}.")
        self.scale = len(weights) / sum(weights) if rescale else 1.0  # MONAI averages over classes
        if rescale and mean_one:
            weights, self.scale = [self.scale * w for w in weights], 1.0
        self.focal = float(focal)
        self.dice_loss = DiceLoss(
            softmax=True, to_onehot_y=True, smooth_nr=smooth, smooth_dr=smooth, batch=batch, weight=weights
        )
        self.focal_loss = FocalLoss(
            to_onehot_y=True, use_softmax=True, gamma=gamma, weight=weights if weigh_focal else None
        )

    def forward(self, input: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Loss of logits BNHW[D] and class indices B1HW[D]."""
        loss = self.scale * self.dice_loss(input.float(), target)
        if self.focal:
            loss = loss + self.focal * input.shape[1] * self.focal_loss(input.float(), target)
        return loss


class IgnoringDiceCELoss(_Loss):
    """Dice loss averaged over classes, plus cross-entropy, both without voxels whose label cannot say.

    MONAI's `DiceCELoss` has no `ignore_index`. Dice alone draws a doubtful border for the sake of the smaller class,
    here CSF; cross-entropy makes the softmax a probability, so that the likelier class is taken. See Mehrtash et al.,
    IEEE TMI 39, 2020, doi:10.1109/TMI.2020.3006437.

    Args:
        cross_entropy: weight of the mean cross-entropy beside the Dice loss, 0 or more; 0 is Dice alone.
        ignore_index: label of the voxels that are left out.
        include_background: average the Dice loss over the background, too.
        smooth: voxels added to numerator and denominator of the Dice loss.

    Raises:
        ValueError: for a negative weight.
    """

    def __init__(
        self,
        cross_entropy: float = 0.0,
        ignore_index: int = 255,
        include_background: bool = True,
        smooth: float = 1.0,
    ) -> None:
        super().__init__()
        if cross_entropy < 0:
            raise ValueError(f"cross_entropy is a weight of 0 or more, got {cross_entropy}.")
        self.cross_entropy = float(cross_entropy)
        self.ignore_index = ignore_index
        self.dice_loss = DiceLoss(
            softmax=True,
            to_onehot_y=True,
            include_background=include_background,
            smooth_nr=smooth,
            smooth_dr=smooth,
            ignore_index=ignore_index,
        )

    def forward(self, input: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Loss of logits BNHW[D] and class indices B1HW[D]."""
        loss = self.dice_loss(input, target)
        if self.cross_entropy:
            classes = target[:, 0].long()
            voxels = F.cross_entropy(input.float(), classes, ignore_index=self.ignore_index, reduction="sum")
            # where every voxel is left out, a mean is 0 / 0
            loss = loss + self.cross_entropy * voxels / (classes != self.ignore_index).sum().clamp(min=1)
        return loss
