"""Virtual healthy heads: a T1 and a label map of its tissues, under BIDS names.

Files are `sub-000/anat/sub-000_T1w.nii.gz` (skull-stripped int16, background 0) and, below `derivatives/labels`,
`sub-000/anat/sub-000_desc-aseg_dseg.nii.gz` (uint8 in FreeSurfer's numbering: 2 white matter, 3 grey matter, 24 CSF).
The folder is a data set of pairs, `derivatives/labels` one of label maps alone. See `anatomy.py` for the source of the
heads and its licence notice, and `cohorts.py` for the grids.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from bundlekit.virtual.acquisition import acquire, as_int16, draw_exposure
from bundlekit.virtual.anatomy import Head, grid
from bundlekit.virtual.cohorts import SHAPE, affine_of, folder_of, refuse_existing, size_of, whole_number, write_volume
from bundlekit.virtual.fields import SmoothField

_NUMBERS = {"csf": 24, "gm": 3, "wm": 2}


def tissue(out: str, cases: int = 4, seed: int = 0, shape: Sequence[int] = SHAPE) -> list[str]:
    """Writes `cases` virtual heads under folder `out` and returns the T1 files, in order.

    The same `seed` gives the same bytes, and case k does not depend on how many are asked for.

    Args:
        out: Folder to write to; made if missing.
        cases: How many, 1 or more.
        seed: 0 or more.
        shape: Voxels along x, y and z, each 32 or more; always the field of view of 240 x 240 x 155 mm.

    Raises:
        ValueError: A bad argument, or a case that is there already; says what was found and what to do.
    """
    cases, seed, size = whole_number("cases", cases, 1), whole_number("seed", seed, 0), size_of(shape)
    folder_of(out)
    refuse_existing(Path(out, f"sub-{index:03d}") for index in range(cases))
    refuse_existing(Path(out, "derivatives", "labels", f"sub-{index:03d}") for index in range(cases))
    files = []
    for index in tqdm(range(cases), desc="virtual heads", unit="case"):
        head = make_head(seed, index, size)
        name = f"sub-{index:03d}"
        t1 = Path(out, name, "anat", f"{name}_T1w.nii.gz")
        labels = Path(out, "derivatives", "labels", name, "anat", f"{name}_desc-aseg_dseg.nii.gz")
        for path, array in ((labels, head["labels"]), (t1, head["t1"])):
            write_volume(path, array, head["affine"])
        files.append(str(t1))
    return files


def icbm152(out: str) -> str:
    """Writes the ICBM152 T1 template with its tissue maps as a BIDS case under folder `out`, and returns the T1 file.

    `sub-icbm152/anat/` gets `sub-icbm152_T1w` (skull-stripped) and `sub-icbm152_label-{CSF,GM,WM}_probseg`; CSF is what
    grey and white matter leave of the brain. It is an average of many heads, smoother than any of them.

    Args:
        out: Folder to write to; made if missing.

    Raises:
        ValueError: If the case is there already.
    """
    folder_of(out)
    refuse_existing([Path(out, "sub-icbm152")])
    from nilearn import datasets  # slow to import; painted images do not need it

    t1 = datasets.load_mni152_template(resolution=1)
    gm, wm = (
        np.clip(load(resolution=1).get_fdata(dtype=np.float32), 0, 1)
        for load in (datasets.load_mni152_gm_template, datasets.load_mni152_wm_template)
    )
    brain = t1.get_fdata(dtype=np.float32) > 0
    maps = {"GM": gm * brain, "WM": wm * brain, "CSF": np.clip(1 - gm - wm, 0, 1) * brain}
    start = Path(out, "sub-icbm152", "anat", "sub-icbm152")
    for name, array in maps.items():
        write_volume(start.with_name(f"{start.name}_label-{name}_probseg.nii.gz"), array, t1.affine)
    file = start.with_name(f"{start.name}_T1w.nii.gz")
    write_volume(file, (t1.get_fdata(dtype=np.float32) * 1000).astype(np.int16), t1.affine)
    return str(file)


def make_head(seed: int, index: int, shape: Sequence[int] = SHAPE) -> dict[str, np.ndarray]:
    """Head `index` of the cohort `seed`, in memory: `t1` (int16), `labels` (uint8), `affine` (4 x 4, voxel to mm)."""
    size = size_of(shape)
    rng, for_scan = (np.random.default_rng([seed, index, part]) for part in (3, 4))
    axes, spacing = grid(size)
    anatomy = Head(rng).sample(axes, max(spacing))
    inside = anatomy.brain.ravel().nonzero()[:, 0]
    gm, wm, csf, detail = (getattr(anatomy, key).ravel()[inside] for key in ("gm", "wm", "csf", "detail"))
    grey, fluid = for_scan.uniform(0.72, 0.84), for_scan.uniform(0.3, 0.45)
    signal = wm + grey * gm + fluid * csf + for_scan.uniform(0.8, 1.1) * detail
    signal *= torch.exp(for_scan.uniform(0.03, 0.12) * SmoothField.draw(for_scan, 80.0).at(axes).ravel()[inside])
    t1 = as_int16(acquire(draw_exposure(for_scan), signal, fluid, inside, size, spacing))
    labels: np.ndarray = np.zeros(size, np.uint8)
    numbers = np.asarray(list(_NUMBERS.values()), np.uint8)
    labels.ravel()[inside.numpy()] = numbers[torch.stack([csf, gm, wm]).argmax(0).numpy()]
    return {"t1": t1, "labels": labels, "affine": affine_of(spacing)}
