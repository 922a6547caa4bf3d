"""Real tumours without their contrast enhancement, for networks that have seen few such ones."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import torch
from monai.transforms import RandomizableTransform

from bundlekit.brats.regions import ED, ET, NCR

_FEWEST = 200  # voxels of tumour without enhancement that tell how it looks in T1ce
_NODULE = (2.0, 8.0)  # radius in voxels of what may go on to enhance


class RandRemoveEnhancementd(RandomizableTransform):
    """Paint the enhancing tumour (ET) as tumour that does not enhance, and label it as the core without enhancement.

    Gliomas of low grade hardly enhance. A network that has seen few of them calls their core oedema, since in all
    others a bright rim in T1ce tells the two apart. What is painted: T1ce, as the other three modalities foretell it by
    a linear regression over the rest of the same tumour, with the noise that this leaves; half of the time a ball of 2
    to 8 voxels in radius around a voxel of ET stays as it is. T1, T2, FLAIR and the outline of the core stay. MONAI and
    TorchIO have nothing of the kind.

    A case without ET, with no more of it than stays, without T1ce, or with fewer than 200 voxels of other tumour is
    left as it is. Belongs before transforms that change intensities.

    Args:
        prob: 0 to 1.
        image_key: 4HWD, T1, T1ce, T2, FLAIR, air 0.
        label_key: 1HWD, class indices 1 NCR, 2 ED, 3 ET.

    Raises:
        ValueError: for a probability outside 0..1.
    """

    def __init__(self, prob: float = 0.2, image_key: str = "image", label_key: str = "label") -> None:
        if not 0 <= prob <= 1:
            raise ValueError(f"prob must be from 0 to 1, got {prob}.")
        super().__init__(prob)
        self.image_key = image_key
        self.label_key = label_key
        self.seed = 0

    def randomize(self, data: Any = None) -> None:
        """Draw whether, and the seed of all that depends on the case."""
        super().randomize(None)
        self.seed = int(self.R.randint(2**31 - 1))

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """What is drawn, in copies of image and label."""
        self.randomize()
        image, label = data[self.image_key], data[self.label_key]
        rest = (label[0] == NCR) | (label[0] == ED)
        removed = label[0] == ET
        if not self._do_transform or not removed.any() or not image[1].any() or rest.sum() < _FEWEST:
            return dict(data)
        rng = np.random.default_rng(self.seed)
        if rng.random() < 0.5:
            removed = removed & ~_ball(removed, rng)
            if not removed.any():
                return dict(data)
        image, label = image.clone(), label.clone()
        _repaint(image, rest, removed, rng)
        label[0][removed] = NCR
        return {**data, self.image_key: image, self.label_key: label}


def _ball(where: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """HWD bool, around one voxel of `where`."""
    places = where.nonzero()
    centre = places[int(rng.integers(len(places)))]
    square = [
        (torch.arange(n, device=where.device) - at) ** 2 for n, at in zip(where.shape, centre.tolist(), strict=True)
    ]
    distance = square[0][:, None, None] + square[1][:, None] + square[2]
    return distance <= rng.uniform(*_NODULE) ** 2


def _repaint(image: torch.Tensor, rest: torch.Tensor, removed: torch.Tensor, rng: np.random.Generator) -> None:
    """Take from T1ce of `image` (4HWD) what is bright in `removed` (HWD), fading into what is around it."""
    there = rest.ravel().nonzero()[:, 0]
    t1, target, t2, flair = image.reshape(4, -1)[:, there].double()
    known = torch.stack([t1, t2, flair, torch.ones_like(t1)])  # 4N
    weights = torch.linalg.pinv(known @ known.T, hermitian=True) @ (known @ target)  # a modality may be all zeros
    spread = float((target - weights @ known).abs().median())
    places = removed.nonzero()
    reach = zip(places.amin(0).tolist(), places.amax(0).tolist(), strict=True)
    box = tuple(slice(max(low - 3, 0), high + 4) for low, high in reach)  # with a margin to fade in
    part, inside = image[(slice(None), *box)], removed[box].float()
    generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
    noise = _smooth(torch.randn(inside.shape, generator=generator)).to(image.device)
    a, b, c, level = weights.tolist()
    painted = a * part[0] + b * part[2] + c * part[3] + level + spread / noise.std() * noise
    wide = torch.nn.functional.max_pool3d(inside[None], 3, 1, 1)[0]
    share = torch.maximum(_smooth(wide), inside) * (part[1] != 0)
    part[1] += share * (painted - part[1])  # `part` is a view


def _smooth(volume: torch.Tensor) -> torch.Tensor:
    """Mean of 3x3x3 voxels (HWD)."""
    return torch.nn.functional.avg_pool3d(volume[None], 3, 1, 1)[0]
