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
