"""The weights that come with the bundle are as good as they were on a virtual glioma."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bundlekit.virtual import brats
from tests.conftest import ROOT, Run, bundle_run
from tools.convert import to_h5

BUNDLE = ROOT / "bundles" / "brats_unet_h5"
GOLDEN = {"dice_WT": 0.920, "dice_TC": 0.885, "dice_ET": 0.691}


def test_golden_scores(run: Run, tmp_path: Path) -> None:
    brats(str(tmp_path / "cases"), cases=1, seed=7)
    to_h5(str(tmp_path / "h5"), **{"from": str(tmp_path / "cases")})
    arguments = ["--dataset_dir", tmp_path / "h5", "--output_dir", tmp_path, "--subset", "all", "--num_workers", "0"]
    run(*bundle_run("evaluating", "inference.yaml", "evaluate.yaml", bundle=BUNDLE), *arguments)
    metrics = json.loads((tmp_path / "summary.json").read_text())["metrics"]
    assert {name: metrics[name]["mean"] for name in GOLDEN} == pytest.approx(GOLDEN, abs=0.02)
