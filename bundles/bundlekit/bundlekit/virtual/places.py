"""Where metastases lie: mostly between grey and white matter, apart from each other and from the ventricles."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from bundlekit.virtual.anatomy import Head
from bundlekit.virtual.fields import FIELD_MM, Positions, as_axes


def draw_places(rng: np.random.Generator, head: Head, radii: np.ndarray) -> list[tuple[int, np.ndarray]]:
    """A centre (mm) for each of `radii` (mm), the largest first: (index, centre), in the order of `radii`.

    Most lie between grey and white matter of the cerebrum, where vessels narrow; some in the cerebellum, a few in the
    deep grey matter. A lesion for which no place is left is dropped.
    """
    first, second, third = (np.arange(1.5, length, 3.0) for length in FIELD_MM)
    axes = (first, second, third)
    seen = head.sample(as_axes(axes), 1.0).numpy()
    lateral, height = np.abs(seen.side_mm), seen.height_mm
    behind = np.broadcast_to(axes[1][None, :, None] > 150, height.shape)
    below = (height < -14) & behind
    cerebrum = ~below & ((height > -10) | (lateral > 20))
    junction = np.where(cerebrum & (seen.depth_mm < 32), 4 * seen.gm * seen.wm + 0.02 * (seen.wm > 0.8), 0.0)
    deep = cerebrum & (seen.gm > 0.4) & (seen.depth_mm > 34) & (height > -5) & (height < 25)
    regions = [junction, (below & (seen.csf < 0.15)).astype(float), deep.astype(float)]
    ventricle = (seen.csf > 0.7) & (seen.depth_mm > 18)
    dry_mm = ndimage.distance_transform_edt(~ventricle, sampling=3.0)
    kinds = rng.choice(3, size=len(radii), p=(0.8, 0.14, 0.06))
    jitter = rng.uniform(-1.5, 1.5, (len(radii), 3))
    found: dict[int, np.ndarray] = {}
    for index in np.argsort(-radii, kind="stable"):
        radius, spin = radii[index], rng.uniform()
        free = (seen.depth_mm > 3.0 + 0.5 * radius) & (dry_mm > radius + 2) & (seen.csf < 0.5)
        free &= (lateral > 0.6 * radius + 2) | below
        for other, place in found.items():
            free &= square_to(place, axes) > (1.45 * (radius + radii[other]) + 4) ** 2
        weight = np.cumsum(np.where(free, regions[kinds[index]], 0.0))
        if weight[-1] == 0:
            continue
        spot = np.unravel_index(np.searchsorted(weight, spin * weight[-1], side="right"), free.shape)
        found[int(index)] = np.array([axis[n] for axis, n in zip(axes, spot, strict=True)]) + jitter[index]
    return sorted(found.items())


def square_to(place: np.ndarray, axes: Positions) -> np.ndarray:
    """Squared distance (mm^2) to `place` (3, mm) on the grid of `axes`: (X, Y, Z)."""
    x, y, z = ((axis.reshape([-1 if n == k else 1 for n in range(3)]) - place[k]) ** 2 for k, axis in enumerate(axes))
    return x + y + z
