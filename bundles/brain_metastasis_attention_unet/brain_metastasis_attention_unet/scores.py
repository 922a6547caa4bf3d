"""Scores of a segmentation of metastases: voxel-wise and lesion-wise, per case, written by an ignite handler.

Voxel-wise definitions follow Taha & Hanbury, "Metrics for evaluating 3D medical image segmentation", BMC Medical
Imaging 2015; the lesion-wise ones are those of the BraTS-METS 2023 challenge, see
`bundlekit.brats.lesions.lesion_scores`.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ignite.distributed as idist
import numpy as np
from ignite.engine import Engine
from nibabel.affines import voxel_sizes
from scipy import ndimage

from bundlekit.brats.lesions import SIZES, SOURCE, lesion_rule, lesion_scores, voxel_mm3
from bundlekit.brats.reading import read_label as read_original_label
from bundlekit.brats.regions import REGIONS
from bundlekit.cases.patients import patient_of
from bundlekit.scores.handler import ScoreHandler
from bundlekit.scores.masks import COMMON_DEFINITIONS, as_classes, confusion_matrix, counts_of, hd95, require_one_grid

# non-enhancing tumour core, surrounding non-enhancing FLAIR hyperintensity, enhancing tumour; 0 is background
CLASSES: dict[str, int] = {"NETC": 1, "SNFH": 2, "ET": 3}

N_CLASSES = 1 + len(CLASSES)
SIZED_REGIONS = ("WT", "ET")  # scored by size of lesion too
EMPTY_RULE = (
    "Voxel-wise, region or class empty in reference and prediction: Dice and IoU 1, HD95 0 mm. Empty in exactly one of "
    "them: Dice and IoU 0, HD95 = length of the image diagonal in mm (373.13 mm on the BraTS grid of 240x240x155 "
    "voxels of 1 mm). Lesion-wise, neither a lesion nor a false positive: Dice 1, HD95 0 mm. Sensitivity without a "
    "lesion of that size is undefined: left out of the statistics, counted in n_undefined."
)
METRIC_DEFINITIONS = {
    **COMMON_DEFINITIONS,
    "dice": "2 TP / (2 TP + FP + FN) over the voxels of the region, 0 to 1",
    "hd95": COMMON_DEFINITIONS["hd95"] + " (a surface voxel has a face neighbour outside the mask or the image)",
    "lesion_dice": "sum of the lesions' Dice / (lesions + false positives), 0 to 1; see lesion_rule",
    "lesion_hd95": "mm; mean of HD95 over lesions and false positives; see lesion_rule",
    "lesions": "reference lesions that count (more than 2 mm3)",
    "lesions_detected": "those of them that a predicted component reaches: overlaps the lesion or its dilation",
    "lesion_sensitivity": "lesions detected / lesions of the case, 0 to 1. The mean over cases weighs each case "
    "alike; pooled over lesions it is the mean of lesions_detected / the mean of lesions",
    "false_positives": "predicted components of the case that reach no reference lesion",
    "by size": "lesions, lesions_detected and lesion_sensitivity by the reference lesion's volume: under 0.1 ml, 0.1 "
    "to 1 ml, over 1 ml",
    "accuracy": "share of all voxels of the image whose class is right, air included; of one class: whether the voxel "
    "is of that class",
    "accuracy_of_empty_mask": "accuracy of predicting background everywhere: the share of voxels that are background "
    "(or, of one class, not of that class). An accuracy means nothing but by its distance from this one",
    "iou": "TP / (TP + FP + FN) over the voxels of the class, 0 to 1",
    "mean_dice": "mean of the regions' voxel-wise Dice in a case",
}
NOTES = {
    "empty_region_rule": EMPTY_RULE,
    "lesion_rule": lesion_rule("BraTS-METS 2023"),
    "lesion_rule_source": SOURCE,
    "metric_definitions": METRIC_DEFINITIONS,
}
_log = logging.getLogger(__name__)


def case_scores(pred: np.ndarray, truth: np.ndarray, spacing_mm: Sequence[float]) -> dict[str, float]:
    """All scores of one case, by the definitions in `METRIC_DEFINITIONS` and the rules in `NOTES`.

    All counts come from one pass over the volume; MONAI's `DiceMetric`, `MeanIoU` and `ConfusionMatrixMetric` take
    one-hot masks, and a pass each.

    Args:
        pred: predicted classes, shape HWD, values 0 to 3.
        truth: reference classes on the same grid, shape HWD, values 0 to 3.
        spacing_mm: voxel size along H, W and D in mm; may be anisotropic.

    Returns:
        For each region R: `dice_R`, `hd95_R` (mm), `volume_truth_ml_R`, `volume_pred_ml_R`, `lesion_dice_R`,
        `lesion_hd95_R` (mm), `lesions_R`, `lesions_detected_R`, `lesion_sensitivity_R`, `false_positives_R`; for WT
        and ET and each size S of `bundlekit.brats.lesions.SIZES` also `lesions_S_R`, `lesions_detected_S_R` and
        `lesion_sensitivity_S_R`. Then `accuracy` and `accuracy_of_empty_mask` of the whole map, and for each class C
        `accuracy_C`, `accuracy_of_empty_mask_C` and `iou_C`. What is undefined is NaN.

    Raises:
        ValueError: the shapes differ or are not 3-D, a value is not one of the classes, the spacing is not three
            positive numbers, or the image has no voxel.
    """
    require_one_grid(pred, truth)
    voxel_ml = voxel_mm3(spacing_mm) / 1000
    diagonal_mm = float(np.linalg.norm(np.asarray(spacing_mm, dtype=float) * truth.shape))
    pred, truth = as_classes(pred, "pred", N_CLASSES), as_classes(truth, "truth", N_CLASSES)
    confusion = confusion_matrix(pred, truth, N_CLASSES)
    # Surfaces and lesions are sought in the tumour's box, never in the air around it.
    box = ndimage.find_objects(((pred | truth) > 0).view(np.uint8))
    pred, truth = (pred[box[0]], truth[box[0]]) if box else (pred[:1, :1, :1], truth[:1, :1, :1])

    scores: dict[str, float] = {}
    for region, classes in REGIONS.items():
        tp, n_pred, n_truth = counts_of(confusion, classes)
        in_pred, in_truth = np.isin(pred, classes), np.isin(truth, classes)
        scores[f"dice_{region}"] = 2 * tp / (n_truth + n_pred) if n_truth or n_pred else 1.0
        scores[f"hd95_{region}"] = hd95(in_pred, in_truth, spacing_mm, diagonal_mm)
        scores[f"volume_truth_ml_{region}"] = n_truth * voxel_ml
        scores[f"volume_pred_ml_{region}"] = n_pred * voxel_ml
        scores |= _lesion_wise(region, in_pred, in_truth, spacing_mm)
    return scores | _class_wise(confusion)


class ScoreMetastases(ScoreHandler):
    """Ignite handler that scores every case against its original label file; see `ScoreHandler`.

    It reads `label_values` from the batch too, and logs the lesion-wise scores and the accuracy beside its baseline.

    Args:
        output_dir: folder for `scores.csv` and `summary.json`; made if missing.
        read_label: `(path, label_values) -> (classes HWD uint8, affine 4x4)`; `bundlekit.brats.reading.read_label` when
            None.
        chosen_on: names of the cases that `ChooseMinimumLesion` went by. Those of them, or of their patients, that are
            scored are warned of, and named in `summary.json` (`minimum_lesion_chosen_on`): their scores flatter.
    """

    def __init__(
        self,
        output_dir: str | os.PathLike[str],
        read_label: Callable[[str, Sequence[int]], tuple[np.ndarray, np.ndarray]] | None = None,
        chosen_on: Sequence[str] = (),
    ) -> None:
        super().__init__(output_dir, NOTES)
        self._chosen_on = {patient_of(str(case)) for case in chosen_on}
        if read_label is None:
            read_label = read_original_label
        self._read_label = read_label

    def score(self, item: Mapping[str, Any], pred: np.ndarray) -> dict[str, float]:
        """Scores of one case on its original label, see `case_scores`."""
        truth, affine = self._read_label(str(item["label_file"]), [int(value) for value in item["label_values"]])
        return case_scores(pred, truth, voxel_sizes(affine))

    def _finish(self, engine: Engine) -> None:
        cases = [str(row["case"]) for row in self._gathered()]
        known = [case for case in cases if patient_of(case) in self._chosen_on]
        self.notes = {**NOTES, "minimum_lesion_chosen_on": known} if known else NOTES
        if known and idist.get_rank() == 0:
            text = "minimum_lesion_ml was chosen on %d of these %d cases: their scores flatter (--minimum_lesion_ml 0)"
            _log.warning(text, len(known), len(cases))
        super()._finish(engine)
        if idist.get_rank() == 0:
            summary = json.loads((self.output_dir / "summary.json").read_text())
            _log.info("%s", _lesion_table(summary["metrics"]))


def _lesion_wise(region: str, pred: np.ndarray, truth: np.ndarray, spacing_mm: Sequence[float]) -> dict[str, float]:
    """Lesion-wise scores of one region, under the names of the result files."""
    found = lesion_scores(pred, truth, spacing_mm)
    scores = {**found.named(region), f"lesion_sensitivity_{region}": found.sensitivity()}
    for size in SIZES if region in SIZED_REGIONS else ():
        lesions, detected = found.count(size)
        scores[f"lesions_{size}_{region}"] = float(lesions)
        scores[f"lesions_detected_{size}_{region}"] = float(detected)
        scores[f"lesion_sensitivity_{size}_{region}"] = found.sensitivity(size)
    return scores


def _class_wise(confusion: np.ndarray) -> dict[str, float]:
    """Accuracy, its baseline and IoU, of the whole class map and of each class."""
    n = int(confusion.sum())
    scores = {"accuracy": int(np.trace(confusion)) / n, "accuracy_of_empty_mask": int(confusion[0].sum()) / n}
    for name, value in CLASSES.items():
        tp, n_pred, n_truth = counts_of(confusion, (value,))
        union = n_pred + n_truth - tp
        scores[f"accuracy_{name}"] = (n - union + tp) / n
        scores[f"accuracy_of_empty_mask_{name}"] = (n - n_truth) / n
        scores[f"iou_{name}"] = tp / union if union else 1.0
    return scores


def _lesion_table(metrics: Mapping[str, Mapping[str, Any]]) -> str:
    """The lesion-wise scores and the accuracies as a few lines; sensitivities are pooled over all lesions."""

    def mean(name: str) -> float:
        return float(metrics[name]["mean"])

    def found(name: str) -> str:
        cases = metrics[f"lesions_{name}"]["n"]
        lesions, detected = (round(mean(f"{key}_{name}") * cases) for key in ("lesions", "lesions_detected"))
        return f"{detected}/{lesions}" + (f" ({detected / lesions:.3f})" if lesions else "")

    lines = []
    for region in REGIONS:
        line = f"{region}: lesion-wise Dice {mean(f'lesion_dice_{region}'):.4g}"
        line += f", HD95 {mean(f'lesion_hd95_{region}'):.4g} mm, lesions detected {found(region)}"
        line += f", false positives a case {mean(f'false_positives_{region}'):.3g}"
        if region in SIZED_REGIONS:
            line += "; by size " + ", ".join(f"{size} {found(f'{size}_{region}')}" for size in SIZES)
        lines.append(line)
    lines.append(f"accuracy {mean('accuracy'):.5f}, of an empty mask {mean('accuracy_of_empty_mask'):.5f}")
    for name in CLASSES:
        line = f"{name}: IoU {mean(f'iou_{name}'):.4g}, accuracy {mean(f'accuracy_{name}'):.5f}"
        lines.append(line + f", of an empty mask {mean(f'accuracy_of_empty_mask_{name}'):.5f}")
    return "\n".join(lines)
