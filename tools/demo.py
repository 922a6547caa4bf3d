"""What the bundles do, in minutes, with the commands a user types: real weights, and a training on virtual cases."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np

from tools.bundles import ROOT
from tools.picture import overlay
from tools.virtual import brats, icbm152

# small enough for two processor cores: a quarter of the widths, 2.5 mm voxels, a few epochs
_SIZE = ["--channels", "[8,16,32,64,128]", "--patch_size", "[64,64,64]"]
_TRAINING = [
    *["--epochs", "8", "--batch_size", "2", "--accumulation_steps", "1", "--learning_rate", "0.01"],
    *["--cross_entropy", "1.0", "--patches_per_case", "4", "--val_interval", "2", "--num_workers", "1"],
]


def demo(out: str = "demo", cases: int = 14, seed: int = 0) -> None:
    """Segment a real T1 with the tissue weights; then train the Res-UNet on virtual gliomas, score it, segment one.

    Leaves in `out`: tissue/ (the ICBM152 T1, its scores and mask), cases/ and new/ (virtual gliomas), run/ (model.pt,
    scores.csv, summary.json, masks), tissue.png and demo.png.

    Args:
        out: folder; what an earlier demo left in it is removed.
        cases: virtual gliomas; four fifths train.
        seed: of the cases and the training.
    """
    start = time.time()
    root = Path(out).resolve()
    tissue = _tissue(root / "tissue", root / "tissue.png")
    configs = ROOT / "brats_resunet" / "configs"
    cohort, new, run = root / "cases", root / "new", root / "run"
    for folder in (cohort, new, run):  # of an earlier demo
        shutil.rmtree(folder, ignore_errors=True)
    brats(str(cohort), cases=cases + 1, seed=seed, shape=(96, 96, 72))
    fresh = cohort / f"VirtualGlioma_{cases:05d}"  # the last one becomes the patient without a reference
    new.mkdir(exist_ok=True)
    for file in fresh.glob("*.nii.gz"):
        if not file.name.endswith("_seg.nii.gz"):
            os.replace(file, new / file.name)
    for file in fresh.iterdir():
        file.unlink()
    fresh.rmdir()

    bundle = [sys.executable, "-m", "monai.bundle", "run"]
    files = [f"--ckpt_dir={run}", f"--output_dir={run}", f"--seed={seed}"]
    _call([sys.executable, "-m", "tools", "check", "brats_resunet", "--dataset_dir", str(cohort)])
    cache = ["--cache_dir", str(root / "cache")]
    common = [*files, *_SIZE]
    train, evaluate, infer = (str(configs / f"{name}.yaml") for name in ("train", "evaluate", "inference"))
    data = ["--dataset_dir", str(cohort)]
    _call([*bundle, "training", "--config_file", train, *data, *cache, *common, *_TRAINING])
    _call([*bundle, "evaluating", "--config_file", f"['{infer}','{evaluate}']", *data, *common])
    _call([*bundle, "inferring", "--config_file", infer, "--dataset_dir", str(new), *common])

    summary = json.loads((run / "summary.json").read_text())
    shown = [summary["best_cases"][0]["case"], summary["worst_cases"][0]["case"]]
    rows = [_row(cohort / name, name, run, labelled=True) for name in shown]
    rows.append(_row(new, fresh.name, run, labelled=False))
    overlay(root / "demo.png", rows, {1: "necrotic core", 2: "oedema", 4: "enhancing tumour"})
    dice = {region: summary["metrics"][f"dice_{region}"]["mean"] for region in ("WT", "TC", "ET")}
    scores = ", ".join(f"{region} {value:.3f}" for region, value in dice.items())
    print(f"\n{tissue}\nmean Dice on {summary['n_cases']} virtual gliomas that did not train: {scores}")
    print(f"scores   {run / 'scores.csv'}\npictures {root / 'tissue.png'}, {root / 'demo.png'}")
    print(f"{time.time() - start:.0f} s")


def _tissue(folder: Path, picture: Path) -> str:
    """Segment the ICBM152 T1 with the weights that came with the bundle, and score it against its own tissue maps."""
    shutil.rmtree(folder, ignore_errors=True)
    configs = ROOT / "brain_tissue_vnet" / "configs"
    t1 = icbm152(str(folder))
    files = f"['{configs / 'inference.yaml'}','{configs / 'evaluate.yaml'}']"
    options = ["--dataset_dir", str(folder), "--output_dir", str(folder), "--subset", "all"]
    _call([sys.executable, "-m", "monai.bundle", "run", "evaluating", "--config_file", files, *options])
    mask = next(folder.glob("*_seg.nii.gz"))
    names = [t1.replace("T1w", f"label-{name}_probseg") for name in ("CSF", "GM", "WM")]
    maps = [nib.Nifti1Image.from_filename(name) for name in names]
    fractions = np.stack([image.get_fdata() for image in maps])
    truth = ((fractions.argmax(0) + 1) * fractions.any(0)).astype(np.uint8)
    nib.save(nib.Nifti1Image(truth, maps[0].affine), folder / "reference.nii.gz")
    rows = [("ICBM152 T1", {"T1": t1}, str(folder / "reference.nii.gz"), str(mask))]
    overlay(picture, rows, {1: "CSF", 2: "grey matter", 3: "white matter"})
    metrics = json.loads((folder / "summary.json").read_text())["metrics"]
    dice = ", ".join(f"{name} {metrics[f'dice_{name}']['mean']:.3f}" for name in ("GM", "WM"))
    return f"Dice on the ICBM152 T1 against its own tissue maps: {dice}"


def _call(command: list[str]) -> None:
    print("\n$ " + shlex.join(["python", *command[1:]]), flush=True)
    done = subprocess.run(command, check=False)
    if done.returncode:
        raise SystemExit(done.returncode)


def _row(folder: Path, case: str, run: Path, labelled: bool) -> tuple[str, dict[str, str], str | None, str]:
    images = {name: str(folder / f"{case}_{suffix}.nii.gz") for name, suffix in _SHOWN.items()}
    return case, images, str(folder / f"{case}_seg.nii.gz") if labelled else None, str(run / f"{case}_seg.nii.gz")


_SHOWN = {"T1": "t1", "T1ce": "t1ce", "T2": "t2", "FLAIR": "flair"}
