"""Objects of a bundle's configs, for measurements of what users really run."""

from __future__ import annotations

import logging
from typing import Any

from monai.bundle import ConfigParser

from tools.bundles import ROOT, package


def parse(bundle: str, config: str, **overrides: Any) -> ConfigParser:
    """The parsed config file of a bundle, with values replaced as on the command line.

    Args:
        bundle: folder name under `bundles/`.
        config: file name under `configs/`, e.g. "train.yaml".
        overrides: id and value, e.g. `patch_size=[64, 64, 64]`.
    """
    package(bundle)
    logging.getLogger("monai").setLevel(logging.ERROR)
    parser = ConfigParser()
    parser.read_config(str(ROOT / bundle / "configs" / config))
    parser.update(overrides)
    return parser
