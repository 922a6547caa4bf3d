"""The command that draws a mask over its scan."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from matplotlib import image as png

from tests.conftest import Run
from tools.picture import picture


def save(path: Path, array: np.ndarray, step: float = 1.0) -> str:
    nib.save(nib.Nifti1Image(array, np.diag([step, step, step, 1.0])), path)
    return str(path)


@pytest.fixture
def scan(tmp_path: Path) -> str:
    grey = np.random.default_rng(0).uniform(50, 100, (20, 24, 10)).astype(np.float32)
    return save(tmp_path / "scan.nii.gz", grey)


def coloured(file: Path) -> int:
    """Pixels above the legend that are not grey."""
    drawn = png.imread(file)[..., :3]
    drawn = drawn[: int(drawn.shape[0] * 0.85)]
    return int((drawn.max(-1) - drawn.min(-1) > 0.1).sum())


def test_draws_the_labelled_slice(run: Run, scan: str, tmp_path: Path) -> None:
    labels = np.zeros((20, 24, 10), np.uint8)
    labels[5:12, 6:14, 7] = 4
    mask, empty = save(tmp_path / "mask.nii.gz", labels), save(tmp_path / "empty.nii.gz", labels * 0)
    run("-m", "tools", "picture", "--scan", scan, "--mask", mask, "--out", tmp_path / "a" / "mask.png", "--names", "ET")
    picture(scan, empty, str(tmp_path / "empty.png"))
    assert coloured(tmp_path / "a" / "mask.png") > 50
    assert coloured(tmp_path / "empty.png") == 0


def test_refuses_what_is_no_mask_of_the_scan(scan: str, tmp_path: Path) -> None:
    labels = np.ones((20, 24, 10), np.uint8)
    out = str(tmp_path / "out.png")
    with pytest.raises(ValueError, match="the grid of"):
        picture(scan, save(tmp_path / "shape.nii.gz", labels[..., :9]), out)
    with pytest.raises(ValueError, match="by its affine"):
        picture(scan, save(tmp_path / "affine.nii.gz", labels, 2.0), out)
    with pytest.raises(ValueError, match="different values"):
        picture(scan, scan, out)
    with pytest.raises(ValueError, match=r"2 name\(s\); the labels are \[1\]"):
        picture(scan, save(tmp_path / "mask.nii.gz", labels), out, names="core,oedema")
    whole = Path(save(tmp_path / "whole.nii.gz", labels)).read_bytes()
    (tmp_path / "cut.nii.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="cannot be decoded to its end"):
        picture(scan, str(tmp_path / "cut.nii.gz"), out)
    with pytest.raises(OSError, match="no such file"):
        picture(scan, str(tmp_path / "none.nii.gz"), out)
    assert not Path(out).exists()


def test_none_of_its_inputs_is_replaced(scan: str, tmp_path: Path) -> None:
    mask = save(tmp_path / "mask.nii.gz", np.ones((20, 24, 10), np.uint8))
    before = Path(mask).read_bytes()
    with pytest.raises(ValueError, match="one of the files to be drawn"):
        picture(scan, mask, mask)
    with pytest.raises(ValueError, match="expected the name of a PNG"):
        picture(scan, mask, str(tmp_path / "new.nii.gz"))
    assert Path(mask).read_bytes() == before
