"""The weights that come with the bundle are as good as they were on a part of a virtual head."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import pytest

from bundlekit.virtual import tissue
from tests.conftest import ROOT, Run, bundle_run

BUNDLE = ROOT / "bundles" / "brain_tissue_vnet"
PART = (slice(70, 166), slice(70, 166), slice(40, 120))  # around the ventricles, 8 windows
GOLDEN = {"dice_CSF": 0.508, "dice_GM": 0.749, "dice_WM": 0.874}  # of that part


def test_golden_scores(run: Run, tmp_path: Path) -> None:
    tissue(str(tmp_path / "heads"), cases=1, seed=7)
    for file in (tmp_path / "heads").rglob("*.nii.gz"):
        part = nib.load(file).slicer[PART]
        nib.save(nib.Nifti1Image.from_bytes(part.to_bytes()), file)
    arguments = ["--dataset_dir", tmp_path / "heads", "--output_dir", tmp_path, "--subset", "all", "--num_workers", "0"]
    run(*bundle_run("evaluating", "inference.yaml", "evaluate.yaml", bundle=BUNDLE), *arguments)
    metrics = json.loads((tmp_path / "summary.json").read_text())["metrics"]
    assert {name: metrics[name]["mean"] for name in GOLDEN} == pytest.approx(GOLDEN, abs=0.01)
