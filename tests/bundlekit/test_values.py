"""What the table of settings allows, and that it has those of the bundles."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from bundlekit.values import RULES, Flag, wrong_value, wrong_values
from tests.conftest import ROOT


def test_every_flag_of_the_bundles_is_known_without_its_config() -> None:
    files = sorted(ROOT.glob("bundles/*/configs/*.yaml"))
    flags = {
        name
        for file in files
        for name, value in (yaml.safe_load(file.read_text()) or {}).items()
        if isinstance(value, bool) and "::" not in name
    }
    assert "overwrite" in flags
    assert sorted(name for name in flags if not isinstance(RULES.get(name), Flag)) == []


def test_a_word_is_no_flag() -> None:
    assert wrong_values({"allow_unprepared": "false"}) == [
        "allow_unprepared is 'false'; expected True or False, with a capital letter"
    ]
    assert wrong_value("overwrite", "false")


def test_a_home_folder_is_written_out() -> None:
    """Else a folder of the name "~" would be made."""
    assert "without ~" in wrong_value("ckpt_dir", "~/run")
    assert not wrong_value("dataset_dir", "~/scans")


def test_a_path_that_monai_reads_otherwise_is_refused() -> None:
    for name in ("dataset_dir", "output_dir", "checkpoint"):
        assert "without #" in wrong_value(name, "/data/Pat #7")
        assert not wrong_value(name, "$@bundle_root + '/#'")


def test_a_file_in_the_way_of_a_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for place in ("file", "file/run"):
        assert f"{tmp_path / 'file'} is a file: name another folder" in wrong_value("ckpt_dir", str(tmp_path / place))
    assert wrong_value("ckpt_dir", str(tmp_path / "new" / "run")) == ""


def test_what_cannot_be_looked_at_is_left_to_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert wrong_value("ckpt_dir", str(tmp_path / ("x" * 300))) == ""

    def forbidden(path: Path) -> bool:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "exists", forbidden)
    assert wrong_value("ckpt_dir", "somewhere") == ""
