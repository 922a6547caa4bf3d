"""Measured figures in a bundle's metadata and model card, from the file that an evaluation wrote."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bundlekit.files import write_content
from tools.bundles import ROOT, folder_of

_DIGITS = 3


def card(bundle: str, scores: str, on: str, metrics: Sequence[str] | str | None = None) -> None:
    """Write `eval_metrics` of a bundle's metadata.json from an evaluation, and the same figures into its model card.

    The card's table stands between `<!-- scores -->` and `<!-- /scores -->`; everything else in it stays.

    Example: python -m tools card brain_tissue_vnet --scores eval/summary.json --on "five OASIS T1s"

    Args:
        bundle: name of a bundle.
        scores: `summary.json` of an evaluation of the weights that the bundle ships.
        on: which cases were scored, in a few words.
        metrics: names in the summary, in the order to show them, with commas between them; None: every Dice.

    Raises:
        ValueError: if the file is no summary of an evaluation, has no such metric, or the card has no place for the
            table.
    """
    folder_of(bundle)  # refuses an unknown name
    try:
        summary = json.loads(Path(scores).read_text())
        scored = {name: found for name, found in summary["metrics"].items() if found["n"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{scores}: {error!r}; expected the summary.json that an evaluation writes.") from None
    asked = metrics.split(",") if isinstance(metrics, str) else metrics
    names = [name for name in scored if "dice" in name] if asked is None else list(asked)
    missing = [name for name in names if name not in scored]
    if missing:
        raise ValueError(f"{scores}: no {', '.join(missing)}; it has {', '.join(scored)}.")
    metadata, readme = ROOT / bundle / "configs" / "metadata.json", ROOT / bundle / "docs" / "README.md"
    text = readme.read_text()
    if len(re.findall("<!-- /?scores -->", text)) != 2:
        raise ValueError(f"{readme}: expected one <!-- scores --> and one <!-- /scores --> around the table.")
    content = json.loads(metadata.read_text())
    content["eval_metrics"] = {
        **{name: round(scored[name]["mean"], _DIGITS) for name in names},
        "n_cases": summary["n_cases"],
        "cases": on,
    }
    table = [f"| {on} (n = {summary['n_cases']}) | mean | median | 95 % interval of the mean |", "|---|---|---|---|"]
    table += [f"| {name} | {_row(scored[name])} |" for name in names]
    block = "\n".join(["<!-- scores -->", *table, "<!-- /scores -->"])
    text = re.sub("<!-- scores -->.*<!-- /scores -->", lambda _: block, text, flags=re.DOTALL)
    write_content(metadata, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    write_content(readme, text)
    print("\n".join(table))


def _row(found: dict[str, Any]) -> str:
    low, high = found["ci95"] or (None, None)
    interval = f"{low:.{_DIGITS}f} to {high:.{_DIGITS}f}" if low is not None else "-"
    return f"{found['mean']:.{_DIGITS}f} | {found['median']:.{_DIGITS}f} | {interval}"
