"""A different healthy head per case: tissue maps of the ICBM152 template, or of one person, warped at random.

Source: the ICBM152 2009a grey- and white-matter probability maps and T1 template that `nilearn` carries in its
package, so nothing is downloaded. Their notice: Copyright (C) 1993-2004 Louis Collins, McConnell Brain Imaging Centre,
Montreal Neurological Institute, McGill University; use, copying, changing and distribution are free for any purpose
and without fee, provided that this copyright notice appears in all copies; no warranty.
Fonov et al., NeuroImage 54 (2011) 313-327; Fonov et al., NeuroImage 47 (2009) S102.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
import torch
from scipy import ndimage

from bundlekit.virtual.fields import FIELD_MM, Axes, Push, SmoothField, as_axes, numbers_of
from bundlekit.virtual.templates import template_of

_CENTRE_MM = np.array([118.5, 128.5, 69.0])  # middle of the brain in BraTS images, mm on their 1 mm grid
_MNI_CENTRE_MM = np.array([0.0, -17.0, 5.0])  # middle of the ICBM152 brain
_MNI_PER_BRATS = np.array([-1.06, -1.05, 1.10])  # ICBM152 is larger than the BraTS atlas, and RAS where BraTS is LPS
_VENTRICLES_MNI_MM = np.array([0.0, -18.0, 12.0])
_FIRST_MM = (-98.0, -134.0, -72.0)  # position of the templates' first voxel


MAPS_VERSION = 1
"""Of what `maps_of` gives, for caches: another number wherever that changes."""

_Volume = TypeVar("_Volume", np.ndarray, torch.Tensor)


@dataclass(frozen=True)
class Anatomy(Generic[_Volume]):
    """A head without tumour on a grid (X, Y, Z), as tensors or arrays.

    `gm`, `wm`, `csf`: float32 fractions 0-1 that sum to 1 inside the brain and are 0 outside it;
    `brain`: bool, the skull-stripped brain with its fluid;
    `depth_mm`: float32, distance to the brain's surface, positive inside;
    `side_mm`: float32, signed distance from the plane between the hemispheres (positive: right);
    `height_mm`: float32, height above the commissures, to tell cerebrum from brainstem and cerebellum;
    `detail`: float32, about -0.3 to 0.3, what the T1 template knows beyond the three tissues (1 = white matter).
    """

    gm: _Volume
    wm: _Volume
    csf: _Volume
    brain: _Volume
    depth_mm: _Volume
    side_mm: _Volume
    height_mm: _Volume
    detail: _Volume

    def numpy(self) -> Anatomy[np.ndarray]:
        """The same as arrays."""
        return Anatomy(**{name: torch.as_tensor(volume).cpu().numpy() for name, volume in vars(self).items()})

    def tensors(self) -> Anatomy[torch.Tensor]:
        """The same as tensors."""
        return Anatomy(**{name: torch.as_tensor(volume) for name, volume in vars(self).items()})


class Head:
    """One random head: draw it once, then sample it on any grid, with or without pushes from tumours.

    `label_map`: file of a person's label map in FreeSurfer's numbering; None: the ICBM152 template; `maps`: what
    `maps_of` gave for it, on the device of the grids to come, where many heads are made of few people.
    """

    def __init__(
        self, rng: np.random.Generator, label_map: str | None = None, maps: torch.Tensor | None = None
    ) -> None:
        self._label_map, self._own = label_map, maps
        self._bend = [SmoothField.draw(rng, 40.0) for _ in range(3)]
        self._wiggle = [SmoothField.draw(rng, 15.0) for _ in range(3)]
        self._rough = SmoothField.draw(rng, 8.0)
        self._folds = [SmoothField.draw(rng, 6.0) for _ in range(2)]
        self._bend_mm = rng.uniform(1.5, 3.0)
        self._wiggle_mm = rng.uniform(0.7, 1.2)
        self._sulci = rng.uniform(0.7, 1.6)  # below 1: tight sulci of the young; above: atrophy
        angles = rng.normal(0.0, np.deg2rad(3.0), 3)
        scale = _MNI_PER_BRATS * rng.normal(1.0, 0.03) * rng.normal(1.0, 0.02, 3)
        self._matrix = _rotation(angles) * scale
        self._shift = rng.normal(0.0, 2.0, 3)
        peak = rng.uniform(-1.5, 4.0)
        self._ventricles = Push(_VENTRICLES_MNI_MM, 22.0, peak, 45.0)

    def sample(self, axes: Axes, spacing_mm: float, pushes: tuple[Push, ...] = ()) -> Anatomy[torch.Tensor]:
        """The head on the grid spanned by `axes` (mm), `spacing_mm` apart, after `pushes` (in the same mm).

        Maps are smoothed for wide spacings, those that were given to the constructor excepted.
        """
        points = torch.stack(torch.meshgrid(*(axis.float() for axis in axes), indexing="ij"))
        if pushes:
            # Bone does not move: near the surface a push dies out and the tissue is squeezed instead.
            moved = pushes[0].sources(points)
            for push in pushes[1:]:
                moved += push.sources(points)
            points += (self._surface(axes) / 18.0).clamp(0.0, 1.0) * moved
        mni = self._to_mni(points, axes)
        gm, wm, t1, depth_mm = _lookup(self._maps(round(max(0.0, 0.4 * (spacing_mm - 1.0)), 2)), mni)
        rough = self._rough.at(axes)
        brain = depth_mm + 0.7 * rough > 1.0
        # The template ends in a film of fluid; a stripped skull takes most of it along, here more and there less.
        film = (0.5 + 0.35 * rough + 0.25 * (depth_mm - 1)).clamp(0, 1)
        gm, wm, csf = self._individual(gm, wm, film, brain, axes)
        detail = torch.where(brain, t1 - (0.75 * gm + wm + 0.28 * csf), 0).clamp(-0.3, 0.3)
        return Anatomy(gm, wm, csf, brain, depth_mm, mni[0], mni[2], detail)

    @property
    def device(self) -> torch.device:
        """Where its maps lie."""
        return torch.device("cpu") if self._own is None else self._own.device

    def _maps(self, sigma_mm: float) -> torch.Tensor:
        return _templates(sigma_mm, self._label_map) if self._own is None else self._own

    def _surface(self, axes: Axes) -> torch.Tensor:
        """Depth below the unpushed surface, on every sixth sample, spread back to the grid: (X, Y, Z), mm."""
        ends = [np.linspace(axis[0], axis[-1], max(2, len(axis) // 6)) for axis in numbers_of(axes)]
        coarse = as_axes(ends, axes[0].device)
        points = torch.stack(torch.meshgrid(*(axis.float() for axis in coarse), indexing="ij"))
        depth = _lookup(self._maps(0.0), self._to_mni(points, coarse))[3]
        size = tuple(len(axis) for axis in axes)
        return torch.nn.functional.interpolate(depth[None, None], size=size, mode="trilinear", align_corners=True)[0, 0]

    def _to_mni(self, points: torch.Tensor, axes: Axes) -> torch.Tensor:
        """Template positions (3, ...), mm, of `points` (3, ...), which lie near the grid spanned by `axes`."""
        moved = torch.stack(
            [
                points[axis]
                - float(_CENTRE_MM[axis] + self._shift[axis])
                + self._bend_mm * self._bend[axis].at(axes)
                + self._wiggle_mm * self._wiggle[axis].at(axes)
                for axis in range(3)
            ]
        )
        # Written out: the last bit of a matrix product may depend on the number of threads.
        mni = torch.stack(
            [
                float(row[0]) * moved[0] + float(row[1]) * moved[1] + float(row[2]) * moved[2] + float(centre)
                for row, centre in zip(self._matrix, _MNI_CENTRE_MM, strict=True)
            ]
        )
        mni += self._ventricles.sources(mni)
        return mni

    def _individual(
        self, gm: torch.Tensor, wm: torch.Tensor, film: torch.Tensor, brain: torch.Tensor, axes: Axes
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Turns averages over many people into one person: shifts the borders at random, then sharpens them."""
        inside = brain.ravel().nonzero()[:, 0]  # once: a GPU is waited for
        g, w = gm.ravel()[inside], wm.ravel()[inside]
        c = (1 - g - w).clamp(0, 1) * film.ravel()[inside]
        g = g * torch.exp(0.35 * self._folds[0].at(axes).ravel()[inside])
        c = self._sulci * c * torch.exp(0.5 * self._folds[1].at(axes).ravel()[inside])
        g, w, c = (part.clamp(min=0) ** 1.5 for part in (g, w, c))
        total = g + w + c + 1e-6
        full = []
        for part in (g, w, c + 1e-6):
            volume = torch.zeros(brain.shape, device=brain.device)
            volume.ravel()[inside] = part / total
            full.append(volume)
        return full[0], full[1], full[2]


