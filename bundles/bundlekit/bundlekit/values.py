"""What the settings that bundles share may be: type and range of each, in one table."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_SHARD = re.compile(r"(\d{1,9})/(\d{1,9})", re.ASCII)
NO_HASH = "a path without #, which MONAI reads as ::; rename the file or the folder"
_WORDS = {"true", "false", "yes", "no", "on", "off"}


@dataclass(frozen=True)
class Flag:
    """True or False.

    Args:
        null: None is allowed, too.
    """

    null: bool = False

    def __str__(self) -> str:
        return "True or False" + (", or null" if self.null else "")

    def allows(self, value: Any) -> bool:
        """Whether `value` is one."""
        return isinstance(value, bool)


@dataclass(frozen=True)
class Number:
    """A finite number of a range.

    Args:
        least: smallest one.
        most: largest one.
        whole: without a fraction.
        above: `least` itself is too small.
        below: `most` itself is too large.
        null: None is allowed, too.
    """

    least: float = -math.inf
    most: float = math.inf
    whole: bool = False
    above: bool = False
    below: bool = False
    null: bool = False

    def __str__(self) -> str:
        kind = "a whole number" if self.whole else "a number"
        low = f"{'more than ' if self.above else ''}{_text(self.least)}"
        if math.isfinite(self.most):
            kind += f" from {low} to {'below ' if self.below else ''}{_text(self.most)}"
        elif math.isfinite(self.least):
            kind += f", {low}{'' if self.above else ' or more'}"
        return kind + (", or null" if self.null else "")

    def allows(self, value: Any) -> bool:
        """Whether `value` is one."""
        if isinstance(value, bool) or not isinstance(value, int if self.whole else (int, float)):
            return False
        if not math.isfinite(value) or not self.least <= value <= self.most:
            return False
        return not (self.above and value == self.least) and not (self.below and value == self.most)


@dataclass(frozen=True)
class Numbers:
    """A list of numbers.

    Args:
        each: what each is.
        length: of the list; 0: any but 0.
        null: None is allowed, too.
        example: as it is typed.
    """

    each: Number
    length: int = 0
    null: bool = False
    example: str = ""

    def __str__(self) -> str:
        count = f"{self.length} " if self.length else ""
        text = f'a list of {count}values, each {self.each}, such as "{self.example}"'
        return text + (", or null" if self.null else "")

    def allows(self, value: Any) -> bool:
        """Whether `value` is one."""
        if not isinstance(value, (list, tuple)) or not value or (self.length and len(value) != self.length):
            return False
        return all(self.each.allows(one) for one in value)


@dataclass(frozen=True)
class File:
    """The path of a file or a folder; None is allowed.

    Args:
        folder: it is, or will be made, a folder.
    """

    folder: bool = False
    null: bool = True

    def __str__(self) -> str:
        text = "a folder (its path without ~;" if self.folder else "a file or folder ("
        return text + (" " if self.folder else "") + "one that is named by a number as ./2024)"

    @staticmethod
    def unspeakable(value: Any) -> bool:
        """Whether MONAI reads another path than `value`: it takes # for :: wherever a config has it."""
        return isinstance(value, (str, Path)) and "#" in str(value)

    def allows(self, value: Any) -> bool:
        """Whether `value` is one."""
        if self.folder and str(value).startswith("~"):  # a folder of that name would be made
            return False
        if self.unspeakable(value):
            return False
        return isinstance(value, (str, Path)) and bool(str(value).strip()) and self.in_the_way(value) is None

    def in_the_way(self, value: str | Path) -> Path | None:
        """The file that keeps `value` from being, or being made, a folder; None for none, or none that can be seen."""
        try:
            standing = next((path for path in (Path(value), *Path(value).absolute().parents) if path.exists()), None)
            return standing if self.folder and standing is not None and not standing.is_dir() else None
        except (OSError, ValueError):  # a folder that may not be read, a name that is too long: writing there tells
            return None


@dataclass(frozen=True)
class Shard:
    """One of several parts; None is allowed.

    Args:
        null: None is allowed.
    """

    null: bool = True

    def __str__(self) -> str:
        return "i/n, the i-th of n parts, such as 1/8 to 8/8"

    def allows(self, value: Any) -> bool:
        """Whether `value` is one."""
        match = _SHARD.fullmatch(value) if isinstance(value, str) else None
        return match is not None and 1 <= int(match[1]) <= int(match[2])


Rule = Flag | Number | Numbers | File | Shard

_COUNT = Number(1, whole=True)
_PART = Number(0, 1)
_SIZE = Numbers(_COUNT, 3, example="[96,96,96]")

