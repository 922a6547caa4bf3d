"""Config files of a bundle, read by a program in place of the command line."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser

from bundlekit.errors import BundleError
from bundlekit.values import wrong_value


def read_configs(bundle: str | Path, configs: Sequence[str], settings: Mapping[str, Any]) -> ConfigParser:
    """Config files of a bundle, one over the other, with values for some of their entries.

    Args:
        bundle: its folder, which goes on `sys.path`.
        configs: names of files in its `configs`.
        settings: values by the entry's id.
    """
    folder = Path(bundle)
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    parser = ConfigParser()
    parser.read_config([str(folder / "configs" / name) for name in configs])
    for key, value in settings.items():
        parser[key] = value
    return parser


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
        if key not in config:
            close = difflib.get_close_matches(key, config, n=1)
            meant = f" Did you mean --{close[0]}?" if close else ""
            raise BundleError(f"no setting --{key} of {name}.{meant}")
        if expected := wrong_value(key, value, config[key]):
            raise BundleError(f"--{key} is {value!r}; expected {expected}.")
