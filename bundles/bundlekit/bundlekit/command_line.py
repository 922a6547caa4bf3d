"""Settings that a user types: those that no config knows, or that cannot be, are refused instead of being ignored."""

from __future__ import annotations

import difflib
import json
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from fire.parser import DefaultParseValue
from monai.bundle import ConfigParser
from monai.bundle.utils import merge_kv

from bundlekit.errors import BundleError
from bundlekit.values import NO_HASH, File, default_of, has_setting, is_expression, rule_of, wrong_value

# what `python -m monai.bundle run` itself takes
_RUNNER = {
    "run_id", "init_id", "final_id", "meta_file", "config_file", "logging_file", "tracking", "args_file",
    "workflow_name", "workflow_type", "id_",
}  # fmt: skip

_PREPARATION = ("prepare", "prepared")  # of cases, which inference does again by settings.json beside the weights
_NO_MATTER = {"shard", "num_workers", "report", "bundle_root", "subset", "overwrite", "overlays"}  # to a mask


@dataclass
class CommandLine:
    """A `python -m monai.bundle run`: its config files, and what was given beside them.

    Args:
        run_id: what is run, e.g. "training".
        files: config files, in their order.
        given: values by name, from the command line and from its `--args_file`.
        config: content of the files, one over the other, without the values given.
    """

    run_id: str = "run"
    files: list[str] = field(default_factory=list)
    given: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)

    def settings(self) -> dict[str, Any]:
        """Every value at the top of the config as it is in this run, and whatever was given of what lies deeper.

        Expressions are left out, unless they were given. Paths are absolute.
        """
        chosen = {name: value for name, value in self.config.items() if _is_plain(value)}
        chosen |= {name: value for name, value in self.given.items() if name not in _RUNNER}
        return {name: _absolute(name, value) for name, value in chosen.items()}


def read_command_line(arguments: Sequence[str] | None = None) -> CommandLine | None:
    """This process's command, as MONAI will understand it.

    Args:
        arguments: the command line; None: this process's own.

    Returns:
        None for anything but `... monai.bundle run ... --config_file F` with files that can be read.
    """
    arguments = sys.argv if arguments is None else list(arguments)
    if len(arguments) < 2 or arguments[1] != "run" or not Path(arguments[0]).parent.match("monai/bundle"):
        return None
    given = _values(arguments[2:])
    if isinstance(given.get("args_file"), str):
        try:
            given = {**_load(given["args_file"]), **given}
        except (OSError, yaml.YAMLError, ValueError):  # MONAI's to complain about
            return None
    files = given.get("config_file")
    command = CommandLine(files=[files] if isinstance(files, str) else [str(file) for file in files or []])
    merged = ConfigParser({})
    try:
        for file in command.files:
            for key, value in _load(file).items():
                merge_kv(merged, key, value)
    except (OSError, yaml.YAMLError, ValueError, KeyError, IndexError, TypeError):
        return None
    command.config = merged.get()
    first = arguments[2] if len(arguments) > 2 and not _FLAG.match(arguments[2]) else ""
    command.run_id = first or str(given.get("run_id") or "run")
    command.given = given
    return command if command.config else None


def beside_defaults(configs: Sequence[str], given: Mapping[str, Any]) -> str:
    """What decides about a result beside a bundle's defaults, as it is typed: "whole_head.yaml --overlap 0.5".

    Args:
        configs: config files; those that every inference has are left out.
        given: values by name; paths, and what changes no mask, are left out.
    """
    files = [Path(file).name for file in configs]
    values = [
        f"--{name} {value}"
        for name, value in given.items()
        if name not in _RUNNER | _NO_MATTER and not isinstance(rule_of(name), File)
    ]
    return " ".join([*(file for file in files if file not in ("inference.yaml", "evaluate.yaml")), *values])


