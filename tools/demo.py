"""What the weights of the bundles do, in minutes, with the commands a user types."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from bundlekit.images.drawing import draw
from bundlekit.virtual import brats, icbm152
from bundlekit.virtual.cohorts import whole_number
from tools.bundles import ROOT


def demo(out: str = "demo", cases: int = 3, seed: int = 1) -> None:
    """Segment and score the ICBM152 T1 and virtual gliomas; draw both.

    The T1 is an average of many heads, on which the tissue weights were chosen among others: its scores are no test.
    Leaves in `out`: tissue/ (the ICBM152 T1, its scores and mask), cases/ (virtual gliomas), glioma/ (scores.csv,
    summary.json, masks), tissue.png and a picture of each glioma.

    Args:
        out: folder of its own; what an earlier demo left in it is replaced.
        cases: virtual gliomas, 1 or more.
        seed: of the gliomas, 1 or more; the weights were trained on those of seed 0, in other heads.

    Raises:
        ValueError: for a bad number, and if `out` has anything that no demo made.
    """
    start = time.time()
    cases, seed = whole_number("cases", cases, 1), whole_number("seed", seed, 1)
    root = _own_folder(Path(out).resolve())
    results = [_tissue(root / "tissue", root / "tissue.png")]
    results.append(_glioma(root / "cases", root / "glioma", cases, seed))
    print("\n" + "\n".join(results))
    print(f"pictures {root / 'tissue.png'}, {root / 'glioma'}\n{time.time() - start:.0f} s")


def _own_folder(root: Path) -> Path:
    """The folder, with nothing left of an earlier demo in it."""
    mark = root / ".made_by_demo"
    if root.is_dir() and any(root.iterdir()) and not mark.is_file():
        raise ValueError(f"{root} holds files that no demo of this version made; remove it or give another --out.")
    if (root / "cases" / "labels").exists():
        raise ValueError(
            f"{root / 'cases' / 'labels'}: labels saved in a viewer; move them away or give another --out."
        )
    for name in ("tissue", "cases", "glioma"):
        if (root / name).exists():
            shutil.rmtree(root / name)
    (root / "glioma.png").unlink(missing_ok=True)  # of earlier versions
    root.mkdir(parents=True, exist_ok=True)
    mark.touch()
    return root


def _tissue(folder: Path, picture: Path) -> str:
    """Segment the ICBM152 T1 and score it against its own tissue maps."""
    t1 = icbm152(str(folder))
    metrics = _evaluate("brain_tissue_vnet", folder, folder)["metrics"]
    mask = next(folder.glob("*_seg.nii.gz"))
    files = [t1.replace("T1w", f"label-{name}_probseg") for name in ("CSF", "GM", "WM")]
    maps = [nib.Nifti1Image.from_filename(file) for file in files]
    fractions = np.stack([image.get_fdata() for image in maps])
    truth = ((fractions.argmax(0) + 1) * fractions.any(0)).astype(np.uint8)
    nib.save(nib.Nifti1Image(truth, maps[0].affine), folder / "reference.nii.gz")
    names = {1: "CSF", 2: "grey matter", 3: "white matter"}
    draw(t1, mask, picture, folder / "reference.nii.gz", names, title="ICBM152 T1")
    dice = ", ".join(f"{name} {metrics[f'dice_{name}']['mean']:.3f}" for name in ("GM", "WM"))
    return f"Dice on the ICBM152 T1 against its own tissue maps: {dice}"


def _glioma(cohort: Path, folder: Path, cases: int, seed: int) -> str:
    """Make virtual gliomas, segment and score them."""
    made = [Path(case) for case in brats(str(cohort), cases=cases, seed=seed)]
    summary = _evaluate("brats_resunet", cohort, folder)
    names = {1: "necrotic core", 2: "oedema", 4: "enhancing tumour"}
    for case in made:
        seg = f"{case.name}_seg.nii.gz"
        flair = case / f"{case.name}_flair.nii.gz"
        draw(flair, folder / seg, folder / f"{case.name}.png", case / seg, names, title=case.name)
    metrics = summary["metrics"]
    dice = ", ".join(f"{region} {metrics[f'dice_{region}']['mean']:.3f}" for region in ("WT", "TC", "ET"))
    return f"mean Dice on {summary['n_cases']} virtual gliomas that did not train: {dice} ({folder / 'scores.csv'})"


def _evaluate(bundle: str, data: Path, out: Path) -> dict[str, Any]:
    """The summary of an evaluation with the weights that came with the bundle."""
    configs = ROOT / bundle / "configs"
    files = f"['{configs / 'inference.yaml'}','{configs / 'evaluate.yaml'}']"
    command = [sys.executable, "-m", "monai.bundle", "run", "evaluating", "--config_file", files]
    command += ["--dataset_dir", str(data), "--output_dir", str(out), "--subset", "all"]
    print("\n$ " + shlex.join(["python", *command[1:]]), flush=True)
    done = subprocess.run(command, check=False)
    if done.returncode:
        raise SystemExit(done.returncode)
    return json.loads((out / "summary.json").read_text())
