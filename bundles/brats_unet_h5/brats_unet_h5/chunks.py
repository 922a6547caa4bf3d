"""Patches straight from the HDF5 files: of a case only what patches need to know is kept, a few megabytes."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.transforms import Transform
from monai.transforms.traits import RandomizableTrait

from bundlekit.brats.normalising import NormaliseBraind
from bundlekit.images.intensities import without_air

from .reading import Box, read_classes, read_image

_KEPT = (
    "case", "source", "label_file", "label_values", "read_from", "air", "tumour_voxels", "tumour_classes",
    "tumour_lesions",
)  # fmt: skip


class KeepFactsd(Transform):
    """Of a whole decoded case keep what its patches need: no voxel but the lists of tumour voxels.

    Put it after `LoadHDF5d(for_chunks=True)`, `CropForegroundd` and `TumourVoxelsd`. It adds `corner` and
    `extent` of the brain's box (3 voxels each), `offset` and `scale` of each modality.

    Args:
        normalise: gives offset and scale.
    """

    def __init__(self, normalise: NormaliseBraind) -> None:
        self.normalise = normalise

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Replace image and label of `data` by facts."""
        image = data["image"]
        offset, scale = self.normalise.statistics(image.as_tensor())
        return {
            **{key: data[key] for key in _KEPT},
            "corner": [int(n) for n in data["foreground_start_coord"]],
            "extent": [int(n) for n in image.shape[1:]],
            "offset": offset,
            "scale": scale,
        }


class OpenChunksd(Transform, RandomizableTrait):
    """Offer image and label of a case as arrays that read from the file what is asked of them, and no more.

    What comes out of them is bit for bit what a prepared and cached case holds: box, air, normalisation and half
    precision included. No file stays open between two reads. It counts as random so that its result is not cached.

    Args:
        normalise: as in `KeepFactsd`.
    """

    def __init__(self, normalise: NormaliseBraind) -> None:
        self.normalise = normalise

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Add `image` (4xHWD) and `label` (1xHWD) to a copy of `data`, in place of the facts."""
        facts = ("read_from", "air", "corner", "extent", "offset", "scale")
        rest = {key: value for key, value in data.items() if key not in facts}
        return {**rest, "image": _Image(data, self.normalise), "label": _Label(data)}


class _Lazy:
    """Indexed by (slice(None), h, w, d), each a slice or a number within the brain's box; gives a tensor."""

    channels = 1

    def __init__(self, facts: Mapping[Hashable, Any]) -> None:
        self.facts = facts
        self.shape = (self.channels, *facts["extent"])

    def __getitem__(self, index: Sequence[Any]) -> torch.Tensor:
        bounds = []
        for part, n in zip(index[1:], self.shape[1:], strict=True):
            bounds.append(part.indices(n)[:2] if isinstance(part, slice) else (int(part), int(part) + 1))
        box = tuple(slice(a + corner, b + corner) for (a, b), corner in zip(bounds, self.facts["corner"], strict=True))
        found = self.read((box[0], box[1], box[2]))
        return found[(slice(None), *(slice(None) if isinstance(part, slice) else 0 for part in index[1:]))]

    def read(self, box: Box) -> torch.Tensor:
        raise NotImplementedError


class _Image(_Lazy):
    channels = 4

    def __init__(self, facts: Mapping[Hashable, Any], normalise: NormaliseBraind) -> None:
        super().__init__(facts)
        self.normalise = normalise

    def read(self, box: Box) -> torch.Tensor:
        raw = read_image(self.facts["read_from"], box)
        air = self.facts["air"].numpy()
        air = air[..., box[2]] if air.shape[-1] > 1 else air
        image = torch.from_numpy(without_air(raw, air))
        return self.normalise.apply(image, self.facts["offset"], self.facts["scale"]).half()


class _Label(_Lazy):
    def read(self, box: Box) -> torch.Tensor:
        return torch.from_numpy(read_classes(self.facts["read_from"], box))[None]
