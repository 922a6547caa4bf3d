"""`brats_resunet` evaluated for a measurement: by one network, or by those of a cross-validation on their own folds."""

from __future__ import annotations

import contextlib
import csv
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser

from tools.bundles import parse


@contextlib.contextmanager
def evaluated(
    dataset_dir: str,
    checkpoint: str | None,
    out: str | None,
    cv_dir: str | None,
    settings: Mapping[str, Any],
    change: Callable[[ConfigParser], None] = lambda parser: None,
) -> Iterator[Path]:
    """The folder with masks and tables of all cases, for the time of the context.

    Args:
        dataset_dir: folder of labelled cases.
        checkpoint: network for all of them; None: the weights that the bundle comes with.
        out: folder that is kept; None: one that is not.
        cv_dir: folder of `python -m tools cv`, in place of a checkpoint: the last network of each fold evaluates the
            cases that the fold left out, and the folder has a folder for each, fold_0 and so on.
        settings: of the bundle's `inference.yaml`.
        change: is called with the parsed configs before a network evaluates.

    Raises:
        ValueError: `checkpoint` and `cv_dir` are both given, or there is no fold in `cv_dir`.
    """
    if checkpoint and cv_dir:
        raise ValueError("--checkpoint and --cv_dir are both given; expected one of them.")
    last = sorted(Path(cv_dir).glob("fold_*/last.pt")) if cv_dir else []
    if cv_dir and not last:
        raise ValueError(f"{cv_dir} has no fold_0/last.pt; expected a folder that `python -m tools cv` has filled.")
    with tempfile.TemporaryDirectory() as scratch:
        where = Path(out or scratch)
        folds = [(str(file), "validation", where / file.parent.name) for file in last]
        for network, subset, output_dir in folds or [(checkpoint or "", "all", where)]:
            chosen = {"checkpoint": network} if network else {}
            given = {**settings, **chosen, "dataset_dir": dataset_dir, "subset": subset, "output_dir": str(output_dir)}
            parser = parse("brats_resunet", "inference.yaml", "evaluate.yaml", **given)
            change(parser)
            parser.get_parsed_content("initialize")
            parser.get_parsed_content("evaluating")
        yield where


def rows_of(folder: Path, name: str) -> list[dict[str, str]]:
    """Rows of a table that `evaluated` left; those of folds are put together."""
    rows = []
    for path in files_of(folder, name):
        with path.open(newline="") as file:
            rows += list(csv.DictReader(file))
    return rows


def files_of(folder: Path, pattern: str) -> list[Path]:
    """Files that `evaluated` left in the folder, or in those of its folds, by a name with `*`."""
    return sorted(folder.glob(pattern)) or sorted(folder.glob(f"fold_*/{pattern}"))
