"""Scores of a data set: statistics over cases, and the Ignite handler that collects and writes them."""

from __future__ import annotations

import json
import logging
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import numpy as np
from ignite.engine import Engine, Events
from monai.utils import convert_to_numpy

from bundlekit.errors import BundleError
from bundlekit.files import write_content, write_result
from bundlekit.images.drawing import box_plot
from bundlekit.progress import installed
from bundlekit.scores.statistics import csv_text, summarise

_log = logging.getLogger(__name__)
PICTURE = "scores.png"


class ScoreHandler(ABC):
    """Ignite handler that scores every case and writes the result files.

    MONAI's `MetricsSaver` writes two files for each metric, of what Ignite metrics have collected; here a case is one
    row with all its scores, and the summary has confidence intervals and the rules that give the numbers their meaning.

    Put it into the `val_handlers` of a MONAI evaluator that decollates its batches. It reads, for each case, `case` and
    `label_file` from `engine.state.batch` and `pred` (class indices on the native grid, shape 1HWD) from
    `engine.state.output`. At the end `output_dir` holds `scores.csv` (a row per case, by name; 6 significant digits;
    undefined is empty), `summary.json` (see `summarise`; also `computed_by`: runtime, precision, threads) and, with
    matplotlib, `scores.png` (a box for each Dice), each written whole or not at all, and
    `engine.state.metrics["mean_dice"]` is set. With several processes the rows of all
    are gathered, a case that the sampler repeated counts once, and rank 0 writes.

    Args:
        output_dir: folder for the files; made if missing.
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
        computed_by = getattr(getattr(engine, "inferer", None), "computed_by", "")
        if computed_by:
            summary["computed_by"] = computed_by
        engine.state.metrics["mean_dice"] = summary["metrics"]["mean_dice"]["mean"]
        if idist.get_rank() == 0:
            # Both texts exist before either file is touched, so a value that cannot be written changes nothing.
            files = {
                "scores.csv": csv_text(rows),
                "summary.json": json.dumps(summary, indent=2, allow_nan=False) + "\n",
            }
            for name, text in files.items():
                write_content(self.output_dir / name, text, "output_dir")
            write_picture(rows, self.output_dir, "output_dir")
            _log.info("%s", _table(summary))


def write_picture(rows: Sequence[Mapping[str, Any]], folder: Path, setting: str) -> None:
    """Write `scores.png`, a box for each Dice over the cases; without matplotlib nothing, and the log says so.

    Args:
        rows: of the cases, as in `summarise`.
        folder: beside `scores.csv`.
        setting: that names the folder, for the message.

    Raises:
        BundleError: if the file cannot be written.
    """
    names = [name for name in rows[0] if name.startswith("dice_")]
    if not names:
        return
    if not installed("matplotlib"):
        _log.info("no %s without matplotlib (pip install matplotlib)", folder / PICTURE)
        return
    boxes = {name.removeprefix("dice_").replace("_", " "): [row[name] for row in rows] for name in names}
    write_result(folder / PICTURE, box_plot(boxes, f"Dice of {len(rows)} case(s)"), setting)


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
