"""The bundle as a user runs it: MONAI's command line on a folder of cases."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from tests.conftest import BUNDLE, ROOT, SMALL, TRAINING, Run, bundle_run


def losses(log: str) -> list[float]:
    return [float(value) for value in re.findall(r"Metrics -- train_loss: ([0-9.]+)", log)]


def printed(done: subprocess.CompletedProcess[str]) -> str:
    return done.stdout + done.stderr  # MONAI logs metrics to one, all else to the other


def train(run: Run, data: Path, out: Path, epochs: int, *more: str, configs: tuple[str, ...] = ("train.yaml",)) -> str:
    arguments = ["--dataset_dir", data, "--ckpt_dir", out, "--output_dir", out, "--epochs", str(epochs)]
    return printed(run(*bundle_run("training", *configs), *arguments, *SMALL, *TRAINING, *more))


def weights(out: Path, name: str = "last.pt") -> dict[str, torch.Tensor]:
    saved = torch.load(out / name, weights_only=True)
    return saved.get("model", saved)


def assert_equal_weights(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    for key in a:
        torch.testing.assert_close(a[key], b[key], rtol=0, atol=0, msg=key)


def test_train_evaluate_infer(run: Run, cohort: Path, tmp_path: Path) -> None:
    """The README's three commands, from another working directory, on a read-only kind of data."""
    out, away = tmp_path / "out", tmp_path / "away"
    away.mkdir()
    done = run(
        *bundle_run("training", "train.yaml"), "--dataset_dir", cohort, "--ckpt_dir", out, "--output_dir", out,
        "--epochs", "4", "--patches_per_case", "3", *SMALL, *TRAINING, cwd=away,
    )  # fmt: skip
    found = losses(printed(done))
    assert len(found) == 4
    assert found[-1] < found[0]
    split = json.loads((out / "datalist.json").read_text())
    assert [len(split["training"]), len(split["validation"])] == [4, 1]

    both = bundle_run("evaluating", "inference.yaml", "evaluate.yaml")
    run(*both, "--dataset_dir", cohort, "--ckpt_dir", out, "--output_dir", out / "scores", *SMALL, cwd=away)
    with (out / "scores" / "scores.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["case"] for row in rows] == ["VirtualGlioma_00004"]
    assert 0 <= float(rows[0]["dice_WT"]) <= 1
    summary = json.loads((out / "scores" / "summary.json").read_text())
    assert summary["n_cases"] == 1
    assert summary["metrics"]["dice_WT"]["mean"] == pytest.approx(float(rows[0]["dice_WT"]), abs=1e-5)

    one = cohort / "VirtualGlioma_00001"
    more = ["--save_probabilities", "True", "--output_dir", out / "masks"]
    run(*bundle_run("inferring", "inference.yaml"), "--dataset_dir", one, "--ckpt_dir", out, *more, *SMALL, cwd=away)
    assert sorted(p.name for p in (out / "masks").iterdir()) == [
        "VirtualGlioma_00001_probabilities.nii.gz",
        "VirtualGlioma_00001_seg.nii.gz",
    ]
    mask = nib.load(out / "masks" / "VirtualGlioma_00001_seg.nii.gz")
    source = nib.load(one / "VirtualGlioma_00001_t1.nii.gz")
    np.testing.assert_array_equal(mask.affine, source.affine)
    assert mask.shape == source.shape
    assert mask.get_data_dtype() == np.uint8
    assert set(np.unique(mask.dataobj)) <= {0, 1, 2, 4}
    probabilities = np.asarray(nib.load(out / "masks" / "VirtualGlioma_00001_probabilities.nii.gz").dataobj)
    assert probabilities.shape == (*source.shape, 3)
    assert (probabilities[..., 0] >= probabilities[..., 1] - 1e-6).all(), "the core lies in the whole tumour"
    assert not list(away.iterdir()), "nothing is written to the working directory"


def test_killed_run_resumes_as_if_it_had_not_stopped(
    run: Run, cohort: Path, tmp_path: Path, environment: dict[str, str]
) -> None:
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    train(run, cohort, straight, 12)
    arguments = ["--dataset_dir", cohort, "--ckpt_dir", killed, "--output_dir", killed, "--epochs", "12"]
    command = [*bundle_run("training", "train.yaml"), *arguments, *SMALL, *TRAINING]
    process = subprocess.Popen(
        [sys.executable, *map(str, command)],
        cwd=ROOT,
        env=environment,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.time() + 120
    while not (killed / "last.pt").exists() and time.time() < deadline:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    reached = torch.load(killed / "last.pt", weights_only=True)["trainer"]["epoch"]
    assert 1 <= reached < 12, "killed half-way"
    log = train(run, cohort, killed, 12, configs=("train.yaml", "resume.yaml"))
    assert f"after epoch {reached} of 12" in log
    a, b = (torch.load(folder / "last.pt", weights_only=True) for folder in (straight, killed))
    assert_equal_weights(a["model"], b["model"])
    assert a["best"] == b["best"]
    assert a["trainer"] == b["trainer"]
    assert a["lr_scheduler"] == b["lr_scheduler"]


def test_fine_tuning_goes_on_from_weights_and_leaves_them(run: Run, cohort: Path, tmp_path: Path) -> None:
    first, tuned = tmp_path / "first", tmp_path / "tuned"
    pretrain = ("train.yaml", "compact.yaml", "pretrain_virtual.yaml")
    shared = ["--dataset_dir", cohort, *SMALL, *TRAINING]
    more = ["--degrade_probability", "1", "--train_fraction", "0.8", "--val_interval", "1"]
    done = run(*bundle_run("training", *pretrain), *shared, "--ckpt_dir", first, "--output_dir", first,
               "--epochs", "6", *more)  # fmt: skip
    before = (first / "model.pt").read_bytes()
    one = ["--dataset_dir", cohort, "--pretrained", first / "model.pt", "--output_dir", tuned, "--epochs", "1"]
    log = printed(run(*bundle_run("training", "train.yaml", "finetune.yaml"), *one, "--ckpt_dir", tuned,
                      "--num_workers", "0", "--batch_size", "2"))  # fmt: skip
    assert losses(log)[0] < losses(printed(done))[0], "not from the beginning"
    assert (first / "model.pt").read_bytes() == before
    settings = json.loads((tuned / "settings.json").read_text())
    assert (settings["channels"], settings["patch_size"]) == ([4, 8, 16, 32], [32, 32, 32])


def test_two_processes_train_like_one(run: Run, cohort: Path, tmp_path: Path) -> None:
    """Same cases, patches and steps; the sums of gradients differ by rounding alone."""
    one, two = tmp_path / "one", tmp_path / "two"
    log_one = train(run, cohort, one, 2)
    configs = [str(BUNDLE / "configs" / name) for name in ("train.yaml", "multi_gpu.yaml")]
    done = run(
        "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2",
        "-m", "monai.bundle", "run", "training", "--config_file", str(configs),
        "--dataset_dir", cohort, "--ckpt_dir", two, "--output_dir", two, "--epochs", "2",
        *SMALL, *TRAINING, "--batch_size", "1",
    )  # fmt: skip
    log_two = printed(done)
    assert losses(log_one) == pytest.approx(losses(log_two), abs=2e-4)
    assert len(losses(log_two)) == 2
    a, b = weights(one), weights(two)
    for key in a:
        torch.testing.assert_close(a[key], b[key], rtol=0, atol=2e-2, msg=key)


def test_copied_bundle_runs_from_its_own_root(run: Run, cohort: Path, tmp_path: Path) -> None:
    copy = Path(
        shutil.copytree(BUNDLE, tmp_path / "elsewhere" / "my_bundle", ignore=shutil.ignore_patterns("models", "eval"))
    )
    arguments = ["--dataset_dir", cohort, "--epochs", "1", *SMALL, *TRAINING]
    run("-m", "monai.bundle", "run", "--config_file", "configs/train.yaml", *arguments, cwd=copy)
    assert (copy / "models" / "model.pt").is_file(), "paths follow the copy"
    assert (copy / "models" / "datalist.json").is_file()
    run(
        "-m",
        "monai.bundle",
        "run",
        "--config_file",
        "configs/inference.yaml",
        "--dataset_dir",
        cohort,
        *SMALL,
        cwd=copy,
    )
    assert len(list((copy / "eval").glob("*_seg.nii.gz"))) == 5


def spoil_missing(cases: Path) -> str:
    (cases / "VirtualGlioma_00001" / "VirtualGlioma_00001_t2.nii.gz").unlink()
    return "VirtualGlioma_00001_t2.nii.gz"


def spoil_grid(cases: Path) -> str:
    file = cases / "VirtualGlioma_00001" / "VirtualGlioma_00001_flair.nii.gz"
    image = nib.load(file)
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj)[:-1], image.affine), file)
    return file.name


