"""Volumes of a segmentation and where they lie: what `volumes.csv` tells of a case."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import cc3d
import numpy as np

from bundlekit.images.components import components
from bundlekit.images.nifti import voxel_ml

_BOTH = 0.1  # of a volume on either side of the midline: it lies in both hemispheres


@dataclass(frozen=True)
class Volume:
    """One class, or one region that is made of classes, of one case."""

    name: str
    kind: str  # "class" or "region"
    ml: float
    components: int  # 26-connected
    largest_ml: float  # of its components
    centroid_mm: tuple[float, float, float] | None  # RAS+ of the scan's affine; None where there is no voxel
    hemisphere: str  # "left", "right", "both"; "" where it is unknown


def volumes_of(
    classes: np.ndarray,
    affine: np.ndarray,
    names: Sequence[str],
    regions: Mapping[str, Sequence[int]] | None = None,
    midline_mm: float | None = None,
) -> list[Volume]:
    """Volumes of all classes but the background, then of regions.

    Args:
        classes: HWD, class indices on the scan's own grid.
        affine: 4x4, voxel indices to mm, RAS+.
        names: of the classes 1, 2, ...
        regions: name -> class indices.
        midline_mm: where left and right meet, along the first axis of RAS+; None: hemispheres are not told.
    """
    wanted = [(name, "class", [index]) for index, name in enumerate(names, start=1)]
    wanted += [(name, "region", [int(c) for c in which]) for name, which in (regions or {}).items()]
    inside = [np.flatnonzero(classes.any(axis=tuple({0, 1, 2} - {axis}))) for axis in range(3)]
    if not len(inside[0]):
        return [Volume(name, kind, 0.0, 0, 0.0, None, "") for name, kind, _ in wanted]
    first = [int(axis[0]) for axis in inside]
    box = tuple(slice(start, int(axis[-1]) + 1) for start, axis in zip(first, inside, strict=True))
    part = classes[box]
    return [
        _volume(np.isin(part, which), name, kind, affine, np.asarray(first), voxel_ml(affine), midline_mm)
        for name, kind, which in wanted
    ]


def _volume(
    mask: np.ndarray,
    name: str,
    kind: str,
    affine: np.ndarray,
    first: np.ndarray,
    voxel_ml: float,
    midline_mm: float | None,
) -> Volume:
    numbers, n = components(mask)
    if not n:
        return Volume(name, kind, 0.0, 0, 0.0, None, "")
    found = cc3d.statistics(np.ascontiguousarray(numbers))
    counts = np.asarray(found["voxel_counts"][1:], float)
    middle = (np.asarray(found["centroids"][1:]) * counts[:, None]).sum(0) / counts.sum() + first
    x, y, z = (float(v) for v in (affine @ [*middle, 1])[:3])
    side = ""
    if midline_mm is not None:
        lines = [affine[0, axis] * (np.arange(mask.shape[axis]) + first[axis]) for axis in range(3)]
        r_mm = lines[0][:, None, None] + lines[1][None, :, None] + lines[2][None, None, :] + affine[0, 3]
        right = float((r_mm[mask] > midline_mm).mean())
        side = "both" if _BOTH <= right <= 1 - _BOTH else "right" if right > 0.5 else "left"
    return Volume(name, kind, counts.sum() * voxel_ml, n, counts.max() * voxel_ml, (x, y, z), side)
