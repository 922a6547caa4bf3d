"""A second network that sees the whole brain at low resolution, beside the one that sees windows at full resolution."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from monai.data import MetaTensor
from torch import nn

from bundlekit.brats.normalising import NormaliseBraind
from bundlekit.brats.regions import class_logits, region_probabilities
from bundlekit.inference.second import TwoNetworkInferer


class LowresEnsembleInferer(TwoNetworkInferer):
    """`ForegroundInferer`, and the mean of its regions with those of a second network that sees all of the brain.

    The second is told the whole crop, resized to `lowres_shape`: it knows where in the brain a voxel lies, which a
    window does not show, and so calls less of what lies far from the tumour; the first draws its borders. The mean
    of the probabilities of WT, TC and ET, half of each, is handed on as logits of the classes, so that everything
    after it is as for one network; take `region_labels` of them. Where cores are smaller than what the second can
    see, as metastases' are, `core_share` 0 leaves TC and ET to the first, and whatever it takes for TC is WT. After
    nnU-Net's ensemble of "3d_lowres" and "3d_fullres" (Isensee et al., Nature Methods 2021), whose low resolution
    is a spacing; here it is a shape.

    With `coarse_to_fine` the windows lie in one box, around all that the second holds for tumour, and outside of it the
    second decides alone: the first then computes a part of its windows, and around the tumour. Where they find nothing
    there, windows lie everywhere after all. `whole_brain` is without the box.

    Args:
        roi_size: of a window, voxels along H, W, D.
        lowres: checkpoint of the second network, read when first called; None: there is none, and this is
            `ForegroundInferer`.
        lowres_network: of 3 channels, the logits of WT, TC and ET (sigmoid).
        lowres_shape: voxels along H, W, D that the crop is resized to, as in the training of that network.
        lowres_percentiles: of each modality's brain that become 0 and 1, as there.
        coarse_to_fine: probability of WT, below 0.5, from which on the second network's voxels belong into the box; the
            box has `margin` more and is a window at least. Where there is no such voxel, and at 0, windows lie
            everywhere.
        margin: voxels around them.
        core_share: of the second network in the mean of TC and ET, 0 to 0.5; below 0.5 WT is at least TC.
        kwargs: of `ForegroundInferer`; flips, batch size, runtime and precision are those of both networks.

    Raises:
        ValueError: for `lowres` without a network; if `coarse_to_fine` is not in [0, 0.5), `core_share` not in [0,
            0.5], or `margin` below 0.
        BundleError: when first called, if the checkpoint cannot be read, belongs to another network, or to one that was
            trained on brains prepared in another way.
    """

    lowres_kind = "a U-Net of brats_unet_h5, of its regions and default widths"
    lowres_fix = "give one that was trained with these, or --inferer::lowres_shape and --inferer::lowres_percentiles"

    def __init__(
        self,
        roi_size: Sequence[int],
        lowres: str | None = None,
        lowres_network: nn.Module | None = None,
        lowres_shape: Sequence[int] = (128, 128, 128),
        lowres_percentiles: Sequence[float] = (0.5, 99.5),
        coarse_to_fine: float = 0.0,
        margin: int = 8,
        core_share: float = 0.5,
        **kwargs: Any,
    ) -> None:
        super().__init__(roi_size, lowres, lowres_network, lowres_shape, {"background": None}, **kwargs)
        if not 0 <= coarse_to_fine < 0.5 or margin < 0:
            raise ValueError(
                f"coarse_to_fine must be 0 to below 0.5 and margin 0 or more, got {coarse_to_fine} and {margin}."
            )
        if not 0 <= core_share <= 0.5 or (coarse_to_fine and core_share < 0.5):
            raise ValueError(
                f"core_share must be from 0 to 0.5, and 0.5 with coarse_to_fine, which leaves the rest of the brain to "
                f"the second network; got {core_share} and {coarse_to_fine}."
            )
        self.core_share = float(core_share)
        self.coarse_to_fine = float(coarse_to_fine)
        self.margin = int(margin)
        self.lowres_shape = [int(n) for n in lowres_shape]
        self.normalise = NormaliseBraind("minmax", lowres_percentiles)

    def __call__(  # type: ignore[override]
        self, inputs: torch.Tensor, network: Callable[..., torch.Tensor], *args: object, **kwargs: object
    ) -> torch.Tensor:
        """Logits BNHWD of background, NCR, ED and ET of `inputs` (BCHWD), whose air is 0.

        Raises:
            BundleError: as `ForegroundInferer` does.
        """
        if self.lowres is None:
            return super().__call__(inputs, network, *args, **kwargs)
        plain = inputs.as_tensor() if isinstance(inputs, MetaTensor) else inputs
        second = self._at_low_resolution(plain)
        everywhere = (slice(None),) * plain.ndim
        for part in (self._box(second[:, 0]), everywhere):
            own = super().__call__(plain[part], network, *args, **kwargs)
            regions = second.to(own.device, copy=True)
            regions[part] = self._mean(region_probabilities(own.float()), regions[part])
            if own.shape[2:] == plain.shape[2:] or bool((regions[:, 0] > 0.5).any()):
                break
        out = class_logits(regions)
        return MetaTensor(out, meta=dict(inputs.meta)) if isinstance(inputs, MetaTensor) else out

    def trained_for(self) -> Mapping[str, Any]:
        """How the brains were prepared that the second network was trained on."""
        percentiles = [float(p) for p in self.normalise.percentiles]
        return {"fit": "resize", "uniform_shape": self.lowres_shape, "normalise": "minmax", "percentiles": percentiles}

    def _mean(self, own: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        """Of the regions of both networks (B3HWD), which may change."""
        if self.core_share == 0.5:
            return own.add_(second).div_(2)
        whole, core = own[:, :1].add(second[:, :1]).div_(2), own[:, 1:].lerp(second[:, 1:], self.core_share)
        return torch.cat([torch.maximum(whole, core[:, :1]), core], dim=1)

    def _box(self, whole_tumour: torch.Tensor) -> tuple[slice, ...]:
        """Where in BCHWD windows may lie, by probabilities BHWD of the second network."""
        sizes = whole_tumour.shape[1:]
        likely = (whole_tumour >= self.coarse_to_fine).any(dim=0)
        if self.whole_brain or not self.coarse_to_fine or not likely.any():
            return (slice(None),) * 5
        box = [slice(None), slice(None)]
        for axis, (size, window) in enumerate(zip(sizes, cast("Sequence[int]", self.roi_size), strict=True)):
            places = likely.any(dim=tuple(other for other in range(3) if other != axis)).nonzero()
            first, last = int(places[0]) - self.margin, int(places[-1]) + 1 + self.margin
            short = max(int(window) - (last - first), 0)
            first = max(min(first - short // 2, size - int(window)), 0)  # moved, not cut off, at the crop's edge
            box.append(slice(first, min(max(last, first + int(window)), size)))
        return tuple(box)

    def _at_low_resolution(self, inputs: torch.Tensor) -> torch.Tensor:
        """Probabilities of WT, TC and ET, B3HWD, of the second network, on the grid of `inputs`."""
        network = self.second(inputs.device)
        brains = [self.normalise({"image": brain})["image"] for brain in inputs.float()]
        small = F.interpolate(torch.stack(brains), self.lowres_shape, mode="trilinear")
        regions = self.whole(small, network).float().sigmoid()
        return F.interpolate(regions, inputs.shape[2:], mode="trilinear")
