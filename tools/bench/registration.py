"""How well modalities that were moved apart are brought together again."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.data import MetaTensor
from scipy.spatial.transform import Rotation
from tqdm import tqdm

from bundlekit import StripSkulld
from bundlekit.brats.cases import find_cases
from bundlekit.brats.naming import MODALITIES
from bundlekit.files import write_content
from bundlekit.images.nifti import read_affine, read_volume
from bundlekit.label_maps import find_label_maps
from bundlekit.label_maps.numberings import CSF, EXTRA_CEREBRAL, GM, STRUCTURES, WM
from bundlekit.label_maps.reading import read_structures
from bundlekit.preparation.registration import Volume, distance_mm, register, searched
from bundlekit.virtual import LabelPainter, StructureCountsd
from bundlekit.virtual.acquisition import CONTRAST
from bundlekit.virtual.cohorts import whole_number
from bundlekit.virtual.contrast import draw_t1_means
from tools.bench.moved import Head, Stack, random_move
from tools.bundles import ROOT

_BIAS = (0.03, 0.16)  # standard deviation of the logarithm of a bias field's control points, as of virtual gliomas
_INSIDE = [index not in EXTRA_CEREBRAL for index in range(len(STRUCTURES))]


def registration(
    dataset_dir: str,
    trials: int = 40,
    seed: int = 0,
    rotation: float = 25.0,
    shift: float = 40.0,
    noise: float = 0.03,
    cut: float = 0.15,
    reference: str = "T1ce",
    heads: bool = False,
    out: str | None = None,
) -> None:
    """Mean error in the brain (mm) after registration of modalities that were turned and shifted by known moves.

    A trial takes a case (one after the other), turns one modality about a random axis through the middle of its image
    and shifts it, cuts it and the reference into slices of 5 mm, each along an axis of its own (averages, as thick
    slices are), takes a part of the brain off at one end of each stack, adds noise to both (Rician), and registers
    them. The header knows nothing of the move. A move is flagged if `register` has doubts.

    Cases of BraTS have no skull; their brain masks are those of the scans, moved likewise. Their modalities are not
    exactly on each other: what the same search finds between the unmoved scans, near to their own position, is part
    of the true move; the error without it is told beside. Virtual heads (`heads`) are painted from label maps, a T1
    as the reference, with skull, face and bias field; `brain_mask_unet` finds their brains, as in `prepare`.

    Args:
        dataset_dir: co-registered, skull-stripped cases in BraTS names, 1 mm; with `heads` a folder of label maps.
        trials: registrations.
        seed: of the moves and the noise; trial k does not depend on how many there are.
        rotation: largest angle, degrees.
        shift: largest shift, mm.
        noise: standard deviation, as a share of the 99th percentile of the intensities.
        cut: largest share of the brain that a stack of slices does not reach, 0 to 0.5.
        reference: modality that stays; with `heads` a T1.
        heads: virtual heads in place of cases.
        out: JSON for the rows.

    Raises:
        ValueError: for a folder without such cases, no trial, another modality, or another `cut`.
    """
    trials = whole_number("trials", trials, 1)
    if reference not in MODALITIES:
        raise ValueError(f"--reference is {reference!r}; expected one of {', '.join(MODALITIES)}.")
    cases: list[Any] = find_label_maps(dataset_dir) if heads else find_cases(dataset_dir, labelled=False)
    others = [modality for modality in MODALITIES if modality != ("T1" if heads else reference)]
    strip = StripSkulld(ROOT / "brain_mask_unet", device="cpu").mask if heads else None
    rows = []
    for trial in tqdm(range(trials), desc="registration", unit="trial", disable=None):
        case, modality = cases[trial % len(cases)], others[(trial // len(cases) + trial) % len(others)]
        draw = np.random.default_rng([seed, trial])
        pair = _painted(case["label"], modality, draw) if heads else _read(case, reference, modality)
        move = random_move(pair[0], rotation, shift, draw)
        row = {"case": case["case"], "modality": modality} | _trial(*pair, move, noise, cut, strip, draw)
        rows.append(row)
        told = [
            f"{row['case']} {row['modality']:<6}{row['degrees']:5.1f} degrees {row['shift_mm']:5.1f} mm",
            f"error {row['error_mm']:.2f} mm ({row['error_by_data_set_mm']:.2f} by the data set)",
            f"{row['seconds']:.0f} s",
        ]
        print(", ".join(told + (row["doubts"] or ["no doubts"])), flush=True)
        if out:
            text = json.dumps(rows, indent=1)
            write_content(Path(out), text)
    errors = np.asarray([row["error_mm"] for row in rows])
    flagged = np.asarray([bool(row["doubts"]) for row in rows])
    bad = errors > 1
    print(
        f"{trials} trials: {np.mean(~bad):.0%} within 1 mm (median {np.median(errors):.2f}, largest {errors.max():.2f} "
        f"mm); flagged {np.sum(flagged & bad)} of {bad.sum()} worse ones and {np.sum(flagged & ~bad)} of the others"
    )


def _read(case: dict[str, Any], reference: str, modality: str) -> tuple[Head, Head]:
    files = dict(zip(MODALITIES, case["image"], strict=True))
    affine = read_affine(files[reference])
    fixed, moving = (read_volume(files[name]).astype(np.float32) for name in (reference, modality))
    return Head(fixed, fixed > 0, affine), Head(moving, moving > 0, affine)


def _painted(label_map: str, modality: str, draw: np.random.Generator) -> tuple[Head, Head]:
    """A T1 and another modality of one virtual head."""
    structures, affine = read_structures(label_map)
    near = [slice(int(n.min()), int(n.max()) + 1) for n in np.nonzero(structures)]
    affine = affine @ nib.affines.from_matvec(np.eye(3), [part.start for part in near])
    whole = torch.from_numpy(structures[tuple(near)])[None]
    counts = StructureCountsd()({"structures": whole})["structure_counts"].numpy()
    painter = LabelPainter(t1_probability=1.0, strip_probability=0.0, low_resolution_probability=0.0)
    brain = np.asarray(_INSIDE)[whole[0].numpy()]
    pair = []
    for contrast in ("T1", modality):
        paint = painter.draw(counts, int(draw.integers(2**31)))
        bias = draw.normal(0, draw.uniform(*_BIAS), paint.bias.shape)
        image = painter.paint(whole, dataclasses.replace(paint, means=_means(contrast, draw), bias=bias))[0][0].numpy()
        pair.append(Head(image - image.min(), brain, affine))
    return pair[0], pair[1]


def _means(contrast: str, draw: np.random.Generator) -> np.ndarray:
    """Signals of all structures, white matter about 1: (K,). Outside of the brain they are any, of air next to none."""
    air = draw.uniform(0, 0.05)
    if contrast in ("T1", "T1ce"):
        return np.asarray([air, *draw_t1_means(draw)[1:]])  # which draws the air, too, since networks bear any
    ranges = CONTRAST[contrast.lower()]
    tissue = {WM: 1.0, GM: draw.uniform(*ranges["gm"]), CSF: draw.uniform(*ranges["csf"])}
    means = [tissue.get(s.tissue, 1.0) if s.brain else draw.uniform(0.1, 1.5) for s in STRUCTURES]
    return np.asarray([air, *means[1:]]) * np.exp(draw.normal(0, 0.04, len(means)))


def _trial(
    fixed: Head,
    moving: Head,
    move: np.ndarray,
    noise: float,
    cut: float,
    strip: Callable[[MetaTensor], torch.Tensor] | None,
    draw: np.random.Generator,
) -> dict[str, Any]:
    here, there = (
        Stack(head, place, cut, draw).scan(noise, draw) for head, place in ((fixed, np.eye(4)), (moving, move))
    )
    start = time.perf_counter()
    if strip is not None:  # the true brains are known to none
        here, there = (
            Volume(scan.voxels, scan.affine, strip(MetaTensor(image[None], affine=affine))[0].numpy())
            for scan in (here, there)
            for image, affine in [map(torch.from_numpy, (scan.voxels, scan.affine))]
        )
    masks = time.perf_counter()
    one, other = (searched(scan.voxels, scan.affine, scan.brain) for scan in (here, there))
    found = register(one, other)
    seconds = time.perf_counter() - masks
    own = np.eye(4)
    if strip is None:  # of the data set
        one, other = (Volume(head.voxels, head.affine, head.brain) for head in (fixed, moving))
        own = register(one, other, near=True).matrix
    places = np.argwhere(fixed.brain)[::97] @ fixed.affine[:3, :3].T + fixed.affine[:3, 3]
    middle = places.mean(0)
    return {
        "degrees": float(np.rad2deg(Rotation.from_matrix(move[:3, :3]).magnitude())),
        "shift_mm": float(np.linalg.norm(move[:3, :3] @ middle + move[:3, 3] - middle)),
        "error_mm": distance_mm(found.matrix, np.linalg.inv(move) @ own, places),
        "error_by_data_set_mm": distance_mm(found.matrix, np.linalg.inv(move), places),
        "seconds": seconds,
        "seconds_of_masks": masks - start,
        "overlap": found.overlap,
        "agreeing": found.agreeing,
        "spread_mm": found.spread_mm,
        "information": found.information,
        "information_before": found.information_before,
        "doubts": found.doubts,
    }
