"""Virtual BraTS-METS: made-up patients with brain metastases, in the format of BraTS-METS 2023 and 2024.

A case is a folder `BraTS-MET-00001-000` with `BraTS-MET-00001-000-{t1n,t1c,t2w,t2f,seg}.nii.gz`: skull-stripped int16
scans with background 0, and a uint8 label map with 0, 1 (necrotic, non-enhancing tumour core), 2 (oedema, "SNFH") and
3 (enhancing tumour). The first number counts patients, the last one their visits: at `-001` the head and its vessels
are the same, while lesions have grown, shrunk, vanished or appeared. No patient is behind it: see `anatomy.py` for the
source of the heads and its licence notice, and `brats.py` for the grids.

The same case at two shapes is the same head with the same lesions. A voxel gets the label of what fills most of it, so
on a coarse grid thin rims lose their label first, and a lesion that fills no voxel by half has none at all; what is
left of it in the scans is a faint blur.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy import ndimage

from bundlekit.virtual.acquisition import CONTRAST, Vessels, acquire, as_int16, clean_signal, draw_exposure
from bundlekit.virtual.anatomy import Anatomy, Head, grid
from bundlekit.virtual.brats import (
    SHAPE,
    affine_of,
    box_of,
    folder_of,
    head_of,
    make_cohort,
    placed,
    size_of,
    tissue_of,
    whole_number,
    write_case,
)
from bundlekit.virtual.fields import FIELD_MM, Positions, Push, SmoothField, as_axes
from bundlekit.virtual.label_maps import find_label_maps
from bundlekit.virtual.tumour import Lesion, ellipsoid, interpolate, reach

NETC, SNFH, ET = 1, 2, 3

SCANS = {"t1n": "t1", "t1c": "t1ce", "t2w": "t2", "t2f": "flair"}
"""The four scans by their name in BraTS-METS; the values are their names in `acquisition.MODALITIES`."""

DIAMETER_MM = (3.0, 30.0)
"""Range of the lesions' diameters (of a sphere of the same volume), in mm."""

MOST_LESIONS = 15
"""Most lesions in one brain."""

SECOND_VISIT_SHARE = 0.25
"""Probability that a patient has a second visit."""

PUSH_FROM_MM = 15.0
"""Diameter above which a lesion displaces the tissue around it."""

_Box = tuple[slice, slice, slice]


@dataclass(frozen=True)
class Metastasis:
    """One lesion at one visit.

    `centre` (3, mm); `radius_mm` of the sphere of its volume; `shape` (3, 3) turns it into a sphere, determinant 1;
    `anchor` (3, mm): its place in the fields that make its outline uneven; `rim_mm`: thickness of the enhancing rim
    around a necrotic core, inf if it is solid; `bleeding`: bright on T1 before contrast; `oedema_mm`: how far oedema
    spreads in white matter, 0 if there is none; `tone` (4,) 0-1: dark to bright among lesions, for each of `SCANS`.
    """

    centre: np.ndarray
    radius_mm: float
    shape: np.ndarray
    anchor: np.ndarray
    rim_mm: float
    bleeding: bool
    oedema_mm: float
    tone: np.ndarray

    @property
    def push(self) -> Push | None:
        """The mass effect; None for a small lesion."""
        if 2 * self.radius_mm <= PUSH_FROM_MM:
            return None
        firmness = 0.14 + 0.08 * min(1.0, self.oedema_mm / 15)
        return Push(self.centre, 1.15 * self.radius_mm, firmness * self.radius_mm, 3.0 * self.radius_mm)


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
        places = _places(rng, head, np.maximum(diameter, later) / 2)
        self._outline, self._fine = SmoothField.draw(rng, 9.0), SmoothField.draw(rng, 4.0)
        self._rim, self._fingers, self._patch = (SmoothField.draw(rng, pitch) for pitch in (6.0, 8.0, 3.0))
        visits: tuple[list[Metastasis], list[Metastasis]] = [], []
        for index, place in places:
            lesion = _lesion(rng, place, diameter[index], bleeds)
            if index < first:
                visits[0].append(lesion)
                if later[index] >= low:  # smaller than that, it counts as gone
                    visits[1].append(_resized(lesion, later[index] / 2))
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
            solid, core = _levels(part.lesion, scan, enhancement)
            uneven = 1 + (0.12 if scan == "t1c" else 0.06) * self._patch.array_at(_cut(axes, part.box)).clip(-2, 2)
            here = signal[part.box]
            here *= 1 - part.enhancing - part.necrotic
            here += solid * uneven * part.enhancing + core * (0.5 + 0.5 * uneven) * part.necrotic

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
        rim = lesion.rim_mm * (1 + 0.45 * self._rim.array_at(_anchored(lesion, (x, y, z))).clip(-0.7, 2.2))
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
        bumps = 0.16 * self._outline.array_at(frame).clip(-2, 2) + 0.05 * self._fine.array_at(frame).clip(-2, 2)
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


