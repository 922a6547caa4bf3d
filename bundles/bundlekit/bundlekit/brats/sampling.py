"""Tumour-centred patches: where the tumour is, computed once per case, and a crop that draws from it."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.transforms import Randomizable, Transform

from bundlekit.images.components import components

_BRAIN_DRAWS = 64  # a brain fills about half of its bounding box, so that a draw is missed by chance 0.5 ** 64


class TumourVoxelsd(Transform):
    """List the tumour voxels of a case, so that a patch centre costs one random number and not a pass over the volume.

    MONAI's `FgBgToIndicesd` lists the voxels of the background, too, millions a case, and knows no lesions.

    Adds `tumour_voxels` (K int32 flat indices into the label's HWD), `tumour_classes` (K uint8) and
    `tumour_lesions` (K int32, lesions numbered from 0: 26-connected components of the whole tumour). About 0.9 MB
    for a tumour of 100 ml.

    Args:
        label_key: 1xHWD class indices.
    """

    def __init__(self, label_key: str = "label") -> None:
        self.label_key = label_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Add the three lists to a copy of `data`."""
        label = np.asarray(data[self.label_key])[0]
        voxels = np.flatnonzero(label)
        lesions = np.zeros(len(voxels), np.int32)
        if len(voxels):
            where = np.unravel_index(voxels, label.shape)
            box = tuple(slice(int(axis.min()), int(axis.max()) + 1) for axis in where)
            numbers, _ = components(label[box])
            lesions = numbers[label[box] > 0].astype(np.int32) - 1
        return {
            **data,
            "tumour_voxels": torch.from_numpy(voxels.astype(np.int32)),
            "tumour_classes": torch.from_numpy(label.ravel()[voxels].astype(np.uint8)),
            "tumour_lesions": torch.from_numpy(lesions),
        }


class TumourCentredCropd(Randomizable, Transform):
    """Crop a patch that is centred on a tumour voxel with a given probability, else anywhere in the brain.

    The centre is moved just far enough inwards for the patch to stay inside the volume; along an axis where the
    volume is smaller than the patch it is padded symmetrically with zeros, which is background after the z-score. A
    case without tumour always gives a brain patch. Draw and crop are separate (`randomize`, `crop`). MONAI's
    `RandCropByPosNegLabeld` draws from all tumour voxels alike, not by region or lesion.

    Args:
        patch_size: voxels along H, W, D.
        tumour_probability: of a tumour-centred patch, 0 to 1; upstream uses 0.5.
        draw: what is drawn uniformly. "voxel": any tumour voxel; "region": first one of NCR, ED and ET that the case
            has, then a voxel of it, so that a thin enhancing rim is seen as often as a large oedema; "lesion": first a
            connected component, then a voxel of it, so that a small satellite is seen as often as the main mass.
        image_key: CxHWD; a voxel is brain where any channel is not 0.
        label_key: 1xHWD.

    Raises:
        ValueError: for a probability outside 0..1 or another `draw`.
    """

    def __init__(
        self,
        patch_size: Sequence[int],
        tumour_probability: float = 0.5,
        draw: str = "voxel",
        image_key: str = "image",
        label_key: str = "label",
    ) -> None:
        if not 0 <= tumour_probability <= 1:
            raise ValueError(f"tumour_probability must be from 0 to 1, got {tumour_probability}.")
        if draw not in ("voxel", "region", "lesion"):
            raise ValueError(f'draw must be "voxel", "region" or "lesion", got {draw!r}.')
        self.patch_size = tuple(int(n) for n in patch_size)
        self.tumour_probability = tumour_probability
        self.draw = draw
        self.image_key = image_key
        self.label_key = label_key
        self.centre: tuple[int, ...] = ()

    def randomize(self, data: Mapping[Hashable, Any]) -> None:
        """Draw `self.centre`, a voxel index."""
        image, tumour = data[self.image_key], data["tumour_voxels"]
        shape = image.shape[1:]
        if len(tumour) and self.R.random() < self.tumour_probability:
            if self.draw != "voxel":
                groups = data["tumour_classes" if self.draw == "region" else "tumour_lesions"].numpy()
                tumour = tumour[torch.from_numpy(groups == self.R.choice(np.unique(groups)))]
            flat = int(tumour[self.R.randint(len(tumour))])
            self.centre = tuple(int(i) for i in np.unravel_index(flat, shape))
            return
        for _ in range(_BRAIN_DRAWS):  # rejection: no list of a million brain voxels to keep and read
            self.centre = tuple(int(self.R.randint(n)) for n in shape)
            if bool((image[(slice(None), *self.centre)] != 0).any()):
                return

    def crop(self, image: torch.Tensor, centre: Sequence[int]) -> torch.Tensor:
        """Patch of `image` (CxHWD) nearest to `centre`, a copy, C x patch_size; half becomes single precision."""
        slices, padding = [], []
        for middle, n, size in zip(centre, image.shape[1:], self.patch_size, strict=True):
            start = min(max(middle - size // 2, 0), max(n - size, 0))
            slices.append(slice(start, start + size))
            lacking = max(size - n, 0)
            padding.append((lacking // 2, lacking - lacking // 2))
        patch = image[(slice(None), *slices)]
        patch = patch.to(torch.float32 if patch.is_floating_point() else patch.dtype, copy=True).contiguous()
        if any(side for pair in padding for side in pair):
            patch = torch.nn.functional.pad(patch, [side for pair in reversed(padding) for side in pair])
        return patch

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Replace image and label of `data` by one patch of them; drop the lists of tumour voxels."""
        self.randomize(data)
        result = {key: value for key, value in data.items() if not str(key).startswith("tumour_")}
        for key in (self.image_key, self.label_key):
            result[key] = self.crop(data[key], self.centre)
        return result
