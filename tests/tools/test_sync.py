"""The copies of the shared modules are what they are copies of."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools import sync
from tools.bundles import names


def test_every_bundle_carries_the_shared_modules_unchanged() -> None:
    assert sync.drift() == [], "run `make sync`; edit shared modules in tools/vendored/ only"


def test_a_changed_and_a_missing_copy_are_found_and_mended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sync, "ROOT", tmp_path)
    for bundle in names():
        (tmp_path / bundle / bundle).mkdir(parents=True)
    sync.sync()
    assert sync.drift() == []
    package = tmp_path / "brats_resunet" / "brats_resunet"
    (package / "errors.py").write_text("changed")
    (package / "cases.py").unlink()
    assert [copy for _, copy in sync.drift()] == [package / "errors.py", package / "cases.py"]
    assert not (tmp_path / "brain_tissue_vnet" / "brain_tissue_vnet" / "cases.py").exists(), "it has its own"
    sync.sync()
    assert sync.drift() == []
