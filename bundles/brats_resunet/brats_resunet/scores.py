"""Scores of a segmentation against its reference: per case and region, summarised, and written by an ignite handler.

Definitions follow Taha & Hanbury, "Metrics for evaluating 3D medical image segmentation", BMC Medical Imaging 2015,
and the rules of the BraTS challenge for regions that are empty.
"""

from __future__ import annotations

import csv
import io
import json
import logging
import math
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import ignite.distributed as idist
import numpy as np
from ignite.engine import Engine, Events
from monai.metrics import compute_hausdorff_distance
from monai.utils import convert_to_numpy
from nibabel.affines import voxel_sizes
from scipy import ndimage, stats

from .errors import BundleError
from .files import write_result
from .reading import read_label as read_original_label
from .regions import REGIONS

N_CLASSES = 4  # 0 background, 1 necrotic core (NCR), 2 oedema (ED), 3 enhancing tumour (ET)
EMPTY_RULE = (
    "Region empty in reference and prediction: Dice 1, HD95 0 mm. Empty in exactly one of them: Dice 0, HD95 = length "
    "of the image diagonal in mm (373.13 mm on the BraTS grid of 240x240x155 voxels of 1 mm, the challenge's own "
    "penalty). Sensitivity of an empty reference is undefined: left out of the statistics, counted in n_undefined."
)
METRIC_DEFINITIONS = {
    "dice": "2 TP / (2 TP + FP + FN), 0 to 1",
    "hd95": "mm; the larger of the two directed 95th percentiles of the distances from each surface voxel to the "
    "nearest surface voxel of the other mask (a surface voxel has a face neighbour outside the mask or the image)",
    "sensitivity": "TP / (TP + FN), 0 to 1",
    "specificity": "TN / (TN + FP) over all voxels of the volume, 0 to 1",
    "volume_truth_ml": "ml; reference voxels x voxel volume",
    "volume_pred_ml": "ml; predicted voxels x voxel volume",
    "mean_dice": "mean of the regions' Dice in a case",
    "ci95": "95 % percentile bootstrap interval of the mean over cases",
}
_RESAMPLES = 5000
_LISTED = 5
_log = logging.getLogger("brats_resunet")


