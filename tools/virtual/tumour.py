"""A random glioma: where it sits, what it displaces, and the labels it leaves on a grid.

Labels are those of BraTS 2021: 1 necrotic or non-enhancing core, 2 oedema, 4 enhancing tumour.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage
from skimage.graph import MCP_Geometric

from tools.virtual.anatomy import Anatomy, Head
from tools.virtual.fields import FIELD_MM, Axes, Push, SmoothField

NECROSIS, OEDEMA, ENHANCING = 1, 2, 4

VOLUME_ML = (5.0, 200.0)
"""Range of the whole tumour (all labels), in ml; log-uniform."""

LOW_GRADE_SHARE = 0.2
"""Probability of a low-grade tumour: no enhancement (label 4), or nodules of it, see `NODULE_SHARE`."""

FOCI_SHARES = (0.8, 0.14, 0.06)
"""Probabilities of one focus, two, and three; the later ones are smaller."""

NODULE_SHARE = 0.3
"""Of the low-grade tumours: probability of small enhancing nodules, up to about 1.5 ml."""

SOLID_SHARE = 0.2
"""Of the enhancing tumours: probability of one that enhances throughout, with hardly any necrosis."""

INFILTRATIVE_SHARE = 0.15
"""Probability of a core that is a small part (1 to 10 %) of much oedema."""

VENTRICLE_SHARE = 0.2
"""Probability of a first focus beside a ventricle."""


@dataclass(frozen=True)
class Focus:
    """One ellipsoid-like focus: `centre` (3, mm), `radius_mm` of the sphere of its volume, `shape` (3, 3), det 1."""

    centre: np.ndarray
    radius_mm: float
    shape: np.ndarray


@dataclass(frozen=True)
class Lesion:
    """A tumour on a grid (X, Y, Z).

    `labels`: uint8, 0, 1, 2, 4; `oedema`: float32 0-1, how wet the tissue is, soft at its border.
    """

    labels: np.ndarray
    oedema: np.ndarray


class Tumour:
    """One random tumour in `head`: draw it once, then put it on any grid.

    `foci`: one or two; `enhancing`: whether label 4 occurs; `volume_ml`: all labels; `core_ml`: labels 1 and 4;
    `pushes`: the mass effect, for `Head.sample`.
    """

    def __init__(self, rng: np.random.Generator, head: Head) -> None:
        low_grade = bool(rng.uniform() < LOW_GRADE_SHARE)
        self._nodules_ml = float(rng.uniform(0.1, 1.5)) * (low_grade and rng.uniform() < NODULE_SHARE)
        self._solid = not low_grade and rng.uniform() < SOLID_SHARE
        self.enhancing = not low_grade or self._nodules_ml > 0
        self.volume_ml = float(np.exp(rng.uniform(*np.log(VOLUME_ML))))
        core = rng.uniform(*((0.3, 0.65) if low_grade else (0.15, 0.5)))
        infiltrative = np.exp(rng.uniform(np.log(0.01), np.log(0.1)))
        core = infiltrative if rng.uniform() < INFILTRATIVE_SHARE else core
        self.core_ml = self.volume_ml * core
        self.foci = _foci(rng, head, self.core_ml)
        firmness = rng.uniform(0.2, 0.42)
        self.pushes = tuple(_push(focus, firmness, self.volume_ml / self.core_ml) for focus in self.foci)
        self._rim_mm = min(rng.uniform(1.5, 5.0), 0.5 * self.foci[0].radius_mm)
        self._coarse, self._fine = SmoothField.draw(rng, 14.0), SmoothField.draw(rng, 5.0)
        self._rim, self._gaps = SmoothField.draw(rng, 7.0), SmoothField.draw(rng, 16.0)
        self._spread = SmoothField.draw(rng, 9.0)

    def label(self, anatomy: Anatomy, axes: Axes) -> Lesion:
        """The tumour on the grid spanned by `axes` (mm), where `anatomy` was sampled with `pushes`.

        Only grey and white matter is labelled, so the ventricles and the outside stay free. The volumes are met to
        the voxel: the core takes the voxels nearest to the foci, the oedema those that fluid reaches first from the
        core, which is along white matter.
        """
        tissue = anatomy.brain & (anatomy.csf < 0.5)
        voxel_ml = float(np.prod([axis[1] - axis[0] for axis in axes])) / 1000
        fine = self._fine.at(axes)
        beyond = self._beyond(anatomy, axes, fine)
        core, limit = _smallest(beyond, tissue, round(self.core_ml / voxel_ml))
        wetness = reach(core, anatomy, axes) + 2.5 * self._spread.at(axes) + 0.8 * fine + 8.0 * anatomy.gm
        wetness[core] = -1e3
        wet, edge = _smallest(wetness, tissue, round(self.volume_ml / voxel_ml))
        labels = np.where(wet, OEDEMA, 0).astype(np.uint8)
        labels[core] = NECROSIS
        if self.enhancing:
            index = np.flatnonzero(core)
            thick = self._rim_mm * (1 + 0.45 * self._rim.at(axes).ravel()[index])
            gaps = self._gaps.at(axes).ravel()[index]
            thick = np.where(gaps < -1.4, 0.0, thick)
            enhances = beyond.ravel()[index] > limit - thick
            if self._solid:
                enhances = self._rim.at(axes).ravel()[index] > -1.8
            if self._nodules_ml:
                speckle = self._rim.at(axes).ravel()[index] + gaps
                enhances = _smallest(-speckle, np.ones(len(index), bool), round(self._nodules_ml / voxel_ml))[0]
            labels.ravel()[index[enhances]] = ENHANCING
        oedema = 1 / (1 + np.exp(np.clip((wetness - edge) / max(1.5, 0.12 * edge), -20, 20)))
        oedema *= anatomy.brain & (wetness < edge + 6)
        return Lesion(labels, oedema.astype(np.float32))

    def _beyond(self, anatomy: Anatomy, axes: Axes, fine: np.ndarray) -> np.ndarray:
        """About how far each voxel lies outside the core, in mm (negative: inside): float32 (X, Y, Z)."""
        x, y, z = np.meshgrid(*(axis.astype(np.float32) for axis in axes), indexing="ij", sparse=True)
        size = self.foci[0].radius_mm
        nearest = np.full(anatomy.gm.shape, np.inf, np.float32)
        for focus in self.foci:
            cx, cy, cz = focus.centre.astype(np.float32)
            square = np.zeros_like(nearest)
            for row in focus.shape.astype(np.float32):
                square += (row[0] * (x - cx) + row[1] * (y - cy) + row[2] * (z - cz)) ** 2
            # The falx stops a focus from growing across the midline; fluid and the surface flatten it.
            side = np.sign(np.interp(focus.centre[0], *_side_profile(anatomy, axes, focus)))
            crossed = np.clip(-side * anatomy.side_mm, 0, 15)
            np.minimum(nearest, np.sqrt(square) - np.float32(focus.radius_mm) + 4.0 * crossed, out=nearest)
        nearest += 0.16 * size * self._coarse.at(axes) + min(0.06 * size, 1.2) * fine
        nearest += np.clip(3.0 - anatomy.depth_mm, 0, 6)
        return nearest.astype(np.float32)


def _foci(rng: np.random.Generator, head: Head, core_ml: float) -> tuple[Focus, ...]:
    axes = tuple(np.arange(2.0, length, 4.0) for length in FIELD_MM)
    seen = head.sample((axes[0], axes[1], axes[2]), 1.0)
    deep = (seen.wm > 0.5) & (seen.depth_mm > 10) & (seen.height_mm > -12) & (np.abs(seen.side_mm) > 9)
    fluid = ndimage.binary_dilation((seen.csf > 0.5) & (seen.depth_mm > 18), iterations=2)
    beside = deep & fluid if (deep & fluid).any() else deep
    at_ventricle = rng.uniform() < VENTRICLE_SHARE
    shapes = [ellipsoid(rng) for _ in FOCI_SHARES]
    count = 1 + int(np.searchsorted(np.cumsum(FOCI_SHARES), rng.uniform()))
    weight = np.array([1.0, rng.uniform(0.15, 0.6), rng.uniform(0.05, 0.3)])[:count]
    centres: list[np.ndarray] = []
    for allowed in (beside if at_ventricle else deep, deep, deep)[:count]:
        places = np.stack([axis[index] for axis, index in zip(axes, np.nonzero(allowed), strict=True)], -1)
        if centres:
            distance = np.linalg.norm(places[:, None] - np.stack(centres), axis=2).min(axis=1)
            apart = places[(distance > 25) & (distance < 60)]
            places = apart if len(apart) else places
        centres.append(places[rng.integers(len(places))] + rng.uniform(-2, 2, 3))
    parts = core_ml * weight / weight.sum()
    return tuple(Focus(c, _radius_mm(ml), shape) for c, ml, shape in zip(centres, parts, shapes, strict=False))


def _push(focus: Focus, firmness: float, wet_per_core: float) -> Push:
    radius = focus.radius_mm * (1 + 0.25 * (wet_per_core - 1)) ** (1 / 3)  # oedema swells too, but less
    return Push(focus.centre, radius, firmness * radius)


def _radius_mm(volume_ml: float) -> float:
    return (3000 * volume_ml / (4 * math.pi)) ** (1 / 3)


def ellipsoid(rng: np.random.Generator) -> np.ndarray:
    """A random (3, 3) that turns an ellipsoid into the unit sphere; determinant 1."""
    turn, _ = np.linalg.qr(rng.standard_normal((3, 3)))
    stretch = np.exp(rng.normal(0.0, 0.22, 3))
    return (turn * (stretch / np.cbrt(np.prod(stretch)))) @ turn.T


def _side_profile(anatomy: Anatomy, axes: Axes, focus: Focus) -> tuple[np.ndarray, np.ndarray]:
    j, k = (int(np.argmin(np.abs(axis - place))) for axis, place in zip(axes[1:], focus.centre[1:], strict=True))
    return axes[0], anatomy.side_mm[:, j, k]


def _smallest(score: np.ndarray, allowed: np.ndarray, count: int) -> tuple[np.ndarray, float]:
    """The `count` allowed voxels of smallest score, as bool like `score`, and the largest score among them."""
    index = np.flatnonzero(allowed)
    count = min(max(count, 1), len(index))
    order = np.argpartition(score.ravel()[index], count - 1)[:count]
    chosen = np.zeros(score.size, bool)
    chosen[index[order]] = True
    return chosen.reshape(score.shape), float(score.ravel()[index[order]].max())


def reach(core: np.ndarray, anatomy: Anatomy, axes: Axes, pitch_mm: float = 3.0) -> np.ndarray:
    """Travel cost of fluid from the core, in mm of white matter, found `pitch_mm` apart: float32 (X, Y, Z)."""
    counts = [max(2, min(len(axis), round((axis[-1] - axis[0]) / pitch_mm))) for axis in axes]
    picks = np.ix_(*(np.rint(np.linspace(0, n - 1, m)).astype(int) for n, m in zip(core.shape, counts, strict=True)))
    wm, brain = anatomy.wm[picks], anatomy.brain[picks]
    cost = 1.0 + 2.5 * anatomy.gm[picks] + 11.0 * anatomy.csf[picks]
    cost += 14.0 * ((np.abs(anatomy.side_mm[picks]) < 2.5) & (wm < 0.5))  # the falx; only the corpus callosum crosses
    starts = np.argwhere(core[picks] & brain)
    if not len(starts):
        where = np.argwhere(core).mean(axis=0) * (np.array(counts) - 1) / (np.array(core.shape) - 1)
        inside = np.argwhere(brain)
        starts = inside[[np.argmin(((inside - where) ** 2).sum(axis=1))]]
    step = [(axis[-1] - axis[0]) / (n - 1) for axis, n in zip(axes, counts, strict=True)]
    found, _ = MCP_Geometric(np.where(brain, cost, -1.0), sampling=tuple(step)).find_costs(starts.tolist())
    found = torch.from_numpy(np.minimum(found, 150.0).astype(np.float32))
    grown = torch.nn.functional.interpolate(found[None, None], size=core.shape, mode="trilinear", align_corners=True)
    return grown[0, 0].numpy()