def refuse_unknown_settings(arguments: Sequence[str] | None = None) -> None:
    """Refuse `--name value` of a `monai.bundle run` whose name none of its config files has, or whose value cannot be.

    MONAI adds any name to the config, so that a misspelt setting changes nothing and is not noticed. It reads `false`
    as a word, which counts as true, and drops None.

    Args:
        arguments: the command line; None: this process's own. Anything but `... monai.bundle run ... --config_file F`
            passes.

    Raises:
        BundleError: with all that is wrong, and what was probably meant.
    """
    command = read_command_line(arguments)
    if command is None:
        return
    _refuse_hash(sys.argv if arguments is None else arguments)
    files, config = command.files, command.config
    unknown, wrong = [], []
    if not has_setting(config, command.run_id.split("::")):
        runs = [name for name in ("training", "evaluating", "inferring") if name in config]
        unknown.append(f"{command.run_id!r} is nothing that can be run; expected {' or '.join(runs)}")
    for name, value in command.given.items():
        path = name.replace("#", "::")
        if path not in _RUNNER and (hash_in := _with_hash(value)):
            wrong.append(f"--{name} is {hash_in!r}; expected {NO_HASH}")
            continue
        if path in _RUNNER:
            continue
        if command.run_id == "training" and path.split("::")[0] in _PREPARATION and "::" in path:
            told = "would prepare cases otherwise than inference does; expected a setting at the top of the config"
            wrong.append(f"--{name} {told}")
            continue
        if has_setting(config, path.split("::")):
            expected = _expected(path, value, default_of(config, path.split("::")))
            if expected:
                wrong.append(f"--{name} is {value!r}; expected {expected}")
            continue
        others = _elsewhere(files, path.split("::")[0])
        if others:
            unknown.append(f"--{name} is a setting of {others}, which is not among the config files given")
            continue
        close = difflib.get_close_matches(path, [*config, *_RUNNER], n=1)
        meant = f"; did you mean --{close[0]}?" if close else ""
        unknown.append(f"--{name} is no setting of this bundle{meant}")
    for name, value in config.items():  # of files that users write
        expected = wrong_value(name, value) if name not in command.given and "::" not in name else ""
        if expected:
            wrong.append(f"{name} is {value!r}; expected {expected}")
    if unknown or wrong:
        where = f"The settings are listed at the top of {files[0]}."
        raise BundleError("\n".join([*unknown, *wrong, *([where] if unknown else [])]))


def _refuse_hash(arguments: Sequence[str]) -> None:
    """Refuse a # in what was typed as a value: Fire takes what follows for a comment, before anything can see it."""
    for argument in arguments[1:]:
        value = argument.partition("=")[2] if _FLAG.match(argument) else argument
        if "#" in value and not is_expression(value) and "#" not in str(DefaultParseValue(value)):
            raise BundleError(f"{argument}: expected {NO_HASH}.")


def _with_hash(value: Any) -> str:
    """The text in a value, or in a list of it, in which MONAI would read a # as ::; keys of a mapping stay."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        return next(filter(None, map(_with_hash, value)), "")
    return value if isinstance(value, str) and "#" in value and not is_expression(value) else ""


def _expected(name: str, value: Any, default: Any) -> str:
    if value is None and default is None:  # MONAI drops it, and null is what stays
        return ""
    if value is None:
        rule = rule_of(name, default)
        if rule is None or rule.null:
            return "'$None', with the quotes: MONAI drops None"
        return str(rule)
    return wrong_value(name, value, default)


_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # seven times as fast as MONAI's, where it was built
_FLAG = re.compile("--|-[a-zA-Z]")  # as Fire tells an option from a value such as -1


def _values(arguments: Sequence[str]) -> dict[str, Any]:
    """Values by name, as Fire reads them."""
    found: dict[str, Any] = {}
    for position, argument in enumerate(arguments):
        if _FLAG.match(argument) and argument.strip("-"):
            name, equals, value = argument.lstrip("-").partition("=")  # one hyphen or two
            following = arguments[position + 1] if position + 1 < len(arguments) else "--"
            text = value if equals else "True" if _FLAG.match(following) else following
            found[name if "::" in name else name.replace("-", "_")] = DefaultParseValue(text)
    if isinstance(found.get("config_file"), str) and "," in found["config_file"]:
        found["config_file"] = [name.strip() for name in found["config_file"].split(",") if name]
    return found


def _load(file: str) -> dict[str, Any]:
    text = Path(file).read_text()  # 1e-05 is a number in JSON, and a word in YAML
    content = json.loads(text) if file.endswith(".json") else yaml.load(text, _LOADER)
    return content if isinstance(content, dict) else {}


def _is_plain(value: Any) -> bool:
    """Whether a value of a config is what it says: no expression, and no component, is in it."""
    if isinstance(value, Mapping):
        return "_target_" not in value and all(map(_is_plain, value.values()))
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    return not is_expression(value)


def _absolute(name: str, value: Any) -> Any:
    is_path = isinstance(rule_of(name), File) and isinstance(value, str) and value and not is_expression(value)
    return str(Path(value).absolute()) if is_path else value


def _elsewhere(files: Sequence[str], name: str) -> str:
    """The config beside those given that has a value of that name at its top, train.yaml first; "" if none has."""
    folder = Path(files[0]).parent
    others = sorted(folder.glob("*.yaml"), key=lambda file: (file.name != "train.yaml", file.name))
    for other in others:
        if other.name not in {Path(file).name for file in files} and name in (yaml.safe_load(other.read_text()) or {}):
            return other.name
    return ""
