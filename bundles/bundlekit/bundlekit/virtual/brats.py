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
import gzip
import operator
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from tqdm import tqdm

from bundlekit.virtual.acquisition import MODALITIES, Scans, as_int16, low_grade
from bundlekit.virtual.anatomy import Anatomy, Head, grid
from bundlekit.virtual.fields import Axes, Push
from bundlekit.virtual.label_maps import find_label_maps
from bundlekit.virtual.tumour import Tumour

SHAPE = (240, 240, 155)
"""Voxels of a full-size case."""

MIN_VOXELS = 32
"""Fewest voxels along an axis; below it, small tumours vanish between voxels."""


def brats(
    out: str,
    cases: int = 4,
    seed: int = 0,
    shape: Sequence[int] = SHAPE,
    label_maps: str | None = None,
    jobs: int = 1,
) -> list[str]:
    """Writes `cases` virtual cases under folder `out` and returns their folders, in order.

    The same `seed` gives the same bytes, and case k does not depend on how many are asked for. Each file appears
    whole or not at all; those of an earlier run are replaced, one whole file at a time.

    Args:
        out: Folder to write to; made if missing.
        cases: How many, 1 or more.
        seed: 0 or more.
        shape: Voxels along x, y and z, each 32 or more; always the field of view of 240 x 240 x 155 mm.
        label_maps: Folder of label maps in FreeSurfer's numbering: case k has the head of the k-th of them, beginning
            again after the last. None: the ICBM152 template.
        jobs: Processes that make cases at a time.

    Raises:
        ValueError: A bad argument; says what was found, what is expected and what to do.
    """
    cases, seed, size = whole_number("cases", cases, 1), whole_number("seed", seed, 0), size_of(shape)
    jobs = whole_number("jobs", jobs, 1)
    maps = None if label_maps is None else find_label_maps(label_maps)
    make = functools.partial(_make, folder_of(out), seed, size)
    return make_cohort(make, [head_of(index, maps) for index in range(cases)], jobs, "virtual BraTS")


def _make(root: Path, seed: int, shape: Sequence[int], index: int, label_map: str | None) -> str:
    return write_case(root, _name(index), make_case(seed, index, shape, label_map))


def head_of(number: int, label_maps: Sequence[str] | None) -> str | None:
    """The label map of patient `number`: one after the other, then again from the first; None without label maps."""
    return label_maps[number % len(label_maps)] if label_maps else None


