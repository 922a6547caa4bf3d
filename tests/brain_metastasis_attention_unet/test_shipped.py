"""The weights that come with the bundle are as good as they were on a virtual case."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from bundlekit.virtual import metastases
from tests.conftest import ROOT, Run, bundle_run

BUNDLE = ROOT / "bundles" / "brain_metastasis_attention_unet"
GOLDEN = {"dice_WT": 0.792, "dice_TC": 0.792, "dice_ET": 0.792}


def test_golden_scores(run: Run, tmp_path: Path) -> None:
    (made,) = map(Path, metastases(str(tmp_path / "whole"), cases=1, seed=8))
    case = tmp_path / "cases" / made.name  # the brain round the largest lesion, which takes less time
    case.mkdir(parents=True)
    labels = np.asarray(nib.load(made / f"{made.name}-seg.nii.gz").dataobj)
    parts, _ = ndimage.label(labels)
    largest = np.bincount(parts.ravel())[1:].argmax() + 1
    centre = [round(c) for c in ndimage.center_of_mass(parts == largest)]
    box = tuple(slice(max(c - 48, 0), c + 48) for c in centre)
    for file in made.iterdir():
        nib.save(nib.load(file).slicer[box], case / file.name)
    arguments = ["--dataset_dir", case.parent, "--output_dir", tmp_path, "--subset", "all", "--num_workers", "0"]
    run(*bundle_run("evaluating", "inference.yaml", "evaluate.yaml", bundle=BUNDLE), *arguments)
    metrics = json.loads((tmp_path / "summary.json").read_text())["metrics"]
    assert {name: metrics[name]["mean"] for name in GOLDEN} == pytest.approx(GOLDEN, abs=0.02)
