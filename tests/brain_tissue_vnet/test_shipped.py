"""The weights that come with the bundle: whole, loadable, and as good as they were on a part of a virtual head."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import pytest
import torch
from brain_tissue_vnet import VNet, recorded_settings
from brain_tissue_vnet.shipped import check_shipped, shipped_hash

from tests.conftest import ROOT, Run, bundle_run
from tools.virtual import tissue

BUNDLE = ROOT / "bundles" / "brain_tissue_vnet"
WEIGHTS = BUNDLE / "models" / "model.pt"
PART = (slice(70, 166), slice(70, 166), slice(40, 120))  # around the ventricles, 8 windows
GOLDEN = {"dice_CSF": 0.467, "dice_GM": 0.694, "dice_WM": 0.848}  # of that part


def test_the_file_is_whole_and_fits_its_settings() -> None:
    assert shipped_hash(WEIGHTS)
    check_shipped(WEIGHTS)
    settings = recorded_settings(WEIGHTS, {"init_filters": 16, "patch_size": [96, 96, 96], "whole_head": False})
    network = VNet(in_channels=1, out_channels=4, init_filters=settings["init_filters"])
    network.load_state_dict(torch.load(WEIGHTS, weights_only=True))
    assert settings["whole_head"], "it was shown whole heads too"
    assert WEIGHTS.stat().st_size < 50 * 2**20


def test_golden_scores(run: Run, tmp_path: Path) -> None:
    tissue(str(tmp_path / "heads"), cases=1, seed=7)
    for file in (tmp_path / "heads").rglob("*.nii.gz"):
        part = nib.load(file).slicer[PART]
        nib.save(nib.Nifti1Image.from_bytes(part.to_bytes()), file)
    arguments = ["--dataset_dir", tmp_path / "heads", "--output_dir", tmp_path, "--subset", "all", "--num_workers", "0"]
    run(*bundle_run("evaluating", "inference.yaml", "evaluate.yaml", bundle=BUNDLE), *arguments)
    metrics = json.loads((tmp_path / "summary.json").read_text())["metrics"]
    assert {name: metrics[name]["mean"] for name in GOLDEN} == pytest.approx(GOLDEN, abs=0.01)
