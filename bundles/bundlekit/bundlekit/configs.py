"""Config files of a bundle, read by a program in place of the command line."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser


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
