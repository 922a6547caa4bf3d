"""What a user of this bundle can run, beside what every bundle has."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from tests.bundles import options
from tests.conftest import ROOT, Run, bundle_run, refusal, training
from tools.bundles import parse

NAME = "brats_resunet"
BUNDLE = ROOT / "bundles" / NAME


def test_copied_bundle_runs_from_its_own_root(run: Run, cohort: Path, tmp_path: Path) -> None:
    copy = tmp_path / "elsewhere" / "my_bundle"
    shutil.copytree(BUNDLE, copy, ignore=shutil.ignore_patterns("models", "eval"))
    command = ["-m", "monai.bundle", "run", "--config_file"]
    arguments = training(NAME, cohort, copy / "models", epochs=1)
    del arguments[2:6]  # neither ckpt_dir nor output_dir
    run(*command, "configs/train.yaml", *arguments, cwd=copy)
    assert (copy / "models" / "model.pt").is_file(), "paths follow the copy"
    assert (copy / "models" / "datalist.json").is_file()
    where = ["--dataset_dir", cohort, "--num_workers", "0", "--runtime", "torch"]
    run(*command, "configs/inference.yaml", *where, cwd=copy)
    assert len(list((copy / "eval").glob("*_seg.nii.gz"))) == 5


def test_inference_passes_over_what_it_cannot_read(run: Run, cases: Path, trained, tmp_path: Path) -> None:
    file = cases / "VirtualGlioma_00000" / "VirtualGlioma_00000_t1.nii.gz"
    file.write_bytes(file.read_bytes()[:-2000])
    arguments = ["--dataset_dir", cases, "--output_dir", tmp_path, "--ckpt_dir", trained(NAME), "--runtime", "torch"]
    error = refusal(run(*bundle_run("inferring", "inference.yaml"), *arguments, status=1))
    assert "1 of 5 cases were refused, the others are done" in error
    assert file.name in error
    written = {path.name for path in tmp_path.glob("*_seg.nii.gz")}
    assert written == {f"{folder.name}_seg.nii.gz" for folder in cases.iterdir() if folder != file.parent}

    both = bundle_run("evaluating", "inference.yaml", "evaluate.yaml")
    assert file.name in refusal(run(*both, *arguments, "--subset", "all", status=1))
    assert not (tmp_path / "summary.json").exists(), "no score of a part of the cases"


def test_full_disk_leaves_no_half_file(run: Run, cohort: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", disk]
    try:
        subprocess.run(mount, capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not allowed to mount")
    try:
        arguments = training(NAME, cohort, disk / "models", output_dir=tmp_path, epochs=1)
        error = refusal(run(*bundle_run("training", "train.yaml"), *arguments, status=1))
        assert "cannot be written" in error
        left = {path.name for path in (disk / "models").iterdir()}
        assert left <= {"model.pt", "datalist.json", "settings.json", "resume.json"}, "what is not whole is not there"
        if "model.pt" in left:
            torch.load(disk / "models" / "model.pt", weights_only=True)
    finally:
        subprocess.run(["umount", disk], check=True)


def test_a_setting_deep_in_the_config_is_known(run: Run) -> None:
    """What stops this run is that it has no data."""
    deep = options(**{"loss::loss::batch": True})
    assert "Add --dataset_dir DIR" in refusal(run(*bundle_run("training", "train.yaml"), *deep, status=1))


def test_defaults_are_upstreams() -> None:
    train = parse(NAME, "train.yaml")
    assert train["channels"] == [32, 64, 128, 256, 512]
    assert train["patch_size"] == [96, 96, 96]
    assert train["batch_size"] * train["accumulation_steps"] == 32
    assert (train["epochs"], train["learning_rate"], train["weight_decay"]) == (100, 1e-4, 1e-5)
    assert train["loss::weights"] == [1.0, 0.5, 0.25]
    assert train["loss::loss::regions"] == [[1, 2, 3], [1, 3], [3]]
    assert train["tumour_probability"] == 0.5
    assert train["train_cases"] == 1000
