"""Painted images in a training: what the loader adds to a patch of a label map, and the batch that is painted of it."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import Randomizable, Transform
from scipy import ndimage

from bundlekit.label_maps.numberings import STRUCTURES
from bundlekit.virtual.painting import BRAIN, RIMS, LabelPainter


class StructureCountsd(Transform):
    """Add `structure_counts`: voxels of each structure in what is seen of the whole map, RK int64.

    Row r: what skull stripping leaves with r voxels around the brain, everything in them counted; last row: the map.
    """

    def __init__(self) -> None:
        self.rims = RIMS  # part of the key under which prepared maps are cached

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Count `structures`, 1HWD."""
        structures = np.asarray(data["structures"])[0]
        near = np.asarray(BRAIN)[structures].astype(np.uint8)
        counts = []
        for rim in range(self.rims):
            if rim:
                near = ndimage.maximum_filter(near, 3, mode="constant")
            counts.append(np.bincount(structures[near > 0], minlength=len(STRUCTURES)))
        counts.append(np.bincount(structures.ravel(), minlength=len(STRUCTURES)))
        return {**data, "structure_counts": torch.from_numpy(np.stack(counts))}


class PaintSeedd(Randomizable, Transform):
    """Add `paint_seed`, from the random state of the patch: its image is reproducible on the same kind of device."""

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Draw the seed."""
        return {**data, "paint_seed": int(self.R.randint(2**31 - 1))}


class PaintBatch:
    """MONAI `prepare_batch`: structures come from the loader, image and label are painted on the training device.

    Args:
        painter: see `LabelPainter`.
    """

    def __init__(self, painter: LabelPainter) -> None:
        self.painter = painter

    def __call__(
        self, batch: Mapping[str, Any], device: torch.device | str | None = None, non_blocking: bool = False, **_: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Images B1HWD float32 and labels B1HWD uint8.

        Args:
            batch: `structures` (B1HWD), `structure_counts` (BRK) and `paint_seed` (B).
            device: to paint on.
            non_blocking: for the transfer.
        """
        structures = batch["structures"]
        structures = structures.as_tensor() if isinstance(structures, MetaTensor) else structures
        structures = structures.to(device, non_blocking=non_blocking)
        painted = [
            self.painter.paint(item, self.painter.draw(counts.numpy(), int(seed)))
            for item, counts, seed in zip(
                structures, batch["structure_counts"].cpu(), batch["paint_seed"].tolist(), strict=True
            )
        ]
        return torch.stack([image for image, _ in painted]), torch.stack([label for _, label in painted])
