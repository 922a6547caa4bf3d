"""The picture of the scores, beside the table."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from bundlekit.scores import handler
from bundlekit.scores.handler import PICTURE, write_picture

ROWS = [{"case": "a", "dice_liver": 0.5, "hd95_liver": 9.0}, {"case": "b", "dice_liver": 0.75, "hd95_liver": 1.0}]


def test_every_dice_is_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list = []
    monkeypatch.setattr(handler, "box_plot", lambda values, title: drawn.append((values, title)) or (lambda file: None))
    write_picture(ROWS, tmp_path, "output_dir")
    assert drawn == [({"liver": [0.5, 0.75]}, "Dice of 2 case(s)")]
    assert (tmp_path / PICTURE).is_file()


def test_without_matplotlib_there_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(handler, "installed", lambda package: False)
    with caplog.at_level(logging.INFO, logger="bundlekit"):
        write_picture(ROWS, tmp_path, "output_dir")
    assert not list(tmp_path.iterdir())
    assert "pip install matplotlib" in caplog.text