def spoil_label(cases: Path) -> str:
    file = cases / "VirtualGlioma_00002" / "VirtualGlioma_00002_seg.nii.gz"
    image = nib.load(file)
    voxels = np.asarray(image.dataobj).copy()
    voxels[20:23, 20, 18] = 5
    nib.save(nib.Nifti1Image(voxels, image.affine), file)
    return file.name


def spoil_nan(cases: Path) -> str:
    file = cases / "VirtualGlioma_00003" / "VirtualGlioma_00003_t1ce.nii.gz"
    image = nib.load(file)
    voxels = np.asarray(image.dataobj).astype(np.float32)
    voxels[24, 24, 18] = np.nan
    nib.save(nib.Nifti1Image(voxels, image.affine), file)
    return file.name


def spoil_truncated(cases: Path) -> str:
    file = cases / "VirtualGlioma_00000" / "VirtualGlioma_00000_t1.nii.gz"
    file.write_bytes(file.read_bytes()[:-2000])
    return file.name


def spoil_empty(cases: Path) -> str:
    shutil.rmtree(cases)
    cases.mkdir()
    return str(cases)


def spoil_2d(cases: Path) -> str:
    file = cases / "VirtualGlioma_00000" / "VirtualGlioma_00000_t1.nii.gz"
    image = nib.load(file)
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj)[..., 10], image.affine), file)
    return file.name


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (spoil_missing, "add the missing file"),
        (spoil_grid, "resample the files of a case to one grid"),
        (spoil_label, "label value(s) 5 in 3 voxel(s)"),
        (spoil_nan, "1 voxel(s) that are NaN or infinite"),
        (spoil_truncated, "cannot be decoded to its end"),
        (spoil_empty, "no case"),
        (spoil_2d, "2-D image"),
    ],
)
def test_bad_data_gives_one_clear_message(spoil, message: str, run: Run, cases: Path, tmp_path: Path) -> None:
    name, out = spoil(cases), tmp_path / "out"
    arguments = ["--dataset_dir", cases, "--ckpt_dir", out, "--output_dir", out, "--epochs", "1"]
    done = run(*bundle_run("training", "train.yaml"), *arguments, *SMALL, *TRAINING, status=1)
    error = done.stderr.partition("\nERROR: ")[2]
    assert name in error
    assert message in error
    assert "Traceback" not in done.stderr
    assert "expected:" in error
    assert "fix:" in error
    written = sorted(p.name for p in out.rglob("*")) if out.exists() else []
    assert not [n for n in written if n.endswith((".pt", ".part", ".csv", ".nii.gz"))], written
    checked = run("-m", "tools", "check", "brats_resunet", "--dataset_dir", cases, status=1)
    assert name in checked.stdout + checked.stderr
    assert message in checked.stdout + checked.stderr


