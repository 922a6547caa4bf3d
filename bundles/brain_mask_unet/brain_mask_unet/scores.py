"""Scores of a brain mask against a reference mask on the scan's own grid."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from nibabel.affines import voxel_sizes

from bundlekit.cases.case import Case
from bundlekit.images.nifti import voxel_ml
from bundlekit.scores.handler import ScoreHandler
from bundlekit.scores.masks import COMMON_DEFINITIONS, hd95, require_one_grid

from .reading import read_mask

NOTES = {
    "empty_class_rule": "Brain empty in reference and prediction: Dice 1, HD95 0 mm. Empty in exactly one of them: "
    "Dice 0, HD95 = length of the image diagonal in mm. Sensitivity of an empty reference and precision of an empty "
    "prediction are undefined: left out of the statistics, counted in n_undefined.",
    "metric_definitions": {
        **COMMON_DEFINITIONS,
        "sensitivity": "TP / (TP + FN), 0 to 1: share of the reference that the mask holds",
        "precision": "TP / (TP + FP), 0 to 1: share of the mask that the reference holds",
    },
}


def mask_scores(pred: np.ndarray, truth: np.ndarray, affine: np.ndarray) -> dict[str, float]:
    """Scores of one scan, by the definitions in `NOTES`.

    Args:
        pred: predicted mask, HWD, brain above 0.
        truth: reference on the same grid, HWD.
        affine: 4x4, voxel to mm; of a sheared one volumes are exact, distances go by the voxel's edges.

    Returns:
        `dice_brain`, `hd95_brain` (mm), `sensitivity_brain`, `precision_brain`, `volume_truth_ml`, `volume_pred_ml`;
        what is undefined is NaN.

    Raises:
        ValueError: if the shapes differ or are not 3-D.
    """
    require_one_grid(pred, truth)
    p, t = pred > 0, truth > 0
    n_pred, n_truth, both = int(p.sum()), int(t.sum()), int((p & t).sum())
    spacing = voxel_sizes(affine)
    one_ml, diagonal_mm = voxel_ml(affine), float(np.linalg.norm(spacing * truth.shape))
    return {
        "dice_brain": 2 * both / (n_pred + n_truth) if n_pred or n_truth else 1.0,
        "hd95_brain": hd95(p, t, spacing.tolist(), diagonal_mm),
        "sensitivity_brain": both / n_truth if n_truth else math.nan,
        "precision_brain": both / n_pred if n_pred else math.nan,
        "volume_truth_ml": n_truth * one_ml,
        "volume_pred_ml": n_pred * one_ml,
    }


class ScoreCases(ScoreHandler):
    """Ignite handler that scores every scan against its own mask file; see `ScoreHandler`.

    Args:
        output_dir: folder for `scores.csv` and `summary.json`; made if missing.
        cases: as `cases.find_cases` gives them; they say where the masks are.
    """

    def __init__(self, output_dir: str | os.PathLike[str], cases: Sequence[Case]) -> None:
        super().__init__(output_dir, NOTES)
        self._cases = {case["case"]: case for case in cases}

    def score(self, item: Mapping[str, Any], pred: np.ndarray) -> dict[str, float]:
        """Scores of one scan, see `mask_scores`."""
        truth, affine = read_mask(self._cases[str(item["case"])]["label"])
        return mask_scores(pred, truth, affine)
