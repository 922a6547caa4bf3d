"""What the scores of every bundle share: definitions, checks, counts and the distance of two masks of one case."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence

import numpy as np
from monai.metrics import compute_hausdorff_distance

COMMON_DEFINITIONS = {
    "dice": "2 TP / (2 TP + FP + FN), 0 to 1",
    "hd95": "mm; the larger of the two directed 95th percentiles of the distances from each surface voxel to the "
    "nearest surface voxel of the other mask",
    "volume_truth_ml": "ml; reference voxels x voxel volume",
    "volume_pred_ml": "ml; predicted voxels x voxel volume",
    "ci95": "95 % percentile bootstrap interval of the mean over cases",
}
"""Of `metric_definitions` in the summary: name of a score, or how it begins -> what it is."""


def require_one_grid(pred: np.ndarray, truth: np.ndarray) -> None:
    """ValueError unless prediction and reference are of one 3-D shape that holds a voxel."""
    if pred.shape != truth.shape or truth.ndim != 3 or not truth.size:
        raise ValueError(f"pred and truth must share one 3-D grid: pred has shape {pred.shape}, truth {truth.shape}")


def as_classes(values: np.ndarray, name: str, n_classes: int) -> np.ndarray:
    """`values` as uint8; ValueError, which says `name`, if one of them is not a class from 0 to `n_classes` - 1."""
    with np.errstate(invalid="ignore"):  # NaN is no class either, and says so below
        classes = values.astype(np.uint8, copy=False)
    if classes.max(initial=0) >= n_classes or not np.array_equal(classes, values):
        raise ValueError(f"{name} must hold the classes 0 to {n_classes - 1} only")
    return classes


def confusion_matrix(pred: np.ndarray, truth: np.ndarray, n_classes: int) -> np.ndarray:
    """Voxels by their class in the reference (rows) and in the prediction (columns), from one pass over the volume.

    Args:
        pred: predicted classes, HWD, 0 to `n_classes` - 1.
        truth: reference classes on the same grid, likewise.
        n_classes: with background; 256 at most.
    """
    pairs = truth.astype(np.uint16) * np.uint16(n_classes) + pred.astype(np.uint16)
    return np.bincount(pairs.ravel(), minlength=n_classes**2).reshape(n_classes, n_classes)


def counts_of(confusion: np.ndarray, classes: Sequence[int]) -> tuple[int, int, int]:
    """Voxels that are of `classes` in both, in the prediction and in the reference."""
    inside = np.isin(np.arange(len(confusion)), classes)
    return int(confusion[np.ix_(inside, inside)].sum()), int(confusion[:, inside].sum()), int(confusion[inside].sum())


def hd95(pred: np.ndarray, truth: np.ndarray, spacing_mm: Sequence[float], diagonal_mm: float = math.nan) -> float:
    """95th percentile Hausdorff distance in mm of two masks HWD; `diagonal_mm` if one is empty, 0 if both are.

    The larger of the two directed 95th percentiles of the distances from each surface voxel to the nearest surface
    voxel of the other mask. MONAI crops to the masks with a margin of one voxel, padded where they touch the border,
    so a surface at the border of the image, or of a box cut out of it, counts as surface. The package surface-distance
    is not used: it weighs surface elements by their area, which is another measure and one more dependency. MONAI's
    search trees take about 0.1 s for a tumour of 60 ml, but tens of seconds for a prediction that is noise all over the
    volume.
    """
    if not (pred.any() and truth.any()):
        return diagonal_mm if pred.any() or truth.any() else 0.0
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*always_return_as_numpy")  # MONAI 1.6 warns of its own call
        distance = compute_hausdorff_distance(
            pred[None, None],
            truth[None, None],
            include_background=True,
            percentile=95,
            spacing=[float(mm) for mm in spacing_mm],
        )
    return float(distance)
