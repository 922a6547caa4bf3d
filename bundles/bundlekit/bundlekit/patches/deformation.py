"""Random patches of a volume, deformed on the way: position, affine and elastic deformation in a single resampling."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from monai.transforms import Randomizable, Transform
from scipy.interpolate import BSpline
from scipy.spatial.transform import Rotation

_DRAWS = 200  # a brain fills more than a tenth of a head's bounding box: missed by chance 0.9 ** 200
_BORDER_POINTS = 2  # control points at each side that stay where they are, as in TorchIO


@dataclass(frozen=True)
class Deformation:
    """Where the voxels of a patch come from.

    Args:
        centre: of the patch in the volume, voxels.
        matrix: 3x3, from offsets in the patch to offsets in the volume; the identity is a plain crop.
        control: displacements of the control points, voxels, 3 x n x n x n over the patch; None for no elastic part.
    """

    centre: tuple[float, float, float]
    matrix: np.ndarray
    control: np.ndarray | None

    @property
    def plain(self) -> bool:
        """Whether it is a crop that needs no resampling."""
        return self.control is None and bool(np.array_equal(self.matrix, np.eye(3)))

    def sources(self, patch_size: Sequence[int]) -> torch.Tensor:
        """Voxel coordinates in the volume of every voxel of the patch: 3HWD, float32."""
        matrix = torch.from_numpy(self.matrix.astype(np.float32))
        axes = [torch.arange(n, dtype=torch.float32) - (n - 1) / 2 for n in patch_size]
        points = torch.empty(3, *patch_size)
        for i in range(3):  # a sum of three broadcast lines is cheaper than a grid times a matrix
            line = [matrix[i, j] * axes[j] for j in range(3)]
            points[i] = line[0][:, None, None] + line[1][None, :, None] + line[2][None, None, :] + self.centre[i]
        if self.control is not None:
            points += _spline(torch.from_numpy(self.control.astype(np.float32)), patch_size)
        return points


class RandDeformedPatchd(Randomizable, Transform):
    """Draw a patch of a volume, mostly from the brain, moved, rotated, scaled and elastically deformed.

    Crop, affine and elastic deformation are one map from the patch to the volume, so that every image is interpolated
    once (linearly; labels: nearest voxel) and the corners of a rotated patch are filled from the volume around it
    instead of with zeros; outside the volume its border is repeated. The elastic part is of the kind and size of
    TorchIO's `RandomElasticDeformation`: random displacements of coarse control points under cubic B-splines, the two
    outermost layers fixed. Draw and application are separate (`randomize`, `apply`).

    Args:
        patch_size: voxels along H, W, D; may exceed the volume.
        images: keys that are interpolated linearly, CxHWD.
        labels: keys that take the nearest voxel, CxHWD, any integer type.
        centre_key: 1HWD, of labels; a patch is centred where it is above `centre_above` ...
        centre_above: 0 for tissue classes: anywhere in the brain.
        centre_probability: ... with this probability, else anywhere in the volume.
        rare: values of `centre_key` that are too rare for that, and ...
        rare_probability: ... the probability, before all others, of a patch that is centred on one of them.
        affine_probability: of a rotation and scaling, 0 to 1.
        rotate_range: largest rotation about each axis, radians.
        scale_range: largest change of size along each axis, as a fraction.
        elastic_probability: of an elastic deformation, 0 to 1.
        control_points: along each axis of the patch, 5 or more, the fixed ones included.
        amplitude: largest displacement of a control point along each axis, as a fraction of the distance between
            control points, 0 to 0.5; above that it could fold. 0.47 is TorchIO's 7.5 voxels in a patch of 96.

    Raises:
        ValueError: for a probability or amplitude out of range, or too few control points.
    """

    def __init__(
        self,
        patch_size: Sequence[int],
        images: Sequence[str] = ("image",),
        labels: Sequence[str] = ("label",),
        centre_key: str = "label",
        centre_above: int = 0,
        centre_probability: float = 0.9,
        rare: Sequence[int] = (),
        rare_probability: float = 0.0,
        affine_probability: float = 0.5,
        rotate_range: float = 0.26,
        scale_range: float = 0.15,
        elastic_probability: float = 0.5,
        control_points: int = 7,
        amplitude: float = 0.47,
    ) -> None:
        self.patch_size = tuple(int(n) for n in patch_size)
        probabilities = {
            "centre_probability": centre_probability,
            "rare_probability": rare_probability,
            "affine_probability": affine_probability,
            "elastic_probability": elastic_probability,
        }
        for name, value in probabilities.items():
            if not 0 <= value <= 1:
                raise ValueError(f"{name} must be from 0 to 1, got {value}.")
        if control_points < 2 * _BORDER_POINTS + 1:
            raise ValueError(f"control_points must be 5 or more, got {control_points}.")
        if not 0 <= amplitude <= 0.5:
            raise ValueError(f"amplitude must be from 0 to 0.5 (more could fold the image), got {amplitude}.")
        self.images, self.labels = tuple(images), tuple(labels)
        self.centre_key = centre_key
        self.centre_above = centre_above
        self.centre_probability = centre_probability
        self.rare = tuple(int(value) for value in rare)
        self.rare_probability = rare_probability
        self.affine_probability = affine_probability
        self.rotate_range = rotate_range
        self.scale_range = scale_range
        self.elastic_probability = elastic_probability
        self.control_points = control_points
        self.amplitude = amplitude
        self.deformation: Deformation | None = None

    def randomize(self, data: Mapping[Hashable, Any]) -> None:
        """Draw `self.deformation`."""
        where = data[self.centre_key]
        shape = tuple(int(n) for n in where.shape[1:])
        anywhere = self.R.random() >= self.centre_probability
        voxel = [0, 0, 0]
        for _ in range(_DRAWS):  # rejection: no list of a million voxels to keep and read
            voxel = [int(self.R.randint(n)) for n in shape]
            if anywhere or int(where[(0, *voxel)]) > self.centre_above:
                break
        if self.rare_probability and self.R.random() < self.rare_probability:
            every = 3  # voxels: to find the middle of a patch, no more is needed
            found = np.argwhere(np.isin(np.asarray(where[0])[::every, ::every, ::every], self.rare))
            if len(found):
                voxel = [every * int(n) for n in found[int(self.R.randint(len(found)))]]
        matrix: np.ndarray = np.eye(3)
        if self.R.random() < self.affine_probability:
            angles = self.R.uniform(-self.rotate_range, self.rotate_range, 3)
            scales = self.R.uniform(1 - self.scale_range, 1 + self.scale_range, 3)
            matrix = Rotation.from_euler("xyz", angles).as_matrix() @ np.diag(1 / scales)
        control = None
        if self.R.random() < self.elastic_probability:
            n = self.control_points
            limits = [self.amplitude * size / (n - 1) for size in self.patch_size]
            control = self.R.uniform(-1, 1, (3, n, n, n)) * np.reshape(limits, (3, 1, 1, 1))
            inner: np.ndarray = np.zeros((n, n, n), bool)
            inner[(slice(_BORDER_POINTS, -_BORDER_POINTS),) * 3] = True
            control = control * inner
        centre = []
        for middle, n, size in zip(voxel, shape, self.patch_size, strict=True):
            start = min(max(middle - size // 2, 0), n - size) if n >= size else (n - size) // 2
            centre.append(start + (size - 1) / 2)
        self.deformation = Deformation((centre[0], centre[1], centre[2]), matrix, control)

    def apply(self, data: Mapping[Hashable, Any], deformation: Deformation) -> dict[Hashable, Any]:
        """A copy of `data` with the patch in place of each volume: images float32, labels in their own type."""
        result = dict(data)
        keys = [key for key in (*self.images, *self.labels) if key in data]
        if deformation.plain:
            starts = [round(c - (n - 1) / 2) for c, n in zip(deformation.centre, self.patch_size, strict=True)]
            for key in keys:
                result[key] = _crop(data[key], starts, self.patch_size)
            return result
        points = deformation.sources(self.patch_size)
        shape = data[keys[0]].shape[1:]
        low = [max(min(math.floor(float(points[i].min())), n - 2), 0) for i, n in enumerate(shape)]
        high = [
            min(max(math.ceil(float(points[i].max())) + 1, lo + 2), n)
            for i, lo, n in zip(range(3), low, shape, strict=True)
        ]
        for i in range(3):  # to grid_sample's -1 ... 1 over the box that is needed
            points[i].sub_(low[i]).mul_(2 / max(high[i] - low[i] - 1, 1)).sub_(1)
        grid = points.flip(0).permute(1, 2, 3, 0)[None]  # its last axis is in the order D, W, H
        box = (slice(None), *(slice(a, b) for a, b in zip(low, high, strict=True)))
        for key in keys:
            volume = data[key][box]
            mode = "bilinear" if key in self.images else "nearest"
            patch = F.grid_sample(volume[None].float(), grid, mode=mode, padding_mode="border", align_corners=True)[0]
            result[key] = patch if key in self.images else patch.to(volume.dtype)
        return result

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Replace the volumes of `data` by a random patch of them."""
        self.randomize(data)
        assert self.deformation is not None
        return self.apply(data, self.deformation)


