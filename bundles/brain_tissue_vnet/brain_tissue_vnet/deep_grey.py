"""A second network that sees more of the head than a window of the V-Net, and knows where deep grey matter lies."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from monai.data import MetaTensor
from monai.data.utils import affine_to_spacing
from torch import nn

from bundlekit.inference.second import TwoNetworkInferer
from bundlekit.label_maps.numberings import DEEP_GM, GM, WM


class DeepGreyInferer(TwoNetworkInferer):
    """`ForegroundInferer`, and the mean of its tissues with those of a second network, at a lower resolution.

    Thalamus, pallidum and parts of the putamen are as bright as white matter in many T1s: no border shows them in a
    window. The second network was trained to tell them as a class of their own, after the structures of SynthSeg
    (Billot et al., Medical Image Analysis 86, 2023), and it draws thick slices and large voxels better than the V-Net
    does. The probabilities of both are averaged, with `lowres_share` of the second; then, where that one gives deep
    grey matter the probability d, the share d of what is left for white matter becomes grey matter.

    Args:
        roi_size: of a window of the V-Net, voxels along H, W, D.
        lowres: checkpoint of the second network, read when first needed; None: there is none, and this is
            `ForegroundInferer`.
        lowres_network: of one image channel and five classes: background, CSF, other GM, WM, deep GM.
        lowres_share: of the second network in the mean, 0 to 1; 0: it moves white to grey matter alone.
        lowres_spacing: voxel size (mm) that the crop is brought to for it, as in its training.
        lowres_window: its windows, voxels along H, W, D, as in its training.
        normalise: method by which the intensities were normalised.
        clahe: clip limit of the contrast enhancement that they went through.
        kwargs: of `ForegroundInferer`; flips, batch size, runtime and precision are those of both networks, the others
            of the V-Net alone.

    Raises:
        ValueError: for `lowres` without a network, or a share outside 0 to 1.
        BundleError: when first needed, if the checkpoint cannot be read, belongs to another network, or to one that was
            trained for another spacing, window or preparation.
    """

    lowres_windows_are_several = True
    lowres_kind = (
        "one that configs/lowres.yaml trained; other channels are told by --lowres_network::channels and "
        "--lowres_network::strides"
    )
    lowres_fix = (
        "go without (--lowres '$None', with the quotes), or train one with this --normalise; it cannot go with a V-Net "
        "trained with clahe; another spacing or window: --inferer::lowres_spacing and --inferer::lowres_window"
    )

    def __init__(
        self,
        roi_size: Sequence[int],
        lowres: str | None = None,
        lowres_network: nn.Module | None = None,
        lowres_share: float = 0.4,
        lowres_spacing: Sequence[float] = (2.0, 2.0, 2.0),
        lowres_window: Sequence[int] = (64, 64, 64),
        normalise: str = "zscore",
        clahe: float = 0.0,
        **kwargs: Any,
    ) -> None:
        windows = {"overlap": 0.25, "padding_mode": kwargs.get("padding_mode", "replicate")}
        super().__init__(roi_size, lowres, lowres_network, lowres_window, windows, **kwargs)
        if not 0 <= lowres_share <= 1:
            raise ValueError(f"lowres_share must be from 0 to 1, got {lowres_share}.")
        self.lowres_share = float(lowres_share)
        self.lowres_spacing = [float(mm) for mm in lowres_spacing]
        self.prepared = {
            "lowres_spacing": self.lowres_spacing,
            "lowres_window": [int(n) for n in lowres_window],
            "lowres_normalise": normalise,
            "lowres_clahe": clahe,
        }

    def __call__(  # type: ignore[override]
        self, inputs: torch.Tensor, network: Callable[..., torch.Tensor], *args: object, **kwargs: object
    ) -> torch.Tensor:
        """Logits BNHWD of background, CSF, GM and WM of `inputs` (B1HWD).

        All of a batch have the voxel size of the first; a plain tensor's voxels are of 1 mm.

        Raises:
            BundleError: as `ForegroundInferer` does.
        """
        logits = super().__call__(inputs, network, *args, **kwargs)
        if self.lowres is None:
            return logits
        plain = logits.as_tensor() if isinstance(logits, MetaTensor) else logits
        tissues = plain.float().softmax(1)
        second = self._at_low_resolution(inputs).to(tissues.device)
        deep = second[:, DEEP_GM]
        both = second[:, :DEEP_GM]
        both[:, GM] += deep
        both.mul_(self.lowres_share).add_(tissues, alpha=1 - self.lowres_share)
        moved = both[:, WM] * deep
        both[:, GM] += moved
        both[:, WM] -= moved
        out = both.clamp_min_(1e-8).log_()
        return MetaTensor(out, meta=dict(inputs.meta)) if isinstance(inputs, MetaTensor) else out

    def trained_for(self) -> Mapping[str, Any]:
        """How the images were prepared that the second network was trained on."""
        return self.prepared

    def _at_low_resolution(self, inputs: torch.Tensor) -> torch.Tensor:
        """Probabilities B5HWD of the second network, on the grid of `inputs`."""
        spacing = [1.0, 1.0, 1.0]
        if isinstance(inputs, MetaTensor):
            affine = inputs.affine if inputs.affine.ndim == 2 else inputs.affine[0]
            spacing = [float(mm) for mm in affine_to_spacing(affine)]
            inputs = inputs.as_tensor()
        sizes = [
            max(round(n * mm / target), 1)
            for n, mm, target in zip(inputs.shape[2:], spacing, self.lowres_spacing, strict=True)
        ]
        # what a larger voxel holds is the mean of the smaller ones in it; where they are larger, "area" repeats them
        small = F.interpolate(inputs.float(), sizes, mode="area")
        classes = self.whole(small, self.second(inputs.device)).float().softmax(1)
        return F.interpolate(classes, inputs.shape[2:], mode="trilinear")
