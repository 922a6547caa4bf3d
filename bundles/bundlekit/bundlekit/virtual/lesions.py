"""The metastases of one patient, drawn once and put on any grid."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from bundlekit.virtual.anatomy import Anatomy, Head
from bundlekit.virtual.fields import Positions, SmoothField, as_axes
from bundlekit.virtual.metastasis import DIAMETER_MM, Metastasis, draw_metastasis, levels, resized
from bundlekit.virtual.places import draw_places, square_to
from bundlekit.virtual.tumour import interpolate, reach

NETC, SNFH, ET = 1, 2, 3

MOST_LESIONS = 15
"""Most lesions in one brain."""

_Box = tuple[slice, slice, slice]


@dataclass(frozen=True)
class Part:
    """One lesion in its `box` of a grid: the fractions 0-1 of its voxels that enhance and that are necrotic."""

    lesion: Metastasis
    box: _Box
    enhancing: np.ndarray
    necrotic: np.ndarray


@dataclass(frozen=True)
class Spread:
    """The lesions of a visit on a grid (X, Y, Z).

    `labels`: uint8, 0, 1, 2, 3; `instances`: uint8, the number, from 1, of the lesion that a voxel with label 1 or 3
    belongs to; `oedema`: float32 0-1, how wet the tissue is; `parts`: the lesions, for painting.
    """

    labels: np.ndarray
    instances: np.ndarray
    oedema: np.ndarray
    parts: tuple[Part, ...]


class Metastases:
    """The lesions of one patient in `head`: draw them once, then put them on any grid.

    `visits`: the lesions at each of two visits; those that stay keep their order, new ones come last.
    """

    def __init__(self, rng: np.random.Generator, head: Head) -> None:
        first = _truncated_geometric(rng.uniform(), 0.82, MOST_LESIONS)
        new = min(int(rng.integers(1, 4)) * int(rng.uniform() < 0.5), MOST_LESIONS - first)
        low, high = DIAMETER_MM
        # Most are small, but the one that brought the patient to the scanner often is not.
        weight = np.where(np.arange(first + new) == 0, 1.0, 2.0)
        diameter = low * (high / low) ** (rng.uniform(size=first + new) ** weight)
        growth = np.exp(rng.normal(-0.05, 0.25) + rng.normal(0.0, 0.2, first + new))
        later = np.minimum(diameter * growth, high)
        bleeds = 0.6 if rng.uniform() < 0.15 else 0.02  # of some primaries (melanoma, kidney) many bleed
        places = draw_places(rng, head, np.maximum(diameter, later) / 2)
        self._outline, self._fine = SmoothField.draw(rng, 9.0), SmoothField.draw(rng, 4.0)
        self._rim, self._fingers, self._patch = (SmoothField.draw(rng, pitch) for pitch in (6.0, 8.0, 3.0))
        visits: tuple[list[Metastasis], list[Metastasis]] = [], []
        for index, place in places:
            lesion = draw_metastasis(rng, place, diameter[index], bleeds)
            if index < first:
                visits[0].append(lesion)
                if later[index] >= low:  # smaller than that, it counts as gone
                    visits[1].append(resized(lesion, later[index] / 2))
            else:
                visits[1].append(lesion)
        self.visits = tuple(visits[0]), tuple(visits[1] or visits[0])  # a patient without lesions would not be here

    def label(self, lesions: Sequence[Metastasis], anatomy: Anatomy[np.ndarray], axes: Positions) -> Spread:
        """`lesions` on the grid spanned by `axes` (mm), where `anatomy` was sampled with their pushes."""
        shape = anatomy.brain.shape
        labels, instances = np.zeros(shape, np.uint8), np.zeros(shape, np.uint8)
        oedema = np.zeros(shape, np.float32)
        parts = []
        for number, lesion in enumerate(lesions, 1):
            box = _near(lesion, 2.0 * lesion.radius_mm + 2.0, axes)
            if box is None:
                continue
            part = self._part(lesion, box, _crop(anatomy, box), _cut(axes, box))
            mine = (part.enhancing + part.necrotic > 0.5) & (instances[box] == 0)
            instances[box][mine] = number
            labels[box][mine] = np.where(part.necrotic > part.enhancing, NETC, ET)[mine]
            parts.append(part)
            if lesion.oedema_mm:
                wide = _near(lesion, lesion.radius_mm + max(1.4 * lesion.oedema_mm + 4.0, lesion.radius_mm + 2.0), axes)
                assert wide is not None  # it holds the first box
                core = instances[wide] == number
                wet = self._wet(lesion, core, _crop(anatomy, wide), _cut(axes, wide))
                np.maximum(oedema[wide], wet, out=oedema[wide])
        labels[(oedema > 0.5) & (labels == 0) & anatomy.brain & (anatomy.csf < 0.5)] = SNFH
        return Spread(labels, instances, oedema, tuple(parts))

    def paint(self, signal: np.ndarray, spread: Spread, scan: str, enhancement: float, axes: Positions) -> None:
        """Puts the lesions into `signal` (X, Y, Z; white matter = 1) of one of SCANS; `enhancement`: typical on t1c."""
        for part in spread.parts:
            solid, core = levels(part.lesion, scan, enhancement)
            own = _cut(axes, part.box)
            patch = self._patch.array_at(own).clip(-2, 2)
            uneven = 1 + 0.06 * patch
            lit = solid * uneven
            if scan == "t1c":  # what hardly takes up contrast still differs from white matter
                patch = (0.7 * patch + 0.7 * self._rim.array_at(own)).clip(-2, 2)
                lit = np.maximum(solid * (1 + part.lesion.patchiness * patch), min(solid, 1.1))
            here = signal[part.box]
            here *= 1 - part.enhancing - part.necrotic
            here += lit * part.enhancing + core * (0.5 + 0.5 * uneven) * part.necrotic

    def _part(self, lesion: Metastasis, box: _Box, anatomy: Anatomy[np.ndarray], axes: Positions) -> Part:
        """Samples the lesion finer than the grid, then averages over each voxel."""
        finest = float(np.clip(lesion.radius_mm / 3, 0.5, 1.5))
        spacing = [axis[1] - axis[0] for axis in axes]
        times = [max(1, math.ceil(step / finest - 1e-6)) for step in spacing]
        step = float(np.mean([step / n for step, n in zip(spacing, times, strict=True)]))
        fine = [
            (axis[:, None] + step * ((np.arange(n) + 0.5) / n - 0.5)).ravel()
            for axis, step, n in zip(axes, spacing, times, strict=True)
        ]
        # In the lesion's own frame, where its radius is 1, so that an outline grows with its lesion.
        x, y, z = ((axis - centre) / lesion.radius_mm for axis, centre in zip(fine, lesion.centre, strict=True))
        beyond = lesion.radius_mm * (self._uneven(lesion, (x, y, z)) - self._size(lesion))
        # The skull flattens a lesion, and the falx keeps it on its side.
        side = math.copysign(1.0, float(anatomy.side_mm.ravel()[np.argmin(_square(lesion, axes))]))
        bound = np.clip(2.0 - anatomy.depth_mm, 0, 6)
        bound += np.clip(1.0 - side * anatomy.side_mm, 0, 6) * (anatomy.height_mm > -5)
        beyond += _spread(bound, times)
        inside = np.clip(0.5 - beyond / step, 0, 1)
        thickness = 1 + lesion.uneven_rim * self._rim.array_at(_anchored(lesion, (x, y, z)))
        rim = lesion.rim_mm * thickness.clip(0.68, 2.5)
        necrotic = np.clip(0.5 - (beyond + rim) / step, 0, 1) if np.isfinite(lesion.rim_mm) else np.zeros_like(inside)
        filled, core = (_mean(volume, times) * anatomy.brain for volume in (inside, np.minimum(necrotic, inside)))
        return Part(lesion, box, filled - core, core)

    def _uneven(self, lesion: Metastasis, own: Positions) -> np.ndarray:
        """About how far outside the lesion each point of its own frame lies, in radii, but for a constant."""
        x, y, z = (axis.astype(np.float32) for axis in np.meshgrid(*own, indexing="ij", sparse=True))
        square = np.zeros([len(axis) for axis in own], np.float32)
        for row in lesion.shape.astype(np.float32):
            square += (row[0] * x + row[1] * y + row[2] * z) ** 2
        frame = _anchored(lesion, own)
        bumps = lesion.roughness * self._outline.array_at(frame).clip(-2, 2)
        bumps += 0.05 * self._fine.array_at(frame).clip(-2, 2)
        return np.sqrt(square) + bumps

    def _size(self, lesion: Metastasis) -> float:
        """The value of `_uneven` that encloses the volume of the unit sphere."""
        axis = np.arange(-2.0, 2.01, 0.16)
        values = self._uneven(lesion, (axis, axis, axis)).ravel()
        count = round(4 / 3 * math.pi / 0.16**3)
        return float(np.partition(values, count)[count])

    def _wet(self, lesion: Metastasis, core: np.ndarray, anatomy: Anatomy[np.ndarray], axes: Positions) -> np.ndarray:
        """Oedema of one lesion, 0-1: fluid runs along white matter and spares the cortex."""
        far = lesion.oedema_mm
        if not core.any():  # smaller than a voxel: start from the nearest one
            core.ravel()[np.argmin(_square(lesion, axes))] = True
        here = as_axes(axes)
        cost = interpolate(*reach(torch.from_numpy(core), anatomy.tensors(), here, max(2.0, far / 8)), here).numpy()
        cost += 0.25 * far * self._fingers.array_at(axes).clip(-2, 2) + 6.0 * anatomy.gm
        wet = 1 / (1 + np.exp(np.clip((cost - far) / max(0.8, 0.1 * far), -20, 20)))
        return (wet * (anatomy.brain & (cost < 1.4 * far))).astype(np.float32)


def _truncated_geometric(uniform: float, keep: float, most: int) -> int:
    """1 to `most`, each number `keep` times as likely as the one before."""
    return min(most, 1 + int(math.log1p(-uniform * (1 - keep**most)) / math.log(keep)))


def _anchored(lesion: Metastasis, own: Positions) -> Positions:
    """Where points of the lesion's own frame lie in the fields: its radius is 10 mm there."""
    x, y, z = (at + np.clip(10 * axis, -35, 35) for at, axis in zip(lesion.anchor, own, strict=True))
    return x, y, z


