"""Settings that a user types: those that no config knows are refused instead of being ignored."""

from __future__ import annotations

import ast
import difflib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from bundlekit.errors import BundleError

# what `python -m monai.bundle run` itself takes
_RUNNER = {
    "run_id", "init_id", "final_id", "meta_file", "config_file", "logging_file", "tracking", "args_file",
    "workflow_name", "workflow_type", "id_",
}  # fmt: skip


def refuse_unknown_settings(arguments: Sequence[str] | None = None) -> None:
    """Refuse `--name value` of a `monai.bundle run` whose name none of its config files has.

    MONAI adds any name to the config, so that a misspelt setting changes nothing and is not noticed.

    Args:
        arguments: the command line; None: this process's own. Anything but `... monai.bundle run ... --config_file F`
            passes.

    Raises:
        BundleError: with all names that are unknown, and what was probably meant.
    """
    arguments = sys.argv if arguments is None else list(arguments)
    if len(arguments) < 2 or arguments[1] != "run" or not Path(arguments[0]).parent.match("monai/bundle"):
        return
    given = _names(arguments[2:])
    known: dict[str, Any] = {}
    files = _files(given.get("config_file", ""))
    for file in files:
        try:
            content = yaml.safe_load(Path(file).read_text())
        except (OSError, yaml.YAMLError):  # MONAI's to complain about
            return
        for key, value in (content or {}).items():
            _add(known, key.lstrip("+~"), value)
    if not known:
        return
    lines = []
    for name in given:
        path = name.replace("#", "::")
        if path in _RUNNER or _has(known, path.split("::")):
            continue
        others = _elsewhere(files, path.split("::")[0])
        if others:
            lines.append(f"--{name} is a setting of {others}, which is not among the config files given")
            continue
        close = difflib.get_close_matches(path, [*known, *_RUNNER], n=1)
        meant = f"; did you mean --{close[0]}?" if close else ""
        lines.append(f"--{name} is no setting of this bundle{meant}")
    if lines:
        where = f"The settings are listed at the top of {files[0]}."
        raise BundleError("\n".join([*lines, where]))


def _names(arguments: Sequence[str]) -> dict[str, str]:
    found = {}
    for position, argument in enumerate(arguments):
        if argument.startswith("--"):
            name, equals, value = argument[2:].partition("=")
            following = arguments[position + 1] if position + 1 < len(arguments) else ""
            found[name if "::" in name else name.replace("-", "_")] = value if equals else following
    return found


def _elsewhere(files: Sequence[str], name: str) -> str:
    """The config beside those given that has a value of that name at its top, train.yaml first; "" if none has."""
    folder = Path(files[0]).parent
    others = sorted(folder.glob("*.yaml"), key=lambda file: (file.name != "train.yaml", file.name))
    for other in others:
        if other.name not in {Path(file).name for file in files} and name in (yaml.safe_load(other.read_text()) or {}):
            return other.name
    return ""


def _files(value: str) -> list[str]:
    try:
        files = ast.literal_eval(value)
    except (ValueError, SyntaxError):
        files = [name for name in value.split(",") if name]
    return [str(file).strip() for file in files] if isinstance(files, (list, tuple)) else [value]


def _add(known: dict[str, Any], key: str, value: Any) -> None:
    """Put a config file's entry into its place: an overlay's keys are paths."""
    *parents, last = key.split("::")
    place: Any = known
    for parent in parents:
        place = place.get(parent) if isinstance(place, Mapping) else None
        if not isinstance(place, dict):
            return
    place[last] = value


def _has(known: Any, path: Sequence[str]) -> bool:
    """Whether the config has an entry of that path; a component takes any further argument."""
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
