"""The weights that come with the bundles: whole, of the settings that the cards tell, and loaded by the configs."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from scipy import ndimage

from bundlekit.virtual import brats, metastases, tissue
from bundlekit.weights.shipped import check_shipped, shipped_hash
from tests.bundles import BUNDLES, options
from tests.conftest import ROOT, Run, bundle_run
from tools.bundles import names, parse
from tools.convert import to_h5

SHIPPED = [name for name, row in BUNDLES.items() if row.shipped]


def test_none_is_left_out() -> None:
    assert set(SHIPPED) == {name for name in names() if (ROOT / "bundles" / name / "models" / "model.pt").exists()}


@pytest.mark.parametrize("bundle", SHIPPED)
def test_the_file_is_whole_and_fits_its_settings(bundle: str) -> None:
    models = ROOT / "bundles" / bundle / "models"
    weights = models / "model.pt"
    assert shipped_hash(weights)
    check_shipped(weights)
    recorded = json.loads((models / "settings.json").read_text())
    assert BUNDLES[bundle].shipped.items() <= (recorded | recorded.get("after_training", {})).items()
    parser = parse(bundle, "inference.yaml")
    parser.get_parsed_content("network_def").load_state_dict(torch.load(weights, weights_only=True))
    assert weights.stat().st_size < 50 * 2**20


# --- as good as they were on a virtual case ---------------------------------------------------------------------------


def glioma(root: Path) -> Path:
    brats(str(root), cases=1, seed=7)
    return root


def glioma_in_hdf5(root: Path) -> Path:
    to_h5(str(root / "h5"), **{"from": str(glioma(root / "nifti"))})
    return root / "h5"


def part_of_a_head(root: Path) -> Path:
    """Around the ventricles, 8 windows."""
    tissue(str(root), cases=1, seed=7)
    cut(root, (slice(70, 166), slice(70, 166), slice(40, 120)))
    return root


def part_with_a_metastasis(root: Path) -> Path:
    """The brain round the largest lesion."""
    (case,) = map(Path, metastases(str(root), cases=1, seed=8))
    parts, _ = ndimage.label(np.asarray(nib.load(case / f"{case.name}-seg.nii.gz").dataobj))
    largest = np.bincount(parts.ravel())[1:].argmax() + 1
    centre = [round(c) for c in ndimage.center_of_mass(parts == largest)]
    cut(root, tuple(slice(max(c - 48, 0), c + 48) for c in centre))
    return root


def cut(root: Path, box: tuple[slice, ...]) -> None:
    for file in root.rglob("*.nii.gz"):
        nib.save(nib.Nifti1Image.from_bytes(nib.load(file).slicer[box].to_bytes()), file)


CASES = {"cohort": glioma, "heads": part_of_a_head, "metastases": part_with_a_metastasis, "h5_cohort": glioma_in_hdf5}


@pytest.mark.parametrize("bundle", SHIPPED)
def test_golden_scores(bundle: str, run: Run, tmp_path: Path) -> None:
    row = BUNDLES[bundle]
    where = {
        "dataset_dir": CASES[row.data](tmp_path / "cases"),
        "output_dir": tmp_path,
        "num_workers": 0,
        **({} if row.maps else {"subset": "all"}),  # label maps trained it, and no scan
    }
    files = bundle_run("evaluating", "inference.yaml", "evaluate.yaml", bundle=bundle)
    run(*files, *options(**where, **row.golden_settings))
    metrics = json.loads((tmp_path / "summary.json").read_text())["metrics"]
    assert {name: metrics[name]["mean"] for name in row.golden} == pytest.approx(row.golden, abs=row.golden_within)
