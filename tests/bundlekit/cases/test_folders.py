from __future__ import annotations

import os
from pathlib import Path

import pytest

from bundlekit.cases.folders import leaving_out, nothing_found, walk
from bundlekit.errors import BundleError


def files_below(root: Path) -> list[str]:
    return [(folder / name).relative_to(root).as_posix() for folder, names in walk(root) for name in names]


def make(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")
    return root


def test_sorted_and_without_hidden_ones(tmp_path: Path) -> None:
    make(tmp_path, "b/2", "b/1", "a/3", "0", ".hidden/4", "a/.5")
    assert files_below(tmp_path) == ["0", "a/3", "b/1", "b/2"]


def test_links_that_lead_above_themselves(tmp_path: Path) -> None:
    make(tmp_path, "case/file")
    for name in ("la", "lb", "lc"):
        (tmp_path / "case" / name).symlink_to("..")
    assert files_below(tmp_path) == ["case/file"]
    (tmp_path / "again").symlink_to("case")  # the first name of a folder counts
    assert files_below(tmp_path) == ["again/file"]


def test_folders_that_may_not_be_read_are_all_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, "a/1", "b/1", "c/1")
    scandir = os.scandir

    def closed(path: str) -> object:
        if Path(path).name in "ac":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", closed)
    with pytest.raises(BundleError, match=r"/a\n.*Permission denied[\s\S]*/c\n.*Permission denied"):
        files_below(tmp_path)


def test_what_lies_there_in_place_of_cases(tmp_path: Path) -> None:
    expected = "NIfTI files"
    assert nothing_found(tmp_path, expected).found == "no case"
    make(tmp_path / "pairs", "x.hdr", "x.img")
    found = nothing_found(tmp_path, expected)
    assert "2 .hdr and .img" in found.found
    assert ".nii.gz" in found.fix
    (tmp_path / "series").mkdir()
    for name in ("IM-0001.dcm", "I10"):  # with and without an ending
        (tmp_path / "series" / name).write_bytes(bytes(128) + b"DICM" + bytes(10))
    found = nothing_found(tmp_path, expected)
    assert "2 DICOM" in found.found
    assert "dcm2niix" in found.fix
    assert "1 DICOM" in nothing_found(tmp_path / "series" / "I10", expected).found


def test_a_folder_that_is_left_out(tmp_path: Path) -> None:
    for name in ("a/x", "labels/final/x", "b/x"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    everything = [folder.name for folder, files in walk(tmp_path) if files]
    assert everything == ["a", "b", "final"]
    for left_out in (tmp_path / "labels", tmp_path / "link"):
        (tmp_path / "link").unlink(missing_ok=True)
        (tmp_path / "link").symlink_to(tmp_path / "labels")
        with leaving_out(left_out):
            assert [folder.name for folder, files in walk(tmp_path) if files] == ["a", "b"]
    with leaving_out(tmp_path / "gone"):
        assert [folder.name for folder, files in walk(tmp_path) if files] == everything
