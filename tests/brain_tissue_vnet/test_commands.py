"""The bundle as a user runs it: MONAI's command line on a folder of T1 scans."""

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

from bundlekit.weights.settings import record_setting
from tests.conftest import ROOT, Run, bundle_run

BUNDLE = ROOT / "bundles" / "brain_tissue_vnet"
# seconds: a narrow network, 5 mm voxels, small patches, no loader processes
SMALL = ["--init_filters", "4", "--patch_size", "[32,32,32]", "--num_workers", "0", "--spacing", "[5,5,5]"]
TRAINING = [
    *["--batch_size", "2", "--accumulation_steps", "1", "--learning_rate", "0.01", "--patches_per_case", "2"],
    *["--fit", "none"],
]
LABELS = ("train.yaml", "train_from_labels.yaml")


def command(run_id: str, *configs: str) -> list[str]:
    return bundle_run(run_id, *configs, bundle=BUNDLE)


def values_of(log: str, name: str) -> list[float]:
    return [float(value) for value in re.findall(rf"Metrics -- .*?{name}: ([0-9.]+)", log)]


def train(run: Run, data: Path, out: Path, epochs: int, *more: str, configs: tuple[str, ...] = ("train.yaml",)) -> str:
    arguments = ["--dataset_dir", data, "--ckpt_dir", out, "--output_dir", out, "--epochs", str(epochs)]
    done = run(*command("training", *configs), *arguments, *SMALL, *TRAINING, *more)
    return done.stdout + done.stderr


