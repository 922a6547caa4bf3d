"""From the network's logits to one brain without holes."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import cc3d
import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import Transform
from scipy import ndimage


class OneBraind(Transform):
    """Probability of the brain (1HWD) in place of the logits `pred` (2HWD).

    That of its largest component, its holes filled. On the network's grid, where it costs a fraction of what it costs
    at 1 mm, and on probabilities, so that their interpolation to the scan's grid gives a smooth border.

    Args:
        spacing: of the network's grid, mm.
        margin_mm: by how much the mask grows (above 0) or shrinks (below 0).
    """

    def __init__(self, spacing: tuple[float, float, float], margin_mm: float = 0.0) -> None:
        self.spacing = [float(mm) for mm in spacing]
        self.margin_mm = float(margin_mm)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Decide which component is the brain."""
        logits = data["pred"]
        plain = logits.as_tensor() if isinstance(logits, MetaTensor) else logits
        probability = torch.softmax(plain.float(), dim=0)[1].cpu().numpy()
        found = probability >= 0.5
        if found.any():
            brain = cc3d.largest_k(found, k=1, connectivity=6) > 0
            probability[found & ~brain] = 0
            probability[ndimage.binary_fill_holes(brain) & ~brain] = 1
            if self.margin_mm:
                probability = self._grown(probability >= 0.5)
        out = torch.from_numpy(np.ascontiguousarray(probability))[None]
        if isinstance(logits, MetaTensor):
            out = MetaTensor(out, meta=dict(logits.meta), applied_operations=list(logits.applied_operations))
        return {**data, "pred": out}

    def _grown(self, brain: np.ndarray) -> np.ndarray:
        """1 inside and 0 outside of the brain with its margin, a slope of two voxels between."""
        outside = ndimage.distance_transform_edt(~brain, self.spacing)
        inside = ndimage.distance_transform_edt(brain, self.spacing)
        # distances are to the middle of the nearest voxel: the border lies half a voxel before it
        depth = np.where(brain, inside - 0.5 * min(self.spacing), 0.5 * min(self.spacing) - outside)
        return np.clip(0.5 + (depth + self.margin_mm) / (2 * min(self.spacing)), 0, 1).astype(np.float32)
