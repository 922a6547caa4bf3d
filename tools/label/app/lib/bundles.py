"""The bundles of this app: their packages, their label names, and their words for what is wrong with an input."""

from __future__ import annotations

import importlib
import json
import os
import re
import sys
from collections.abc import Iterable
from types import ModuleType
from typing import Any

from monai.bundle import ConfigParser


def package(path: str) -> ModuleType:
    """The Python package of the bundle in folder `path`, which has the folder's name and shares it with no other."""
    if path not in sys.path:
        sys.path.append(path)
    return importlib.import_module(os.path.basename(path))


def module(name: str, part: str) -> ModuleType:
    """A module that every bundle carries, e.g. `writing`; the bundle's package is loaded already."""
    return importlib.import_module(f"{name}.{part}")


def class_names(path: str) -> dict[str, int]:
    """Name of each class but the background with its index.

    They are the network's channels, in lower case as MONAI Label has them; where those are no classes but regions,
    `pred_classes` says what is written.
    """
    metadata, classes = _channels(path)
    if has_regions(path):
        written = re.findall(r"(\d+) ([^,;]+)", metadata["pred_classes"])
        return {name: int(index) for index, name in written if name != "background"}
    return {name.lower(): int(index) for index, name in classes.items() if name.lower() != "background"}


def has_regions(path: str) -> bool:
    """Whether the network's channels are regions, each with a sigmoid of its own, and not classes."""
    return _channels(path)[1]["0"].lower() != "background"


def case_settings(path: str) -> dict[str, Any]:
    """What the bundle's inference config gives to its search for cases, e.g. `et_label`; not where they lie."""
    parser = ConfigParser()
    parser.read_config(os.path.join(path, "configs", "inference.yaml"))
    parser["bundle_root"] = path
    names = [key for key in parser["cases"] if key not in ("_target_", "dataset_dir", "datalist", "labelled")]
    return {name: parser.get_parsed_content(f"cases::{name}") for name in names}


def explanation(error: BaseException, bundles: Iterable[str]) -> str | None:
    """What a bundle has to say to its user about bad input; None if the error is none of that kind."""
    for name in bundles:
        message = module(name, "errors").bundle_error_in(error)
        if message is not None:
            return message
    return None


def _channels(path: str) -> tuple[dict[str, Any], dict[str, str]]:
    """The bundle's metadata, and in it what the network's channels are."""
    with open(os.path.join(path, "configs", "metadata.json")) as file:
        metadata = json.load(file)
    return metadata, next(iter(metadata["network_data_format"]["outputs"].values()))["channel_def"]
