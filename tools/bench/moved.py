"""Scans as a scanner might have made them of a head that has moved: thick slices, noise, a field that ends early."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.spatial.transform import Rotation

from bundlekit.preparation.grids import Grid, resample, split
from bundlekit.preparation.registration import Volume

_SLICE_MM = 5


@dataclass(frozen=True)
class Head:
    """A scan before it is moved.

    Args:
        voxels: HWD, air 0.
        brain: HWD bool.
        affine: 4x4, voxel to mm, RAS+.
    """

    voxels: np.ndarray
    brain: np.ndarray
    affine: np.ndarray

    @property
    def middle(self) -> np.ndarray:
        """Of the image, mm."""
        return self.affine[:3, :3] @ ((np.asarray(self.voxels.shape) - 1) / 2) + self.affine[:3, 3]


def random_move(head: Head, rotation: float, shift: float, draw: np.random.Generator) -> np.ndarray:
    """4x4, mm, from a point of the moved image to that of the original: about any axis, in any direction.

    Args:
        head: is turned about the middle of its image.
        rotation: largest angle, degrees.
        shift: largest shift, mm.
        draw: the random numbers.
    """
    axis, towards = draw.normal(size=(2, 3))
    degrees, length = draw.uniform(0, rotation), draw.uniform(0, shift)
    move = np.eye(4)
    move[:3, :3] = Rotation.from_rotvec(np.deg2rad(degrees) * axis / np.linalg.norm(axis)).as_matrix()
    move[:3, 3] = head.middle - move[:3, :3] @ head.middle + length * towards / np.linalg.norm(towards)
    return move


class Stack:
    """Slices of 5 mm along one of the axes of a head that has moved; their field is a fifth larger than its image.

    At one end a share of the brain is missing, and all that lies beyond.

    Args:
        head: the scan.
        move: 4x4, as of `random_move`.
        cut: largest share of the brain that is missing, 0 to 0.5; 0: the field is whole.
        draw: the axis, the share and the end.

    Raises:
        ValueError: for another `cut`.
    """

    def __init__(self, head: Head, move: np.ndarray, cut: float, draw: np.random.Generator) -> None:
        if not 0 <= cut <= 0.5:
            raise ValueError(f"cut must be from 0 to 0.5, got {cut}.")
        self._axis = int(draw.integers(3))
        share, lower = draw.uniform(0, cut), bool(draw.integers(2))
        self._head, self._move = head, move
        self._parts = [1, 1, 1]
        self._parts[self._axis] = _SLICE_MM
        counts = np.ceil(np.asarray(head.voxels.shape) * 1.2 / self._parts).astype(int)
        affine = head.affine.copy()
        affine[:3, self._axis] *= _SLICE_MM
        affine[:3, 3] = head.middle - affine[:3, :3] @ ((counts - 1) / 2)
        self.grid = Grid(tuple(int(n) for n in counts), affine)  # type: ignore[arg-type]
        inside = self.average(head.brain) > 0.5
        held = np.cumsum(np.moveaxis(inside, self._axis, -1).sum((0, 1))) / max(int(inside.sum()), 1)
        first, last = 0, len(held)
        if lower and cut:
            first = int(np.searchsorted(held, share, side="right"))
            affine[:3, 3] += affine[:3, self._axis] * first
        elif cut:
            last = int(np.searchsorted(held, 1 - share)) + 1
        shape = np.where(np.arange(3) == self._axis, last - first, counts)
        self.grid = Grid(tuple(int(n) for n in shape), affine)  # type: ignore[arg-type]

    def average(self, array: np.ndarray) -> np.ndarray:
        """What lies on the head's grid (HWD), on that of the slices: HWD float32."""
        thin = split(self.grid, self._parts)
        fine = np.moveaxis(resample(array.astype(np.float32), self._head.affine, thin, self._move), self._axis, -1)
        thick = fine.reshape(*fine.shape[:2], -1, _SLICE_MM).mean(-1)
        return np.ascontiguousarray(np.moveaxis(thick, -1, self._axis))

    def scan(self, noise: float, draw: np.random.Generator) -> Volume:
        """The scan with Rician noise, and its brain.

        Args:
            noise: standard deviation, as a share of the 99th percentile of the intensities.
            draw: the noise.
        """
        image = self.average(self._head.voxels)
        sigma = noise * np.percentile(self._head.voxels[self._head.voxels > 0], 99)
        parts = draw.normal(0, sigma, (2, *image.shape)).astype(np.float32)
        return Volume(np.hypot(image + parts[0], parts[1]), self.grid.affine, self.average(self._head.brain) > 0.5)
