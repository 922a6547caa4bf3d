"""The weights that come with the bundle: whole, loadable, and as good as they were on a virtual glioma."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from brats_resunet import ResUNet, recorded_settings
from brats_resunet.shipped import check_shipped, shipped_hash

from tests.conftest import BUNDLE, Run, bundle_run
from tools.virtual import brats

WEIGHTS = BUNDLE / "models" / "model.pt"
GOLDEN = {"dice_WT": 0.960, "dice_TC": 0.933, "dice_ET": 0.846}


def test_the_file_is_whole_and_fits_its_settings() -> None:
    assert shipped_hash(WEIGHTS)
    check_shipped(WEIGHTS)
    settings = recorded_settings(WEIGHTS, {"channels": [32, 64, 128, 256, 512], "patch_size": [96, 96, 96]})
    assert settings["channels"] == [16, 32, 64, 128, 256], "what the model card says"
    ResUNet(channels=settings["channels"]).load_state_dict(torch.load(WEIGHTS, weights_only=True))
    assert WEIGHTS.stat().st_size < 50 * 2**20


def test_golden_scores(run: Run, tmp_path: Path) -> None:
    brats(str(tmp_path / "cases"), cases=1, seed=7)
    arguments = ["--dataset_dir", tmp_path / "cases", "--output_dir", tmp_path, "--subset", "all", "--num_workers", "0"]
    run(*bundle_run("evaluating", "inference.yaml", "evaluate.yaml"), *arguments, "--overlap", "0.25")
    metrics = json.loads((tmp_path / "summary.json").read_text())["metrics"]
    assert {name: metrics[name]["mean"] for name in GOLDEN} == pytest.approx(GOLDEN, abs=0.01)
