"""The bundles of this distribution, as the tools see them."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[1] / "bundles"


def names() -> list[str]:
    """Names of the bundles, sorted."""
    return sorted(folder.name for folder in ROOT.iterdir() if (folder / "configs" / "metadata.json").is_file())


def package(bundle: str) -> ModuleType:
    """The Python package of a bundle; it offers `scan_cases` and `LoadCased` under these names in every bundle.

    Args:
        bundle: folder name under `bundles/`.

    Raises:
        ValueError: if there is no such bundle.
    """
    if bundle not in names():
        raise ValueError(f"no bundle named {bundle!r}; there are: {', '.join(names())}.")
    if str(ROOT / bundle) not in sys.path:
        sys.path.insert(0, str(ROOT / bundle))
    return importlib.import_module(bundle)
