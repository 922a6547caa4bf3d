"""The weights that come with the bundle are as good as they were on a virtual glioma."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bundlekit.virtual import brats
from tests.conftest import Run, bundle_run

GOLDEN = {"dice_WT": 0.960, "dice_TC": 0.918, "dice_ET": 0.699}


def test_golden_scores(run: Run, tmp_path: Path) -> None:
    brats(str(tmp_path / "cases"), cases=1, seed=7)
    arguments = ["--dataset_dir", tmp_path / "cases", "--output_dir", tmp_path, "--subset", "all", "--num_workers", "0"]
    run(*bundle_run("evaluating", "inference.yaml", "evaluate.yaml"), *arguments, "--overlap", "0.25")
    metrics = json.loads((tmp_path / "summary.json").read_text())["metrics"]
    assert {name: metrics[name]["mean"] for name in GOLDEN} == pytest.approx(GOLDEN, abs=0.01)
