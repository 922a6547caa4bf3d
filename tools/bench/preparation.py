"""What is lost on the way from scans of a moved head, in thick slices, to a mask on them."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from tqdm import tqdm

from bundlekit.brats.cases import find_cases
from bundlekit.brats.naming import MODALITIES
from bundlekit.files import write_content
from bundlekit.images.nifti import read_affine, read_volume
from bundlekit.preparation.record import read_record
from bundlekit.preparation.registration import distance_mm
from bundlekit.virtual.cohorts import whole_number
from tools.bench.moved import Head, Stack, random_move
from tools.prepare import segment

_REFERENCE = "T1ce"


def preparation(
    dataset_dir: str,
    bundle: str = "brats_resunet",
    trials: int = 6,
    seed: int = 0,
    rotation: float = 25.0,
    shift: float = 40.0,
    noise: float = 0.03,
    cut: float = 0.0,
    out: str | None = None,
) -> None:
    """Dice of the whole tumour by `python -m tools segment`, of cases as they are and after their scans were moved.

    A trial takes a case (one after the other). T1, T2 and FLAIR are turned and shifted, each by a move of its own; all
    four are cut into slices of 5 mm, each along an axis of its own, and get noise (Rician). `segment` registers them,
    segments, and brings the mask back to the T1ce, where it is scored by the label, cut likewise (more than half of a
    voxel). Beside it: the Dice of the case as it is by the same command, and the error of the registrations.

    Args:
        dataset_dir: labelled, co-registered, skull-stripped cases in BraTS names, 1 mm.
        bundle: with shipped weights. Cases that trained them score too high, moved or not.
        trials: cases.
        seed: of the moves and the noise; trial k does not depend on how many there are.
        rotation: largest angle, degrees.
        shift: largest shift, mm.
        noise: standard deviation, as a share of the 99th percentile of the intensities.
        cut: largest share of the brain that a stack of slices does not reach.
        out: JSON for the rows.

    Raises:
        ValueError: for a folder without such cases, no trial, another `cut`, and for what `segment` refuses.
    """
    trials = whole_number("trials", trials, 1)
    cases: list[Any] = find_cases(dataset_dir, labelled=True)
    rows = []
    for trial in tqdm(range(trials), desc="preparation", unit="trial", disable=None):
        case = cases[trial % len(cases)]
        draw = np.random.default_rng([seed, trial])
        with tempfile.TemporaryDirectory() as folder:
            files = dict(zip(MODALITIES, case["image"], strict=True))
            label, affine = read_volume(case["label"]) > 0, read_affine(case["label"])
            moves, scans, moved_label = {}, {}, label
            for modality, file in files.items():
                image = read_volume(file).astype(np.float32)
                head = Head(image, image > 0, affine)
                moves[modality] = np.eye(4) if modality == _REFERENCE else random_move(head, rotation, shift, draw)
                stack = Stack(head, moves[modality], cut, draw)
                volume = stack.scan(noise, draw)
                scans[modality] = Path(folder, f"{modality}.nii.gz")
                nib.save(nib.Nifti1Image(volume.voxels * volume.brain, volume.affine), scans[modality])
                if modality == _REFERENCE:
                    moved_label = stack.average(label) > 0.5
            plain = _dice(bundle, files, label, Path(folder, "plain"))
            dice = _dice(bundle, scans, moved_label, Path(folder, "moved"))
            record = read_record(Path(folder, "moved", "prepared"))
        places = np.argwhere(label)[::7] @ affine[:3, :3].T + affine[:3, 3]
        errors = {}
        for modality in set(MODALITIES) - {_REFERENCE}:
            found = np.linalg.inv(np.asarray(record["modalities"][modality]["to_prepared_ras"]))
            errors[modality] = distance_mm(found, np.linalg.inv(moves[modality]), places)
        rows.append({"case": case["case"], "dice_as_it_is": plain, "dice_moved": dice, "error_mm": errors})
        told = ", ".join(f"{modality} {error:.2f}" for modality, error in sorted(errors.items()))
        print(
            f"{case['case']}: WT {plain:.3f} as it is, {dice:.3f} moved; error in the tumour (mm): {told}", flush=True
        )
        if out:
            text = json.dumps(rows, indent=1)
            write_content(Path(out), text)
    lost = [row["dice_as_it_is"] - row["dice_moved"] for row in rows]
    print(f"{trials} trials: WT lost {np.mean(lost):.3f} on average, {max(lost):.3f} at most")


def _dice(bundle: str, files: dict[str, Any], label: np.ndarray, out: Path) -> float:
    """Of the whole tumour, on the grid of the reference."""
    scans: dict[str, Any] = {modality.lower(): str(file) for modality, file in files.items()}
    segment(bundle, out=str(out), **scans)
    (file,) = out.glob(f"*_seg_on_{_REFERENCE.lower()}.nii.gz")
    mask = read_volume(str(file)) > 0
    return float(2 * (mask & label).sum() / max(mask.sum() + label.sum(), 1))
