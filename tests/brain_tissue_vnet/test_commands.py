"""What a user of this bundle can run, beside what every bundle has."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from bundlekit.errors import bundle_error_in
from tests.bundles import BUNDLES
from tests.conftest import Run, built, bundle_run, config, losses, refusal

NAME = "brain_tissue_vnet"


def train(data: Path, out: Path, *overlays: str, **more: object) -> None:
    """One epoch, in this process."""
    where = {"dataset_dir": str(data), "ckpt_dir": str(out), "output_dir": str(out), "cache": "none", "num_workers": 0}
    settings = {**where, **BUNDLES[NAME].small, **BUNDLES[NAME].training, "epochs": 1, **more}
    built(NAME, "train::trainer", "train.yaml", *overlays, **settings).run()


def test_the_lowest_validation_loss_is_the_best(trained) -> None:
    found = losses((trained(NAME) / "log.txt").read_text(), "val_loss")
    best = torch.load(trained(NAME) / "last.pt", weights_only=True)["best"]
    assert best["metric"] == pytest.approx(min(found), abs=1e-3)
    assert best["epoch"] == 1 + found.index(min(found))


def test_scores_leave_out_what_has_no_label(heads: Path, trained, tmp_path: Path) -> None:
    where = {"dataset_dir": str(heads), "ckpt_dir": str(trained(NAME)), "output_dir": str(tmp_path), "num_workers": 0}
    built(NAME, "evaluator", "inference.yaml", "evaluate.yaml", **where).run()
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert "ignored_voxels_rule" in summary
    assert max(summary["metrics"][f"dice_{tissue}"]["mean"] for tissue in ("CSF", "GM", "WM")) > 0.3


def test_gradient_accumulation_steps_as_often_as_it_says(heads: Path, tmp_path: Path) -> None:
    """Four steps of two patches an epoch: accumulated over four, the optimizer steps once."""
    train(heads, tmp_path, accumulation_steps=4)
    state = torch.load(tmp_path / "last.pt", weights_only=True)["optimizer"]["state"]
    assert {int(entry["step"]) for entry in state.values()} == {1}


def test_torchios_augmentation_and_n4(heads: Path, tmp_path: Path) -> None:
    more = {"affine_probability": 1, "elastic_probability": 1, "intensity_probability": 1, "patches_per_case": 1}
    train(heads, tmp_path, "torchio.yaml", "n4.yaml", **more)
    assert json.loads((tmp_path / "settings.json").read_text())["n4"] is True
    scan = heads / "sub-000" / "anat" / "sub-000_T1w.nii.gz"
    where = {"dataset_dir": str(scan), "output_dir": str(tmp_path / "again"), "num_workers": 0}
    built(NAME, "evaluator", "inference.yaml", **where, ckpt_dir=str(tmp_path)).run()
    assert (tmp_path / "again" / "sub-000_seg.nii.gz").is_file()
    where |= {"pretrained": str(tmp_path / "model.pt"), "ckpt_dir": str(tmp_path / "tuned"), "dataset_dir": str(heads)}
    with pytest.raises(RuntimeError) as caught:
        built(NAME, "initialize", "train.yaml", "finetune.yaml", **where)
    assert "a network trained with n4 True" in str(bundle_error_in(caught.value))


def test_a_whole_head_on_demand_only(run: Run, heads: Path, trained, tmp_path: Path) -> None:
    scan = tmp_path / "sub-001_T1w.nii.gz"
    shutil.copy(heads / "sub-001" / "anat" / scan.name, scan)
    image = nib.load(scan)
    voxels = np.asarray(image.dataobj)
    skull = np.where(np.indices(voxels.shape).sum(0) > 50, np.maximum(voxels, 300), 0)  # all but the corners
    nib.save(nib.Nifti1Image(skull, image.affine), scan)
    command = [*bundle_run("inferring", "inference.yaml", bundle=NAME), "--dataset_dir", scan, "--num_workers", "0"]
    command += ["--ckpt_dir", trained(NAME), "--output_dir", tmp_path / "masks"]
    assert "--whole_head True" in refusal(run(*command, status=1))
    run(*command, "--whole_head", "True", "--runtime", "torch")
    assert (tmp_path / "masks" / "sub-001_seg.nii.gz").is_file()


def test_inference_has_the_steps_of_every_overlay() -> None:
    """Which of them is off follows what was recorded."""
    steps = {step["_target_"]: step for step in config(NAME, "inference")["preprocessing"]["transforms"]}
    for overlay, key, target, condition in (
        ("n4", "prepare::clahe", "brain_tissue_vnet.N4d", "$not @n4"),
        ("pad", "+prepared::transforms", "SpatialPadd", "$@fit != 'pad'"),
    ):
        added = config(NAME, overlay)[key]
        (mine,) = [step for step in added["transforms"] if step["_target_"] == target] if overlay == "n4" else added
        expected = {**mine, "keys": "image", "mode": mine.get("mode", [None])[0], "_disabled_": condition}
        assert expected == {"keys": "image", "mode": None, **steps[target]}
    assert steps["Resized"]["_disabled_"] == "$@fit != 'resize'"
    assert list(steps).index("brain_tissue_vnet.N4d") + 1 == list(steps).index("brain_tissue_vnet.CLAHEd")
    assert list(steps)[-1] == "SpatialPadd"


def test_defaults_are_upstreams() -> None:
    train_ = config(NAME, "train")
    assert train_["init_filters"] == 16
    assert train_["fit"] == "resize"
    assert train_["clahe"] > 0
    assert train_["accumulation_steps"] > 1
    assert list(train_["validate"]["key_metric"]) == ["val_loss"]
