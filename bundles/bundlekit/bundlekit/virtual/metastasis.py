"""One brain metastasis: what is drawn of it, how it changes between visits, how bright it is."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import numpy as np

from bundlekit.virtual.fields import FIELD_MM, Push
from bundlekit.virtual.tumour import ellipsoid

SCANS = {"t1n": "t1", "t1c": "t1ce", "t2w": "t2", "t2f": "flair"}
"""The four scans by their name in BraTS-METS; the values are their names in `acquisition.MODALITIES`."""

DIAMETER_MM = (3.0, 40.0)
"""Range of the lesions' diameters (of a sphere of the same volume), in mm."""

OEDEMA_MM = 30.0
"""Farthest that oedema spreads from a lesion, in mm."""

PUSH_FROM_MM = 15.0
"""Diameter above which a lesion displaces the tissue around it."""


@dataclass(frozen=True)
class Metastasis:
    """One lesion at one visit.

    `centre` (3, mm); `radius_mm` of the sphere of its volume; `shape` (3, 3) turns it into a sphere, determinant 1;
    `anchor` (3, mm): its place in the fields that make its outline uneven; `rim_mm`: thickness of the enhancing rim
    around a necrotic core, inf if it is solid; `bleeding`: bright on T1 before contrast; `oedema_mm`: how far oedema
    spreads in white matter, 0 if there is none; `tone` (4,) 0-1: dark to bright among lesions, for each of `SCANS`;
    `roughness` of the outline, `uneven_rim` and `patchiness` of the enhancement: standard deviations, as shares of the
    radius, of the rim's thickness and of the signal on t1c.
    """

    centre: np.ndarray
    radius_mm: float
    shape: np.ndarray
    anchor: np.ndarray
    rim_mm: float
    bleeding: bool
    oedema_mm: float
    tone: np.ndarray
    roughness: float
    uneven_rim: float
    patchiness: float

    @property
    def push(self) -> Push | None:
        """The mass effect; None for a small lesion."""
        if 2 * self.radius_mm <= PUSH_FROM_MM:
            return None
        firmness = 0.14 + 0.08 * min(1.0, self.oedema_mm / 15)
        return Push(self.centre, 1.15 * self.radius_mm, firmness * self.radius_mm, 3.0 * self.radius_mm)


def draw_metastasis(rng: np.random.Generator, centre: np.ndarray, diameter_mm: float, bleeds: float) -> Metastasis:
    """A lesion of that size at `centre` (3, mm), which bleeds with probability `bleeds`."""
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
        oedema_mm=min(4.0 + far * diameter_mm, OEDEMA_MM) if has_oedema else 0.0,
        tone=rng.uniform(size=len(SCANS)),
        roughness=rng.uniform(0.08, 0.24),
        uneven_rim=rng.uniform(0.3, 1.0),
        patchiness=rng.uniform(0.06, 0.14) if rng.uniform() < 0.6 else rng.uniform(0.14, 0.35),
    )


def resized(lesion: Metastasis, radius_mm: float) -> Metastasis:
    """The lesion at another visit: its rim and its oedema grow and shrink with it."""
    growth = radius_mm / lesion.radius_mm
    far = min(lesion.oedema_mm * growth**1.5, OEDEMA_MM)
    rim = min(lesion.rim_mm, 0.45 * radius_mm) if 2 * radius_mm > 7 and np.isfinite(lesion.rim_mm) else math.inf
    return dataclasses.replace(lesion, radius_mm=radius_mm, rim_mm=rim, oedema_mm=far if far > 2 else 0.0)


def levels(lesion: Metastasis, scan: str, enhancement: float) -> tuple[float, float]:
    """Signal of the solid and of the necrotic part on one of SCANS, white matter = 1; `enhancement`: typical on t1c."""
    tone = float(lesion.tone[list(SCANS).index(scan)])
    if scan == "t1n":
        return (1.15 + 0.25 * tone, 0.95) if lesion.bleeding else (0.70 + 0.14 * tone, 0.52 + 0.14 * tone)
    if scan == "t1c":
        return max(1.2, enhancement * (0.7 + 0.42 * tone)), 0.8 if lesion.bleeding else 0.5 + 0.18 * tone
    if scan == "t2w":
        return (0.7 + 0.4 * tone, 1.3) if lesion.bleeding else (1.25 + 0.45 * tone, 1.9 + 0.9 * tone)
    return (0.9 + 0.4 * tone, 1.3) if lesion.bleeding else (1.25 + 0.45 * tone, 0.8 + 1.0 * tone)
