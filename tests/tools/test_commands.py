"""The tools as a user calls them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib import image as png

from tests.conftest import Run
from tools.bench import loader, network
from tools.demo import demo
from tools.picture import overlay


def test_help_names_every_command_and_argument(run: Run) -> None:
    text = run("-m", "tools", "--help").stderr
    for command in ("demo", "check", "virtual", "bench"):
        assert command in text
    text = run("-m", "tools", "virtual", "brats", "--help").stderr
    for argument in ("out", "cases", "seed", "shape"):
        assert argument in text


def test_bad_argument_ends_with_one_line(run: Run, tmp_path: Path) -> None:
    done = run("-m", "tools", "virtual", "brats", "--out", tmp_path / "x", "--cases", "0", status=1)
    assert "ERROR: " in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "x").exists()


def test_overlay_draws_reference_and_prediction(cohort: Path, tmp_path: Path) -> None:
    folder = cohort / "VirtualGlioma_00000"
    images = {name: str(folder / f"VirtualGlioma_00000_{name}.nii.gz") for name in ("t1", "flair")}
    seg = str(folder / "VirtualGlioma_00000_seg.nii.gz")
    labels = {1: "core", 2: "oedema", 4: "enhancing"}
    overlay(tmp_path / "with.png", [("case", images, seg, seg)], labels)
    overlay(tmp_path / "without.png", [("case", images, None, seg)], labels)
    drawn, blank = (png.imread(tmp_path / name)[..., :3] for name in ("with.png", "without.png"))

    def coloured(picture: np.ndarray) -> int:
        third = picture[: int(picture.shape[0] * 0.85), picture.shape[1] // 2 : picture.shape[1] * 3 // 4]
        return int((third.max(-1) - third.min(-1) > 0.1).sum())

    assert coloured(drawn) > 50
    assert coloured(blank) == 0


def test_benchmarks_print_their_rows(cohort: Path, capsys: pytest.CaptureFixture[str]) -> None:
    loader(str(cohort), patch_size=(16, 16, 16), patches=5, rounds=1)
    rows = capsys.readouterr().out
    assert rows.count("patches per CPU second") == 7
    network(patch_size=(32, 32, 32), channels=(4, 8, 16, 32), step=False)
    ours, theirs = (line for line in capsys.readouterr().out.splitlines() if "GFLOP" in line)
    assert ours.startswith("ResUNet")
    assert theirs.startswith("DynUNet")


def test_demo_replaces_only_what_a_demo_made(tmp_path: Path) -> None:
    (tmp_path / "cases").mkdir()
    (tmp_path / "cases" / "mine.nii.gz").write_text("a scan")
    with pytest.raises(ValueError, match=r"holds files that no demo .* made; remove it or give another --out"):
        demo(str(tmp_path))
    (tmp_path / ".made_by_demo").touch()
    (tmp_path / "cases" / "labels").mkdir()
    with pytest.raises(ValueError, match="labels saved in a viewer; move them away"):
        demo(str(tmp_path))
    for number in ({"cases": 0}, {"seed": 0}):
        with pytest.raises(ValueError, match=f"{next(iter(number))} is 0; expected"):
            demo(str(tmp_path), **number)
    assert (tmp_path / "cases" / "mine.nii.gz").is_file()
