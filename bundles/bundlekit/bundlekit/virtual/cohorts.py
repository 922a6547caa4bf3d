"""Cohorts of virtual patients: the grid that they share, many made at a time, files written whole."""

from __future__ import annotations

import gzip
import operator
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from tqdm import tqdm

from bundlekit.errors import BundleError
from bundlekit.label_maps import find_label_maps
from bundlekit.virtual.anatomy import Anatomy, Head
from bundlekit.virtual.fields import Axes, Push, numbers_of

SHAPE = (240, 240, 155)
"""Voxels of a full-size case."""

MIN_VOXELS, MAX_VOXELS = 32, 1024
"""Fewest voxels along an axis, below which small tumours vanish between voxels, and most, against slips of the pen."""


def heads_of(label_maps: str | None, numbers: Iterable[int]) -> list[str | None]:
    """The label map that each patient's head is of: one after the other in their order, then again from the first.

    Args:
        label_maps: folder of label maps in FreeSurfer's numbering; None: every patient's is None, the template.
        numbers: of the patients, from 0.

    Raises:
        BundleError: if a label map cannot be used, or there is none.
    """
    if label_maps is None:
        return [None for _ in numbers]
    files = [case["label"] for case in find_label_maps(label_maps)]
    return [files[number % len(files)] for number in numbers]


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


def write_case(root: Path, name: str, case: Mapping[str, np.ndarray], parts: Sequence[str], joint: str = "_") -> str:
    """Writes `{name}{joint}{part}.nii.gz` into a folder beside it, then moves that to `root / name`, which is new."""
    final = root / name
    with tempfile.TemporaryDirectory(prefix=".virtual_", dir=root) as beside:
        ready = Path(beside) / name
        for part in parts:
            write_volume(ready / f"{name}{joint}{part}.nii.gz", case[part], case["affine"])
        os.replace(ready, final)
    return str(final)


def write_volume(path: Path, array: np.ndarray, affine: np.ndarray) -> None:
    """Writes a .nii.gz, whole or not at all; the same voxels are the same bytes, as no time and name are in it."""
    image = nib.Nifti1Image(array, affine)
    image.set_qform(affine, code=1)
    image.set_sform(affine, code=1)
    image.header.set_xyzt_units("mm")
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    part.write_bytes(gzip.compress(image.to_bytes(), compresslevel=1, mtime=0))
    part.replace(path)


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
    step = tuple(max(1, round(6.0 / (axis[1] - axis[0]))) for axis in numbers_of(axes))
    sampled = head.sample((axes[0][:: step[0]], axes[1][:: step[1]], axes[2][:: step[2]]), 1.0, pushes)
    brain = sampled.brain.cpu().numpy()
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


def folder_of(out: str) -> Path:
    """`out` as a folder, made if missing; ValueError if it cannot be one."""
    root = Path(out)
    standing = next(path for path in (root, *root.absolute().parents) if path.exists())
    if not str(out).strip() or not standing.is_dir():
        found = f"{str(out)!r}, and {standing} is not a folder" if str(out).strip() else "empty"
        raise ValueError(f"out is {found}; expected a folder, new or not; give a folder to write the cases to.")
    root.mkdir(parents=True, exist_ok=True)
    return root


def refuse_existing(files: Iterable[Path]) -> None:
    """Refuse to write over what is there: a case of an earlier call, or one that somebody has corrected since.

    Raises:
        BundleError: naming some of them.
    """
    there = [file for file in files if file.exists()]
    if there:
        names = ", ".join(map(str, there[:3])) + (", ..." if len(there) > 3 else "")
        raise BundleError(f"{names}: there already. Remove what you do not need, or give another --out.")


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
    """`shape` as three whole numbers from `MIN_VOXELS` to `MAX_VOXELS`; ValueError otherwise."""
    try:
        size = tuple(operator.index(n) for n in shape)
    except TypeError:
        size = ()
    if len(size) != 3 or min(size) < MIN_VOXELS or max(size) > MAX_VOXELS:
        raise ValueError(
            f"shape is {shape!r}; expected three whole numbers from {MIN_VOXELS} to {MAX_VOXELS}; give for example "
            "96,96,72."
        )
    return size[0], size[1], size[2]
