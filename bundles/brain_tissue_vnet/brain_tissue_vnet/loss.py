"""Dice loss per class, with voxels that are left out."""

from __future__ import annotations

import torch
from torch.nn.modules.loss import _Loss


class TissueDiceLoss(_Loss):
    """Dice loss of each class on its softmax, averaged over classes and samples; voxels without a known class left out.

    For class c with probability p and truth g, summed over the voxels whose label is a class::

        loss_c = 1 - (2 sum(p g) + smooth) / (sum(p) + sum(g) + smooth)

    so that a class absent from truth and prediction costs 0. MONAI's `DiceLoss` has no such voxels, and its
    `MaskedDiceLoss` multiplies the logits, which gives a left-out voxel equal probabilities instead of none. Softmax
    and sums run in single precision whatever the input's type.

    Milletari et al., 2016, https://arxiv.org/abs/1606.04797; smoothing and averaging as in the upstream write-up.

    Args:
        include_background: whether background (class 0) is one of the averaged classes. It is easy and large: with it
            the loss is smaller and steadier, without it the tissues alone count.
        smooth: voxels added to numerator and denominator.
        batch: pool the sums over the batch before the ratio, for small patches in which a class is often absent.

    Raises:
        ValueError: if `smooth` is not positive.
    """

    def __init__(self, include_background: bool = True, smooth: float = 1.0, batch: bool = False) -> None:
        super().__init__()
        if smooth <= 0:
            raise ValueError(f"smooth must be positive, got {smooth}.")
        self.include_background = include_background
        self.smooth = float(smooth)
        self.batch = batch

    def forward(self, input: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Mean loss, 0 to 1.

        Args:
            input: logits, BNHW[D].
            target: class indices, B1HW[D]; a value of N or more (254, 255) is left out.

        Raises:
            ValueError: if the shapes do not belong together.
        """
        if target.shape != (input.shape[0], 1, *input.shape[2:]):
            raise ValueError(
                f"expected logits BNHW[D] and labels B1HW[D], got {tuple(input.shape)} and {tuple(target.shape)}."
            )
        classes = input.shape[1]
        probability = torch.softmax(input.float(), dim=1)
        known = target < classes
        axes = tuple(range(1, target.ndim - 1))
        losses = []
        for c in range(0 if self.include_background else 1, classes):
            g = (target[:, 0] == c).float()
            p = probability[:, c] * known[:, 0]
            overlap, total = (p * g).sum(axes), p.sum(axes) + g.sum(axes)
            if self.batch:
                overlap, total = overlap.sum(), total.sum()
            losses.append(1 - (2 * overlap + self.smooth) / (total + self.smooth))
        return torch.stack(losses).mean()
