"""Air around a stripped brain that a program has left as something else than the smallest value, and than 0."""

from __future__ import annotations

import logging

import numpy as np
from scipy import ndimage

from bundlekit.images.components import components
from bundlekit.images.intensities import ZERO_AIR, air_of, without_air

_NOTHING = 1e-3  # of the bright intensities: noise in the air of a head with its skull is larger
_TISSUE = 0.05  # and what a cubic spline leaves beside a brain, mostly smaller
_PIECE = 0.01  # of the largest: smaller pieces of it are crumbs
_STRONG = 0.1  # of them: of such magnitudes 40 to 70 % are negative after z-scoring, and 0.3 % after a spline
_Z_SCORED = 0.1
_AIR = 2.8  # standard deviations below the mean of the brain: 2.5 to 3.4 in five stripped T1s

_log = logging.getLogger(__name__)


def air_at_zero(voxels: np.ndarray, where: str, lowest: bool = False) -> np.ndarray:
    """A scan as bundles take it, HWD float32: air of one value is 0, and so is what a spline has left in it.

    Args:
        voxels: HWD, as the file has them.
        where: the scan, for the log.
        lowest: whether 0 has to be the smallest value, too, see `below_the_brain`.
    """
    air = air_of(voxels[None])
    out: np.ndarray = np.empty(voxels.shape, np.float32)
    out[...] = without_air(voxels[None], air)[0] if air.any() else voxels  # casts and makes contiguous in one pass
    out = without_ringing(out, where)
    return below_the_brain(out) if lowest else out


def air_for_nan(voxels: np.ndarray, where: str) -> np.ndarray:
    """A scan with 0 where a program has left NaN outside of the head or of its field of view; any other as it is.

    SPM and AFNI do so. What is NaN within the head, apart from the border of the volume, stays for `check_voxels`.

    Args:
        voxels: HWD.
        where: the scan, for the log, which tells it.
    """
    if not np.issubdtype(voxels.dtype, np.floating) or not (gone := np.isnan(voxels)).any() or gone.all():
        return voxels
    pieces, _ = components(gone)
    faces = [pieces.take(end, axis) for axis in range(pieces.ndim) for end in (0, -1)]
    outside = np.unique(np.concatenate([face.ravel() for face in faces]))
    if not np.isin(pieces[gone], outside).all():
        return voxels
    _log.warning("%s: %d voxels around the head are NaN; they are taken as air, 0", where, np.count_nonzero(gone))
    return np.where(gone, 0, voxels)


def without_ringing(image: np.ndarray, where: str) -> np.ndarray:
    """A stripped scan that was resampled by a spline, with air that is 0 again; any other scan as it is.

    A spline overshoots at the border of the brain, so that the air holds small values of either sign, far away from
    it too, and is taken for tissue by all who take 0 for air. What is left is what is brighter than 5 % of the bright
    intensities, but for crumbs, with what it encloses; what is negative there becomes the darkest tissue.

    Args:
        image: HWD float32, air about 0.
        where: the scan, for the log, which tells it.
    """
    bright = _bright(image)
    if not bright or _is_z_scored(image, bright):
        return image
    pieces, count = components(np.abs(image) > _TISSUE * bright)
    sizes = np.bincount(pieces.ravel(), minlength=count + 1)[1:]
    kept = np.concatenate([[False], sizes >= _PIECE * sizes.max()])  # a brain may be cut in two
    brain = ndimage.binary_fill_holes(kept[pieces])
    if not np.any(image, where=~brain):
        return image
    _log.warning(
        "%s: around the brain there are small values of either sign, as a spline leaves them; they are set to 0. "
        "Resample stripped scans linearly, or strip them afterwards.",
        where,
    )
    return np.where(brain, np.maximum(image, _NOTHING * bright), 0).astype(np.float32)


def below_the_brain(image: np.ndarray) -> np.ndarray:
    """A scan that was z-scored over its brain, with air left at 0, moved so that air is the smallest value again.

    Air was as bright as the middle of the brain. It lies as far below the mean as in other T1s then, or just below the
    darkest tissue where that is farther; scores that were clipped do not tell. Any other scan stays as it is.

    Args:
        image: HWD float32.
    """
    bright = _bright(image)
    if not bright or not _is_z_scored(image, bright):
        return image
    below = max(-float(image.min()), _AIR * float(image[image != 0].std()))
    return np.where(image != 0, image + (below + _NOTHING * bright), 0).astype(np.float32)


def _bright(image: np.ndarray) -> float:
    """The 99th percentile of the magnitudes; 0 where nothing is negative, or where the air was not set to 0."""
    if not image.min() < 0:
        return 0.0
    some = np.abs(image[::2, ::2, ::2])
    if not some.any():
        return 0.0
    bright = float(np.percentile(some[some > 0], 99))
    return bright if np.mean(some <= _NOTHING * bright) >= ZERO_AIR else 0.0


def _is_z_scored(image: np.ndarray, bright: float) -> bool:
    some = image[::2, ::2, ::2]
    strong = np.count_nonzero(np.abs(some) > _STRONG * bright)
    return bool(np.count_nonzero(some < -_STRONG * bright) > _Z_SCORED * strong)
