"""How many bad masks the checks flag, and at which confidence: a table, a limit, a curve."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from sklearn.metrics import roc_auc_score, roc_curve

from bundlekit.images.drawing import require_matplotlib
from tools.bench.folds import rows_of

BAD = 0.7
"""Dice of the whole tumour below which a mask is bad."""

_LOST = 5.0  # % of the good masks that a limit of the confidence flags


@dataclass(frozen=True)
class Mask:
    """What is known of one mask.

    Args:
        case: its name.
        group: fold, or patient where one network made all masks; a limit is tried on a group that did not choose it.
        dice: of the whole tumour.
        confidence: of the whole tumour, 0 to 1; 0 where nothing was found.
        flags: by name.
    """

    case: str
    group: str
    dice: float
    confidence: float
    flags: frozenset[str]

    @property
    def bad(self) -> bool:
        """Whether somebody should look at it."""
        return self.dice < BAD


def masks_in(folders: Sequence[Path], patient: Callable[[str], str] = lambda case: case) -> list[Mask]:
    """All masks of evaluated folders.

    Args:
        folders: each with `scores.csv` and `volumes.csv`; several are folds.
        patient: of a case.
    """
    found = []
    for folder in folders:
        rows = {row["case"]: row for row in rows_of([folder], "volumes.csv") if row["name"] == "WT"}
        for score in rows_of([folder], "scores.csv"):
            name, row = score["case"], rows[score["case"]]
            flags = frozenset(filter(None, row["flags"].split(";")))
            group = folder.name if len(folders) > 1 else patient(name)
            found.append(Mask(name, group, float(score["dice_WT"]), float(row["confidence"] or 0), flags))
    return found


def limit_of(masks: Sequence[Mask]) -> float:
    """The confidence below which 5 % of the good masks lie."""
    return float(np.percentile([mask.confidence for mask in masks if not mask.bad], _LOST))


def below_limits_of_others(masks: Sequence[Mask]) -> tuple[list[Mask], list[float]]:
    """Masks below the limit of all other groups, and these limits."""
    below, limits = [], []
    for group in sorted({mask.group for mask in masks}):
        others = [mask for mask in masks if mask.group != group]
        if any(not mask.bad for mask in others):
            limits.append(limit_of(others))
            below += [mask for mask in masks if mask.group == group and mask.confidence < limits[-1]]
    return below, limits


def tell(masks: Sequence[Mask]) -> None:
    """Print the table."""
    bad, good = [mask for mask in masks if mask.bad], [mask for mask in masks if not mask.bad]
    print(f"{len(masks)} masks, of which {len(bad)} have a Dice of the whole tumour below {BAD}")
    print(f"{'flag':<20}{'bad':>6}{'others':>8}")
    names = sorted(frozenset().union(*(mask.flags for mask in masks)))
    for name in [*names, "any of them"]:
        on = [mask for mask in masks if (mask.flags if name == "any of them" else name in mask.flags)]
        print(f"{name:<20}{sum(mask.bad for mask in on):>6}{sum(not mask.bad for mask in on):>8}")
    if bad and good:
        print(f"area under the curve of the confidence: {_area(masks):.3f}")
        below, limits = below_limits_of_others(masks)
        if limits:
            caught = sum(mask.bad for mask in below)
            print(
                f"below a limit from the others ({min(limits):.3f} to {max(limits):.3f}): {caught} of the {len(bad)} "
                f"bad masks, {len(below) - caught} of the {len(good)} others; the limit of all is {limit_of(masks):.3f}"
            )
    missed = sorted((mask.dice, mask.case) for mask in bad if not mask.flags)
    print("\n".join(["bad and not flagged:", *(f"  {case} {value:.2f}" for value, case in missed)]) if missed else "")


def draw(masks: Sequence[Mask], file: BinaryIO) -> None:
    """Write the curve of masks of both kinds as PNG."""
    bad = [mask.bad for mask in masks]
    require_matplotlib("the picture")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 4.6), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="0.7", linestyle="--", linewidth=1)
    lost, caught, _ = roc_curve(bad, [1 - mask.confidence for mask in masks])
    axes.plot(lost, caught, label=f"1 - confidence of WT: area {_area(masks):.2f}")
    below, limits = below_limits_of_others(masks)
    if limits:
        found = sum(mask.bad for mask in below)
        place = (len(below) - found) / (len(bad) - sum(bad)), found / sum(bad)
        axes.plot(*place, "o", color="C0", label="below a limit from the others")
    axes.set(xlim=(-0.005, 1), ylim=(0, 1.01))
    axes.set_xlabel(f"share of the {len(bad) - sum(bad)} other masks that are flagged")
    axes.set_ylabel(f"share of the {sum(bad)} bad masks that are flagged")
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    figure.savefig(file, format="png", dpi=120)


def _area(masks: Sequence[Mask]) -> float:
    return float(roc_auc_score([mask.bad for mask in masks], [1 - mask.confidence for mask in masks]))