def _crop(volume: torch.Tensor, starts: Sequence[int], size: Sequence[int]) -> torch.Tensor:
    """The patch as a copy; where it leaves the volume the border is repeated."""
    inside = [
        (max(start, 0), min(start + length, n)) for start, length, n in zip(starts, size, volume.shape[1:], strict=True)
    ]
    patch = volume[(slice(None), *(slice(a, b) for a, b in inside))]
    kind = patch.dtype
    patch = patch.to(torch.float32 if kind.is_floating_point else kind, copy=True).contiguous()
    padding = [(a - start, start + n - b) for (a, b), start, n in zip(inside, starts, size, strict=True)]
    if any(side for pair in padding for side in pair):
        sides = [side for pair in reversed(padding) for side in pair]
        patch = F.pad(patch[None].float(), sides, mode="replicate")[0].to(patch.dtype)
    return patch


def _spline(control: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """Cubic B-spline through a lattice of control points that spans the patch: 3 x n x n x n to 3 x `size`."""
    values = control
    for axis in (1, 2, 3):
        basis = _basis(int(control.shape[axis]), int(size[axis - 1]))
        values = torch.movedim(torch.tensordot(basis, values, dims=([1], [axis])), 0, axis)
    return values


def _basis(points: int, size: int) -> torch.Tensor:
    """Weights of `points` control points, spread over the patch and clamped at its ends, at each of `size` voxels."""
    knots = np.concatenate([np.zeros(3), np.linspace(0, 1, points - 2), np.ones(3)])
    weights = BSpline.design_matrix(np.linspace(0, 1, size), knots, 3).toarray()
    return torch.from_numpy(weights.astype(np.float32))
