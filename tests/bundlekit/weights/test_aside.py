"""Weights that give way to others stay to be brought back."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from bundlekit.weights.aside import keep_aside


def test_each_time_has_its_folder(tmp_path: Path) -> None:
    for content in (b"1", b"2"):
        (tmp_path / "model.pt").write_bytes(content)
        (tmp_path / "settings.json").write_bytes(content)
        kept = keep_aside(tmp_path)
        assert {file.name: file.read_bytes() for file in kept.iterdir()} == {
            "model.pt": content,
            "settings.json": content,
        }
    assert len(list((tmp_path / "earlier").iterdir())) == 2, "within one second, too"
    assert (tmp_path / "model.pt").read_bytes() == b"2", "a copy"


def test_a_disk_that_fails_leaves_nothing_half_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError("No space left on device")

    (tmp_path / "model.pt").write_bytes(b"1")
    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(OSError, match="No space"):
        keep_aside(tmp_path)
    assert list((tmp_path / "earlier").iterdir()) == []
