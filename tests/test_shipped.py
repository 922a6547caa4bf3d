"""The weights that come with the bundles: whole, of the settings that the cards tell, and loaded by the configs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from scipy import ndimage

from bundlekit.virtual import brats, metastases, tissue
from bundlekit.weights.shipped import check_shipped, shipped_hash
from tests.bundles import BUNDLES, options
from tests.conftest import ROOT, MadeOnce, Run, bundle_run
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


@pytest.fixture(scope="session")
def glioma(made_once: MadeOnce) -> Path:
    """A virtual glioma of 240x240x155 voxels, which takes 10 s to paint."""
    return made_once("glioma", lambda to: brats(str(to), cases=1, seed=7))


def part_with_a_glioma(root: Path, glioma: Path) -> Path:
    """The brain round the tumour, 2 windows."""
    shutil.copytree(glioma, root)
    (case,) = (folder for folder in root.iterdir() if folder.is_dir())
    cut_round(root, np.asarray(nib.load(case / f"{case.name}_seg.nii.gz").dataobj) > 0, (64, 48, 48))
    return root


def glioma_in_hdf5(root: Path, glioma: Path) -> Path:
    to_h5(str(root), **{"from": str(glioma)})
    return root


def part_of_a_head(root: Path, _: Path) -> Path:
    """Around the ventricles, 8 windows."""
    tissue(str(root), cases=1, seed=7)
    cut(root, (slice(70, 166), slice(70, 166), slice(40, 120)))
    return root


def stripped_head(root: Path, _: Path) -> Path:
    tissue(str(root), cases=1, seed=7, shape=(120, 120, 78))
    return root


def part_with_a_metastasis(root: Path, _: Path) -> Path:
    """The brain round the largest lesion."""
    (case,) = map(Path, metastases(str(root), cases=1, seed=8))
    parts, _ = ndimage.label(np.asarray(nib.load(case / f"{case.name}-seg.nii.gz").dataobj))
    largest = np.bincount(parts.ravel())[1:].argmax() + 1
    cut_round(root, parts == largest, (48, 48, 48))
    return root


def cut_round(root: Path, lesion: np.ndarray, half: tuple[int, int, int]) -> None:
    centre = [round(c) for c in ndimage.center_of_mass(lesion)]
    cut(root, tuple(slice(max(c - n, 0), c + n) for c, n in zip(centre, half, strict=True)))


def cut(root: Path, box: tuple[slice, ...]) -> None:
    for file in root.rglob("*.nii.gz"):
        nib.save(nib.Nifti1Image.from_bytes(nib.load(file).slicer[box].to_bytes()), file)


CASES = {  # by bundle, or by the data that it has elsewhere
    "brain_mask_unet": stripped_head,
    "cohort": part_with_a_glioma,
    "heads": part_of_a_head,
    "metastases": part_with_a_metastasis,
    "h5_cohort": glioma_in_hdf5,
}


@pytest.mark.parametrize("bundle", SHIPPED)
def test_golden_scores(bundle: str, run: Run, glioma: Path, tmp_path: Path) -> None:
    row = BUNDLES[bundle]
    where = {
        "dataset_dir": CASES[bundle if bundle in CASES else row.data](tmp_path / "cases", glioma),
        "output_dir": tmp_path,
        "num_workers": 0,
        **({} if row.maps else {"subset": "all"}),  # label maps trained it, and no scan
    }
    files = bundle_run("evaluating", "inference.yaml", "evaluate.yaml", bundle=bundle)
    run(*files, *options(**where, **row.golden_settings))
    metrics = json.loads((tmp_path / "summary.json").read_text())["metrics"]
    assert {name: metrics[name]["mean"] for name in row.golden} == pytest.approx(row.golden, abs=row.golden_within)
