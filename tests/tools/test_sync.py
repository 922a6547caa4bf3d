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
    first = names()[0]
    (tmp_path / first / first / "errors.py").write_text("changed")
    (tmp_path / first / first / "files.py").unlink()
    assert sync.drift() == [(first, "errors.py"), (first, "files.py")]
    sync.sync()
    assert sync.drift() == []
