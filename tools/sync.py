"""Copies of the modules that bundles share: a bundle stands alone, so that it carries its own."""

from __future__ import annotations

from pathlib import Path

from tools.bundles import ROOT, names

VENDORED = Path(__file__).resolve().parent / "vendored"
_NIFTI = ("brats_resunet", "brain_metastasis_attention_unet")
_ALL = (*_NIFTI, "brats_unet_h5")
_BRATS = {  # modules of vendored/brats/ and the bundles that carry them
    "cases.py": _NIFTI,
    "reading.py": _NIFTI,
    "core.py": _ALL,
    "patients.py": _ALL,
    "regions.py": _ALL,
    "sampling.py": _ALL,
    "scores.py": ("brats_resunet", "brats_unet_h5"),
}


def sync() -> None:
    """Copy the modules of tools/vendored/ into the package of every bundle, where they differ."""
    for original, copy in drift():
        copy.write_bytes(original.read_bytes())
        print(f"copied {original.name} to {copy.parent.name}")


def drift() -> list[tuple[Path, Path]]:
    """Original and copy, wherever the copy is missing or differs."""
    pairs = [
        (original, ROOT / bundle / bundle / original.name)
        for bundle in names()
        for original in (*sorted(VENDORED.glob("*.py")), *sorted((VENDORED / "brats").glob("*.py")))
        if original.parent == VENDORED or bundle in _BRATS[original.name]
    ]
    return [(a, b) for a, b in pairs if not b.is_file() or b.read_bytes() != a.read_bytes()]
