"""Scores of a segmentation against its reference: per case and region, summarised, and written by an ignite handler.

Definitions follow Taha & Hanbury, "Metrics for evaluating 3D medical image segmentation", BMC Medical Imaging 2015,
and the rules of the BraTS challenge for regions that are empty. The lesion-wise ones are those of BraTS-GLI 2023, see
`lesions.lesion_scores`.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from nibabel.affines import voxel_sizes
from scipy import ndimage

from bundlekit.brats.lesions import SOURCE, lesion_rule, lesion_scores
from bundlekit.brats.reading import read_label as read_original_label
from bundlekit.brats.regions import REGIONS
from bundlekit.scores.handler import ScoreHandler
from bundlekit.scores.masks import COMMON_DEFINITIONS, as_classes, confusion_matrix, counts_of, hd95, require_one_grid

DILATION_VOXELS = 3
MINIMUM_MM3 = 50.0
N_CLASSES = 4  # 0 background, 1 necrotic core (NCR), 2 oedema (ED), 3 enhancing tumour (ET)
EMPTY_RULE = (
    "Region empty in reference and prediction: Dice 1, HD95 0 mm. Empty in exactly one of them: Dice 0, HD95 = length "
    "of the image diagonal in mm (373.13 mm on the BraTS grid of 240x240x155 voxels of 1 mm, the challenge's own "
    "penalty). Sensitivity of an empty reference is undefined: left out of the statistics, counted in n_undefined."
)
METRIC_DEFINITIONS = {
    **COMMON_DEFINITIONS,
    "hd95": COMMON_DEFINITIONS["hd95"] + " (a surface voxel has a face neighbour outside the mask or the image)",
    "sensitivity": "TP / (TP + FN), 0 to 1",
    "specificity": "TN / (TN + FP) over all voxels of the volume, 0 to 1",
    "lesion_dice": "sum of the lesions' Dice / (lesions + false positives), 0 to 1; see lesion_rule",
    "lesion_hd95": "mm; mean of HD95 over lesions and false positives; see lesion_rule",
    "lesions": "reference lesions that count",
    "lesions_detected": "those of them that a predicted component reaches: overlaps the lesion or its dilation",
    "false_positives": "predicted components of the case that reach no reference lesion",
    "mean_dice": "mean of the regions' Dice in a case",
}
NOTES = {
    "empty_region_rule": EMPTY_RULE,
    "lesion_rule": lesion_rule("BraTS-GLI 2023", DILATION_VOXELS, MINIMUM_MM3),
    "lesion_rule_source": SOURCE,
    "metric_definitions": METRIC_DEFINITIONS,
}


def region_scores(
    pred: np.ndarray,
    truth: np.ndarray,
    spacing_mm: Sequence[float],
    regions: Mapping[str, Sequence[int]] = REGIONS,
) -> dict[str, float]:
    """Scores of every region of one case, by the definitions in `METRIC_DEFINITIONS`.

    All counts come from one pass over the volume; MONAI's `DiceMetric` and `ConfusionMatrixMetric` take one-hot masks,
    and a pass each.

    Empty regions: both empty is Dice 1 and HD95 0; exactly one empty is Dice 0 and HD95 = image diagonal in mm (the
    challenge's 373.13 mm on its own grid); sensitivity is NaN where truth is empty. Same text: `EMPTY_RULE`.

    Args:
        pred: predicted classes, shape HWD, values 0 to 3.
        truth: reference classes on the same grid, shape HWD, values 0 to 3.
        spacing_mm: voxel size along H, W and D in mm; may be anisotropic.
        regions: region name -> the classes that make it up.

    Returns:
        For each region R: `dice_R`, `hd95_R` (mm), `sensitivity_R`, `specificity_R`, `volume_truth_ml_R`,
        `volume_pred_ml_R`. The fractions lie in 0 to 1.

    Raises:
        ValueError: the shapes differ or are not 3-D, a value is not one of the classes, or the spacing is not three
            positive numbers.
    """
    require_one_grid(pred, truth)
    spacing = np.asarray(spacing_mm, dtype=float)
    if spacing.shape != (3,) or not (np.isfinite(spacing) & (spacing > 0)).all():
        raise ValueError(f"spacing_mm must be three positive numbers, not {spacing_mm}")
    pred, truth = as_classes(pred, "pred", N_CLASSES), as_classes(truth, "truth", N_CLASSES)
    confusion = confusion_matrix(pred, truth, N_CLASSES)
    # Only the tumour's box is searched for surfaces, never the air around it.
    box = ndimage.find_objects(((pred | truth) > 0).view(np.uint8))
    pred_box, truth_box = (pred[box[0]], truth[box[0]]) if box else (pred, truth)
    diagonal_mm = float(np.linalg.norm(spacing * truth.shape))
    voxel_ml = float(spacing.prod()) / 1000

    scores: dict[str, float] = {}
    for name, classes in regions.items():
        tp, n_pred, n_truth = counts_of(confusion, classes)
        fp, n_outside = n_pred - tp, truth.size - n_truth
        in_pred, in_truth = np.isin(pred_box, classes), np.isin(truth_box, classes)
        scores[f"dice_{name}"] = 2 * tp / (n_truth + n_pred) if n_truth or n_pred else 1.0
        scores[f"hd95_{name}"] = hd95(in_pred, in_truth, spacing.tolist(), diagonal_mm)
        scores[f"sensitivity_{name}"] = tp / n_truth if n_truth else math.nan
        scores[f"specificity_{name}"] = (n_outside - fp) / n_outside if n_outside else math.nan
        scores[f"volume_truth_ml_{name}"] = n_truth * voxel_ml
        scores[f"volume_pred_ml_{name}"] = n_pred * voxel_ml
    return scores


def lesion_wise_scores(
    pred: np.ndarray,
    truth: np.ndarray,
    spacing_mm: Sequence[float],
    regions: Mapping[str, Sequence[int]] = REGIONS,
) -> dict[str, float]:
    """Lesion-wise scores of every region of one case, by the rules of BraTS-GLI 2023: see `lesions.lesion_scores`.

    Arguments are as for `region_scores`; the result is that of `LesionScores.named`, of each region.

    Raises:
        ValueError: the shapes differ or are not 3-D, or the spacing is not three positive numbers.
    """
    scores: dict[str, float] = {}
    for name, classes in regions.items():
        in_pred, in_truth = np.isin(pred, classes), np.isin(truth, classes)
        scores |= lesion_scores(in_pred, in_truth, spacing_mm, DILATION_VOXELS, MINIMUM_MM3).named(name)
    return scores


class ScoreCases(ScoreHandler):
    """Ignite handler that scores every case against its original label file; see `ScoreHandler`.

    It reads `label_values` from the batch too.

    Args:
        output_dir: folder for `scores.csv` and `summary.json`; made if missing.
        regions: region name -> its classes; `REGIONS` when None.
        read_label: `(path, label_values) -> (classes HWD, affine 4x4)`; `reading.read_label` when None.
    """

    def __init__(
        self,
        output_dir: str | os.PathLike[str],
        regions: Mapping[str, Sequence[int]] | None = None,
        read_label: Callable[[str, Sequence[int]], tuple[np.ndarray, np.ndarray]] | None = None,
    ) -> None:
        super().__init__(output_dir, NOTES)
        self.regions = REGIONS if regions is None else regions
        self._read_label = read_original_label if read_label is None else read_label

    def score(self, item: Mapping[str, Any], pred: np.ndarray) -> dict[str, float]:
        """Scores of one case on its original label, see `region_scores` and `lesion_wise_scores`."""
        truth, affine = self._read_label(str(item["label_file"]), [int(value) for value in item["label_values"]])
        spacing = voxel_sizes(affine)
        scores = region_scores(pred, truth, spacing, self.regions)
        return scores | lesion_wise_scores(pred, truth, spacing, self.regions)
