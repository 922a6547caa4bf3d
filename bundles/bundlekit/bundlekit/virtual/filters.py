"""Filters of a painted volume, on its device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F


def blur(image: torch.Tensor, sigma: Sequence[float]) -> torch.Tensor:
    """Gaussian of a standard deviation (voxels) along each axis, up to 3 of them away; the border is repeated.

    MONAI's `gaussian_1d` and `separable_filtering` round otherwise: a seed would give another image than it did.

    Args:
        image: HWD float32.
        sigma: along H, W and D; below 0.2 an axis is left as it is.
    """
    out = image[None, None]
    for axis, s in enumerate(sigma):
        if s < 0.2:
            continue
        reach = min(max(int(3 * s + 0.5), 1), image.shape[axis] - 1)
        x = torch.arange(-reach, reach + 1, dtype=torch.float32, device=image.device)
        kernel = torch.exp(-0.5 * (x / s) ** 2)
        shape, padding = [1, 1, 1, 1, 1], [0] * 6
        shape[2 + axis] = len(x)
        padding[2 * (2 - axis)] = padding[2 * (2 - axis) + 1] = reach
        out = F.conv3d(F.pad(out, padding, mode="replicate"), (kernel / kernel.sum()).reshape(shape))
    return out[0, 0]


def resample(image: torch.Tensor, slices: Sequence[float]) -> torch.Tensor:
    """As if acquired in voxels of that size (relative to the image's) and interpolated back, HWD."""
    if max(slices) <= 1:
        return image
    coarse = [max(round(n / s), 2) for n, s in zip(image.shape, slices, strict=True)]
    low = blur(image, tuple(0.42 * s if s > 1 else 0.0 for s in slices))[None, None]
    low = F.interpolate(low, coarse, mode="trilinear", align_corners=True)
    return F.interpolate(low, tuple(image.shape), mode="trilinear", align_corners=True)[0, 0]


def smooth(control: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """Smooth field through coarse control points; cubic in-between values are not needed at this smoothness."""
    return F.interpolate(control[None, None], tuple(shape), mode="trilinear", align_corners=True)[0, 0]


def smooth_noise(shape: Sequence[int], distance: int, generator: torch.Generator) -> torch.Tensor:
    """Noise of deviation 1 at control points so many voxels apart, smooth between them, HWD."""
    coarse = [max(round(n / distance), 2) for n in shape]
    return smooth(torch.randn(coarse, generator=generator, device=generator.device), shape)


def shift(image: torch.Tensor, offset: Sequence[float]) -> torch.Tensor:
    """What a grid sees that is moved by a part of a voxel: each voxel holds some of its neighbour.

    Args:
        image: HWD float32.
        offset: along H, W and D, in voxels, their sizes 0.5 or less together: a voxel then keeps at least half of its
            own, (1 - |x|)(1 - |y|)(1 - |z|), so that its label stays true.

    Raises:
        ValueError: for a larger offset.
    """
    if sum(abs(o) for o in offset) > 0.5 + 1e-6:
        raise ValueError(f"offset must be 0.5 voxels or less along all axes together, got {tuple(offset)}.")
    for axis, o in enumerate(offset):
        n = image.shape[axis]
        beside = torch.arange(n, device=image.device).add(1 if o > 0 else -1).clamp(0, n - 1)
        image = (1 - abs(o)) * image + abs(o) * image.index_select(axis, beside)
    return image
