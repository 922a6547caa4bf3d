"""Pictures: where they are cut, what is in colour, and what is said without matplotlib."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from matplotlib import image as png

from bundlekit.errors import BundleError
from bundlekit.images.drawing import box_plot, draw


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    """A head of 40x30x20 voxels of 1 x 1 x 2 mm with air around it."""
    voxels = np.zeros((40, 30, 20), np.int16)
    voxels[5:35, 5:25, 3:17] = np.random.default_rng(0).integers(400, 900, (30, 20, 14))
    nib.save(nib.Nifti1Image(voxels, np.diag([-1.0, 1, 2, 1])), tmp_path / "scan.nii.gz")
    return tmp_path / "scan.nii.gz"


def coloured(path: Path) -> float:
    """Share of the picture that is not grey."""
    pixels = png.imread(path)[..., :3]
    return float((pixels.max(-1) - pixels.min(-1) > 0.1).mean())


def test_mask_and_reference_are_in_colour(scan: Path, tmp_path: Path) -> None:
    mask = np.zeros((40, 30, 20), np.uint8)
    mask[10:20, 10:18, 6:12] = 1
    mask[12:16, 12:15, 8:10] = 4
    draw(scan, mask, tmp_path / "made" / "one.png")
    draw(scan, mask, tmp_path / "two.png", reference=mask, names={1: "oedema", 4: "enhancing"}, title="a")
    draw(scan, np.zeros_like(mask), tmp_path / "none.png", names={})
    assert coloured(tmp_path / "made" / "one.png") > 0.01
    assert coloured(tmp_path / "two.png") > 0.01
    assert coloured(tmp_path / "none.png") == 0
    assert png.imread(tmp_path / "two.png").shape[0] > png.imread(tmp_path / "made" / "one.png").shape[0]


def test_another_grid_is_refused(scan: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"shape \(3, 3, 3\)"):
        draw(scan, np.ones((3, 3, 3), np.uint8), tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()


def test_a_box_for_each_score(tmp_path: Path) -> None:
    """Where the cases lie is in colour: at one place for equal scores, all over the height for others."""
    for name, scores in {"equal": [0.5] * 4, "spread": [0.1, 0.4, 0.7, float("nan")]}.items():
        with (tmp_path / f"{name}.png").open("wb") as file:
            box_plot({"WT": scores, "ET": [0.9, 0.8, float("nan"), float("nan")]}, "Dice")(file)
    rows = {}
    for name in ("equal", "spread"):
        pixels = png.imread(tmp_path / f"{name}.png")[:, : 130 * 2, :3]
        rows[name] = np.flatnonzero((pixels.max(-1) - pixels.min(-1) > 0.3).any(1))
    assert np.ptp(rows["equal"]) < np.ptp(rows["spread"]) / 4


def test_without_matplotlib(scan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BundleError, match="pip install matplotlib"):
        draw(scan, np.zeros((40, 30, 20), np.uint8), tmp_path / "none.png")
    with pytest.raises(BundleError, match="pip install matplotlib"):
        box_plot({"WT": [0.5]})
