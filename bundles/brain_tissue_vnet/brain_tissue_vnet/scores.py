"""Scores of a tissue map against the original label, with voxels whose label cannot say left out."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from nibabel.affines import voxel_sizes
from scipy import ndimage

from bundlekit.cases.case import Case
from bundlekit.images.nifti import voxel_ml
from bundlekit.label_maps.numberings import CSF, CSF_OR_GM, GM, WM
from bundlekit.scores.handler import ScoreHandler
from bundlekit.scores.masks import COMMON_DEFINITIONS, hd95, require_one_grid

from .reading import read_tissue

TISSUES = {"CSF": CSF, "GM": GM, "WM": WM}
EMPTY_RULE = (
    "Class empty in reference and prediction: Dice 1, HD95 0 mm. Empty in exactly one of them: Dice 0, HD95 = length "
    "of the image diagonal in mm. Sensitivity and union_dice_CSF_GM of an empty reference are undefined: left out of "
    "the statistics, counted in n_undefined."
)
IGNORE_RULE = (
    "Voxels whose reference label cannot say which tissue they are (see the model card's tables) count for no class: "
    "the prediction there is taken as background. Those labelled as either CSF or GM count for union_dice_CSF_GM, and "
    "for white matter, which is wrong there."
)
METRIC_DEFINITIONS = {
    **COMMON_DEFINITIONS,
    "sensitivity": "TP / (TP + FN), 0 to 1; of GM in Neuromorphometrics labels: of the deep grey matter",
    "union_dice_CSF_GM": "Dice of CSF and grey matter taken together, 0 to 1",
    "volume_truth_ml": "ml; reference voxels x voxel volume, without the voxels left out",
    "volume_pred_ml": "ml; predicted voxels x voxel volume, without the voxels that count for none of it",
    "volume_difference_ml": "ml; predicted less reference",
    "ignored_ml": "ml; voxels left out",
    "mean_dice": "mean of the three classes' Dice in a case",
}
NOTES = {
    "empty_class_rule": EMPTY_RULE,
    "ignored_voxels_rule": IGNORE_RULE,
    "metric_definitions": METRIC_DEFINITIONS,
}


def tissue_scores(pred: np.ndarray, truth: np.ndarray, affine: np.ndarray) -> dict[str, float]:
    """Scores of CSF, GM and WM of one case, by the definitions in `METRIC_DEFINITIONS`.

    Args:
        pred: predicted classes, HWD, 0 to 3.
        truth: reference on the same grid, HWD: 0 to 3, `CSF_OR_GM` or `IGNORE`.
        affine: 4x4, voxel to mm; of a sheared one volumes are exact, distances go by the voxel's edges.

    Returns:
        For each tissue T `dice_T`, `hd95_T` (mm), `sensitivity_T`, `volume_truth_ml_T`, `volume_pred_ml_T`,
        `volume_difference_ml_T`; then `union_dice_CSF_GM` and `ignored_ml`. What is undefined is NaN.

    Raises:
        ValueError: the shapes differ or are not 3-D, or pred holds another value.
    """
    require_one_grid(pred, truth)
    if not np.isin(np.unique(pred), (0, CSF, GM, WM)).all():
        raise ValueError(f"pred must hold the classes 0 to 3 only, not {np.unique(pred)[:8].tolist()}")
    spacing = voxel_sizes(affine)
    one_ml, diagonal_mm = voxel_ml(affine), float(np.linalg.norm(spacing * truth.shape))
    either = truth == CSF_OR_GM
    ignored = truth >= CSF_OR_GM
    cannot_say = ignored & ~either
    known_pred, known_truth = np.where(ignored, 0, pred), np.where(ignored, 0, truth)
    known_pred[either & (pred == WM)] = WM  # neither CSF nor GM, whatever the sulci hold
    box = ndimage.find_objects(((known_pred > 0) | (known_truth > 0)).view(np.uint8))
    inside = box[0] if box else (slice(None),) * 3
    scores: dict[str, float] = {}
    for name, value in TISSUES.items():
        p, t = known_pred[inside] == value, known_truth[inside] == value
        n_pred, n_truth = int(p.sum()), int(t.sum())
        scores[f"dice_{name}"] = _dice(p, t)
        scores[f"hd95_{name}"] = hd95(p, t, spacing.tolist(), diagonal_mm)
        scores[f"sensitivity_{name}"] = int((p & t).sum()) / n_truth if n_truth else math.nan
        scores[f"volume_truth_ml_{name}"] = n_truth * one_ml
        scores[f"volume_pred_ml_{name}"] = n_pred * one_ml
        scores[f"volume_difference_ml_{name}"] = (n_pred - n_truth) * one_ml
    union_truth = (either | (truth == CSF) | (truth == GM)) & ~cannot_say
    union_pred = ((pred == CSF) | (pred == GM)) & ~cannot_say
    scores["union_dice_CSF_GM"] = _dice(union_pred, union_truth) if union_truth.any() else math.nan
    scores["ignored_ml"] = int(ignored.sum()) * one_ml
    return scores


class ScoreCases(ScoreHandler):
    """Ignite handler that scores every case against its original label files; see `ScoreHandler`.

    Args:
        output_dir: folder for `scores.csv` and `summary.json`; made if missing.
        cases: as `cases.find_cases` gives them; they say where the labels are and how they are numbered.
    """

    def __init__(self, output_dir: str | os.PathLike[str], cases: Sequence[Case]) -> None:
        super().__init__(output_dir, NOTES)
        self._cases = {case["case"]: case for case in cases}

    def score(self, item: Mapping[str, Any], pred: np.ndarray) -> dict[str, float]:
        """Scores of one case on its original label, see `tissue_scores`."""
        truth, affine = read_tissue(self._cases[str(item["case"])])
        return tissue_scores(pred, truth, affine)


def _dice(a: np.ndarray, b: np.ndarray) -> float:
    total = int(a.sum()) + int(b.sum())
    return 2 * int((a & b).sum()) / total if total else 1.0
