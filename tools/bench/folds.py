"""A bundle for gliomas evaluated for a measurement: by one network, or by those of a cross-validation."""

from __future__ import annotations

import contextlib
import csv
import json
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser

from bundlekit.configs import refuse_settings
from tools.bundles import parse, plain_errors

_BUNDLES = ("brats_resunet", "brats_unet_h5")  # the first step of their preprocessing reads a case
_CONFIGS = ("inference.yaml", "evaluate.yaml")


@contextlib.contextmanager
def evaluated(
    dataset_dir: str,
    checkpoint: str | None,
    out: str | None,
    cv_dir: str | None,
    settings: Mapping[str, Any],
    change: Callable[[ConfigParser], None] = lambda parser: None,
    bundle: str = _BUNDLES[0],
) -> Iterator[list[Path]]:
    """Folders with masks and tables of all cases, for the time of the context: one, or with `cv_dir` one for each fold.

    Args:
        dataset_dir: folder of labelled cases.
        checkpoint: network for all of them; None: the weights that the bundle comes with.
        out: folder that is kept; None: one that is not.
        cv_dir: folder of `python -m tools cv`, in place of a checkpoint: the last network of each fold evaluates the
            cases that the fold left out, but those that the weights it began with knew; its folder in `out` is fold_0
            and so on.
        settings: of the bundle's `inference.yaml`.
        change: is called with the parsed configs before a network evaluates.
        bundle: `brats_resunet` or `brats_unet_h5`.

    Raises:
        ValueError: for another bundle; `checkpoint` and `cv_dir` are both given, there is no fold in `cv_dir`,
            `settings` has what this sets itself or the bundle does not know, or a case or setting is refused while it
            evaluates.
    """
    if bundle not in _BUNDLES:
        raise ValueError(f"--bundle is {bundle!r}; expected {' or '.join(_BUNDLES)}.")
    if taken := sorted({"subset", "output_dir"} & set(settings)):
        raise ValueError(f"--{', --'.join(taken)}: the measurement sets this itself; results go to --out.")
    if checkpoint and cv_dir:
        raise ValueError("--checkpoint and --cv_dir are both given; expected one of them.")
    whole = {name: value for name, value in settings.items() if "::" not in name}  # not parts of one
    known: Any = parse(bundle, *_CONFIGS).config
    refuse_settings(known, whole, f"{bundle}'s {' and '.join(_CONFIGS)}")
    last = sorted(Path(cv_dir).glob("fold_*/last.pt")) if cv_dir else []
    if cv_dir and not last:
        raise ValueError(f"{cv_dir} has no fold_0/last.pt; expected a folder that `python -m tools cv` has filled.")
    with tempfile.TemporaryDirectory() as scratch:
        where = Path(out or scratch)
        folds = [(str(file), "validation", where / file.parent.name) for file in last]
        folds = folds or [(checkpoint or "", "all", where)]
        for network, subset, output_dir in folds:
            chosen = {"checkpoint": network} if network else {}
            given = {**settings, **chosen, "dataset_dir": dataset_dir, "subset": subset, "output_dir": str(output_dir)}
            parser = parse(bundle, *_CONFIGS, **given)
            if subset == "validation":  # not a case that was added since, which every fold left out
                listed = json.loads(Path(network).with_name("datalist.json").read_text())["validation"]
                parser["left_out"] = [str(entry["case"]) for entry in listed]
                parser["dataset::data::cases"] = "$[case for case in @cases if case['case'] in @left_out]"
            with plain_errors():
                change(parser)
                parser.get_parsed_content("initialize")
                parser.get_parsed_content("evaluating")
        yield [folder for *_, folder in folds]


def rows_of(folders: Iterable[Path], name: str) -> list[dict[str, str]]:
    """Rows of a table that `evaluated` left in its folders, put together."""
    rows = []
    for folder in folders:
        with (folder / name).open(newline="") as file:
            rows += list(csv.DictReader(file))
    return rows
