"""Virtual BraTS-METS: made-up patients with brain metastases, in the format of BraTS-METS 2023 and 2024.

A case is a folder `BraTS-MET-90001-000` with `BraTS-MET-90001-000-{t1n,t1c,t2w,t2f,seg}.nii.gz`: skull-stripped int16
scans with background 0, and a uint8 label map with 0, 1 (necrotic, non-enhancing tumour core), 2 (oedema, "SNFH") and
3 (enhancing tumour). The first number counts patients, the last one their visits: at `-001` the head and its vessels
are the same, while lesions have grown, shrunk, vanished or appeared. No patient is behind it: see `anatomy.py` for the
source of the heads and its licence notice, and `brats.py` for the grids.

The same case at two shapes is the same head with the same lesions. A voxel gets the label of what fills most of it, so
on a coarse grid thin rims lose their label first, and a lesion that fills no voxel by half has none at all; what is
left of it in the scans is a faint blur.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from bundlekit.virtual.acquisition import CONTRAST, Vessels, acquire, as_int16, clean_signal, draw_exposure
from bundlekit.virtual.anatomy import Anatomy, Head, grid
from bundlekit.virtual.cohorts import (
    SHAPE,
    affine_of,
    box_of,
    folder_of,
    heads_of,
    make_cohort,
    placed,
    refuse_existing,
    size_of,
    tissue_of,
    whole_number,
    write_case,
)
from bundlekit.virtual.fields import Positions, SmoothField, as_axes
from bundlekit.virtual.lesions import Metastases, Spread
from bundlekit.virtual.metastasis import SCANS
from bundlekit.virtual.tumour import Lesion

SECOND_VISIT_SHARE = 0.25
"""Probability that a patient has a second visit."""


def metastases(
    out: str,
    cases: int = 4,
    seed: int = 0,
    shape: Sequence[int] = SHAPE,
    label_maps: str | None = None,
    jobs: int = 1,
) -> list[str]:
    """Writes `cases` virtual cases (visits) under folder `out` and returns their folders, in order.

    The same `seed` gives the same bytes, and case k does not depend on how many are asked for. A case appears
    whole or not at all; one that is there already is never replaced. A second visit counts as a
    case and follows the first; split by the patient's number, not by case.

    Args:
        out: Folder to write to; made if missing.
        cases: How many, 1 or more.
        seed: 0 or more.
        shape: Voxels along x, y and z, each 32 or more; always the field of view of 240 x 240 x 155 mm.
        label_maps: Folder of label maps in FreeSurfer's numbering: patient k has the head of the k-th of them,
            beginning again after the last. None: the ICBM152 template.
        jobs: Processes that make cases at a time.

    Raises:
        ValueError: A bad argument, or a case that is there already; says what was found and what to do.
    """
    cases, seed, size = whole_number("cases", cases, 1), whole_number("seed", seed, 0), size_of(shape)
    jobs = whole_number("jobs", jobs, 1)
    heads = heads_of(label_maps, [_patient(seed, index)[0] for index in range(cases)])
    refuse_existing(Path(out, case_name(seed, index)) for index in range(cases))
    make = functools.partial(_make, folder_of(out), seed, size)
    return make_cohort(make, heads, jobs, "virtual BraTS-METS")


def _make(root: Path, seed: int, shape: Sequence[int], index: int, label_map: str | None) -> str:
    case = make_case(seed, index, shape, label_map)
    return write_case(root, case_name(seed, index), case, (*SCANS, "seg"), "-")


def case_name(seed: int, index: int) -> str:
    """Name of case `index` of the cohort `seed`: that of its patient and of the visit, which no real case has.

    Patients are counted from 90001, visits from 0.
    """
    patient, visit = _patient(seed, index)
    return f"BraTS-MET-{90001 + patient}-{visit:03d}"


def make_case(
    seed: int, index: int, shape: Sequence[int] = SHAPE, label_map: str | None = None
) -> dict[str, np.ndarray]:
    """Case `index` of the cohort `seed`, in memory.

    Returns arrays of `shape` (X, Y, Z), to be read with the affine: `t1n`, `t1c`, `t2w`, `t2f` (int16, 0 outside the
    brain, 1 or more inside), `seg` (uint8; 0, 1, 2, 3), and what is not written to disk: `instances` (uint8, the number
    of the lesion at labels 1 and 3, from 1), `tissue` (uint8, what prevails in the head around and under the lesions:
    0 outside, 1 fluid, 2 grey, 3 white matter) and `affine` (4, 4; voxel to mm, as NIfTI has it). `label_map`: see
    `anatomy.Head`.

    Raises:
        ValueError: A negative seed or index, or a bad shape.
    """
    seed, index, size = whole_number("seed", seed, 0), whole_number("index", index, 0), size_of(shape)
    number, visit = _patient(seed, index)
    # Separate streams, and none of the gliomas' (0-2) or of the healthy heads' (3, 4).
    for_head, for_lesions, for_vessels = (np.random.default_rng([seed, number, part]) for part in (5, 6, 7))
    for_scan = np.random.default_rng([seed, number, 8, visit])
    head = Head(for_head, label_map)
    patient = Metastases(for_lesions, head)
    lesions = patient.visits[visit]
    pushes = tuple(lesion.push for lesion in lesions if lesion.push)
    axes, spacing = grid(size)
    box, near = box_of(head, pushes, axes)
    anatomy = head.sample(near, max(spacing), pushes)
    x, y, z = (axis.numpy() for axis in near)
    spread = patient.label(lesions, anatomy.numpy(), (x, y, z))
    parts = _scan(for_scan, for_vessels, patient, spread, anatomy.numpy(), (x, y, z), spacing)
    parts |= {"seg": spread.labels, "instances": spread.instances, "tissue": tissue_of(anatomy)}
    return placed(parts, size, box) | {"affine": affine_of(spacing)}


def _scan(
    rng: np.random.Generator,
    for_vessels: np.random.Generator,
    patient: Metastases,
    spread: Spread,
    anatomy: Anatomy[np.ndarray],
    axes: Positions,
    spacing_mm: tuple[float, float, float],
) -> dict[str, np.ndarray]:
    brain = np.flatnonzero(anatomy.brain)
    here = torch.from_numpy(brain)
    lesion = Lesion(torch.zeros(spread.labels.shape, dtype=torch.uint8), torch.from_numpy(spread.oedema))
    maps = Vessels(for_vessels).shared_maps(anatomy.tensors(), lesion, as_axes(axes), here)
    shared = {key: value.numpy() for key, value in maps.items()}
    maps["vessel"] = torch.from_numpy(
        np.maximum(shared["vessel"], _veins(for_vessels, shared, anatomy, axes, brain)).astype(np.float32)
    )
    linings = _linings(for_vessels, shared, anatomy, axes, brain)
    images = {}
    for name, modality in SCANS.items():
        contrast = {part: rng.uniform(*limits) for part, limits in CONTRAST[modality].items()}
        volume = np.zeros(anatomy.brain.shape, np.float32)
        if name == "t1c":
            contrast["vessel"] *= rng.uniform(1.0, 1.4)
        clean = clean_signal(contrast, maps, modality, solid=False).numpy()
        if name == "t1c":
            clean += linings * np.maximum(0.85 * contrast["vessel"] - clean, 0)
        volume.ravel()[brain] = clean
        patient.paint(volume, spread, name, contrast["rim"], axes)
        signal = volume.ravel()[brain]
        signal *= np.exp(rng.uniform(0.04, 0.12) * SmoothField.draw(rng, 80.0).array_at(axes).ravel()[brain])
        # Metastases are looked for on a three-dimensional T1; thick slices would miss the small ones.
        exposure = draw_exposure(rng, thin=name == "t1c")
        image = acquire(exposure, torch.from_numpy(signal), contrast["csf"], here, volume.shape, spacing_mm)
        images[name] = as_int16(image)
    return images


def _veins(
    rng: np.random.Generator,
    shared: dict[str, np.ndarray],
    anatomy: Anatomy[np.ndarray],
    axes: Positions,
    brain: np.ndarray,
) -> np.ndarray:
    """More vessels than a glioma needs, 0-1 over the brain's voxels, for a small lesion has to be told from them.

    Veins and arteries in the sulci and fissures, veins that run over the surface, and thin ones within white matter.
    """
    fields = [
        SmoothField.draw(rng, pitch).array_at(axes).ravel()[brain] for pitch in (15.0, 17.0, 10.0, 12.0, 13.0, 15.0)
    ]
    depth = anatomy.depth_mm.ravel()[brain]
    sulci = np.exp(-(fields[0] ** 2 + fields[1] ** 2) / 0.035) * np.clip(3 * shared["csf"] - 0.1, 0, 1)
    sulci = np.maximum(sulci, np.exp(-(fields[4] ** 2 + fields[5] ** 2) / 0.025) * np.clip(4 * shared["csf"], 0, 1))
    surface = np.exp(-(fields[2] ** 2) / 0.02 - ((depth - 1.5) / 1.3) ** 2) * np.clip(1.2 + fields[0], 0, 1)
    inner = 0.6 * np.exp(-(fields[3] ** 2 + fields[4] ** 2) / 0.006) * shared["wm"]
    return np.maximum(np.maximum(sulci, surface), inner)


def _linings(
    rng: np.random.Generator,
    shared: dict[str, np.ndarray],
    anatomy: Anatomy[np.ndarray],
    axes: Positions,
    brain: np.ndarray,
) -> np.ndarray:
    """What else takes up contrast, 0-1 over the brain's voxels: choroid plexus in the ventricles, and the falx."""
    patch = SmoothField.draw(rng, 5.0).array_at(axes).ravel()[brain]
    depth, height, side = (getattr(anatomy, name).ravel()[brain] for name in ("depth_mm", "height_mm", "side_mm"))
    inner = (depth > 28) & (height > -30)
    plexus = np.clip(2 * shared["csf"] - 1, 0, 1) * np.clip(2 * patch - 1.2, 0, 1) * inner
    falx = np.exp(-((side / 1.3) ** 2)) * np.clip(2 * shared["csf"] - 0.2, 0, 1) * np.clip(0.5 + 0.5 * patch, 0, 1)
    return np.maximum(plexus, 0.8 * falx * ((height > 15) & (depth < 30)))


def _patient(seed: int, index: int) -> tuple[int, int]:
    """Patient and visit, both from 0, of case `index`."""
    again = np.random.default_rng([seed, 0, 9]).random(index + 1) < SECOND_VISIT_SHARE
    patients = np.repeat(np.arange(index + 1), 1 + again)
    return int(patients[index]), int(index > 0 and patients[index - 1] == patients[index])