RULES: dict[str, Rule] = {
    **dict.fromkeys(("epochs", "batch_size", "accumulation_steps", "val_interval"), _COUNT),
    **dict.fromkeys(("patches_per_case", "train_cases", "init_filters"), _COUNT),
    **dict.fromkeys(("num_workers", "res_units", "fold", "fold_seed", "plateau_patience"), Number(0, whole=True)),
    "seed": Number(0, 2**32 - 1, whole=True),
    "num_folds": Number(2, whole=True),
    **dict.fromkeys(("stop_patience", "samples_per_epoch", "slab"), Number(1, whole=True, null=True)),
    "et_label": Number(3, 4, whole=True, null=True),
    **dict.fromkeys(("learning_rate", "weight_decay", "cross_entropy", "bce", "focal", "gamma", "smooth"), Number(0)),
    **dict.fromkeys(("time_limit", "cache_days"), Number(0, above=True, null=True)),
    "temperature": Number(0, above=True),
    **dict.fromkeys(("train_fraction", "modality_dropout", "minimum_share"), _PART),
    **dict.fromkeys(("overlap", "dropout"), Number(0, 1, below=True)),
    **dict.fromkeys(("plateau_factor", "threshold"), Number(0, 1, above=True, below=True)),
    "coarse_to_fine": Number(0, 0.5, below=True),
    "lowres_share": Number(0, 1),
    "core_share": Number(0, 0.5),
    "rotation_degrees": Number(0, 180),
    "candidates_ml": Numbers(Number(0), example="[0,0.01,0.02]"),
    **dict.fromkeys(
        ("minimum_core_ml", "minimum_enhancing_ml", "minimum_component_ml", "minimum_lesion_ml"), Number(0)
    ),
    **dict.fromkeys(("patch_size", "uniform_shape"), _SIZE),
    "channels": Numbers(_COUNT, example="[16,32,64,128]"),
    "spacing": Numbers(Number(0, above=True), 3, null=True, example="[1.0,1.0,1.0]"),
    **dict.fromkeys(("margin_mm", "mask_margin_mm"), Number(-50, 50)),
    "rotate_range": Number(0, 4),
    "scale_range": Number(0, 1, below=True),
    "percentiles": Numbers(Number(0, 100), 2, example="[0,100]"),
    "window": Numbers(Number(), 2, example="[-160,240]"),
    **dict.fromkeys(("overwrite", "amp", "deterministic", "allow_unprepared", "whole_head", "n4"), Flag()),
    **dict.fromkeys(("check_orientation", "rescale_weights", "weigh_focal", "include_background"), Flag()),
    **dict.fromkeys(("fill_core", "fill_missing", "flips", "whole_brain", "save_probabilities"), Flag()),
    **dict.fromkeys(("write_h5", "write_brain", "overlays", "report"), Flag()),
    "bf16": Flag(null=True),
    "shard": Shard(),
    **dict.fromkeys(
        ("dataset_dir", "datalist", "checkpoint", "lowres", "pretrained", "warm_start", "resume_from"), File()
    ),
    **dict.fromkeys(("output_dir", "ckpt_dir", "cache_dir", "cv_dir", "mask_bundle"), File(folder=True)),
}


def rule_of(name: str, default: Any = None) -> Rule | None:
    """What a setting may be; None where nothing is known of it here.

    Args:
        name: of the setting.
        default: its value in the config; where that is True or False, so is the setting.
    """
    if isinstance(default, bool):
        return Flag()
    return RULES.get(name) or (_PART if name.endswith("_probability") else None)


def wrong_value(name: str, value: Any, default: Any = None) -> str:
    """What is expected instead of `value`; "" if nothing is wrong, or it is an expression that is not known yet.

    Args:
        name: of the setting.
        value: from the command line or a file.
        default: as in `rule_of`.
    """
    rule = rule_of(name, default)
    if value == "$None" and isinstance(rule, (Number, Numbers)) and not rule.null and default is not None:
        return str(rule)
    if is_expression(value):
        return ""
    if value == "null":
        return "a value; null is written '$None', with the quotes"
    if rule is None or (value is None and rule.null) or rule.allows(value):
        return ""
    if isinstance(rule, Flag) and str(value).lower() in _WORDS:
        return f"{rule}, with a capital letter"
    if isinstance(rule, File) and rule.unspeakable(value):
        return NO_HASH
    if isinstance(rule, File) and isinstance(value, (str, Path)) and (file := rule.in_the_way(value)):
        return f"a folder, but {file} is a file: name another folder, or move the file away"
    return str(rule)


def wrong_values(values: Mapping[str, Any]) -> list[str]:
    """A line for each of `values` that the table does not allow: its name, what it is, and what is expected.

    Args:
        values: settings by name, e.g. those of a request or of `settings.json`.
    """
    expected = {name: wrong_value(name, value) for name, value in values.items()}
    return [f"{name} is {values[name]!r}; expected {text}" for name, text in expected.items() if text]


def is_expression(value: Any) -> bool:
    """Whether MONAI computes the value from the config: `$...`, `@...` or `%...`."""
    return isinstance(value, str) and value[:1] in ("$", "@", "%")


def has_setting(known: Any, path: Sequence[str]) -> bool:
    """Whether a config has an entry of that path; a component takes any further argument.

    Args:
        known: content of the config.
        path: parts of the entry's id.
    """
    for position, part in enumerate(path):
        if isinstance(known, Mapping):
            if part not in known:
                return position > 0 and "_target_" in known
            known = known[part]
        elif isinstance(known, list) and part.isdigit() and int(part) < len(known):
            known = known[int(part)]
        else:
            return isinstance(known, str)  # an expression or a reference: what it will be is not known here
    return True


def default_of(known: Any, path: Sequence[str]) -> Any:
    """The config's own value at a path, as in `has_setting`; None if it is not a plain one."""
    for part in path:
        if isinstance(known, Mapping):
            known = known.get(part)
        elif isinstance(known, list) and part.isdigit() and int(part) < len(known):
            known = known[int(part)]
        else:
            return None
    return known


def _text(number: float) -> str:
    return f"{number:.0f}" if math.isfinite(number) and number == int(number) else f"{number:g}"
