"""Removal of components that are too small to be believed."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import torch
from monai.data import MetaTensor
from monai.transforms import Transform
from monai.utils import convert_to_numpy
from nibabel.affines import voxel_sizes

from bundlekit.brats.lesions import remove_small


class RemoveSmallLesionsd(Transform):
    """Set predicted lesions below a volume to background; a lesion is a component of the whole tumour.

    They are those of `pred`: class indices, 1HWD `MetaTensor` on the scan's own grid.

    Args:
        minimum_ml: 0 removes nothing.

    Raises:
        ValueError: if `minimum_ml` is negative.
    """

    def __init__(self, minimum_ml: float) -> None:
        if minimum_ml < 0:
            raise ValueError(f"minimum_lesion_ml must be 0 or more, got {minimum_ml}.")
        self.minimum_ml = float(minimum_ml)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Clean the prediction."""
        if not self.minimum_ml:
            return dict(data)
        pred = data["pred"]
        spacing = voxel_sizes(convert_to_numpy(pred.affine))  # the image may still be the resized one
        kept = remove_small(convert_to_numpy(pred)[0].astype("uint8"), self.minimum_ml, spacing.tolist())
        return {**data, "pred": MetaTensor(torch.from_numpy(kept)[None], meta=dict(getattr(pred, "meta", {})))}
