"""Versions of the package and of a bundle, which caches are keyed by; and what a bundle asks of the package."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from bundlekit.errors import BundleError

__version__ = "0.3.0"


def require(package: str | os.PathLike) -> None:
    """Refuse a bundle that came with another minor version of bundlekit than the one that this process has loaded.

    A packed bundle has its own bundlekit beside its package. Python loads one of that name in a process, whichever is
    asked for first, so that two packed bundles of different releases would mix. In a checkout no bundle has one of its
    own: nothing is asked there.

    Args:
        package: `__file__` of the bundle's package.

    Raises:
        BundleError: with both folders, both versions and what to do.
        SystemExit: as `require_exporter` does.
    """
    require_exporter(sys.argv)
    root = Path(package).resolve().parents[1]
    own = root / "bundlekit" / "version.py"
    found = re.search(r'^__version__ = "(.+)"', own.read_text(), re.MULTILINE) if own.is_file() else None
    if found is None or found[1].split(".")[:2] == __version__.split(".")[:2]:
        return
    loaded = Path(__file__).resolve().parents[1]
    raise BundleError(
        f"{root.name} ({root}) came with bundlekit {found[1]}, but this process has loaded bundlekit {__version__} of "
        f"{loaded.name} ({loaded}). Run each in a process of its own, or take both from one release."
    )


def bundle_version(module: str) -> str:
    """Name and version of the bundle that a module is of; "" for any other module, MONAI's among them.

    Args:
        module: its name, e.g. `__module__` of a class.
    """
    package = module.partition(".")[0]
    file = getattr(sys.modules.get(package), "__file__", None)
    metadata = Path(file).resolve().parents[1] / "configs" / "metadata.json" if file else Path()
    return f"{package} {json.loads(metadata.read_text())['version']}" if metadata.is_file() else ""


def require_exporter(arguments: Sequence[str]) -> None:
    """End a `monai.bundle onnx_export` at once where a package that it needs is missing, with the way to get it.

    Args:
        arguments: the command line.

    Raises:
        SystemExit: with that one line; MONAI's configs go on after other errors of an import.
    """
    if list(arguments[1:2]) != ["onnx_export"] or not Path(arguments[0]).parent.match("monai/bundle"):
        return
    missing = [package for package in ("onnx", "onnxscript") if find_spec(package) is None]
    if missing:
        raise SystemExit(f"ERROR: onnx_export needs {' and '.join(missing)}: pip install {' '.join(missing)}")
