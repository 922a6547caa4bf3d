"""Statistics of scores over cases."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

_RESAMPLES = 5000
_LISTED = 5


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
