"""The bundles of this distribution, as the tools see them: through their configs."""

from __future__ import annotations

import contextlib
import inspect
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from pydoc import locate
from types import ModuleType
from typing import Any

import yaml
from monai.bundle import ConfigParser

from bundlekit.configs import read_configs
from bundlekit.errors import bundle_error_in

ROOT = Path(__file__).resolve().parents[1] / "bundles"
KIT = ROOT / "bundlekit" / "bundlekit"  # the package that the bundles share


def names() -> list[str]:
    """Names of the bundles, sorted."""
    return sorted(folder.name for folder in ROOT.iterdir() if (folder / "configs" / "metadata.json").is_file())


def folder_of(bundle: str) -> Path:
    """Folder of a bundle.

    Raises:
        ValueError: if there is no such bundle.
    """
    if bundle not in names():
        raise ValueError(f"no bundle named {bundle!r}; there are: {', '.join(names())}.")
    return ROOT / bundle


def component(bundle: str, config: str, key: str) -> Any:
    """Class or function that a config names as `_target_` at `key` (a path with `::`), not called.

    Args:
        bundle: folder name under `bundles/`.
        config: file name under `configs/`.
        key: of the config, e.g. "cases" or "preprocessing::transforms::0".
    """
    value: Any = yaml.safe_load((folder_of(bundle) / "configs" / config).read_text())
    for part in key.split("::"):
        value = value[int(part)] if isinstance(value, list) else value[part]
    if str(ROOT / bundle) not in sys.path:
        sys.path.insert(0, str(ROOT / bundle))
    return locate(value["_target_"])


def find_cases_of(bundle: str) -> Callable[..., list[dict[str, Any]]]:
    """The bundle's search for the cases of a data set."""
    return component(bundle, "inference.yaml", "cases")


def scan_cases_of(bundle: str) -> Callable[..., tuple[list[dict[str, Any]], list[Any]]]:
    """As `find_cases_of`, but the findings are returned beside the cases."""
    return module_of(find_cases_of(bundle)).scan_cases


def reader_of(bundle: str) -> Callable[..., Any]:
    """The bundle's transform that decodes a case."""
    return component(bundle, "inference.yaml", "preprocessing::transforms::0")


def load_case_of(bundle: str, allow_unprepared: bool = False, **options: Any) -> Callable[[Any], dict[str, Any]]:
    """The bundle's transform that decodes a case, made.

    Args:
        bundle: name of a bundle.
        allow_unprepared: accept scans with the skull or in thick slices.
        options: further arguments of the transform.

    Raises:
        ValueError: for `allow_unprepared` of a bundle whose transform has no such argument.
    """
    reader = reader_of(bundle)
    if allow_unprepared:
        if "allow_unprepared" not in inspect.signature(reader).parameters:
            raise ValueError(
                f"no setting --allow_unprepared of {bundle}'s data; it is one of the bundles for BraTS data."
            )
        options["allow_unprepared"] = True
    return reader(**options)


def module_of(part: Any) -> ModuleType:
    """The module that defines a class or function."""
    return sys.modules[part.__module__]


def parse(bundle: str, *configs: str, **overrides: Any) -> ConfigParser:
    """Config files of a bundle, one over the other, with values for some of their entries."""
    return read_configs(folder_of(bundle), configs, overrides)


@contextlib.contextmanager
def plain_errors() -> Iterator[None]:
    """Raise what a user can mend as ValueError, without the RuntimeErrors that MONAI puts around what a config does."""
    try:
        yield
    except RuntimeError as error:
        message = bundle_error_in(error)
        if message is None:
            raise
        raise ValueError(message) from error
