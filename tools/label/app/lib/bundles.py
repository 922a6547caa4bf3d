"""The bundles of this app: what their configs say of their cases, and the names of their labels."""

from __future__ import annotations

import importlib
import json
import os
import re
import sys
from collections.abc import Callable, Mapping
from pydoc import locate
from types import ModuleType
from typing import Any

from monai.bundle import ConfigParser

from bundlekit.brats.missing import missing_in, tell_filled


def package(path: str) -> ModuleType:
    """The Python package of the bundle in folder `path`, which has the folder's name and shares it with no other."""
    if path not in sys.path:
        sys.path.append(path)
    return importlib.import_module(os.path.basename(path))


def find_cases(path: str) -> Callable[..., list[dict[str, Any]]]:
    """The search for cases that the bundle's inference config names."""
    package(path)  # puts its folder on the path
    found: Any = locate(_inference(path)["cases"]["_target_"])
    return found


def scan_cases(path: str) -> Callable[..., tuple[list[dict[str, Any]], list[Any]]]:
    """As `find_cases`, but the findings are returned beside the cases."""
    return sys.modules[find_cases(path).__module__].scan_cases


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
    parser = _inference(path)
    parser["bundle_root"] = path
    names = [key for key in parser["cases"] if key not in ("_target_", "dataset_dir", "datalist", "labelled")]
    return {name: parser.get_parsed_content(f"cases::{name}") for name in names}


def tell_missing(path: str, case: Mapping[str, Any]) -> None:
    """Log which modalities of a case are missing, and whether the bundle's network was trained for that.

    Args:
        path: folder of the bundle.
        case: as the bundle's search gives it.
    """
    if not missing_in(dict(case)):
        return
    parser = _inference(path)
    parser["bundle_root"] = path
    known = "modality_dropout" in parser
    tell_filled([dict(case)], parser.get_parsed_content("modality_dropout") if known else 0.0)


def modalities(path: str) -> list[str]:
    """Names of the images of a case, in the order of the network's channels."""
    channels = _metadata(path)["network_data_format"]["inputs"]["image"]["channel_def"]
    return [channels[index] for index in sorted(channels, key=int)]


def handed_on(path: str) -> list[str]:
    """Settings chosen after training that fine-tuned weights take over, as the bundle's `finetune.yaml` lists them."""
    file = os.path.join(path, "configs", "finetune.yaml")
    return list(ConfigParser.load_config_file(file).get("handed_on", [])) if os.path.isfile(file) else []


def _inference(path: str) -> ConfigParser:
    parser = ConfigParser()
    parser.read_config(os.path.join(path, "configs", "inference.yaml"))
    return parser


def _channels(path: str) -> tuple[dict[str, Any], dict[str, str]]:
    """The bundle's metadata, and in it what the network's channels are."""
    metadata = _metadata(path)
    return metadata, next(iter(metadata["network_data_format"]["outputs"].values()))["channel_def"]


def _metadata(path: str) -> dict[str, Any]:
    with open(os.path.join(path, "configs", "metadata.json")) as file:
        return json.load(file)
