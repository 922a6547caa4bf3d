"""Scores of a data set: statistics over cases, and the Ignite handler that collects and writes them."""

# One of the modules that every bundle carries: edit it in tools/vendored/, then `make sync`.
from __future__ import annotations

import csv
import io
import json
import logging
import math
import os
import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import ignite.distributed as idist
import numpy as np
from ignite.engine import Engine, Events
from monai.metrics import compute_hausdorff_distance
from monai.utils import convert_to_numpy
from scipy import stats

from .errors import BundleError
from .files import write_result

_RESAMPLES = 5000
_LISTED = 5
_log = logging.getLogger(__name__)


def summarise(rows: Sequence[Mapping[str, Any]], notes: Mapping[str, Any], seed: int = 0) -> dict[str, Any]:
    """Statistics over cases, ready for `json.dumps(..., allow_nan=False)`: what is undefined is None.

    Args:
        rows: one mapping per case: `case` (name) and its scores; those named `dice_*` are also averaged to `mean_dice`.
        notes: what a reader of the file must know of the scores (definitions, rule for empty classes), kept as it is.
        seed: seed of the bootstrap; the same rows and seed give the same intervals.

    Returns:
        `n_cases`; `metrics`: for each score and `mean_dice` the `n` finite values, `n_undefined`, `mean`, `sd`
        (ddof 1), `median`, `ci95` ([low, high]; None like `sd` when n < 2); `worst_cases` and `best_cases`: up to
        five `{case, mean_dice}`, most extreme first; then `notes`.
    """
    rows = [{**r, "mean_dice": _mean([r[name] for name in r if name.startswith("dice_")])} for r in rows]
    names = [name for name in rows[0] if name != "case"] if rows else []
    scored = [{"case": r["case"], "mean_dice": r["mean_dice"]} for r in rows if math.isfinite(r["mean_dice"])]
    ranked = sorted(scored, key=lambda r: r["mean_dice"])
    return {
        "n_cases": len(rows),
        "metrics": {name: _statistics([row[name] for row in rows], seed) for name in names},
        "worst_cases": ranked[:_LISTED],
        "best_cases": ranked[::-1][:_LISTED],
        **notes,
    }


class ScoreHandler(ABC):
    """Ignite handler that scores every case and writes the two result files.

    Put it into the `val_handlers` of a MONAI evaluator that decollates its batches. It reads, for each case, `case` and
    `label_file` from `engine.state.batch` and `pred` (class indices on the native grid, shape 1HWD) from
    `engine.state.output`. At the end `output_dir` holds `scores.csv` (a row per case, by name; 6 significant digits;
    undefined is empty) and `summary.json` (see `summarise`), each written whole or not at all, and
    `engine.state.metrics["mean_dice"]` is set. With several processes the rows of all are gathered, a case that the
    sampler repeated counts once, and rank 0 writes.

    Args:
        output_dir: folder for the two files; made if missing.
        notes: see `summarise`.

    Raises:
        BundleError: while running, a case cannot be scored (names case and file), or there was no case at all.
    """

    def __init__(self, output_dir: str | os.PathLike[str], notes: Mapping[str, Any]) -> None:
        self.output_dir = Path(output_dir)
        self.notes = notes
        self._rows: dict[tuple[str, str], dict[str, Any]] = {}

    @abstractmethod
    def score(self, item: Mapping[str, Any], pred: np.ndarray) -> dict[str, float]:
        """Scores of one case; NaN is undefined.

        Args:
            item: of the batch.
            pred: predicted class indices, HWD, on the native grid.
        """

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
                pred = convert_to_numpy(output["pred"])
                if pred.shape[0] != 1:
                    raise ValueError(f"pred must hold class indices in one channel, but has shape {pred.shape}")
                scores = self.score(item, pred[0])
            except Exception as error:
                message = f"case {case} cannot be scored against {file}: {type(error).__name__}: {error}"
                raise BundleError(message) from error
            self._rows[case, file] = {"case": case, **scores}

    def _gathered(self) -> list[dict[str, Any]]:
        """The rows of all processes, by case."""
        merged = dict(self._rows)
        if idist.get_world_size() > 1:
            for part in idist.all_gather(self._rows):  # type: ignore[union-attr]
                merged |= part  # type: ignore[arg-type]
        if not merged:
            raise BundleError(f"no case was scored, so nothing was written to {self.output_dir}")
        return [merged[key] for key in sorted(merged)]

    def _finish(self, engine: Engine) -> None:
        rows = self._gathered()
        summary = summarise(rows, self.notes)
        engine.state.metrics["mean_dice"] = summary["metrics"]["mean_dice"]["mean"]
        if idist.get_rank() == 0:
            # Both texts exist before either file is touched, so a value that cannot be written changes nothing.
            files = {
                "scores.csv": csv_text(rows),
                "summary.json": json.dumps(summary, indent=2, allow_nan=False) + "\n",
            }
            for name, text in files.items():
                write_result(self.output_dir / name, partial(_write_text, text), "output_dir")
            _log.info("%s", _table(summary))


def hd95(pred: np.ndarray, truth: np.ndarray, spacing_mm: Sequence[float]) -> float:
    """95th percentile Hausdorff distance in mm of two masks HWD, neither empty.

    The larger of the two directed 95th percentiles of the distances from each surface voxel to the nearest surface
    voxel of the other mask. MONAI crops to the masks with a margin of one voxel, padded where they touch the border,
    so a surface at the border of the image, or of a box cut out of it, counts as surface. Its search trees take about
    0.1 s for a tumour of 60 ml, but tens of seconds for a prediction that is noise all over the volume.
    """
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


def _mean(values: Sequence[float]) -> float:
    """Mean of the finite values, NaN if there is none."""
    finite = [value for value in values if math.isfinite(value)]
    return float(np.mean(finite)) if finite else math.nan


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


def csv_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows of scores as CSV: 6 significant digits, undefined is empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    for row in rows:
        scores = {name: "" if math.isnan(v) else f"{v:.6g}" for name, v in row.items() if name != "case"}
        writer.writerow({"case": row["case"], **scores})
    return text.getvalue()


def _write_text(text: str, file: BinaryIO) -> None:
    file.write(text.encode())


def _table(summary: Mapping[str, Any]) -> str:
    """The summary as a few lines, a row for each class or region that has a Dice."""
    metrics = summary["metrics"]
    names = [name.removeprefix("dice_") for name in metrics if name.startswith("dice_")]
    titles = {"dice": "Dice", "hd95": "HD95 mm", "sensitivity": "sensitivity", "specificity": "specificity"}
    columns = {key: title for key, title in titles.items() if f"{key}_{names[0]}" in metrics} if names else {}

    def cell(name: str) -> str:
        s = metrics.get(name, {"mean": None})
        return "undefined" if s["mean"] is None else f"{s['mean']:.4g} ({s['median']:.4g})"

    width = max([6, *map(len, names)])
    lines = [f"scores of {summary['n_cases']} cases, mean (median); mean Dice {cell('mean_dice')}"]
    lines.append(" " * width + "".join(f"{title:>20}" for title in columns.values()))
    lines += [f"{n:<{width}}" + "".join(f"{cell(f'{key}_{n}'):>20}" for key in columns) for n in names]
    worst = ", ".join(f"{c['case']} {c['mean_dice']:.3f}" for c in summary["worst_cases"])
    return "\n".join([*lines, f"lowest mean Dice: {worst}"])
