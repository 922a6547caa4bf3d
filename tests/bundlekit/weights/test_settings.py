"""Settings travel from training to inference beside the weights."""

from __future__ import annotations

from pathlib import Path

import pytest

from bundlekit.errors import BundleError
from bundlekit.weights.settings import recorded_settings, write_settings

DEFAULTS = {"init_filters": 16, "fit": "resize", "spacing": [1.0, 1.0, 1.0]}


def test_what_is_written_is_read(tmp_path: Path) -> None:
    write_settings({"init_filters": 8, "fit": "none", "spacing": None}, str(tmp_path / "models"))
    found = recorded_settings(tmp_path / "models" / "model.pt", DEFAULTS)
    assert found == {"init_filters": 8, "fit": "none", "spacing": None}


def test_defaults_stand_where_nothing_is_recorded(tmp_path: Path) -> None:
    assert recorded_settings(tmp_path / "model.pt", DEFAULTS) == DEFAULTS
    write_settings({"init_filters": 4, "new": 1}, str(tmp_path))
    assert recorded_settings(tmp_path / "last.pt", DEFAULTS) == {**DEFAULTS, "init_filters": 4}


def test_only_rank_0_writes(tmp_path: Path) -> None:
    write_settings(DEFAULTS, str(tmp_path), rank=1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ["{", "[1, 2]", ""])
def test_a_damaged_file_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "settings.json").write_text(text)
    with pytest.raises(BundleError, match=r"settings\.json[\s\S]*expected"):
        recorded_settings(tmp_path / "model.pt", DEFAULTS)
