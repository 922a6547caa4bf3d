"""What age does to a brain, on a map of structures: larger ventricles, wider sulci, lesions of the white matter.

The label maps that images are painted from are of mostly healthy and young heads. Sizes are in voxels, about 1 mm.
Where lesions lie follows Wardlaw et al., Lancet Neurology 12, 2013 (doi:10.1016/S1474-4422(13)70124-8): caps and
bands around the ventricles, confluent or punctate further out.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from bundlekit.label_maps.numberings import STRUCTURES
from bundlekit.virtual.filters import blur, smooth, smooth_noise

_INDEX = {structure.name: index for index, structure in enumerate(STRUCTURES)}
_WHITE, _LESION = _INDEX["cerebral white matter"], _INDEX["white matter lesion"]
_VENTRICLE, _PLEXUS = _INDEX["lateral ventricle"], _INDEX["choroid plexus"]
_SULCAL, _CORTEX = _INDEX["sulcal CSF"], _INDEX["cerebral cortex"]
_ONE_DEVIATION = 0.16  # a blurred half-space has this value one standard deviation outside of it
_SAMPLE = 4096  # voxels that foretell a quantile
_NEAR = 5.0  # voxels; lesions around the ventricles


@dataclass(frozen=True)
class Ageing:
    """Changes of one head; drawn by `draw_ageing`."""

    ventricles: float  # voxels by which the lateral ventricles grow into the white matter; 0: not
    sulci: (
        float  # share of the cortex beside the CSF that becomes CSF; below 0: of the CSF beside it that becomes cortex
    )
    lesions: float  # share of the cerebral white matter, 0 to 1
    periventricular: float  # how much they keep to the ventricles, 0: anywhere
    size: int  # voxels between the control points of their border


def draw_ageing(rng: np.random.Generator) -> Ageing:
    """A head between young and very old."""
    return Ageing(
        ventricles=float(rng.uniform(0.5, 5)) if rng.random() < 0.5 else 0.0,
        sulci=float(rng.uniform(-0.4, 0.6)),
        lesions=float(rng.uniform(0, 0.3)) ** 2 if rng.random() < 0.7 else 0.0,
        periventricular=float(rng.uniform(0, 12)),
        size=int(rng.integers(3, 12)),
    )


def aged(index: torch.Tensor, ageing: Ageing, generator: torch.Generator) -> torch.Tensor:
    """The map of an older (or younger) head.

    Args:
        index: HWD int64, indices of `STRUCTURES`.
        ageing: from `draw_ageing`.
        generator: on the device of `index`.

    Returns:
        HWD int64; lesions are the structure "white matter lesion".
    """
    index = index.clone()
    if ageing.ventricles > 0:
        fluid = ((index == _VENTRICLE) | (index == _PLEXUS)).float()
        limit = _ONE_DEVIATION * torch.exp(0.4 * smooth_noise(index.shape, 12, generator))
        grown = _wide_blur(fluid, ageing.ventricles) > limit
        index[grown & ((index == _WHITE) | (index == _LESION))] = _VENTRICLE
    if ageing.sulci:
        one, other = (_CORTEX, _SULCAL) if ageing.sulci > 0 else (_SULCAL, _CORTEX)
        surface = (index == one) & _beside(index == other)
        index[_share_of(surface, smooth_noise(index.shape, 6, generator), abs(ageing.sulci))] = other
    if ageing.lesions > 0:
        white = index == _WHITE
        fluid = (index == _VENTRICLE).float()
        where = smooth_noise(index.shape, ageing.size, generator)
        where += ageing.periventricular * _wide_blur(fluid, _NEAR)
        index[_share_of(white, where, ageing.lesions)] = _LESION
    return index


def _wide_blur(mask: torch.Tensor, sigma: float) -> torch.Tensor:
    """Gaussian of a standard deviation in voxels, at half of the resolution: in a fifteenth of the time."""
    coarse = F.avg_pool3d(mask[None, None], 2, ceil_mode=True)[0, 0]
    return smooth(blur(coarse, (sigma / 2,) * 3), mask.shape)


def _share_of(mask: torch.Tensor, where: torch.Tensor, share: float) -> torch.Tensor:
    """About that share of a mask: the voxels with the highest values of a field, bool."""
    values = where[mask]
    if not len(values):
        return mask
    limit = values[:: max(len(values) // _SAMPLE, 1)].quantile(1 - share)
    return mask & (where > limit)


def _beside(mask: torch.Tensor) -> torch.Tensor:
    """Voxels within one voxel of a mask along any axis or diagonal, bool."""
    return F.max_pool3d(mask.float()[None, None], 3, stride=1, padding=1)[0, 0] > 0