def test_train_evaluate_infer(run: Run, heads: Path, tmp_path: Path) -> None:
    """The card's three commands, from the folder where the bundle's own name shadows its package."""
    out, away = tmp_path / "out", ROOT / "bundles"
    arguments = ["--dataset_dir", heads, "--ckpt_dir", out, "--output_dir", out, "--epochs", "8", *SMALL, *TRAINING]
    done = run(*command("training", "train.yaml"), *arguments, "--clahe", "0.02", "--normalise", "percentile", cwd=away)
    log = done.stdout + done.stderr
    found = values_of(log, "train_loss")
    assert len(found) == 8
    assert found[-1] < found[0] - 0.03
    best = values_of(log, "val_loss")
    saved = torch.load(out / "last.pt", weights_only=True)
    assert saved["best"]["metric"] == pytest.approx(min(best), abs=1e-3), "the lowest validation loss is the best"
    assert saved["best"]["epoch"] == 1 + best.index(min(best))
    split = json.loads((out / "datalist.json").read_text())
    assert [len(split["training"]), len(split["validation"])] == [4, 1]
    settings = json.loads((out / "settings.json").read_text())
    assert (settings["init_filters"], settings["clahe"], settings["spacing"]) == (4, 0.02, [5, 5, 5])

    # width, voxel size and normalisation are not given again: they lie beside the weights
    common = ["--dataset_dir", heads, "--ckpt_dir", out, "--num_workers", "0"]
    run(*command("evaluating", "inference.yaml", "evaluate.yaml"), *common, "--output_dir", out / "scores", cwd=away)
    with (out / "scores" / "scores.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["case"] for row in rows] == ["sub-004"]
    assert max(float(rows[0][f"dice_{tissue}"]) for tissue in ("CSF", "GM", "WM")) > 0.3
    summary = json.loads((out / "scores" / "summary.json").read_text())
    assert summary["metrics"]["dice_GM"]["mean"] == pytest.approx(float(rows[0]["dice_GM"]), abs=1e-5)
    assert "ignored_voxels_rule" in summary

    scan = heads / "sub-001" / "anat" / "sub-001_T1w.nii.gz"
    more = ["--save_probabilities", "True", "--output_dir", out / "masks", "--ckpt_dir", out, "--num_workers", "0"]
    run(*command("inferring", "inference.yaml"), "--dataset_dir", scan, *more, cwd=away)
    mask = nib.load(out / "masks" / "sub-001_seg.nii.gz")
    np.testing.assert_array_equal(mask.affine, nib.load(scan).affine)
    assert mask.shape == nib.load(scan).shape
    assert set(np.unique(mask.dataobj).tolist()) <= {0, 1, 2, 3}
    probabilities = np.asarray(nib.load(out / "masks" / "sub-001_probabilities.nii.gz").dataobj)
    assert probabilities.shape == (*mask.shape, 4)
    np.testing.assert_allclose(probabilities.sum(-1), 1, atol=1e-3)
    np.testing.assert_array_equal(probabilities.argmax(-1), np.asarray(mask.dataobj))

    # fine-tuning goes on from there, with the same preprocessing, here by the patches' own statistics
    # but for the weight of white matter, which was for other labels
    record_setting(out / "model.pt", "white_matter_weight", 0.5)
    tuned = ["--pretrained", out / "model.pt", "--ckpt_dir", tmp_path / "tuned", "--output_dir", tmp_path / "tuned"]
    tuned += ["--epochs", "1", "--batch_size", "2", "--patches_per_case", "2", "--dropout", "0", "--num_workers", "0"]
    tuned += ["--norm", "instance"]
    done = run(*command("training", "train.yaml", "finetune.yaml"), "--dataset_dir", heads, *tuned, cwd=away)
    assert values_of(done.stdout + done.stderr, "train_loss")[0] < found[0] - 0.03
    assert "of another normalisation are left out" in done.stdout + done.stderr
    assert json.loads((tmp_path / "tuned" / "settings.json").read_text()) == {**settings, "norm": "instance"}
    where = ["--ckpt_dir", tmp_path / "tuned", "--output_dir", tmp_path / "again", "--num_workers", "0"]
    done = run(*command("inferring", "inference.yaml"), "--dataset_dir", scan, *where, cwd=away)
    assert "are left out" not in done.stdout + done.stderr
    assert (tmp_path / "again" / "sub-001_seg.nii.gz").is_file()


def test_learning_from_label_maps_is_killed_and_resumed(
    run: Run, environment: dict[str, str], heads: Path, tmp_path: Path
) -> None:
    """Bit for bit the run that was not killed: the painted images follow from seed, epoch and position."""
    maps = heads / "derivatives" / "labels"
    settings = ["--samples_per_epoch", "6"]
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    log = train(run, maps, straight, 8, *settings, configs=LABELS)
    assert min(values_of(log, "train_loss")[-2:]) < values_of(log, "train_loss")[0]
    arguments = ["--dataset_dir", maps, "--ckpt_dir", killed, "--output_dir", killed, "--epochs", "8"]
    process = subprocess.Popen(
        [sys.executable, *map(str, [*command("training", *LABELS), *arguments, *SMALL, *TRAINING, *settings])],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.time() + 200
    while not (killed / "last.pt").exists() and time.time() < deadline:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    reached = torch.load(killed / "last.pt", weights_only=True)["trainer"]["epoch"]
    assert 1 <= reached < 8, "killed half-way"
    log = train(run, maps, killed, 8, *settings, configs=(*LABELS, "resume.yaml"))
    assert f"after epoch {reached} of 8" in log
    a, b = (torch.load(folder / "last.pt", weights_only=True) for folder in (straight, killed))
    for key in a["model"]:
        torch.testing.assert_close(a["model"][key], b["model"][key], rtol=0, atol=0, msg=key)
    assert a["best"] == b["best"]
    assert json.loads((straight / "settings.json").read_text())["whole_head"] is True


def test_two_processes_train_together(run: Run, heads: Path, tmp_path: Path) -> None:
    """Batch norms see each process's own patches on CPU, so that losses agree with one process only roughly."""
    one, two = tmp_path / "one", tmp_path / "two"
    log_one = train(run, heads, one, 2)
    configs = [str(BUNDLE / "configs" / name) for name in ("train.yaml", "multi_gpu.yaml")]
    done = run(
        "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2",
        "-m", "monai.bundle", "run", "training", "--config_file", str(configs),
        "--dataset_dir", heads, "--ckpt_dir", two, "--output_dir", two, "--epochs", "2", *SMALL, *TRAINING,
    )  # fmt: skip
    found = values_of(done.stdout + done.stderr, "train_loss")
    assert len(found) == 2
    assert found == pytest.approx(values_of(log_one, "train_loss"), abs=0.1)
    assert (two / "settings.json").is_file()


def test_gradient_accumulation_steps_as_often_as_it_says(run: Run, heads: Path, tmp_path: Path) -> None:
    """Four steps of two patches an epoch: accumulated over four, the optimizer steps once."""
    train(run, heads, tmp_path, 1, "--accumulation_steps", "4")
    state = torch.load(tmp_path / "last.pt", weights_only=True)["optimizer"]["state"]
    assert {int(entry["step"]) for entry in state.values()} == {1}


def test_torchios_augmentation_trains_too(run: Run, heads: Path, tmp_path: Path) -> None:
    more = ["--affine_probability", "1", "--elastic_probability", "1", "--intensity_probability", "1"]
    log = train(run, heads, tmp_path, 1, *more, configs=("train.yaml", "torchio.yaml", "n4.yaml"))
    assert len(values_of(log, "train_loss")) == 1
    assert json.loads((tmp_path / "settings.json").read_text())["n4"] is True
    where = ["--dataset_dir", heads, "--num_workers", "0", "--output_dir", tmp_path / "again"]
    run(*command("inferring", "inference.yaml"), *where, "--ckpt_dir", tmp_path)
    where += ["--epochs", "1"]
    where += ["--pretrained", tmp_path / "model.pt", "--ckpt_dir", tmp_path / "tuned"]
    done = run(*command("training", "train.yaml", "finetune.yaml"), *where, status=1)
    assert "a network trained with n4 True" in done.stderr
    assert "Traceback" not in done.stderr


def t1_of(heads: Path, case: str = "sub-001") -> Path:
    return heads / case / "anat" / f"{case}_T1w.nii.gz"


def label_of(heads: Path, case: str = "sub-002") -> Path:
    return heads / "derivatives" / "labels" / case / "anat" / f"{case}_desc-aseg_dseg.nii.gz"


def rewrite(file: Path, change) -> str:
    image = nib.load(file)
    nib.save(nib.Nifti1Image(change(np.asarray(image.dataobj).copy()), image.affine), file)
    return file.name


def spoil_missing(heads: Path) -> str:
    t1_of(heads).unlink()
    return "sub-001"


def spoil_grid(heads: Path) -> str:
    return rewrite(label_of(heads), lambda a: a[:-1])


def spoil_numbering(heads: Path) -> str:
    return rewrite(label_of(heads), lambda a: np.where(a == 3, 199, a).astype(np.uint8))


def spoil_nan(heads: Path) -> str:
    def change(array: np.ndarray) -> np.ndarray:
        array = array.astype(np.float32)
        array[24, 24, 18] = np.nan
        return array

    return rewrite(t1_of(heads), change)


def spoil_truncated(heads: Path) -> str:
    file = t1_of(heads)
    file.write_bytes(file.read_bytes()[:-2000])
    return file.name


def spoil_empty(heads: Path) -> str:
    shutil.rmtree(heads)
    heads.mkdir()
    return str(heads)


def spoil_2d(heads: Path) -> str:
    return rewrite(t1_of(heads), lambda a: a[..., 10])


def spoil_skull(heads: Path) -> str:
    """A head: tissue in the whole field of view but for its corners."""
    return rewrite(t1_of(heads), lambda a: np.where(np.indices(a.shape).sum(0) > 50, np.maximum(a, 300), 0))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (spoil_missing, "fix:"),
        (spoil_grid, "resample the files of a case to one grid"),
        (spoil_numbering, "199"),
        (spoil_nan, "1 voxel(s) that are NaN or infinite"),
        (spoil_truncated, "cannot be decoded to its end"),
        (spoil_empty, "no case"),
        (spoil_2d, "2-D image"),
        (spoil_skull, "a head with its skull"),
    ],
)
def test_bad_data_gives_one_clear_message(spoil, message: str, run: Run, heads: Path, tmp_path: Path) -> None:
    data = Path(shutil.copytree(heads, tmp_path / "data"))
    name, out = spoil(data), tmp_path / "out"
    arguments = ["--dataset_dir", data, "--ckpt_dir", out, "--output_dir", out, "--epochs", "1"]
    done = run(*command("training", "train.yaml"), *arguments, *SMALL, *TRAINING, status=1)
    error = done.stderr.partition("\nERROR: ")[2]
    assert name in error
    assert message in error
    assert "Traceback" not in done.stderr
    assert "expected:" in error
    assert "fix:" in error
    written = sorted(p.name for p in out.rglob("*")) if out.exists() else []
    assert not [n for n in written if n.endswith((".pt", ".part", ".csv", ".nii.gz"))], written
    if spoil is not spoil_skull:  # whether a skull is welcome is the network's matter, not the data set's
        checked = run("-m", "tools", "check", "brain_tissue_vnet", "--dataset_dir", data, status=1)
        assert name in checked.stdout + checked.stderr


