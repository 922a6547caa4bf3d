"""`python -m tools <command>`."""

from __future__ import annotations

import ast
import contextlib
import difflib
import functools
import inspect
import logging
import sys
from collections.abc import Callable, Sequence
from typing import Any

import fire

from bundlekit.values import wrong_value
from bundlekit.virtual import brats, ct, icbm152, metastases, tissue
from tools.bench import (
    calibration,
    case,
    flags,
    loader,
    memory,
    missing,
    preparation,
    registration,
)
from tools.card import card
from tools.check import check
from tools.check_gpu import check_gpu
from tools.cohort import cohort
from tools.convert import to_h5, to_nifti
from tools.cv import cv
from tools.demo import demo
from tools.label import label
from tools.pack import pack
from tools.picture import picture
from tools.prepare import prepare, restore, segment
from tools.release import release
from tools.report import report
from tools.ship import ship
from tools.volumes import volumes
from tools.weights import weights

COMMANDS = {
    "demo": demo,
    "check": check,
    "check_gpu": check_gpu,
    "cv": cv,
    "weights": weights,
    "prepare": prepare,
    "segment": segment,
    "cohort": cohort,
    "restore": restore,
    "picture": picture,
    "report": report,
    "volumes": volumes,
    "label": label,
    "virtual": {"brats": brats, "metastases": metastases, "tissue": tissue, "icbm152": icbm152, "ct": ct},
    "convert": {"h5": to_h5, "nifti": to_nifti},
    "ship": ship,
    "pack": pack,
    "release": release,
    "card": card,
    "bench": {
        "case": case,
        "loader": loader,
        "memory": memory,
        "preparation": preparation,
        "registration": registration,
        "flags": flags,
        "missing": missing,
        "calibration": calibration,
    },
}

fire.decorators.FIRE_METADATA = "__fire_metadata__"  # by its own name it is listed as a group of every command's help

_FLAGS = ("bool", "bool | None")  # annotations, which are text
_COUNTS = ("int", "int | None")
_TEXTS = ("str", "str | None")
_LISTS = ("str | Sequence[str]", "str | Sequence[str] | None")


def _refuse_unknown(arguments: Sequence[str]) -> None:
    """Refuse an option that the command does not have; Fire would call the command first, and then complain."""
    command: Any = COMMANDS
    rest = list(arguments)
    while isinstance(command, dict) and rest and rest[0] in command:
        command = command[rest.pop(0)]
    if isinstance(command, dict):
        return
    known = inspect.signature(command).parameters
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in known.values()):
        return  # which looks at its options itself
    for argument in rest:
        name = argument[2:].partition("=")[0].replace("-", "_")
        if argument == "--":
            return
        if not argument.startswith("--") or name == "help" or {name, name.removeprefix("no")} & set(known):
            continue
        close = difflib.get_close_matches(name, known, n=1)
        meant = f"did you mean --{close[0]}?" if close else f"there are: --{', --'.join(known)}."
        raise ValueError(f"--{name} is no option of this command; {meant}")


def _checked(command: Any) -> Any:
    """A command, or a group of them, that refuses words for flags and numbers: Fire hands on `false`, which is true.

    What it annotates as text stays as it was typed: Fire makes 123 of a patient who is called 12_3.
    """
    if isinstance(command, dict):
        return {name: _checked(one) for name, one in command.items()}
    known = inspect.signature(command)
    hands_on = any(one.kind is inspect.Parameter.VAR_KEYWORD for one in known.parameters.values())  # e.g. to `prepare`

    @fire.decorators.SetParseFns(**(_parsers_of(prepare) if hands_on else {}) | _parsers_of(command))
    @functools.wraps(command)
    def call(*args: Any, **kwargs: Any) -> Any:
        for name, value in known.bind(*args, **kwargs).arguments.items():
            parameter = known.parameters[name]
            if value is None and parameter.default is None:
                continue
            expected = wrong_value(name, value, False) if parameter.annotation in _FLAGS else ""
            if parameter.annotation in _COUNTS and (isinstance(value, bool) or not isinstance(value, int)):
                expected = "a whole number"
            if expected:
                raise ValueError(f"--{name} is {value!r}; expected {expected}.")
        return command(*args, **kwargs)

    return call


def _parsers_of(command: Callable[..., Any]) -> dict[str, Callable[[str], Any]]:
    """What reads each of the options that are texts."""
    known = inspect.signature(command).parameters
    kinds = {name: parameter.annotation for name, parameter in known.items()}
    if any(one.kind is inspect.Parameter.VAR_KEYWORD for one in known.values()):
        kinds["from"] = "str"  # of `convert`: no name that Python has
    return {name: _texts if kind in _LISTS else _text for name, kind in kinds.items() if kind in (*_TEXTS, *_LISTS)}


def _text(given: str) -> str | None:
    return None if given == "None" else given


def _texts(given: str) -> str | list[str]:
    """One text, or those in brackets, with or without quotes."""
    if given[:1] + given[-1:] not in ("[]", "()"):
        return given
    with contextlib.suppress(ValueError, SyntaxError):  # a comma in quotes is part of a text
        texts = ast.literal_eval(given)
        if isinstance(texts, (list, tuple)) and all(isinstance(text, str) for text in texts):
            return list(texts)
    return [part.strip().strip("'\"") for part in given[1:-1].split(",") if part.strip()]


def main() -> None:
    """Run the command that the command line names."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        _refuse_unknown(sys.argv[1:])
        fire.Fire(_checked(COMMANDS), name="python -m tools")
    except (ValueError, OSError) as error:  # what a user can mend; anything else is a defect and shows its traceback
        raise SystemExit(f"ERROR: {error}") from None


if __name__ == "__main__":
    main()
