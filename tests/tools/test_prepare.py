"""The commands around scans of the scanner, as a user calls them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from bundlekit.files import sha256_of
from bundlekit.preparation.grids import Grid
from bundlekit.preparation.record import write_record
from tests.conftest import Run, built, bundle_run, refusal
from tools.prepare import prepare, segment

AFFINE = np.diag([-1.0, -1.0, 1.0, 1.0])


def test_restore_writes_masks_and_prints_volumes(run: Run, tmp_path: Path) -> None:
    grid = Grid((10, 10, 10), AFFINE)
    raw, mask = tmp_path / "scan_t1.nii.gz", tmp_path / "x_seg.nii.gz"
    nib.save(nib.Nifti1Image(np.random.default_rng(0).normal(size=grid.shape).astype(np.float32), AFFINE), raw)
    labels = np.zeros(grid.shape, np.uint8)
    labels[:, :5, :4] = 2
    nib.save(nib.Nifti1Image(labels, AFFINE), mask)
    entry = {
        "source": str(raw),
        "sha256": sha256_of(raw),
        "grid": grid.as_dict(),
        "to_prepared_ras": np.eye(4).tolist(),
    }
    write_record(tmp_path / "prepared", {"case": "x", "grid": grid.as_dict(), "modalities": {"T1": entry}})
    out = tmp_path / "out"
    done = run("-m", "tools", "restore", "--prepared", tmp_path / "prepared", "--mask", mask, "--out", out)
    assert "T1    label 2 0.2 ml" in done.stdout
    np.testing.assert_array_equal(np.asarray(nib.load(out / "x_seg_on_t1.nii.gz").dataobj), labels)
    assert json.loads((out / "x_volumes.json").read_text())["on"]["T1"] == {"2": 0.2}


def test_segment_brings_the_mask_of_the_bundle_back(
    run: Run, cohort: Path, trained: Callable[[str], Path], tmp_path: Path
) -> None:
    """Scans that are prepared already, of which the mask is that of the bundle's own run."""
    source, scans = cohort / "VirtualGlioma_00000", tmp_path / "scans"
    scans.mkdir()
    for file in source.glob("*.nii.gz"):
        if not file.name.endswith("_seg.nii.gz"):  # with voxels of 1 mm
            nib.save(nib.Nifti1Image(np.asarray(nib.load(file).dataobj), AFFINE), scans / file.name)
    weights = ["--ckpt_dir", trained("brats_resunet")]
    out = tmp_path / "out"
    done = run("-m", "tools", "segment", "brats_resunet", scans, "--out", out, *weights)
    assert "rotated by 0.0 degrees" in done.stdout
    own = ["--dataset_dir", scans, "--output_dir", tmp_path / "own", "--num_workers", "0", *weights]
    run(*bundle_run("inferring", "inference.yaml"), *own)
    expected = np.asarray(nib.load(tmp_path / "own" / f"{source.name}_seg.nii.gz").dataobj)
    assert expected.any()
    for modality in ("t1", "t1ce", "t2", "flair"):
        back = nib.load(out / f"{source.name}_seg_on_{modality}.nii.gz")
        np.testing.assert_array_equal(np.asarray(back.dataobj), expected)
        np.testing.assert_array_equal(back.affine, AFFINE)
    told = json.loads((out / f"{source.name}_volumes.json").read_text())
    assert sum(told["prepared"].values()) == pytest.approx((expected > 0).sum() / 1000, abs=0.01)


def test_a_missing_modality_is_told(run: Run, cohort: Path, tmp_path: Path) -> None:
    """By `segment` as by the bundle's own run, and whether the network was trained for it."""
    source, scans, models = cohort / "VirtualGlioma_00000", tmp_path / "scans", tmp_path / "models"
    scans.mkdir()
    models.mkdir()
    for modality in ("t1", "t1ce", "flair"):
        file = source / f"{source.name}_{modality}.nii.gz"
        nib.save(nib.Nifti1Image(np.asarray(nib.load(file).dataobj)[12:36, 12:36, 10:26], AFFINE), scans / file.name)
    network = built("brats_resunet", "network_def", "train.yaml", channels=[2, 4, 8, 16])
    torch.save(network.state_dict(), models / "model.pt")
    (models / "settings.json").write_text(
        json.dumps({"channels": [2, 4, 8, 16], "patch_size": [16, 16, 16], "modality_dropout": 0.0})
    )
    settings = {"dataset_dir": str(scans), "output_dir": str(tmp_path / "out"), "ckpt_dir": str(models),
                "device": "cpu", "num_workers": 0, "runtime": "torch"}  # fmt: skip
    done = run("-c", f"from tools.prepare import _infer; _infer('brats_resunet', {settings}, True)")
    assert f"{source.name} has no T2: zeros in its place; the network was NOT trained for that" in done.stderr
    assert (tmp_path / "out" / f"{source.name}_seg.nii.gz").is_file()
    refused = run("-c", f"from tools.prepare import _infer; _infer('brats_resunet', {settings}, False)", status=1)
    assert "ERROR: 1 problem(s) in the data set" in refused.stderr


def test_what_is_missing_ends_with_one_message(run: Run, tmp_path: Path) -> None:
    done = run("-m", "tools", "prepare", "--t1", "a.nii.gz", "--t1ce", "b.nii.gz", "--flair", "c.nii.gz",
               "--out", tmp_path / "out", status=1)  # fmt: skip
    assert "ERROR: " in done.stderr
    assert "no T2" in done.stderr
    assert "--fill_missing True" in done.stderr
    assert refusal(done) or "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_arguments_that_cannot_be_are_refused(tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    with pytest.raises(ValueError, match="takes no BraTS-like cases; expected brats_resunet or"):
        segment("brain_tissue_vnet", t1="a", out=out)
    with pytest.raises(ValueError, match="no setting --flip of brats_resunet"):
        segment("brats_resunet", t1="a", out=out, flip=True)
    for name, value in {"flips": "false", "whole_brain": "no", "overlap": 2}.items():
        with pytest.raises(ValueError, match=f"--{name} is {value!r}; expected"):
            segment("brats_resunet", t1="a", out=out, **{name: value})
    with pytest.raises(ValueError, match="--out is missing"):
        prepare(t1="a")
    with pytest.raises(ValueError, match="no scan is given"):
        prepare(out=out)
    with pytest.raises(ValueError, match="expected one of both"):
        prepare(str(tmp_path), out=out, t1="a")
    with pytest.raises(ValueError, match="--n4 is 'yes'; expected True or False"):
        prepare(t1="a", out=out, n4="yes")  # type: ignore[arg-type]
