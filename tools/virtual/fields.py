"""Smooth random fields and radial pushes, both functions of position in millimetres.

A field is drawn once, on its own lattice, and can then be evaluated on any sampling grid, so that the same case at
a coarser grid is the same head and the same tumour, only sampled more coarsely.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy import sparse
from scipy.interpolate import BSpline

FIELD_MM = (240.0, 240.0, 155.0)
"""Field of view of every virtual image along x, y and z, in mm: that of BraTS."""

Axes = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Sampling positions along x, y and z, in mm: the continuous index of a 1 mm BraTS grid, -0.5 to 239.5 in x and y."""

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

    def at(self, axes: Axes) -> np.ndarray:
        """Values on the grid spanned by `axes` (lengths X, Y, Z): float32 (X, Y, Z)."""
        values = self.coefficients
        for axis in (2, 1, 0):  # each turn brings one axis from lattice to grid, and to the front
            values = np.moveaxis(values, 2, 0)
            basis = _basis(axes[axis], values.shape[0], self.pitch_mm)
            values = (basis @ values.reshape(values.shape[0], -1)).reshape(-1, *values.shape[1:])
        return values


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

    def sources(self, points: np.ndarray) -> np.ndarray:
        """What to add to `points` (3, ...), mm, to find where their tissue was before the push: float32 (3, ...)."""
        offset = points - np.asarray(self.centre, np.float32).reshape((3,) + (1,) * (points.ndim - 1))
        square = np.einsum("i...,i...->...", offset, offset)
        per_mm = np.exp(square * np.float32(-(self.reach_mm**-2)))
        per_mm *= np.float32(-2 * self.peak_mm / self.radius_mm)
        per_mm /= 1 + square * np.float32(self.radius_mm**-2)
        offset *= per_mm
        return offset


def _basis(positions: np.ndarray, count: int, pitch_mm: float) -> sparse.csr_array:
    # Sparse, as four control points matter to each position; and unlike a dense product its last bit does not depend
    # on the number of threads.
    knots = -1.0 + pitch_mm * np.arange(-3, count + 1)
    return BSpline.design_matrix(np.asarray(positions, np.float64), knots, 3).astype(np.float32)
