"""Region-wise Dice loss."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch.nn.modules.loss import _Loss

from bundlekit.brats.regions import REGIONS


class RegionDiceLoss(_Loss):
    """Dice loss on nested regions, each region's probability being the sum of its classes' softmax.

    For region r with probability p and truth g (summed over the voxels of a patch)::

        loss_r = 1 - (2 sum(p g) + smooth) / (sum(p) + sum(g) + smooth)

    so that a region absent from truth and prediction costs 0, a region absent from the truth alone costs
    sum(p) / (sum(p) + smooth), and a region absent from the prediction alone costs 1 - smooth / (sum(g) + smooth).
    Softmax and sums run in single precision whatever the input's type: half precision overflows at 65504 voxels.
    MONAI's `DiceLoss` computes the same of probabilities that are summed already; its own softmax is of exclusive
    classes, so that regions, sums and cross-entropy would be a module around it.

    Dice loss: Milletari et al., 2016, https://arxiv.org/abs/1606.04797. Regions: Wang et al., 2017,
    https://arxiv.org/abs/1709.00382, and the upstream write-up.

    Args:
        regions: class indices of each region. WT, TC, ET of BraTS by default.
        smooth: voxels added to numerator and denominator. Larger values soften the step between an empty and a
            tiny region.
        batch: pool the sums over the batch before the ratio. Use it where most patches hold no tumour: the gradient
            of an empty patch is then not lost in the smoothing.
        cross_entropy: weight of the voxel-wise cross-entropy that is added, 0 or more. 0 is upstream's loss. A sum of
            probabilities does not say which of its classes is right, and a class that has lost early gets hardly any
            gradient back from a saturated softmax: where training is short or cases are few, 1 keeps all classes alive.
        reduction: over the regions, "mean" or "sum"; over samples it is the mean. The curve of the upstream write-up
            starts above 4, which with its deep supervision is a sum over three regions (1.75 x 3 at most).

    Raises:
        ValueError: if a region is empty, repeats a class or names the background (0), `smooth` is not positive, or
            `cross_entropy` is negative; for another reduction.
    """

    def __init__(
        self,
        regions: Sequence[Sequence[int]] = tuple(REGIONS.values()),
        smooth: float = 1.0,
        batch: bool = False,
        cross_entropy: float = 0.0,
        reduction: str = "mean",
    ) -> None:
        super().__init__(reduction=reduction)
        if reduction not in ("mean", "sum"):
            raise ValueError(f"reduction must be mean or sum, got {reduction!r}.")
        self.regions = [tuple(int(c) for c in region) for region in regions]
        for region in self.regions:
            if not region or len(set(region)) != len(region) or min(region) < 1:
                raise ValueError(f"a region is a set of foreground class indices (1 or more), got {list(region)}.")
        if not self.regions or smooth <= 0:
            raise ValueError(f"need at least one region and smooth > 0, got {len(self.regions)} and {smooth}.")
        self.smooth = float(smooth)
        if cross_entropy < 0:
            raise ValueError(f"cross_entropy is a weight of 0 or more, got {cross_entropy}.")
        self.batch = batch
        self.cross_entropy = float(cross_entropy)

    def forward(self, input: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Loss, mean over samples, from 0 to 1 or, summed, to the number of regions; cross-entropy has no upper bound.

        Args:
            input: logits, BNHW[D] with N classes.
            target: class indices, B1HW[D], of any numeric type.

        Raises:
            ValueError: if the shapes do not belong together or N does not hold every class of the regions.
        """
        highest = max(max(region) for region in self.regions)
        if target.shape != (input.shape[0], 1, *input.shape[2:]) or input.shape[1] <= highest:
            raise ValueError(
                f"expected logits BNHW[D] with N > {highest} and class indices B1HW[D], got {tuple(input.shape)} and "
                f"{tuple(target.shape)}."
            )
        probability = torch.softmax(input.float(), dim=1)
        axes = tuple(range(1, probability.ndim - 1))
        losses = []
        for region in self.regions:
            p = probability[:, list(region)].sum(dim=1)
            g = sum((target[:, 0] == c for c in region), start=torch.zeros_like(target[:, 0], dtype=torch.bool)).float()
            overlap, total = (p * g).sum(axes), p.sum(axes) + g.sum(axes)
            if self.batch:
                overlap, total = overlap.sum(), total.sum()
            losses.append(1 - (2 * overlap + self.smooth) / (total + self.smooth))
        dice = torch.stack(losses).mean()
        dice = dice * len(losses) if self.reduction == "sum" else dice
        if not self.cross_entropy:
            return dice
        return dice + self.cross_entropy * F.cross_entropy(input.float(), target[:, 0].long())