def test_bad_settings_give_one_clear_message(run: Run, heads: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = ["--dataset_dir", heads, "--ckpt_dir", out, "--output_dir", out, "--epochs", "1", *SMALL, *TRAINING]
    for more, message in (
        (["--normalise", "minmax"], "normalise must be one of zscore, percentile"),
        (["--init_filters", "5"], "init_filters must be even"),
        (["--clahe", "3"], "clahe (the clip limit) must be from 0 to 1"),
        (["--fit", "pad"], "add configs/pad.yaml"),
        (["--numbering", "aseg"], "aseg"),
    ):
        done = run(*command("training", "train.yaml"), *arguments, *more, status=1)
        assert message in done.stderr.partition("\nERROR: ")[2]
        assert "Traceback" not in done.stderr
    train(run, heads, out, 1)
    data = ["--dataset_dir", heads, "--ckpt_dir", out, "--output_dir", out / "masks", "--num_workers", "0"]
    done = run(*command("inferring", "inference.yaml"), *data, "--init_filters", "8", status=1)
    assert "--init_filters 4" in done.stderr
    assert "Traceback" not in done.stderr
    whole = tmp_path / "whole"
    shutil.copytree(heads, whole)
    spoil_skull(whole)
    data[1] = t1_of(whole)
    done = run(*command("inferring", "inference.yaml"), *data, status=1)
    assert "--whole_head True" in done.stderr
    run(*command("inferring", "inference.yaml"), *data, "--whole_head", "True")
    assert (out / "masks" / "sub-001_seg.nii.gz").is_file()
