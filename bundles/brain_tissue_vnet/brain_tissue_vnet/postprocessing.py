"""From logits to what is scored or written."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.transforms import Transform

from bundlekit.images.intensities import ZERO_AIR
from bundlekit.label_maps.numberings import IGNORE

from .scores import TISSUES

_CERTAIN = 20.0  # a logit whose softmax is 1


def fill_background(probabilities: torch.Tensor) -> torch.Tensor:
    """Background as what the tissues leave (NHWD): outside the crop, where interpolation found nothing, it is 1."""
    filled = probabilities.clone()
    filled[0] = (1 - probabilities[1:].sum(dim=0)).clamp_(min=0)
    return filled


class AirIsBackgroundd(Transform):
    """Logits of background in `pred` (NHWD) where `image` (1HWD) is air that was set to 0, as around a stripped brain.

    Such air is the scan's smallest intensity, a tenth of its voxels at least; noisy air is left to the network.
    """

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Overwrite the logits of the air."""
        logits, image = data["pred"], data["image"]
        air = (image <= image.min() + 1e-4)[0].to(logits.device)
        if float(air.float().mean()) < ZERO_AIR:
            return dict(data)
        certain = torch.full((logits.shape[0], 1, 1, 1), -_CERTAIN, dtype=logits.dtype, device=logits.device)
        certain[0] = _CERTAIN
        return {**data, "pred": torch.where(air[None], certain, logits)}


class TissueMasksd(Transform):
    """Masks of the tissues (NHWD uint8) in place of the classes `pred` and `label` (1HWD).

    A voxel whose label cannot say is in no mask of either.

    Args:
        classes: of the masks; CSF, GM and WM unless told otherwise.
    """

    def __init__(self, classes: Sequence[int] = tuple(TISSUES.values())) -> None:
        self.classes = tuple(classes)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Replace both."""
        pred, label = data["pred"], data["label"].to(data["pred"].device)
        known = label[0] != IGNORE
        masks: dict[Hashable, Any] = {
            key: torch.stack([(value[0] == c) & known for c in self.classes]).to(torch.uint8)
            for key, value in (("pred", pred), ("label", label))
        }
        return {**data, **masks}