def region_scores(
    pred: np.ndarray,
    truth: np.ndarray,
    spacing_mm: Sequence[float],
    regions: Mapping[str, Sequence[int]] = REGIONS,
) -> dict[str, float]:
    """Scores of every region of one case, by the definitions in `METRIC_DEFINITIONS`.

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
    if pred.shape != truth.shape or truth.ndim != 3:
        raise ValueError(f"pred and truth must share one 3-D grid: pred has shape {pred.shape}, truth {truth.shape}")
    spacing = np.asarray(spacing_mm, dtype=float)
    if spacing.shape != (3,) or not (np.isfinite(spacing) & (spacing > 0)).all():
        raise ValueError(f"spacing_mm must be three positive numbers, not {spacing_mm}")
    pred, truth = _classes(pred, "pred"), _classes(truth, "truth")
    # One pass over the volume yields every count of every region: rows are truth, columns pred.
    confusion = np.bincount((truth * np.uint8(N_CLASSES) + pred).ravel(), minlength=N_CLASSES**2)
    confusion = confusion.reshape(N_CLASSES, N_CLASSES)
    # Only the tumour's box is searched for surfaces, never the air around it.
    box = ndimage.find_objects(((pred | truth) > 0).view(np.uint8))
    pred_box, truth_box = (pred[box[0]], truth[box[0]]) if box else (pred, truth)
    diagonal_mm = float(np.linalg.norm(spacing * truth.shape))
    voxel_ml = float(spacing.prod()) / 1000

    scores: dict[str, float] = {}
    for name, classes in regions.items():
        inside = np.isin(np.arange(N_CLASSES), classes)
        tp = int(confusion[np.ix_(inside, inside)].sum())
        n_truth, n_pred = int(confusion[inside].sum()), int(confusion[:, inside].sum())
        fp, n_outside = n_pred - tp, truth.size - n_truth
        if n_truth and n_pred:
            hd95 = _hd95(np.isin(pred_box, classes), np.isin(truth_box, classes), spacing)
        else:
            hd95 = diagonal_mm if n_truth or n_pred else 0.0
        scores[f"dice_{name}"] = 2 * tp / (n_truth + n_pred) if n_truth or n_pred else 1.0
        scores[f"hd95_{name}"] = hd95
        scores[f"sensitivity_{name}"] = tp / n_truth if n_truth else math.nan
        scores[f"specificity_{name}"] = (n_outside - fp) / n_outside if n_outside else math.nan
        scores[f"volume_truth_ml_{name}"] = n_truth * voxel_ml
        scores[f"volume_pred_ml_{name}"] = n_pred * voxel_ml
    return scores


def summarise(rows: Sequence[Mapping[str, Any]], seed: int = 0) -> dict[str, Any]:
    """Statistics over cases, ready for `json.dumps(..., allow_nan=False)`: what is undefined is None.

    Args:
        rows: one mapping per case: `case` (name) and the scores of `region_scores`.
        seed: seed of the bootstrap; the same rows and seed give the same intervals.

    Returns:
        `n_cases`; `metrics`: for each score and `mean_dice` the `n` finite values, `n_undefined`, `mean`, `sd`
        (ddof 1), `median`, `ci95` ([low, high]; None like `sd` when n < 2); `worst_cases` and `best_cases`: up to
        five `{case, mean_dice}`, most extreme first; `empty_region_rule`; `metric_definitions`.
    """
    rows = [{**r, "mean_dice": float(np.mean([r[name] for name in r if name.startswith("dice_")]))} for r in rows]
    names = [name for name in rows[0] if name != "case"] if rows else []
    ranked = sorted(({"case": r["case"], "mean_dice": r["mean_dice"]} for r in rows), key=lambda r: r["mean_dice"])
    return {
        "n_cases": len(rows),
        "metrics": {name: _statistics([row[name] for row in rows], seed) for name in names},
        "worst_cases": ranked[:_LISTED],
        "best_cases": ranked[::-1][:_LISTED],
        "empty_region_rule": EMPTY_RULE,
        "metric_definitions": METRIC_DEFINITIONS,
    }


class ScoreCases:
    """Ignite handler that scores every case against its original label file and writes the two result files.

    Put it into the `val_handlers` of a MONAI evaluator that decollates its batches. It reads, for each case, `case`,
    `label_file` and `label_values` from `engine.state.batch` and `pred` (classes 0 to 3 on the native grid, shape
    1HWD) from `engine.state.output`. At the end `output_dir` holds `scores.csv` (a row per case, by name; 6
    significant digits; undefined is empty) and `summary.json` (see `summarise`), each written whole or not at all,
    and `engine.state.metrics["mean_dice"]` is set. With several processes the rows of all are gathered, a case
    that the sampler repeated counts once, and rank 0 writes.

    Args:
        output_dir: folder for the two files; made if missing.
        regions: region name -> its classes; `REGIONS` when None.
        read_label: `(path, label_values) -> (classes HWD, affine 4x4)`; `brats_resunet.reading.read_label` when None.

    Raises:
        BundleError: while running, a case cannot be scored (names case and file), or there was no case at all.
    """

    def __init__(
        self,
        output_dir: str | os.PathLike[str],
        regions: Mapping[str, Sequence[int]] | None = None,
        read_label: Callable[[str, Sequence[int]], tuple[np.ndarray, np.ndarray]] | None = None,
    ) -> None:
        self.output_dir = Path(output_dir)
        self.regions = REGIONS if regions is None else regions
        self._read_label = read_original_label if read_label is None else read_label
        self._rows: dict[tuple[str, str], dict[str, Any]] = {}

    def attach(self, engine: Engine) -> None:
        """Register the handler's three steps with `engine`."""
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._score)
        engine.add_event_handler(Events.COMPLETED, self._finish)

    def _start(self, engine: Engine) -> None:
        self._rows = {}

    def _score(self, engine: Engine) -> None:
        batch: Any = engine.state.batch  # ignite's annotations know nothing of MONAI's lists of dicts
        outputs: Any = engine.state.output
        for item, output in zip(batch, outputs, strict=True):
            case, file = str(item["case"]), str(item["label_file"])
            try:
                truth, affine = self._read_label(file, [int(value) for value in item["label_values"]])
                pred = convert_to_numpy(output["pred"])
                if pred.shape[0] != 1:
                    raise ValueError(f"pred must hold class indices in one channel, but has shape {pred.shape}")
                scores = region_scores(pred[0], truth, voxel_sizes(affine), self.regions)
            except Exception as error:
                message = f"case {case} cannot be scored against {file}: {type(error).__name__}: {error}"
                raise BundleError(message) from error
            self._rows[case, file] = {"case": case, **scores}

    def _finish(self, engine: Engine) -> None:
        merged = dict(self._rows)
        if idist.get_world_size() > 1:
            for part in idist.all_gather(self._rows):  # type: ignore[union-attr]
                merged |= part  # type: ignore[arg-type]
        if not merged:
            raise BundleError(f"no case was scored, so nothing was written to {self.output_dir}")
        rows = [merged[key] for key in sorted(merged)]
        summary = summarise(rows)
        engine.state.metrics["mean_dice"] = summary["metrics"]["mean_dice"]["mean"]
        if idist.get_rank() == 0:
            # Both texts exist before either file is touched, so a value that cannot be written changes nothing.
            files = {"scores.csv": _csv(rows), "summary.json": json.dumps(summary, indent=2, allow_nan=False) + "\n"}
            for name, text in files.items():
                write_result(self.output_dir / name, partial(_write_text, text), "output_dir")
            _log.info("%s", _table(summary, self.regions))


