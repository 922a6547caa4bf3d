"""Copies of the modules that bundles share: a bundle stands alone, so that it carries its own."""

from __future__ import annotations

from pathlib import Path

from tools.bundles import ROOT, names

VENDORED = Path(__file__).resolve().parent / "vendored"


def sync() -> None:
    """Copy the modules of tools/vendored/ into the package of every bundle, where they differ."""
    for bundle, module in drift():
        target = ROOT / bundle / bundle / module
        target.write_bytes((VENDORED / module).read_bytes())
        print(f"copied {module} to {bundle}")


def drift() -> list[tuple[str, str]]:
    """Bundle and file name of every copy that is missing or differs from its original."""
    return [
        (bundle, original.name)
        for bundle in names()
        for original in sorted(VENDORED.glob("*.py"))
        if not (copy := ROOT / bundle / bundle / original.name).is_file() or copy.read_bytes() != original.read_bytes()
    ]
