"""Virtual BraTS: made-up glioma cases that look like those of BraTS 2021.

A case is a folder `VirtualGlioma_00000` with `VirtualGlioma_00000_{t1,t1ce,t2,flair,seg}.nii.gz`: skull-stripped
int16 scans with background 0, and a uint8 label map with 0, 1 (necrotic or non-enhancing core), 2 (oedema) and
4 (enhancing tumour). No patient is behind it: see `anatomy.py` for the source of the heads and its licence notice.

Every grid covers the field of view of BraTS, 240 x 240 x 155 mm in LPS orientation. The full shape has 1 mm voxels; a
smaller shape keeps the whole head and takes larger voxels, and the affine says so: 96 x 96 x 72 has voxels of
2.5 x 2.5 x 2.15 mm. The same case at two shapes is the same head and tumour, sampled differently.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from bundlekit.virtual.acquisition import MODALITIES, Scans, as_int16, low_grade
from bundlekit.virtual.anatomy import Head, grid
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
from bundlekit.virtual.tumour import Tumour


def brats(
    out: str,
    cases: int = 4,
    seed: int = 0,
    shape: Sequence[int] = SHAPE,
    label_maps: str | None = None,
    jobs: int = 1,
) -> list[str]:
    """Writes `cases` virtual cases under folder `out` and returns their folders, in order.

    The same `seed` gives the same bytes, and case k does not depend on how many are asked for. A case appears
    whole or not at all; one that is there already is never replaced.

    Args:
        out: Folder to write to; made if missing.
        cases: How many, 1 or more.
        seed: 0 or more.
        shape: Voxels along x, y and z, each 32 or more; always the field of view of 240 x 240 x 155 mm.
        label_maps: Folder of label maps in FreeSurfer's numbering: case k has the head of the k-th of them, beginning
            again after the last. None: the ICBM152 template.
        jobs: Processes that make cases at a time.

    Raises:
        ValueError: A bad argument, or a case that is there already; says what was found and what to do.
    """
    cases, seed, size = whole_number("cases", cases, 1), whole_number("seed", seed, 0), size_of(shape)
    jobs = whole_number("jobs", jobs, 1)
    heads = heads_of(label_maps, range(cases))
    refuse_existing(Path(out, f"VirtualGlioma_{index:05d}") for index in range(cases))
    make = functools.partial(_make, folder_of(out), seed, size)
    return make_cohort(make, heads, jobs, "virtual BraTS")


def _make(root: Path, seed: int, shape: Sequence[int], index: int, label_map: str | None) -> str:
    case = make_case(seed, index, shape, label_map)
    return write_case(root, f"VirtualGlioma_{index:05d}", case, (*MODALITIES, "seg"))


def make_case(
    seed: int, index: int, shape: Sequence[int] = SHAPE, label_map: str | None = None
) -> dict[str, np.ndarray]:
    """Case `index` of the cohort `seed`, in memory.

    Returns arrays of `shape` (X, Y, Z), to be read with the affine: `t1`, `t1ce`, `t2`, `flair` (int16, 0 outside the
    brain, 1 or more inside), `seg` (uint8; 0, 1, 2, 4), `tissue` (uint8, what prevails in the head around and under
    the tumour: 0 outside, 1 fluid, 2 grey, 3 white matter; not written to disk) and `affine` (4, 4; voxel to mm, as
    NIfTI has it). The whole tumour has 5 to 200 ml; about one in seven has no label 4. `label_map`: see `anatomy.Head`.

    Raises:
        ValueError: A negative seed or index, or a bad shape.
    """
    seed, index, size = whole_number("seed", seed, 0), whole_number("index", index, 0), size_of(shape)
    head, tumour, for_scan = patient(seed, index, label_map)
    axes, spacing = grid(size)
    box, near = box_of(head, tumour.pushes, axes)
    anatomy = head.sample(near, max(spacing), tumour.pushes)
    lesion = tumour.label(anatomy, near)
    scans = Scans(for_scan, low_grade(lesion))
    brain = anatomy.brain.ravel().nonzero()[:, 0]
    clean = scans.clean(anatomy, lesion, near, brain)
    images = scans.acquire(clean, brain, anatomy.brain.shape, spacing)
    parts = {name: as_int16(image) for name, image in images.items()}
    parts |= {"seg": lesion.labels.numpy(), "tissue": tissue_of(anatomy)}
    return placed(parts, size, box) | {"affine": affine_of(spacing)}


def patient(
    seed: int, index: int, label_map: str | None = None, maps: torch.Tensor | None = None
) -> tuple[Head, Tumour, np.random.Generator]:
    """Head and tumour of case `index`, and the draws of its scans. `label_map`, `maps`: see `anatomy.Head`."""
    # Separate streams: what is drawn for the head or the tumour does not shift the draws of the others.
    for_head, for_tumour, for_scan = (np.random.default_rng([seed, index, part]) for part in range(3))
    head = Head(for_head, label_map, maps)
    return head, Tumour(for_tumour, head), for_scan
