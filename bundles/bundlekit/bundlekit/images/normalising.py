"""Normalise a scan by what is not air."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import Transform

from bundlekit.images.intensities import check_method, foreground, normalise, statistics

_ABOVE_AIR = 1e-3


class NormaliseForegroundd(Transform):
    """Linear normalisation of `image` (1HWD) by what is not air.

    The air is mapped along, so that it stays darker than the brain. MONAI's `NormalizeIntensityd(nonzero=True)` leaves
    air that is 0 at 0, which is the mean of the brain then, and counts air that is noise as head. Its
    `ScaleIntensityRangePercentilesd` takes the percentiles over the air, too, and some scans have more of it than
    others.

    Args:
        method: "zscore": mean 0, standard deviation 1, clipped to -6 to 6; "percentile": 0.5 and 99.5 % percentiles to
            0 and 1, clipped to that.

    Raises:
        ValueError: for another method.
    """

    def __init__(self, method: str = "zscore") -> None:
        check_method(method)
        self.method = method

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Normalise the image."""
        image = data["image"]
        array = as_array(image)
        mask = foreground(array)
        offset, scale = statistics(array[mask] if mask.any() else array, self.method)
        normal = normalise(array, offset, scale, self.method)
        if mask.any() and not mask.all():  # what is clipped in the brain stays brighter than the air, too
            least = normal.min()
            normal[mask & (normal <= least)] = least + _ABOVE_AIR
        return {**data, "image": like(image, normal)}


def as_array(image: torch.Tensor) -> np.ndarray:
    """Its voxels; a `MetaTensor` without its geometry."""
    return (image.as_tensor() if isinstance(image, MetaTensor) else torch.as_tensor(image)).numpy()


def like(image: torch.Tensor, array: np.ndarray) -> torch.Tensor:
    """`array` as float32 in place of `image`, with its geometry and its record of applied transforms."""
    tensor = torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))
    if not isinstance(image, MetaTensor):
        return tensor
    return MetaTensor(tensor, meta=dict(image.meta), applied_operations=list(image.applied_operations))