def metastases(
    out: str,
    cases: int = 4,
    seed: int = 0,
    shape: Sequence[int] = SHAPE,
    label_maps: str | None = None,
    jobs: int = 1,
) -> list[str]:
    """Writes `cases` virtual cases (visits) under folder `out` and returns their folders, in order.

    The same `seed` gives the same bytes, and case k does not depend on how many are asked for. Each file appears
    whole or not at all; those of an earlier run are replaced, one whole file at a time. A second visit counts as a
    case and follows the first; split by the patient's number, not by case.

    Args:
        out: Folder to write to; made if missing.
        cases: How many, 1 or more.
        seed: 0 or more.
        shape: Voxels along x, y and z, each 32 or more; always the field of view of 240 x 240 x 155 mm.
        label_maps: Folder of label maps in FreeSurfer's numbering: patient k has the head of the k-th of them,
            beginning again after the last. None: the ICBM152 template.
        jobs: Processes that make cases at a time.

    Raises:
        ValueError: A bad argument; says what was found, what is expected and what to do.
    """
    cases, seed, size = whole_number("cases", cases, 1), whole_number("seed", seed, 0), size_of(shape)
    jobs = whole_number("jobs", jobs, 1)
    maps = None if label_maps is None else find_label_maps(label_maps)
    make = functools.partial(_make, folder_of(out), seed, size)
    heads = [head_of(_patient(seed, index)[0], maps) for index in range(cases)]
    return make_cohort(make, heads, jobs, "virtual BraTS-METS")


def _make(root: Path, seed: int, shape: Sequence[int], index: int, label_map: str | None) -> str:
    case = make_case(seed, index, shape, label_map)
    return write_case(root, case_name(seed, index), case, (*SCANS, "seg"), "-")


def case_name(seed: int, index: int) -> str:
    """Name of case `index` of the cohort `seed`: that of its patient, counted from 1, and of the visit, from 0."""
    patient, visit = _patient(seed, index)
    return f"BraTS-MET-{patient + 1:05d}-{visit:03d}"


def make_case(
    seed: int, index: int, shape: Sequence[int] = SHAPE, label_map: str | None = None
) -> dict[str, np.ndarray]:
    """Case `index` of the cohort `seed`, in memory.

    Returns arrays of `shape` (X, Y, Z), to be read with the affine: `t1n`, `t1c`, `t2w`, `t2f` (int16, 0 outside the
    brain, 1 or more inside), `seg` (uint8; 0, 1, 2, 3), and what is not written to disk: `instances` (uint8, the number
    of the lesion at labels 1 and 3, from 1), `tissue` (uint8, what prevails in the head around and under the lesions:
    0 outside, 1 fluid, 2 grey, 3 white matter) and `affine` (4, 4; voxel to mm, as NIfTI has it). `label_map`: see
    `anatomy.Head`.

    Raises:
        ValueError: A negative seed or index, or a bad shape.
    """
    seed, index, size = whole_number("seed", seed, 0), whole_number("index", index, 0), size_of(shape)
    number, visit = _patient(seed, index)
    # Separate streams, and none of the gliomas' (0-2) or of the healthy heads' (3, 4).
    for_head, for_lesions, for_vessels = (np.random.default_rng([seed, number, part]) for part in (5, 6, 7))
    for_scan = np.random.default_rng([seed, number, 8, visit])
    head = Head(for_head, label_map)
    patient = Metastases(for_lesions, head)
    lesions = patient.visits[visit]
    pushes = tuple(lesion.push for lesion in lesions if lesion.push)
    axes, spacing = grid(size)
    box, near = box_of(head, pushes, axes)
    anatomy = head.sample(near, max(spacing), pushes)
    x, y, z = (axis.numpy() for axis in near)
    spread = patient.label(lesions, anatomy.numpy(), (x, y, z))
    parts = _scan(for_scan, for_vessels, patient, spread, anatomy.numpy(), (x, y, z), spacing)
    parts |= {"seg": spread.labels, "instances": spread.instances, "tissue": tissue_of(anatomy)}
    return placed(parts, size, box) | {"affine": affine_of(spacing)}


