"""Evaluation and inference as a user runs them, with a network that label maps have trained."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from tests.conftest import Run, bundle_run, losses, refusal

BUNDLE = "brain_mask_unet"


@pytest.fixture(scope="module")
def model(trained: Callable[[str], Path]) -> Path:
    return trained(BUNDLE)


def test_evaluation_scores_every_scan(run: Run, heads: Path, model: Path, tmp_path: Path) -> None:
    found = losses((model / "log.txt").read_text())
    assert found[-1] < found[0] - 0.1
    command = bundle_run("evaluating", "inference.yaml", "evaluate.yaml", bundle=BUNDLE)
    where = ["--dataset_dir", heads, "--ckpt_dir", model, "--output_dir", tmp_path, "--num_workers", "0"]
    done = run(*command, *where, "--runtime", "torch")
    assert "of these cases trained the network: their scores flatter it" in done.stdout + done.stderr
    with (tmp_path / "scores.csv").open() as text:
        rows = list(csv.DictReader(text))
    assert [row["case"] for row in rows] == [f"sub-00{number}_T1w" for number in range(5)]
    assert all(float(row["dice_brain"]) > 0.5 for row in rows)
    assert not list(tmp_path.glob("*_brain.nii.gz"))


def test_inference_writes_mask_and_brain(run: Run, heads: Path, model: Path, tmp_path: Path) -> None:
    scan = heads / "sub-000" / "anat" / "sub-000_T1w.nii.gz"
    command = [*bundle_run("inferring", "inference.yaml", bundle=BUNDLE), "--ckpt_dir", model, "--num_workers", "0"]
    run(*command, "--dataset_dir", scan, "--output_dir", tmp_path / "plain", "--save_probabilities", "True")
    run(*command, "--dataset_dir", scan, "--output_dir", tmp_path / "wide", "--margin_mm", "10")
    images = {file.name: nib.load(file) for file in (tmp_path / "plain").glob("*.nii.gz")}
    assert set(images) == {f"sub-000_T1w_{kind}.nii.gz" for kind in ("seg", "brain", "probabilities")}
    mask, brain = (np.asarray(images[f"sub-000_T1w_{kind}.nii.gz"].dataobj) for kind in ("seg", "brain"))
    source = nib.load(scan)
    assert all(np.array_equal(image.affine, source.affine) for image in images.values())
    assert set(np.unique(mask)) == {0, 1}
    np.testing.assert_array_equal(brain, np.where(mask, np.asarray(source.dataobj), 0))
    probabilities = np.asarray(images["sub-000_T1w_probabilities.nii.gz"].dataobj)
    np.testing.assert_array_equal(probabilities[..., 0] >= 0.5, mask > 0)
    foreign = tmp_path / "foreign" / "sub-000_T1w_brain.nii.gz"
    foreign.parent.mkdir()
    nib.save(nib.Nifti1Image(mask, source.affine), foreign)
    before = foreign.read_bytes()
    told = refusal(run(*command, "--dataset_dir", scan, "--output_dir", foreign.parent, status=1))
    assert "a file that no bundle has put its name to" in told
    assert foreign.read_bytes() == before
    wide = np.asarray(nib.load(tmp_path / "wide" / "sub-000_T1w_seg.nii.gz").dataobj)
    assert (wide >= mask).all()
    assert wide.sum() > 1.1 * mask.sum()