def _classes(values: np.ndarray, name: str) -> np.ndarray:
    """`values` as uint8; ValueError if one of them is not a class."""
    classes = values.astype(np.uint8, copy=False)
    if classes.max(initial=0) >= N_CLASSES or not np.array_equal(classes, values):
        raise ValueError(f"{name} must hold the classes 0 to {N_CLASSES - 1} only")
    return classes


def _hd95(pred: np.ndarray, truth: np.ndarray, spacing: np.ndarray) -> float:
    """95th percentile Hausdorff distance in mm of two masks HWD, neither empty.

    MONAI crops to the masks with a margin of one voxel, padded where they touch the border, so a surface at the
    border of the image, or of the box cut out here, counts as surface. Its search trees take about 0.1 s for a tumour
    of 60 ml, but tens of seconds for a prediction that is noise all over the volume.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*always_return_as_numpy")  # MONAI 1.6 warns of its own call
        distance = compute_hausdorff_distance(
            pred[None, None], truth[None, None], include_background=True, percentile=95, spacing=spacing.tolist()
        )
    return float(distance)


def _statistics(values: Sequence[float], seed: int) -> dict[str, Any]:
    """n, mean, sd, median and bootstrap interval of the finite `values`."""
    x = np.asarray(values, dtype=float)
    x = x[np.isfinite(x)]
    result: dict[str, Any] = {"n": x.size, "n_undefined": len(values) - x.size}
    result |= {"mean": None, "sd": None, "median": None, "ci95": None}
    if x.size:
        result |= {"mean": float(x.mean()), "median": float(np.median(x))}
    if x.size > 1:
        # Percentile, not BCa: BCa is undefined where all cases agree, as in an all-empty region. Batches bound memory.
        interval = stats.bootstrap(
            (x,), np.mean, n_resamples=_RESAMPLES, batch=500, method="percentile", rng=np.random.default_rng(seed)
        ).confidence_interval
        result |= {"sd": float(x.std(ddof=1)), "ci95": [float(interval.low), float(interval.high)]}
    return result


def _csv(rows: Sequence[Mapping[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    for row in rows:
        scores = {name: "" if math.isnan(v) else f"{v:.6g}" for name, v in row.items() if name != "case"}
        writer.writerow({"case": row["case"], **scores})
    return text.getvalue()


def _write_text(text: str, file: BinaryIO) -> None:
    file.write(text.encode())


def _table(summary: Mapping[str, Any], regions: Mapping[str, Sequence[int]]) -> str:
    """The summary as a few lines, a row per region."""
    columns = {"Dice": "dice", "HD95 mm": "hd95", "sensitivity": "sensitivity", "specificity": "specificity"}

    def cell(name: str) -> str:
        s = summary["metrics"][name]
        return "undefined" if s["mean"] is None else f"{s['mean']:.4g} ({s['median']:.4g})"

    lines = [f"scores of {summary['n_cases']} cases, mean (median); mean Dice {cell('mean_dice')}"]
    lines.append("region" + "".join(f"{title:>20}" for title in columns))
    lines += [f"{r:<6}" + "".join(f"{cell(f'{key}_{r}'):>20}" for key in columns.values()) for r in regions]
    worst = ", ".join(f"{c['case']} {c['mean_dice']:.3f}" for c in summary["worst_cases"])
    return "\n".join([*lines, f"lowest mean Dice: {worst}"])
