"""The weights that come with the bundle: whole, loadable, and as good as they were on a virtual glioma."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from brats_unet_h5 import build_network, recorded_settings
from brats_unet_h5.shipped import check_shipped, shipped_hash

from tests.conftest import ROOT, Run, bundle_run
from tools.convert import to_h5
from tools.virtual import brats

BUNDLE = ROOT / "bundles" / "brats_unet_h5"
WEIGHTS = BUNDLE / "models" / "model.pt"
GOLDEN = {"dice_WT": 0.949, "dice_TC": 0.924, "dice_ET": 0.511}


def test_the_file_is_whole_and_fits_its_settings() -> None:
    assert shipped_hash(WEIGHTS)
    check_shipped(WEIGHTS)
    settings = recorded_settings(WEIGHTS, {"channels": [], "target": "", "res_units": 0, "uniform_shape": []})
    assert settings["uniform_shape"] == [128, 128, 128], "what the model card says"
    del settings["uniform_shape"]
    build_network(**settings).load_state_dict(torch.load(WEIGHTS, weights_only=True))
    assert WEIGHTS.stat().st_size < 50 * 2**20


def test_golden_scores(run: Run, tmp_path: Path) -> None:
    brats(str(tmp_path / "cases"), cases=1, seed=7)
    to_h5(str(tmp_path / "h5"), **{"from": str(tmp_path / "cases")})
    arguments = ["--dataset_dir", tmp_path / "h5", "--output_dir", tmp_path, "--subset", "all", "--num_workers", "0"]
    run(*bundle_run("evaluating", "inference.yaml", "evaluate.yaml", bundle=BUNDLE), *arguments)
    metrics = json.loads((tmp_path / "summary.json").read_text())["metrics"]
    assert {name: metrics[name]["mean"] for name in GOLDEN} == pytest.approx(GOLDEN, abs=0.02)
