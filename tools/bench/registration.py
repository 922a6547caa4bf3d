"""How well modalities that were moved apart are brought together again."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from scipy.spatial.transform import Rotation
from tqdm import tqdm

from bundlekit.brats.cases import find_cases
from bundlekit.brats.naming import MODALITIES
from bundlekit.files import write_whole
from bundlekit.images.nifti import read_affine, read_volume
from bundlekit.preparation.grids import Grid, resample, split
from bundlekit.preparation.registration import Volume, distance_mm, register

_SLICE_MM = 5


def registration(
    dataset_dir: str,
    trials: int = 20,
    seed: int = 0,
    rotation: float = 25.0,
    shift: float = 40.0,
    noise: float = 0.03,
    reference: str = "T1ce",
    out: str | None = None,
) -> None:
    """Mean error in the brain (mm) after registration of modalities that were turned and shifted by known moves.

    A trial takes a case (one after the other), turns one modality about a random axis through the middle of its image
    and shifts it, cuts it and the reference into slices of 5 mm (averages, as thick slices are), adds noise to both
    (Rician), and registers them. The header knows nothing of the move. The brain masks are those of the stripped
    scans, moved likewise. A move is flagged if `register` has doubts.

    The modalities of a data set are not exactly on each other themselves. What the same search finds between the
    unmoved scans, near to their own position, is part of the true move; the error without it is told beside.

    Args:
        dataset_dir: co-registered, skull-stripped cases in BraTS names, 1 mm.
        trials: registrations.
        seed: of the moves and the noise; trial k does not depend on how many there are.
        rotation: largest angle, degrees.
        shift: largest shift, mm.
        noise: standard deviation, as a share of the 99th percentile in the brain.
        reference: modality that stays.
        out: JSON for the rows.
    """
    cases: list[Any] = find_cases(dataset_dir, labelled=False)
    others = [modality for modality in MODALITIES if modality != reference]
    rows = []
    for trial in tqdm(range(trials), desc="registration", unit="trial", disable=None):
        case, modality = cases[trial % len(cases)], others[trial // len(cases) % len(others)]
        rows.append(
            {"case": case["case"], "modality": modality}
            | _trial(case, reference, modality, [seed, trial], rotation, shift, noise)
        )
        row = rows[-1]
        told = [
            f"{row['case']} {row['modality']:<6}{row['degrees']:5.1f} degrees {row['shift_mm']:5.1f} mm",
            f"error {row['error_mm']:.2f} mm ({row['error_by_data_set_mm']:.2f} by the data set)",
            f"{row['seconds']:.0f} s",
        ]
        print(", ".join(told + (row["doubts"] or ["no doubts"])), flush=True)
        if out:
            text = json.dumps(rows, indent=1)
            write_whole(Path(out), lambda file, text=text: file.write(text.encode()))  # type: ignore[misc]
    errors = np.asarray([row["error_mm"] for row in rows])
    flagged = np.asarray([bool(row["doubts"]) for row in rows])
    bad = errors > 1
    print(
        f"{trials} trials: {np.mean(~bad):.0%} within 1 mm (median {np.median(errors):.2f}, largest {errors.max():.2f} "
        f"mm); flagged {np.sum(flagged & bad)} of {bad.sum()} worse ones and {np.sum(flagged & ~bad)} of the others"
    )


def _trial(
    case: dict[str, Any], reference: str, modality: str, seed: list[int], rotation: float, shift: float, noise: float
) -> dict[str, Any]:
    draw = np.random.default_rng(seed)
    files = dict(zip(MODALITIES, case["image"], strict=True))
    affine = read_affine(files[reference])
    fixed, moving = (read_volume(files[name]).astype(np.float32) for name in (reference, modality))
    axis = draw.normal(size=3)
    degrees, length = draw.uniform(0, rotation), draw.uniform(0, shift)
    towards = draw.normal(size=3)
    middle = affine[:3, :3] @ ((np.asarray(fixed.shape) - 1) / 2) + affine[:3, 3]
    move = np.eye(4)  # from a point of the moved image to that of the original
    move[:3, :3] = Rotation.from_rotvec(np.deg2rad(degrees) * axis / np.linalg.norm(axis)).as_matrix()
    move[:3, 3] = middle - move[:3, :3] @ middle + length * towards / np.linalg.norm(towards)
    grid = Grid(fixed.shape, affine)  # type: ignore[arg-type]
    here, here_brain, thick = _sliced(fixed, grid, np.eye(4), noise, draw)
    there, there_brain, _ = _sliced(moving, grid, move, noise, draw)
    start = time.perf_counter()
    found = register(Volume(here, thick, here_brain), Volume(there, thick, there_brain))
    seconds = time.perf_counter() - start
    unmoved = Volume(fixed, affine, fixed > 0), Volume(moving, affine, moving > 0)
    own = register(*unmoved, near=True).matrix  # of the data set
    places = np.argwhere(fixed > 0)[::97] @ affine[:3, :3].T + affine[:3, 3]
    return {
        "degrees": degrees,
        "shift_mm": length,
        "error_mm": distance_mm(found.matrix, np.linalg.inv(move) @ own, places),
        "error_by_data_set_mm": distance_mm(found.matrix, np.linalg.inv(move), places),
        "seconds": seconds,
        "overlap": found.overlap,
        "agreeing": found.agreeing,
        "spread_mm": found.spread_mm,
        "information": found.information,
        "information_before": found.information_before,
        "doubts": found.doubts,
    }


def _sliced(
    image: np.ndarray, grid: Grid, move: np.ndarray, noise: float, draw: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A scan of thick slices of a moved head, its brain, and its affine. The field is a fifth larger than `grid`."""
    counts = np.ceil(np.asarray(grid.shape) * (1.2, 1.2, 1.2 / _SLICE_MM)).astype(int)
    affine = grid.affine.copy()
    affine[:3, 2] *= _SLICE_MM
    middle = grid.affine[:3, :3] @ ((np.asarray(grid.shape) - 1) / 2) + grid.affine[:3, 3]
    affine[:3, 3] = middle - affine[:3, :3] @ ((counts - 1) / 2)
    thick = Grid(tuple(int(n) for n in counts), affine)  # type: ignore[arg-type]
    thin = split(thick, (1, 1, _SLICE_MM))

    def cut(array: np.ndarray) -> np.ndarray:
        fine = resample(array, grid.affine, thin, move)
        return fine.reshape(*thick.shape, _SLICE_MM).mean(-1)

    scan, brain = cut(image), cut(image > 0) > 0.5
    sigma = noise * np.percentile(image[image > 0], 99)
    parts = draw.normal(0, sigma, (2, *scan.shape)).astype(np.float32)
    return np.hypot(scan + parts[0], parts[1]), brain, affine
