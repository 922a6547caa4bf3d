"""A random glioma: where it sits, what it displaces, and the labels it leaves on a grid.

Labels are those of BraTS 2021: 1 necrotic or non-enhancing core, 2 oedema, 4 enhancing tumour.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage

from bundlekit.virtual.anatomy import Anatomy, Head
from bundlekit.virtual.fields import FIELD_MM, Axes, Push, SmoothField, as_axes, numbers_of

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
    """One ellipsoid-like focus.

    `centre` (3, mm); `side`: 1 right of the midline, -1 left of it; `radius_mm` of the sphere of its volume; `shape`
    (3, 3), determinant 1.
    """

    centre: np.ndarray
    side: float
    radius_mm: float
    shape: np.ndarray


@dataclass(frozen=True)
class Lesion:
    """A tumour on a grid (X, Y, Z).

    `labels`: uint8, 0, 1, 2, 4; `oedema`: float32 0-1, how wet the tissue is, soft at its border.
    """

    labels: torch.Tensor
    oedema: torch.Tensor


@dataclass(frozen=True)
class Extent:
    """How far a tumour grows, measured on a grid of the whole head.

    `core`, `wet`, `nodules`: thresholds of the scores whose smallest voxels make up these parts; `cost` (X, Y, Z):
    travel cost of fluid from the core, see `reach`, at the positions `axes` (mm).
    """

    core: float
    wet: float
    nodules: float
    cost: torch.Tensor
    axes: Axes


class Tumour:
    """One random tumour in `head`: draw it once, then put it on any grid.

    `foci`: one to three; `enhancing`: whether label 4 occurs; `volume_ml`: all labels; `core_ml`: labels 1 and 4;
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

    def label(self, anatomy: Anatomy[torch.Tensor], axes: Axes, extent: Extent | None = None) -> Lesion:
        """The tumour on the grid spanned by `axes` (mm), where `anatomy` was sampled with `pushes`.

        Only grey and white matter is labelled, so the ventricles and the outside stay free. The core takes the voxels
        nearest to the foci, the oedema those that fluid reaches first from the core, which is along white matter.

        Args:
            anatomy: on that grid.
            axes: of a whole head, where the volumes are met to the voxel, or of a part of it.
            extent: from `measure`, for a part.
        """
        tissue = anatomy.brain & (anatomy.csf < 0.5)
        fine = self._fine.at(axes)
        beyond = self._beyond(anatomy, axes, fine)
        if extent is None:
            extent = self._measure(anatomy, axes, tissue, fine, beyond)
        core = (beyond <= extent.core) & tissue
        wetness = self._wetness(anatomy, axes, fine, core, extent)
        labels = ((wetness <= extent.wet) & tissue).to(torch.uint8) * OEDEMA
        labels[core] = NECROSIS
        if self.enhancing:
            rim, gaps = self._rim.at(axes), self._gaps.at(axes)
            if self._nodules_ml:
                enhances = -(rim + gaps) <= extent.nodules
            elif self._solid:
                enhances = rim > -1.8
            else:
                thick = torch.where(gaps < -1.4, 0.0, self._rim_mm * (1 + 0.45 * rim))
                enhances = beyond > extent.core - thick
            labels[core & enhances] = ENHANCING
        oedema = torch.sigmoid(-(wetness - extent.wet) / max(1.5, 0.12 * extent.wet))
        return Lesion(labels, oedema * (anatomy.brain & (wetness < extent.wet + 6)))

    def measure(self, anatomy: Anatomy[torch.Tensor], axes: Axes) -> Extent:
        """How far the tumour grows, from a grid of the whole head, which may be coarse."""
        fine = self._fine.at(axes)
        tissue = anatomy.brain & (anatomy.csf < 0.5)
        return self._measure(anatomy, axes, tissue, fine, self._beyond(anatomy, axes, fine))

    def _measure(
        self, anatomy: Anatomy[torch.Tensor], axes: Axes, tissue: torch.Tensor, fine: torch.Tensor, beyond: torch.Tensor
    ) -> Extent:
        voxel_ml = math.prod(axis[1] - axis[0] for axis in numbers_of(axes)) / 1000
        inside = tissue.ravel().nonzero()[:, 0]
        limit = _threshold(beyond.ravel()[inside], self.core_ml / voxel_ml)
        core = (beyond <= limit) & tissue
        nodules = math.inf
        if self._nodules_ml:
            nodules = _threshold(-(self._rim.at(axes) + self._gaps.at(axes))[core], self._nodules_ml / voxel_ml)
        cost, where = reach(core, anatomy, axes)
        extent = Extent(limit, math.inf, nodules, cost, where)
        wetness = self._wetness(anatomy, axes, fine, core, extent)
        return dataclasses.replace(extent, wet=_threshold(wetness.ravel()[inside], self.volume_ml / voxel_ml))

    def _wetness(
        self, anatomy: Anatomy[torch.Tensor], axes: Axes, fine: torch.Tensor, core: torch.Tensor, extent: Extent
    ) -> torch.Tensor:
        wetness = (
            interpolate(extent.cost, extent.axes, axes) + 2.5 * self._spread.at(axes) + 0.8 * fine + 8.0 * anatomy.gm
        )
        wetness[core] = -1e3
        return wetness

    def _beyond(self, anatomy: Anatomy[torch.Tensor], axes: Axes, fine: torch.Tensor) -> torch.Tensor:
        """About how far each voxel lies outside the core, in mm (negative: inside): float32 (X, Y, Z)."""
        x, y, z = (axis.float().reshape([-1 if n == k else 1 for n in range(3)]) for k, axis in enumerate(axes))
        size = self.foci[0].radius_mm
        nearest = torch.full_like(fine, math.inf)
        for focus in self.foci:
            cx, cy, cz = focus.centre.tolist()
            square = torch.zeros_like(fine)
            for row in focus.shape.tolist():
                square += (row[0] * (x - cx) + row[1] * (y - cy) + row[2] * (z - cz)) ** 2
            # The falx stops a focus from growing across the midline; fluid and the surface flatten it.
            crossed = (-focus.side * anatomy.side_mm).clamp(0, 15)
            nearest = torch.minimum(nearest, square.sqrt() - focus.radius_mm + 4.0 * crossed)
        nearest += 0.16 * size * self._coarse.at(axes) + min(0.06 * size, 1.2) * fine
        nearest += (3.0 - anatomy.depth_mm).clamp(0, 6)
        return nearest


