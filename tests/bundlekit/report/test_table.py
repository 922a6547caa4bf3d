"""The table of volumes over runs that end well, are killed, and come again."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from bundlekit.errors import BundleError
from bundlekit.files import write_content
from bundlekit.report import table as table_module
from bundlekit.report.table import COLUMNS, VolumeTable


def rows(case: str, ml: float = 1.0) -> list[dict[str, object]]:
    return [{**dict.fromkeys(COLUMNS, ""), "case": case, "name": name, "ml": ml} for name in ("ED", "ET")]


def cases(table: VolumeTable) -> list[tuple[str, str]]:
    with table.path.open(newline="") as file:
        return [(row["case"], row["ml"]) for row in csv.DictReader(file)]


def test_cases_are_added_and_a_second_run_replaces_its_own(tmp_path: Path) -> None:
    table = VolumeTable(tmp_path / "out")
    table.begin()
    table.add(rows("a"))
    table.add(rows("b"))
    assert cases(table) == 2 * [("a", "1.0")] + 2 * [("b", "1.0")]
    again = VolumeTable(tmp_path / "out")
    again.begin()
    assert len(cases(again)) == 4, "nothing is lost before the case is done again"
    again.add(rows("b", 2.0))
    assert cases(again) == 2 * [("a", "1.0")] + 2 * [("b", "2.0")]
    assert json.loads((tmp_path / "out" / "volumes.json").read_text()).keys() == COLUMNS.keys()


def test_what_another_process_adds_meanwhile_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = VolumeTable(tmp_path), VolumeTable(tmp_path)
    one.begin()
    one.add(rows("a"))
    other.begin()
    adding = Thread(target=lambda: other.add(rows("b")))

    def replace(*arguments: Any) -> None:  # the table is read by now
        adding.start()
        adding.join(0.1)
        write_content(*arguments)

    monkeypatch.setattr(table_module, "write_content", replace)
    one.add(rows("a", 2.0))
    adding.join()
    assert cases(one) == 2 * [("a", "2.0")] + 2 * [("b", "1.0")]


def test_what_another_process_adds_while_the_table_is_rewritten_stays(tmp_path: Path) -> None:
    one, other = VolumeTable(tmp_path), VolumeTable(tmp_path)
    one.begin()
    one.add(rows("a"))
    adding = Thread(target=lambda: other.add(rows("b")))

    def change(before: list[dict[str, str]]) -> list[dict[str, str]]:
        adding.start()
        adding.join(0.1)
        return [{**row, "ml": "2.0"} for row in before]

    one.rewrite(change)
    adding.join()
    assert cases(one) == 2 * [("a", "2.0")] + 2 * [("b", "1.0")]


def test_a_row_that_was_cut_off_is_dropped(tmp_path: Path) -> None:
    table = VolumeTable(tmp_path)
    table.begin()
    table.add(rows("a"))
    table.add(rows("b"))
    whole = table.path.read_bytes()
    table.path.write_bytes(whole[:-7])
    VolumeTable(tmp_path).begin()
    assert cases(table) == [*2 * [("a", "1.0")], ("b", "1.0")]


def test_names_with_commas_quotes_and_umlauts(tmp_path: Path) -> None:
    table = VolumeTable(tmp_path)
    table.begin()
    table.add(rows('a, "b"\u00fc'))
    table.begin()
    assert {case for case, _ in cases(table)} == {'a, "b"\u00fc'}


def test_another_table_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "volumes.csv").write_text("mine,too\n1,2\n")
    with pytest.raises(BundleError, match="a table with the columns mine, too"):
        VolumeTable(tmp_path).begin()
    assert (tmp_path / "volumes.csv").read_text() == "mine,too\n1,2\n"


def test_a_full_disk_leaves_whole_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = VolumeTable(tmp_path)
    table.begin()
    table.add(rows("a"))

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        with pytest.raises(BundleError, match="No space left"):
            table.add(rows("b"))
    table.add(rows("c"))
    assert [case for case, _ in cases(table)] == ["a", "a", "c", "c"]