def _scan(
    rng: np.random.Generator,
    for_vessels: np.random.Generator,
    patient: Metastases,
    spread: Spread,
    anatomy: Anatomy[np.ndarray],
    axes: Positions,
    spacing_mm: tuple[float, float, float],
) -> dict[str, np.ndarray]:
    brain = np.flatnonzero(anatomy.brain)
    here = torch.from_numpy(brain)
    lesion = Lesion(torch.zeros(spread.labels.shape, dtype=torch.uint8), torch.from_numpy(spread.oedema))
    maps = Vessels(for_vessels).shared_maps(anatomy.tensors(), lesion, as_axes(axes), here)
    shared = {key: value.numpy() for key, value in maps.items()}
    maps["vessel"] = torch.from_numpy(
        np.maximum(shared["vessel"], _veins(for_vessels, shared, anatomy, axes, brain)).astype(np.float32)
    )
    linings = _linings(for_vessels, shared, anatomy, axes, brain)
    images = {}
    for name, modality in SCANS.items():
        contrast = {part: rng.uniform(*limits) for part, limits in CONTRAST[modality].items()}
        volume = np.zeros(anatomy.brain.shape, np.float32)
        if name == "t1c":
            contrast["vessel"] *= rng.uniform(1.0, 1.4)
        clean = clean_signal(contrast, maps, modality, solid=False).numpy()
        if name == "t1c":
            clean += linings * np.maximum(0.85 * contrast["vessel"] - clean, 0)
        volume.ravel()[brain] = clean
        patient.paint(volume, spread, name, contrast["rim"], axes)
        signal = volume.ravel()[brain]
        signal *= np.exp(rng.uniform(0.04, 0.12) * SmoothField.draw(rng, 80.0).array_at(axes).ravel()[brain])
        # Metastases are looked for on a three-dimensional T1; thick slices would miss the small ones.
        exposure = draw_exposure(rng, thin=name == "t1c")
        image = acquire(exposure, torch.from_numpy(signal), contrast["csf"], here, volume.shape, spacing_mm)
        images[name] = as_int16(image)
    return images


def _veins(
    rng: np.random.Generator,
    shared: dict[str, np.ndarray],
    anatomy: Anatomy[np.ndarray],
    axes: Positions,
    brain: np.ndarray,
) -> np.ndarray:
    """More vessels than a glioma needs, 0-1 over the brain's voxels, for a small lesion has to be told from them.

    Veins and arteries in the sulci and fissures, veins that run over the surface, and thin ones within white matter.
    """
    fields = [
        SmoothField.draw(rng, pitch).array_at(axes).ravel()[brain] for pitch in (15.0, 17.0, 10.0, 12.0, 13.0, 15.0)
    ]
    depth = anatomy.depth_mm.ravel()[brain]
    sulci = np.exp(-(fields[0] ** 2 + fields[1] ** 2) / 0.035) * np.clip(3 * shared["csf"] - 0.1, 0, 1)
    sulci = np.maximum(sulci, np.exp(-(fields[4] ** 2 + fields[5] ** 2) / 0.025) * np.clip(4 * shared["csf"], 0, 1))
    surface = np.exp(-(fields[2] ** 2) / 0.02 - ((depth - 1.5) / 1.3) ** 2) * np.clip(1.2 + fields[0], 0, 1)
    inner = 0.6 * np.exp(-(fields[3] ** 2 + fields[4] ** 2) / 0.006) * shared["wm"]
    return np.maximum(np.maximum(sulci, surface), inner)


def _linings(
    rng: np.random.Generator,
    shared: dict[str, np.ndarray],
    anatomy: Anatomy[np.ndarray],
    axes: Positions,
    brain: np.ndarray,
) -> np.ndarray:
    """What else takes up contrast, 0-1 over the brain's voxels: choroid plexus in the ventricles, and the falx."""
    patch = SmoothField.draw(rng, 5.0).array_at(axes).ravel()[brain]
    depth, height, side = (getattr(anatomy, name).ravel()[brain] for name in ("depth_mm", "height_mm", "side_mm"))
    inner = (depth > 28) & (height > -30)
    plexus = np.clip(2 * shared["csf"] - 1, 0, 1) * np.clip(2 * patch - 1.2, 0, 1) * inner
    falx = np.exp(-((side / 1.3) ** 2)) * np.clip(2 * shared["csf"] - 0.2, 0, 1) * np.clip(0.5 + 0.5 * patch, 0, 1)
    return np.maximum(plexus, 0.8 * falx * ((height > 15) & (depth < 30)))