def test_inference_passes_over_what_it_cannot_read(run: Run, cases: Path, tmp_path: Path) -> None:
    name, out = spoil_truncated(cases), tmp_path / "out"
    spoilt = next(folder.name for folder in cases.iterdir() if (folder / name).exists())
    arguments = ["--dataset_dir", cases, "--output_dir", out]
    done = run(*bundle_run("inferring", "inference.yaml"), *arguments, status=1)
    error = done.stderr.partition("\nERROR: ")[2]
    assert "1 of 5 cases were refused, the others are done" in error
    assert name in error
    assert "Traceback" not in done.stderr
    written = {path.name for path in out.glob("*_seg.nii.gz")}
    assert written == {f"{folder.name}_seg.nii.gz" for folder in cases.iterdir() if folder.name != spoilt}

    done = run(*bundle_run("evaluating", "inference.yaml", "evaluate.yaml"), *arguments, "--subset", "all", status=1)
    error = done.stderr.partition("\nERROR: ")[2]
    assert name in error
    assert not (out / "summary.json").exists(), "no score of a part of the cases"


def test_bad_settings_give_one_clear_message(run: Run, cohort: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = ["--dataset_dir", cohort, "--ckpt_dir", out, "--output_dir", out, "--epochs", "1"]
    done = run(*bundle_run("training", "train.yaml"), *arguments, *TRAINING, "--patch_size", "[64,64,64]", status=1)
    assert "at least patch_size 64x64x64" in done.stderr
    assert "Traceback" not in done.stderr
    done = run(*bundle_run("training", "train.yaml"), *arguments, *SMALL, *TRAINING, "--draw", "tumour", status=1)
    assert 'draw must be "voxel", "region" or "lesion", got \'tumour\'' in done.stderr
    assert "Traceback" not in done.stderr
    done = run(*bundle_run("training", "train.yaml"), *SMALL, "--loss::loss::batch", "True", status=1)
    assert "Add --dataset_dir DIR" in done.stderr
    assert "Traceback" not in done.stderr
    train(run, cohort, out, 1)
    data = ["--dataset_dir", cohort, "--ckpt_dir", out, "--output_dir", out / "masks"]
    done = run(*bundle_run("inferring", "inference.yaml"), *data, "--channels", "[8,16,32,64]", status=1)
    assert '--channels "[4,8,16,32]"' in done.stderr
    assert "Traceback" not in done.stderr
    assert not (out / "masks").exists()
    done = run(*bundle_run("inferring", "inference.yaml"), *data, "--checkpoint", "nowhere.pt", *SMALL, status=1)
    assert "nowhere.pt" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("mount"), reason="mounts a small file system")
def test_full_disk_leaves_no_half_file(run: Run, cohort: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", disk], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("not allowed to mount")
    try:
        arguments = ["--dataset_dir", cohort, "--ckpt_dir", disk / "models", "--output_dir", tmp_path, "--epochs", "1"]
        done = run(*bundle_run("training", "train.yaml"), *arguments, *SMALL, *TRAINING, status=1)
        assert "cannot be written" in done.stderr
        assert "Traceback" not in done.stderr
        left = [p.name for p in (disk / "models").iterdir()]
        assert set(left) <= {"model.pt", "datalist.json", "settings.json"}, (
            "what is there is whole, what is not whole is not there"
        )
        if "model.pt" in left:
            torch.load(disk / "models" / "model.pt", weights_only=True)
    finally:
        subprocess.run(["umount", disk], check=True)