def grid(shape: tuple[int, int, int]) -> tuple[Axes, tuple[float, float, float]]:
    """Sample positions (mm) along the three axes and spacings (mm) of a grid `shape` that covers FIELD_MM."""
    spacing = tuple(length / count for length, count in zip(FIELD_MM, shape, strict=True))
    axes = as_axes([(np.arange(n) + 0.5) * step - 0.5 for n, step in zip(shape, spacing, strict=True)])
    return axes, (spacing[0], spacing[1], spacing[2])


def maps_of(label_map: str | None = None) -> torch.Tensor:
    """Tissue maps of the ICBM152 template, or of one person: (1, 4, X, Y, Z) float32 on a grid of 1 mm.

    Raises:
        ValueError: as `templates.template_of`.
    """
    return _templates(0.0, label_map)


@functools.lru_cache(maxsize=4)
def _templates(sigma_mm: float, label_map: str | None = None) -> torch.Tensor:
    """(1, 4, X, Y, Z) on a 1 mm grid: grey, white, T1 (1 = white matter), all smoothed by sigma_mm; depth in mm."""
    if sigma_mm:
        maps = _templates(0.0, label_map).numpy().copy()
        for volume in maps[0, :3]:
            ndimage.gaussian_filter(volume, sigma_mm, output=volume, truncate=3)
        return torch.from_numpy(maps)
    if label_map is not None:
        return template_of(label_map, _templates(0.0), _FIRST_MM)
    from nilearn import datasets  # slow to import; painted images do not need it

    loaders = (datasets.load_mni152_gm_template, datasets.load_mni152_wm_template, datasets.load_mni152_template)
    gm, wm, t1 = (load(resolution=1).get_fdata(dtype=np.float32) for load in loaders)
    brain = ndimage.binary_fill_holes(t1 > 0.02)
    near = tuple(slice(max(0, part.start - 6), part.stop + 6) for part in ndimage.find_objects(brain.astype(int))[0])
    depth = np.full(brain.shape, -6, np.float32)
    depth[near] = ndimage.distance_transform_edt(brain[near]) - ndimage.distance_transform_edt(~brain[near])
    return torch.from_numpy(np.stack([gm, wm, t1 / np.float32(0.875), depth]))[None]  # 0.875: its white matter


def _lookup(maps: torch.Tensor, mni: torch.Tensor) -> torch.Tensor:
    """Linear interpolation of `maps` (1, C, X, Y, Z) at `mni` (3, ...) mm; the border value outside: (C, ...)."""
    places = [  # grid_sample counts each axis from -1 to 1
        (mni[axis] - first_mm) * (2 / (maps.shape[2 + axis] - 1)) - 1 for axis, first_mm in enumerate(_FIRST_MM)
    ]
    where = torch.stack(places[::-1], dim=-1)[None]  # and them from the last
    maps = maps.to(mni.device)
    return torch.nn.functional.grid_sample(maps, where, mode="bilinear", padding_mode="border", align_corners=True)[0]


def _rotation(angles: np.ndarray) -> np.ndarray:
    (sx, sy, sz), (cx, cy, cz) = np.sin(angles), np.cos(angles)
    about_x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    return about_z @ about_y @ about_x
