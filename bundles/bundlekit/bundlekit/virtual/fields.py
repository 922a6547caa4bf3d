"""Smooth random fields and radial pushes, both functions of position in millimetres.

A field is drawn once, on its own lattice, and can then be evaluated on any sampling grid, so that the same case at
a coarser grid is the same head and the same tumour, only sampled more coarsely. Positions are PyTorch tensors, and
what is made of them lies on their device.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

FIELD_MM = (240.0, 240.0, 155.0)
"""Field of view of every virtual image along x, y and z, in mm: that of BraTS."""

Axes = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""Sampling positions along x, y and z, in mm: the continuous index of a 1 mm BraTS grid, -0.5 to 239.5 in x and y."""

Positions = tuple[np.ndarray, np.ndarray, np.ndarray]
"""`Axes` as arrays."""

_UNIT = 0.479 ** (-3 / 2)  # a cubic B-spline keeps 0.479 of white noise's variance per axis; this undoes three axes


@dataclass(frozen=True)
class SmoothField:
    """Cubic B-spline field with random control points, mean 0, standard deviation about 1, over the whole field.

    `coefficients`: float32 (nx, ny, nz); `pitch_mm`: distance between control points, about the size of a feature.
    """

    coefficients: np.ndarray
    pitch_mm: float

    @classmethod
    def draw(cls, rng: np.random.Generator, pitch_mm: float) -> SmoothField:
        """Draws the control points, `pitch_mm` apart; the number of draws depends on nothing else."""
        size = tuple(math.ceil((length + 2) / pitch_mm) + 3 for length in FIELD_MM)
        return cls(rng.standard_normal(size, dtype=np.float32) * np.float32(_UNIT), pitch_mm)

    def at(self, axes: Axes) -> torch.Tensor:
        """Values on the grid spanned by `axes` (lengths X, Y, Z): float32 (X, Y, Z)."""
        values = torch.from_numpy(self.coefficients).to(axes[0].device, non_blocking=True)
        if values.device.type != "cpu":  # where an operation costs more than its arithmetic
            return self._by_products(values, axes)
        for axis in (2, 1, 0):  # each turn brings one axis from lattice to grid, and to the front
            values = values.movedim(2, 0)
            first, weights = _taps(axes[axis], values.shape[0], self.pitch_mm)
            # Written out: the last bit of a matrix product depends on the number of threads.
            found = weights[0].reshape(-1, 1, 1) * values[first]
            for tap in range(1, 4):
                found.addcmul_(weights[tap].reshape(-1, 1, 1), values[first + tap])
            values = found
        return values

    def _by_products(self, values: torch.Tensor, axes: Axes) -> torch.Tensor:
        """`at` in a quarter of the operations, equal up to rounding."""
        for axis in (2, 1, 0):
            control = torch.arange(values.shape[2], dtype=torch.float64, device=values.device)
            place = ((axes[axis][:, None] + 1) / self.pitch_mm).clamp(0, len(control) - 3)
            far = (place + 1 - control).abs()
            weights = ((2 - far).clamp(min=0) ** 3 - 4 * (1 - far).clamp(min=0) ** 3) / 6
            values = torch.tensordot(weights.float(), values, dims=([1], [2]))
        return values

    def array_at(self, positions: Positions) -> np.ndarray:
        """`at` for arrays."""
        return self.at(as_axes(positions)).numpy()


@dataclass(frozen=True)
class Push:
    """Pushes tissue radially away from `centre` (3, mm): by `peak_mm` at distance `radius_mm`, less nearer and further.

    The push is 2 p t / (1 + t^2) * exp(-(r / reach)^2) with t = r / radius and p the peak, so it is 0 at the centre,
    and it does not fold space while the peak stays under half of the radius. A negative peak pulls.
    """

    centre: np.ndarray
    radius_mm: float
    peak_mm: float
    reach_mm: float = 75.0

    def sources(self, points: torch.Tensor) -> torch.Tensor:
        """What to add to `points` (3, ...), mm, to find where their tissue was before the push: float32 (3, ...)."""
        centre = torch.as_tensor(self.centre, dtype=torch.float32).to(points.device, non_blocking=True)
        offset = points - centre.reshape((3,) + (1,) * (points.ndim - 1))
        square = offset[0] * offset[0] + offset[1] * offset[1] + offset[2] * offset[2]
        per_mm = torch.exp(square * -(self.reach_mm**-2))
        per_mm *= -2 * self.peak_mm / self.radius_mm
        per_mm /= 1 + square * self.radius_mm**-2
        return offset * per_mm


def as_axes(positions: Sequence[Any], device: torch.device | str = "cpu") -> Axes:
    """Positions along x, y and z (arrays or tensors, mm) as float64 tensors on `device`."""
    x, y, z = (torch.as_tensor(axis, dtype=torch.float64).to(device, non_blocking=True) for axis in positions)
    return x, y, z


def numbers_of(axes: Axes) -> list[list[float]]:
    """Positions along x, y and z as numbers: fetched together, since a GPU is waited for each time."""
    return [part.tolist() for part in torch.cat(axes).cpu().split([len(axis) for axis in axes])]


def _taps(positions: torch.Tensor, count: int, pitch_mm: float) -> tuple[torch.Tensor, torch.Tensor]:
    """First of the four control points that matter to each position, and the cubic B-spline's weights (4, N)."""
    place = ((positions.double() + 1.0) / pitch_mm).clamp(0, count - 3)  # outside of the field as at its border
    first = place.floor().clamp(0, count - 4)
    t = place - first
    weights = torch.stack([(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3]) / 6
    return first.long(), weights.float()