def _square(lesion: Metastasis, axes: Positions) -> np.ndarray:
    return square_to(lesion.centre, axes)


def _near(lesion: Metastasis, margin_mm: float, axes: Positions) -> _Box | None:
    """The part of the grid within `margin_mm` of the lesion's centre, at least 2 samples wide; None if outside."""
    slices = []
    for axis, centre in zip(axes, lesion.centre, strict=True):
        low, high = (int(np.searchsorted(axis, centre + way * margin_mm)) for way in (-1, 1))
        if high == 0 or low == len(axis):
            return None
        low = min(max(low - 1, 0), len(axis) - 2)
        slices.append(slice(low, max(high + 1, low + 2)))
    return slices[0], slices[1], slices[2]


def _cut(axes: Positions, box: _Box) -> Positions:
    return axes[0][box[0]], axes[1][box[1]], axes[2][box[2]]


def _crop(anatomy: Anatomy[np.ndarray], box: _Box) -> Anatomy:
    return Anatomy(**{field.name: getattr(anatomy, field.name)[box] for field in dataclasses.fields(anatomy)})


def _spread(volume: np.ndarray, times: list[int]) -> np.ndarray:
    """Each voxel repeated `times` along each axis."""
    for axis, n in enumerate(times):
        volume = np.repeat(volume, n, axis)
    return volume


def _mean(volume: np.ndarray, times: list[int]) -> np.ndarray:
    """The mean over blocks of `times`, the opposite of `_spread`."""
    x, y, z = (n // by for n, by in zip(volume.shape, times, strict=True))
    return volume.reshape(x, times[0], y, times[1], z, times[2]).mean(axis=(1, 3, 5))
