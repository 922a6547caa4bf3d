"""Intensities: each modality brought to a standard range by the voxels of the brain."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.data import MetaTensor
from monai.transforms import Transform
from monai.transforms.utils_pytorch_numpy_unification import percentile

METHODS = ("minmax", "zscore")


class NormaliseBraind(Transform):
    """Bring each modality of `image` (CHWD) to a standard range by its voxels that are not 0; air stays 0.

    As MONAI's `NormalizeIntensity` and `ScaleIntensityRangePercentiles`, but in two steps: a patch that is read from
    the file is normalised by the statistics of its whole brain.

    Args:
        method: "minmax": smallest to largest intensity of the brain become 0 to 1; "zscore": mean 0,
            standard deviation 1.
        percentiles: of the brain's intensities that "minmax" takes in place of the extremes, what lies beyond is
            clipped; [0, 100] clips nothing, [0.5, 99.5] keeps bright vessels from darkening the rest.

    Raises:
        ValueError: for another method, or percentiles out of order.
    """

    def __init__(self, method: str = "minmax", percentiles: Sequence[float] = (0, 100)) -> None:
        if method not in METHODS:
            raise ValueError(f"normalise must be one of {', '.join(METHODS)}, got {method!r}.")
        low, high = (float(p) for p in percentiles)
        if not 0 <= low < high <= 100:
            raise ValueError(f"percentiles must be two numbers from 0 to 100 in order, got {list(percentiles)}.")
        self.method = method
        self.percentiles = (low, high)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Normalise the image."""
        image = data["image"]
        plain = image.as_tensor() if isinstance(image, MetaTensor) else image
        out = self.apply(plain, *self.statistics(plain))
        if isinstance(image, MetaTensor):
            out = MetaTensor(out, meta=dict(image.meta), applied_operations=list(image.applied_operations))
        return {**data, "image": out}

    def statistics(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Offset and scale of each modality of a whole brain (CHWD), C float32 each."""
        found = [self._statistics(channel[channel != 0]) for channel in image]
        offset, scale = (torch.tensor(values, dtype=torch.float32) for values in zip(*found, strict=True))
        return offset, scale

    def apply(self, image: torch.Tensor, offset: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """(image - offset) / scale where the image (CHWD, or a part of it) is not 0."""
        shape = (-1, *[1] * (image.ndim - 1))
        offset, scale = (value.to(image.device).reshape(shape) for value in (offset, scale))
        out = (image - offset) / scale
        if self.method == "minmax":
            out = out.clamp(0, 1)
        return torch.where(image != 0, out, torch.zeros_like(out))

    def _statistics(self, brain: torch.Tensor) -> tuple[float, float]:
        if not len(brain):
            return 0.0, 1.0
        if self.method == "zscore":
            return float(brain.mean()), max(float(brain.std(correction=0)), 1e-6)
        low, high = (float(percentile(brain, p)) for p in self.percentiles)
        return low, max(high - low, 1e-6)
