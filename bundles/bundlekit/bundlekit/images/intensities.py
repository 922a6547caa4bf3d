"""Intensities of a scan, which have no unit: what is air and what is not, and a normalisation by the latter.

The statistics of a normalisation are apart from their application, so that those of a whole image can be foreseen for a
patch of it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

NORMALISATIONS = ("zscore", "percentile")
PERCENTILES = (0.5, 99.5)
_CLIP = 6.0  # standard deviations: bright vessels and fat do not stretch the rest
ZERO_AIR = 0.1  # share of voxels that are exactly 0 from which 0 is taken to be air that was set to it


def air_of(image: np.ndarray, per_slice: bool = False) -> np.ndarray:
    """What air has as intensity in each channel, to be subtracted so that air is 0: Cx1x1x1, or Cx1x1xD.

    Scans that were z-scored together with the air around the brain hold a constant there that is not 0; so do those
    whose air somebody set to -1000. It is looked up in the corners and taken as air where all of them hold the same
    value.

    Args:
        image: whole volumes, CHWD.
        per_slice: whether each slice may have an air of its own, and is looked at in its four corners.
    """
    corners = image[:, :: image.shape[1] - 1, :: image.shape[2] - 1, :]
    if per_slice:
        corners = corners.reshape(len(image), 4, image.shape[3])
    else:
        corners = corners[..., :: image.shape[3] - 1].reshape(len(image), 8, 1)
    same = (corners == corners[:, :1]).all(axis=1)
    return np.where(same, corners[:, 0], 0)[:, None, None, :]


def is_not_air(image: torch.Tensor) -> torch.Tensor:
    """Mask of the voxels that are not 0, for `CropForegroundd`; by name, so that loader processes can be sent it."""
    return image != 0


def without_air(image: np.ndarray, air: np.ndarray) -> np.ndarray:
    """`image` (CHWD) as float32 in which air is 0; `air` as `air_of` gives it, or its part of the same slices.

    Subtracted in floating point, with 64 bits where 32 do not hold the file's numbers: unsigned and narrow integers
    would wrap around below 0.
    """
    if not air.any():
        return image.astype(np.float32)
    exact = np.promote_types(image.dtype, np.float32)
    return np.subtract(image, air, dtype=exact, casting="unsafe").astype(np.float32)


def foreground(image: torch.Tensor | np.ndarray) -> np.ndarray:
    """Voxels that are not air, bool, of the shape of `image` (HWD, 1HWD, or a sample of voxels).

    Where at least a tenth of the voxels is exactly 0 (skull-stripped, or air set to 0), those that are not 0; otherwise
    those above Otsu's threshold, taken from every eighth voxel.
    """
    array = np.asarray(image)
    tissue = array != 0
    if np.count_nonzero(tissue) <= (1 - ZERO_AIR) * tissue.size:
        return tissue
    from skimage.filters import threshold_otsu  # a bundle whose air is 0 does without the package

    every_second = array[tuple(slice(None, None, 2) for _ in array.shape)] if array.ndim > 2 else array
    return array > threshold_otsu(every_second)


def select_foreground(image: torch.Tensor) -> torch.Tensor:
    """`foreground` in the form that MONAI's `CropForegroundd` takes as `select_fn`."""
    return torch.from_numpy(foreground(image))


def check_method(method: str) -> None:
    """Refuse an unknown normalisation.

    Raises:
        ValueError: if it is none of `NORMALISATIONS`.
    """
    if method not in NORMALISATIONS:
        raise ValueError(f"normalise must be one of {', '.join(NORMALISATIONS)}, got {method!r}.")


def limits_of(method: str) -> tuple[float, float]:
    """Smallest and largest normalised intensity."""
    check_method(method)
    return (-_CLIP, _CLIP) if method == "zscore" else (0.0, 1.0)


def statistics(values: np.ndarray, method: str) -> tuple[float, float]:
    """Offset and scale of a normalisation.

    Args:
        values: intensities of the foreground, or of a sample of it, at least one.
        method: "zscore": mean and standard deviation; "percentile": the percentile of 0.5 %, and its distance
            to that of 99.5 %.
    """
    if method == "zscore":
        return float(values.mean()), max(float(values.std()), 1e-6)
    low, high = np.percentile(values, PERCENTILES)
    return float(low), max(float(high - low), 1e-6)


def normalise(image: Any, offset: Any, scale: Any, method: str) -> Any:
    """(image - offset) / scale, clipped to `limits_of(method)`; arrays or tensors."""
    return ((image - offset) / scale).clip(*limits_of(method))
