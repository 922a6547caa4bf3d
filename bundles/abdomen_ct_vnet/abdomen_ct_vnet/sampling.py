"""Patches centred on organs, each as often as another: MONAI's crop by label classes on voxels listed once per case."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.transforms import ClassesToIndicesd, RandCropByLabelClassesd
from monai.utils import convert_to_tensor

_MOST_VOXELS = 8000  # kept of each class, evenly spread: a liver has a million


class OrganVoxelsd(ClassesToIndicesd):
    """List up to 8,000 voxels of each class, so that a patch centre costs two random numbers.

    Adds `label_cls_indices`, a list with a tensor of flat indices into the label's HWD for each class, background
    first: voxels inside the body, where the image is above its minimum.

    Args:
        n_classes: background included.
    """

    def __init__(self, n_classes: int) -> None:
        super().__init__("label", num_classes=n_classes, max_samples_per_class=_MOST_VOXELS)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Add the lists to a copy of `data`."""
        image, label = data["image"], data["label"]
        found = self.converter(label, image > image.min())
        plain = [convert_to_tensor(indices, track_meta=False).to(torch.int32) for indices in found]
        return {**data, "label_cls_indices": plain}


class OrganCentredCropd(RandCropByLabelClassesd):
    """Crop a patch that is centred on an organ with a given probability, else in the rest of the body.

    A class is drawn first, each that the case has as likely as another, then a voxel of it. The centre is moved just
    far enough inwards for the patch to stay inside the volume; along an axis where the volume is smaller than the
    patch it stays as it is.

    Args:
        patch_size: voxels along H, W, D.
        n_classes: background included.
        organ_probability: of a patch centred on an organ, 0 to 1.

    Raises:
        ValueError: for a probability outside 0..1.
    """

    def __init__(self, patch_size: Sequence[int], n_classes: int, organ_probability: float = 0.7) -> None:
        if not 0 <= organ_probability <= 1:
            raise ValueError(f"organ_probability must be from 0 to 1, got {organ_probability}.")
        super().__init__(
            ["image", "label"],
            label_key="label",
            spatial_size=[int(n) for n in patch_size],
            ratios=None,  # those of each case, see below
            num_classes=n_classes,
            num_samples=1,
            indices_key="label_cls_indices",
            allow_smaller=True,
            warn=False,  # most cases lack nothing; a class that is absent is not drawn
        )
        self.organ_probability = organ_probability

    def __call__(  # type: ignore[override]
        self, data: Mapping[Hashable, Any], lazy: bool | None = None
    ) -> dict[Hashable, Any]:
        """Replace image and label of `data` by one patch of them, in single precision; drop the lists."""
        # MONAI takes absent classes out of the ratios, which would leave their share to the background
        organs = data["label_cls_indices"][1:]
        each = self.organ_probability / max(sum(len(voxels) > 0 for voxels in organs), 1)
        self.cropper.ratios = [max(1 - self.organ_probability, 1e-6), *[each] * len(organs)]
        (patch,) = super().__call__(data, lazy)
        patch["image"] = patch["image"].float()  # of a memory-mapped half-precision volume: only the patch is read
        return patch