def make_cohort(
    make: Callable[[int, str | None], str], heads: Sequence[str | None], jobs: int, description: str
) -> list[str]:
    """Cases 0, 1, ... by `make(index, head)`, whose results are returned in order; one head after the other.

    Args:
        make: makes a case; may be sent to another process.
        heads: label map of each case, or None.
        jobs: processes, 1 or more; each makes cases of one head at a time, which is prepared once.
        description: of the progress bar.

    Raises:
        ValueError: what `make` raises.
    """
    by_head: dict[str | None, list[int]] = {}
    for index, head in enumerate(heads):
        by_head.setdefault(head, []).append(index)
    parts = -(-2 * jobs // len(by_head)) if jobs > 1 else 1  # few heads are divided further
    tasks = [(some[part::parts], head) for head, some in by_head.items() for part in range(parts) if some[part::parts]]
    made: dict[int, str] = {}
    with tqdm(total=len(heads), desc=description, unit="case") as bar:
        if jobs == 1:
            for some, head in tasks:
                for index in some:
                    made[index] = make(index, head)
                    bar.update()
        else:
            with ProcessPoolExecutor(jobs, get_context("spawn"), torch.set_num_threads, (1,)) as pool:
                running = [pool.submit(_make_some, make, some, head) for some, head in tasks]
                try:
                    for done in as_completed(running):
                        made |= done.result()
                        bar.update(len(done.result()))
                except BaseException:  # say so now, not after all the others
                    pool.shutdown(cancel_futures=True)
                    raise
    return [made[index] for index in range(len(heads))]


def _make_some(make: Callable[[int, str | None], str], indices: Sequence[int], head: str | None) -> dict[int, str]:
    return {index: make(index, head) for index in indices}


def _name(index: int) -> str:
    return f"VirtualGlioma_{index:05d}"


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


def tissue_of(anatomy: Anatomy[torch.Tensor]) -> np.ndarray:
    """What prevails: uint8, 0 outside the brain, 1 fluid, 2 grey, 3 white matter."""
    tissue = 1 + torch.stack([anatomy.csf, anatomy.gm, anatomy.wm]).argmax(0)
    return torch.where(anatomy.brain, tissue, 0).to(torch.uint8).numpy()


def placed(
    parts: Mapping[str, np.ndarray], size: tuple[int, int, int], box: tuple[slice, slice, slice]
) -> dict[str, np.ndarray]:
    """Each of `parts` in the `box` of a grid of `size` that is 0 elsewhere."""
    case = {name: np.zeros(size, array.dtype) for name, array in parts.items()}
    for name, array in parts.items():
        case[name][box] = array
    return case


def box_of(head: Head, pushes: tuple[Push, ...], axes: Axes) -> tuple[tuple[slice, slice, slice], Axes]:
    """The part of the grid that holds the brain, and its axes; found on every sixth sample, with room to spare."""
    step = tuple(max(1, round(6.0 / float(axis[1] - axis[0]))) for axis in axes)
    brain = head.sample((axes[0][:: step[0]], axes[1][:: step[1]], axes[2][:: step[2]]), 1.0, pushes).numpy().brain
    slices = []
    for axis in range(3):
        found = np.flatnonzero(brain.any(axis=tuple({0, 1, 2} - {axis}))) * step[axis]
        slices.append(slice(max(0, found[0] - step[axis] - 1), found[-1] + step[axis] + 2))
    box = (slices[0], slices[1], slices[2])
    return box, (axes[0][box[0]], axes[1][box[1]], axes[2][box[2]])


def affine_of(spacing: tuple[float, float, float]) -> np.ndarray:
    """Voxel to world (mm) in LPS order, such that the corners of the field of view are those of BraTS."""
    x, y, z = spacing
    affine = np.diag([-x, -y, z, 1.0])
    affine[:3, 3] = (1 - x) / 2, 239.5 - y / 2, (z - 1) / 2
    return affine


def write_case(
    root: Path,
    name: str,
    case: dict[str, np.ndarray],
    parts: Sequence[str] = (*MODALITIES, "seg"),
    joint: str = "_",
) -> str:
    """Writes `{name}{joint}{part}.nii.gz` into a folder beside it, then moves the files to `root / name`."""
    final = root / name
    with tempfile.TemporaryDirectory(prefix=".virtual_", dir=root) as beside:
        ready = Path(beside) / name
        ready.mkdir()
        for part in parts:
            image = nib.Nifti1Image(case[part], case["affine"])
            image.set_qform(case["affine"], code=1)
            image.set_sform(case["affine"], code=1)
            image.header.set_xyzt_units("mm")
            packed = gzip.compress(image.to_bytes(), compresslevel=1, mtime=0)  # no name, no time: same bytes
            (ready / f"{name}{joint}{part}.nii.gz").write_bytes(packed)
        if final.exists():
            for file in sorted(ready.iterdir()):
                os.replace(file, final / file.name)
        else:
            os.replace(ready, final)
    return str(final)


def folder_of(out: str) -> Path:
    """`out` as a folder, made if missing; ValueError if it cannot be one."""
    root = Path(out)
    standing = next(path for path in (root, *root.absolute().parents) if path.exists())
    if not str(out).strip() or not standing.is_dir():
        found = f"{str(out)!r}, and {standing} is not a folder" if str(out).strip() else "empty"
        raise ValueError(f"out is {found}; expected a folder, new or not; give a folder to write the cases to.")
    root.mkdir(parents=True, exist_ok=True)
    return root


def whole_number(name: str, value: int, least: int) -> int:
    """`value`, if it is a whole number of at least `least`; ValueError otherwise."""
    try:
        number = operator.index(value)
    except TypeError:
        number = least - 1
    if number < least:
        raise ValueError(f"{name} is {value!r}; expected a whole number of {least} or more; give such a number.")
    return number


def size_of(shape: Sequence[int]) -> tuple[int, int, int]:
    """`shape` as three whole numbers of `MIN_VOXELS` or more; ValueError otherwise."""
    try:
        size = tuple(operator.index(n) for n in shape)
    except TypeError:
        size = ()
    if len(size) != 3 or min(size) < MIN_VOXELS:
        raise ValueError(
            f"shape is {shape!r}; expected three whole numbers of {MIN_VOXELS} or more; give for example 96,96,72."
        )
    return size[0], size[1], size[2]
