"""Scores of an abdominal CT against the original label."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine
from monai.metrics import compute_surface_dice
from monai.utils import convert_to_numpy
from nibabel.affines import voxel_sizes
from scipy import ndimage

from bundlekit.cases.case import Case
from bundlekit.scores.handler import ScoreHandler
from bundlekit.scores.masks import COMMON_DEFINITIONS, confusion_matrix, counts_of, hd95, require_one_grid

from .organs import Classes, tolerance_of
from .reading import read_label

EMPTY_RULE = (
    "Class empty in reference and prediction: Dice, IoU and NSD 1, HD95 0 mm. Empty in exactly one of them: Dice, IoU "
    "and NSD 0, HD95 = length of the image diagonal in mm."
)
METRIC_DEFINITIONS = {
    **COMMON_DEFINITIONS,
    "iou": "TP / (TP + FP + FN), 0 to 1",
    "iou50": "IoU of the mask of voxels whose softmax probability of the class is above 0.5; a voxel where no class "
    "reaches that is in no mask, neither an organ's nor the background's",
    "mean_iou": "mean of iou over the classes, background among them, as upstream",
    "mean_iou_organs": "mean of iou over the classes without background",
    "mean_iou50": "mean of iou50 over the classes, background among them, as upstream",
    "nsd": "normalised surface Dice at the tolerance in tolerance_mm: share of the surface voxels of both masks that "
    "are at most that far from the other surface, 0 to 1",
    "accuracy": "share of all voxels of the image whose class is right, air included",
    "accuracy_of_empty_mask": "accuracy of predicting background everywhere. An accuracy means nothing but by its "
    "distance from this one",
    "mean_dice": "mean of the classes' Dice in a case, without background",
}


def case_scores(
    pred: np.ndarray,
    truth: np.ndarray,
    spacing_mm: Sequence[float],
    tolerances_mm: Mapping[str, float],
    confident: np.ndarray | None = None,
) -> dict[str, float]:
    """All scores of one case, by the definitions in `METRIC_DEFINITIONS`.

    All counts come from one pass over the volume; MONAI's `DiceMetric` and `MeanIoU` take one-hot masks, and a pass
    each.

    Args:
        pred: predicted class indices, HWD.
        truth: reference on the same grid, HWD.
        spacing_mm: voxel size along H, W and D in mm; may be anisotropic.
        tolerances_mm: name -> tolerance of the surface score, of the classes from 1 on.
        confident: HWD; where the probability of the predicted class is above 0.5. None: the scores `iou50` are
            undefined.

    Returns:
        For each class C `dice_C`, `iou_C`, `iou50_C`, `nsd_C`, `hd95_C` (mm), `volume_truth_ml_C`, `volume_pred_ml_C`;
        then `mean_iou`, `mean_iou_organs`, `mean_iou50`, `accuracy` and `accuracy_of_empty_mask`. What is undefined is
        NaN.

    Raises:
        ValueError: the shapes differ or are not 3-D, or a value is no class.
    """
    require_one_grid(pred, truth)
    count = len(tolerances_mm) + 1
    if max(int(pred.max()), int(truth.max())) >= count:
        raise ValueError(f"pred and truth must hold the classes 0 to {count - 1} only")
    spacing = [float(mm) for mm in spacing_mm]
    voxel_ml, diagonal_mm = float(np.prod(spacing)) / 1000, float(np.linalg.norm(np.multiply(spacing, truth.shape)))
    confusion = confusion_matrix(pred, truth, count)
    sure = np.full((count, count + 1), np.nan)
    if confident is not None:
        # Where the prediction is not sure it is of a further class that the truth does not have
        sure = confusion_matrix(np.where(confident.astype(bool), pred, count), truth, count + 1)[:count]
    boxes = [ndimage.find_objects(labels, max_label=count - 1) for labels in (pred, truth)]
    scores: dict[str, float] = {}
    for index, (name, tolerance_mm) in enumerate(tolerances_mm.items(), 1):
        both, n_pred, n_truth = counts_of(confusion, (index,))
        distance, surface = 0.0, 1.0
        if n_truth and n_pred:
            box = _around(boxes[0][index - 1], boxes[1][index - 1])
            p, t = pred[box] == index, truth[box] == index
            distance, surface = hd95(p, t, spacing), nsd(p, t, spacing, tolerance_mm)
        elif n_truth or n_pred:
            distance, surface = diagonal_mm, 0.0
        key = name.replace(" ", "_")
        scores[f"dice_{key}"] = 2 * both / (n_truth + n_pred) if n_truth or n_pred else 1.0
        scores[f"iou_{key}"] = _iou(confusion, index)
        scores[f"iou50_{key}"] = _iou(sure, index)
        scores[f"nsd_{key}"] = surface
        scores[f"hd95_{key}"] = distance
        scores[f"volume_truth_ml_{key}"] = n_truth * voxel_ml
        scores[f"volume_pred_ml_{key}"] = n_pred * voxel_ml
    overlaps = [_iou(confusion, index) for index in range(count)]
    scores["mean_iou"], scores["mean_iou_organs"] = float(np.mean(overlaps)), float(np.mean(overlaps[1:]))
    scores["mean_iou50"] = float(np.mean([_iou(sure, index) for index in range(count)]))
    scores["accuracy"] = int(np.trace(confusion)) / truth.size
    scores["accuracy_of_empty_mask"] = int(confusion[0].sum()) / truth.size
    return scores


def nsd(pred: np.ndarray, truth: np.ndarray, spacing_mm: Sequence[float], tolerance_mm: float) -> float:
    """Normalised surface Dice of two masks HWD, neither empty, at a tolerance in mm; MONAI's: it counts voxels.

    Nikolov et al., 2021, doi:10.2196/26151. Their own measure weighs surface elements by area.
    """
    masks = [torch.from_numpy(np.pad(mask, 1).astype(np.uint8))[None, None] for mask in (pred, truth)]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*always_return_as_numpy")  # MONAI 1.6 warns of its own call
        found = compute_surface_dice(
            masks[0], masks[1], [float(tolerance_mm)], include_background=True, spacing=[float(mm) for mm in spacing_mm]
        )
    return float(found)


def tolerances_of(classes: Classes, tolerance_mm: float | None = None) -> dict[str, float]:
    """Tolerance of each class's surface score: one for all, or (None) FLARE22's of its organs."""
    return {
        name: tolerance_of(organs) if tolerance_mm is None else float(tolerance_mm) for name, organs in classes.items()
    }


class ScoreOrgans(ScoreHandler):
    """Ignite handler that scores every case against its original label files; see `ScoreHandler`.

    It reads `confident` from the output too, if it is there.

    Args:
        output_dir: folder for `scores.csv` and `summary.json`; made if missing.
        cases: as `cases.find_cases` gives them; they say where the labels are and what they mean.
        tolerance_mm: of the surface score; None: FLARE22's for each organ.
    """

    def __init__(
        self, output_dir: str | os.PathLike[str], cases: Sequence[Case], tolerance_mm: float | None = None
    ) -> None:
        classes: Classes = next((case["classes"] for case in cases), {})
        self.tolerances_mm = tolerances_of(classes, tolerance_mm)
        notes = {
            "empty_class_rule": EMPTY_RULE,
            "metric_definitions": METRIC_DEFINITIONS,
            "tolerance_mm": self.tolerances_mm,
            "classes": classes,
        }
        super().__init__(output_dir, notes)
        self._cases = {case["case"]: case for case in cases}
        self._confident: dict[str, Any] = {}

    def score(self, item: Mapping[str, Any], pred: np.ndarray) -> dict[str, float]:
        """Scores of one case on its original label, see `case_scores`."""
        case = str(item["case"])
        truth, affine = read_label(self._cases[case])
        confident = self._confident.get(case)
        sure = None if confident is None else convert_to_numpy(confident)[0]
        return case_scores(pred, truth, voxel_sizes(affine), self.tolerances_mm, sure)

    def _score(self, engine: Engine) -> None:
        batch: Any = engine.state.batch
        outputs: Any = engine.state.output
        pairs = zip(batch, outputs, strict=True)
        self._confident = {str(item["case"]): output["confident"] for item, output in pairs if "confident" in output}
        super()._score(engine)
        self._confident = {}


def _iou(confusion: np.ndarray, index: int) -> float:
    """Of one class, from counts; 1 where it is in neither, NaN where the counts are."""
    both = confusion[index, index]
    union = confusion[index].sum() + confusion[:, index].sum() - both
    return math.nan if math.isnan(both) else float(both / union) if union else 1.0


def _around(a: tuple[slice, ...], b: tuple[slice, ...]) -> tuple[slice, ...]:
    """The smallest box that holds two."""
    return tuple(slice(min(x.start, y.start), max(x.stop, y.stop)) for x, y in zip(a, b, strict=True))