def _foci(rng: np.random.Generator, head: Head, core_ml: float) -> tuple[Focus, ...]:
    axes = tuple(np.arange(2.0, length, 4.0) for length in FIELD_MM)
    seen = head.sample(as_axes(axes, head.device), 1.0).numpy()
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
    sides = []
    for centre in centres:
        at = tuple(int(np.argmin(np.abs(axis - place))) for axis, place in zip(axes, centre, strict=True))
        sides.append(float(np.sign(seen.side_mm[at])))
    return tuple(
        Focus(centre, side, _radius_mm(ml), shape)
        for centre, side, ml, shape in zip(centres, sides, parts, shapes, strict=False)
    )


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


def _threshold(score: torch.Tensor, count: float) -> float:
    """The score of the `count`-th smallest."""
    return float(score.kthvalue(min(max(round(count), 1), len(score))).values)


def reach(
    core: torch.Tensor, anatomy: Anatomy[torch.Tensor], axes: Axes, pitch_mm: float = 3.0
) -> tuple[torch.Tensor, Axes]:
    """Travel cost of fluid from the core, in mm of white matter, about `pitch_mm` apart; and where that is.

    Costs beyond 150 are cut. For `interpolate`, which brings them to any grid.
    """
    bounds = [(axis[0], axis[-1]) for axis in numbers_of(axes)]
    counts = [
        max(2, min(len(axis), round((high - low) / pitch_mm))) for axis, (low, high) in zip(axes, bounds, strict=True)
    ]
    picks = [
        torch.linspace(0, n - 1, m, dtype=torch.float64, device=core.device).round().long()
        for n, m in zip(core.shape, counts, strict=True)
    ]
    here = torch.meshgrid(*picks, indexing="ij")
    wm, brain = anatomy.wm[here], anatomy.brain[here]
    cost = 1.0 + 2.5 * anatomy.gm[here] + 11.0 * anatomy.csf[here]
    cost += 14.0 * ((anatomy.side_mm[here].abs() < 2.5) & (wm < 0.5))  # the falx; only the corpus callosum crosses
    start = core[here] & brain
    if not start.any():  # smaller than the pitch: from the nearest point
        scale = (torch.tensor(counts, device=core.device) - 1) / (torch.tensor(core.shape, device=core.device) - 1)
        where = core.nonzero().double().mean(dim=0) * scale
        inside = brain.nonzero()
        start[tuple(inside[((inside - where) ** 2).sum(dim=1).argmin()])] = True
    ends = as_axes([torch.linspace(*bound, m) for bound, m in zip(bounds, counts, strict=True)])
    step = [float(axis[1] - axis[0]) for axis in ends]
    return _travel(torch.where(brain, cost, math.inf), start, step), as_axes(ends, core.device)


def _travel(cost: torch.Tensor, start: torch.Tensor, step: list[float], most: float = 150.0) -> torch.Tensor:
    """Least sum of `cost` (per mm; inf: closed) times length along the 26 directions from `start`, at most `most`.

    By relaxation of all points at once, which suits any device; scikit-image's MCP_Geometric runs on the CPU alone.
    """
    total = torch.nn.functional.pad(torch.where(start, 0.0, math.inf), [1] * 6, value=math.inf)
    price = torch.nn.functional.pad(cost / 2, [1] * 6, value=math.inf)
    middle = tuple(slice(1, n + 1) for n in cost.shape)
    moves = []
    for move in itertools.product((-1, 0, 1), repeat=3):
        if any(move):
            beside = tuple(slice(1 + by, n + 1 + by) for by, n in zip(move, cost.shape, strict=True))
            length = math.sqrt(sum((by * mm) ** 2 for by, mm in zip(move, step, strict=True)))
            moves.append((beside, (price[middle] + price[beside]) * length))
    for _ in range(sum(cost.shape)):
        before = total[middle].clone()
        for beside, paid in moves:
            torch.minimum(total[middle], total[beside] + paid, out=total[middle])
        # what lies further than `most` does not matter
        if torch.equal(before.clamp(max=most), total[middle].clamp(max=most)):
            break
    return total[middle].clamp(max=most)


def interpolate(volume: torch.Tensor, source: Axes, axes: Axes) -> torch.Tensor:
    """`volume` (X, Y, Z) at the evenly spaced positions `source`, brought to `axes` linearly; its border outside."""
    for axis in (2, 1, 0):
        volume = volume.movedim(2, 0)
        at, n = source[axis], volume.shape[0]
        place = ((axes[axis] - at[0]) / ((at[-1] - at[0]) / (n - 1))).clamp(0, n - 1)
        first = place.floor().clamp(max=n - 2).long()
        part = (place - first).float().reshape(-1, 1, 1)
        volume = volume[first] * (1 - part) + volume[first + 1] * part
    return volume
