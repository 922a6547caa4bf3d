"""Config files of a bundle, read by a program in place of the command line."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser

from bundlekit.errors import BundleError
from bundlekit.values import NO_HASH, File, default_of, has_setting, is_expression, wrong_value


def read_configs(bundle: str | Path, configs: Sequence[str], settings: Mapping[str, Any]) -> ConfigParser:
    """Config files of a bundle, one over the other, with values for some of their entries.

    Args:
        bundle: its folder, which goes on `sys.path`.
        configs: names of files in its `configs`.
        settings: values by the entry's id.

    Raises:
        BundleError: if a path of the settings has a #.
    """
    folder = Path(bundle)
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    parser = ConfigParser()
    parser.read_config([str(folder / "configs" / name) for name in configs])
    for key, value in settings.items():
        refuse_hash(key, value)
        parser[key] = value
    return parser


def refuse_hash(key: str, value: Any) -> None:
    """Refuse a path that MONAI's configs cannot hold, see `values.NO_HASH`.

    Args:
        key: name of the setting.
        value: of it; expressions pass.

    Raises:
        BundleError: naming it.
    """
    if File.unspeakable(value) and not is_expression(value):
        raise BundleError(f"{key} is {str(value)!r}; expected {NO_HASH}.")


def refuse_settings(config: Mapping[str, Any], settings: Mapping[str, Any], name: str) -> None:
    """Refuse settings that configs do not have, or that cannot be theirs.

    `command_line.refuse_unknown_settings` does it for what is typed after `monai.bundle run`.

    Args:
        config: content of the configs.
        settings: values by the entry's id.
        name: of the configs, for the message, e.g. "brats_resunet's inference.yaml".

    Raises:
        BundleError: naming the first.
    """
    for key, value in settings.items():
        path = key.split("::")
        if not has_setting(config, path):
            close = difflib.get_close_matches(key, config, n=1)
            meant = f" Did you mean --{close[0]}?" if close else ""
            raise BundleError(f"no setting --{key} of {name}.{meant}")
        if expected := wrong_value(key, value, default_of(config, path)):
            raise BundleError(f"--{key} is {value!r}; expected {expected}.")
