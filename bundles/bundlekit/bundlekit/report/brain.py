"""The brain of a stripped scan, measured before anything changes its voxels."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
from monai.transforms import Transform

from bundlekit.images.intensities import is_not_air
from bundlekit.images.nifti import voxel_ml


class MeasureBraind(Transform):
    """Add volume (`brain_ml`) and middle (`midline_mm`, from left to right, RAS+) of the brain of a stripped scan.

    It is what is not air of `image` (CHWD `MetaTensor`, whose air is 0). For `WriteVolumes`, on voxels of the scan:
    resized ones hold a bit of the brain where the scan's hold none. Nothing is added of a scan that is air alone.
    """

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Add both."""
        image = data["image"]
        affine = np.asarray(image.affine, float)
        inside = is_not_air(image).any(0).numpy()
        count = int(inside.sum())
        if not count:
            return dict(data)
        # the mean of an affine map is the map of the mean
        along = [inside.sum(axis=tuple({0, 1, 2} - {axis})) for axis in range(3)]
        middle = [float((counts * np.arange(len(counts))).sum()) / count for counts in along]
        volume_ml = count * voxel_ml(affine)
        return {**data, "brain_ml": volume_ml, "midline_mm": float((affine @ [*middle, 1])[0])}