def _patient(seed: int, index: int) -> tuple[int, int]:
    """Patient and visit, both from 0, of case `index`."""
    again = np.random.default_rng([seed, 0, 9]).random(index + 1) < SECOND_VISIT_SHARE
    patients = np.repeat(np.arange(index + 1), 1 + again)
    return int(patients[index]), int(index > 0 and patients[index - 1] == patients[index])


def _truncated_geometric(uniform: float, keep: float, most: int) -> int:
    """1 to `most`, each number `keep` times as likely as the one before."""
    return min(most, 1 + int(math.log1p(-uniform * (1 - keep**most)) / math.log(keep)))


def _lesion(rng: np.random.Generator, centre: np.ndarray, diameter_mm: float, bleeds: float) -> Metastasis:
    radius = diameter_mm / 2
    shape, anchor = ellipsoid(rng), np.array([rng.uniform(40, length - 40) for length in FIELD_MM])
    ring, rim, bleeding = rng.uniform(), max(1.9, radius * rng.uniform(0.15, 0.45)), bool(rng.uniform() < bleeds)
    wet, far = rng.uniform(), rng.uniform(0.4, 1.2)
    is_ring = ring < np.clip((diameter_mm - 7) / 9, 0, 0.85)
    has_oedema = wet < np.clip(math.log(diameter_mm / 4) / math.log(5), 0.04, 0.95)
    return Metastasis(
        centre=centre,
        radius_mm=radius,
        shape=shape,
        anchor=anchor,
        rim_mm=min(rim, 0.45 * radius) if is_ring else math.inf,
        bleeding=bleeding,
        oedema_mm=min(4.0 + far * diameter_mm, 26.0) if has_oedema else 0.0,
        tone=rng.uniform(size=len(SCANS)),
    )


def _resized(lesion: Metastasis, radius_mm: float) -> Metastasis:
    growth = radius_mm / lesion.radius_mm
    far = min(lesion.oedema_mm * growth**1.5, 26.0)
    rim = min(lesion.rim_mm, 0.45 * radius_mm) if 2 * radius_mm > 7 and np.isfinite(lesion.rim_mm) else math.inf
    return dataclasses.replace(lesion, radius_mm=radius_mm, rim_mm=rim, oedema_mm=far if far > 2 else 0.0)


def _levels(lesion: Metastasis, scan: str, enhancement: float) -> tuple[float, float]:
    """Signal of the solid and of the necrotic part, white matter = 1."""
    tone = float(lesion.tone[list(SCANS).index(scan)])
    if scan == "t1n":
        return (1.15 + 0.25 * tone, 0.95) if lesion.bleeding else (0.70 + 0.14 * tone, 0.52 + 0.14 * tone)
    if scan == "t1c":
        return max(1.3, enhancement * (0.82 + 0.3 * tone)), 0.8 if lesion.bleeding else 0.5 + 0.18 * tone
    if scan == "t2w":
        return (0.7 + 0.4 * tone, 1.3) if lesion.bleeding else (1.25 + 0.45 * tone, 1.9 + 0.9 * tone)
    return (0.9 + 0.4 * tone, 1.3) if lesion.bleeding else (1.25 + 0.45 * tone, 0.8 + 1.0 * tone)


def _places(rng: np.random.Generator, head: Head, radii: np.ndarray) -> list[tuple[int, np.ndarray]]:
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
            free &= _square_to(place, axes) > (1.45 * (radius + radii[other]) + 4) ** 2
        weight = np.cumsum(np.where(free, regions[kinds[index]], 0.0))
        if weight[-1] == 0:
            continue
        spot = np.unravel_index(np.searchsorted(weight, spin * weight[-1], side="right"), free.shape)
        found[int(index)] = np.array([axis[n] for axis, n in zip(axes, spot, strict=True)]) + jitter[index]
    return sorted(found.items())


def _anchored(lesion: Metastasis, own: Positions) -> Positions:
    """Where points of the lesion's own frame lie in the fields: its radius is 10 mm there."""
    x, y, z = (at + np.clip(10 * axis, -35, 35) for at, axis in zip(lesion.anchor, own, strict=True))
    return x, y, z


def _square_to(place: np.ndarray, axes: Positions) -> np.ndarray:
    x, y, z = ((axis.reshape([-1 if n == k else 1 for n in range(3)]) - place[k]) ** 2 for k, axis in enumerate(axes))
    return x + y + z


def _square(lesion: Metastasis, axes: Positions) -> np.ndarray:
    return _square_to(lesion.centre, axes)


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
