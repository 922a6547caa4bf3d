"""Virtual abdominal CT: made-up torsos with 13 organs in Hounsfield units (HU), under the names of FLARE22.

Files are `imagesTr/FLARE22_Tr_0001_0000.nii.gz` (int16, HU) and `labelsTr/FLARE22_Tr_0001.nii.gz` (uint8, the numbers
in `ORGANS`), in LPS order as CT comes from DICOM. A case is a torso between the dome of the liver and the iliac
crests: fat, muscle, spine and ribs, lung bases, bowel, and the organs as ellipsoids and tubes that a smooth random map
deforms. What varies from case to case is the size of the body, the fat, the places and sizes of the organs, the
contrast phase, and the noise.

Everything is a function of position in mm, so that a case on a coarser grid is the same patient, sampled more coarsely.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy import ndimage
from tqdm import tqdm

from bundlekit.virtual.cohorts import folder_of, refuse_existing, size_of, whole_number, write_volume
from bundlekit.virtual.fields import Positions
from bundlekit.virtual.torso import ORGANS, Torso

SHAPE = (256, 256, 100)
"""Voxels of a case by default."""

FIELD_MM = (410.0, 410.0, 250.0)
"""Field of view along x, y and z where no spacing is given."""


def ct(
    out: str, cases: int = 4, seed: int = 0, shape: Sequence[int] = SHAPE, spacing: Sequence[float] | None = None
) -> list[str]:
    """Writes `cases` virtual abdominal CTs with labels under folder `out` and returns the images, in order.

    The same `seed` gives the same bytes, and case k does not depend on how many are asked for.

    Args:
        out: Folder to write to; made if missing.
        cases: How many, 1 or more.
        seed: 0 or more.
        shape: Voxels along x, y and z, each 32 or more.
        spacing: Voxel size in mm; None: what makes a field of view of 410 x 410 x 250 mm. The middle of the volume is
            the middle of the torso, at the level of the kidneys.

    Raises:
        ValueError: A bad argument, or a case that is there already; says what was found and what to do.
    """
    cases, seed, size = whole_number("cases", cases, 1), whole_number("seed", seed, 0), size_of(shape)
    spacing_mm = spacing_of(spacing, size)
    names = [f"FLARE22_Tr_{index + 1:04d}" for index in range(cases)]
    refuse_existing(Path(out, "imagesTr", f"{name}_0000.nii.gz") for name in names)
    refuse_existing(Path(out, "labelsTr", f"{name}.nii.gz") for name in names)
    root = folder_of(out)
    files = []
    for index, name in enumerate(tqdm(names, desc="virtual CT", unit="case")):
        case = make_ct(seed, index, size, spacing_mm)
        image = root / "imagesTr" / f"{name}_0000.nii.gz"
        write_volume(root / "labelsTr" / f"{name}.nii.gz", case["label"], case["affine"])
        write_volume(image, case["image"], case["affine"])
        files.append(str(image))
    return files


def make_ct(
    seed: int, index: int, shape: Sequence[int] = SHAPE, spacing: Sequence[float] | None = None
) -> dict[str, np.ndarray]:
    """Case `index` of the cohort `seed`, in memory.

    Returns arrays (X, Y, Z) in LPS order: `image` (int16, HU), `label` (uint8, see `ORGANS`), and `affine` (4, 4; voxel
    to mm).

    Raises:
        ValueError: A negative seed or index, a bad shape or spacing.
    """
    seed, index, size = whole_number("seed", seed, 0), whole_number("index", index, 0), size_of(shape)
    spacing_mm = spacing_of(spacing, size)
    for_torso, for_scan = (np.random.default_rng([seed, index, part]) for part in (5, 6))
    # sampled in RAS+ mm around the middle of the torso, then stored in LPS order
    right, front, up = ((np.arange(n) - (n - 1) / 2) * step for n, step in zip(size, spacing_mm, strict=True))
    axes: Positions = (right[::-1], front[::-1], up)
    signal, label = Torso(for_torso).sample(axes, max(spacing_mm))
    x, y, z = spacing_mm
    affine = np.diag([-x, -y, z, 1.0])
    affine[:3, 3] = axes[0][0], axes[1][0], axes[2][0]
    return {"image": scan(for_scan, signal, spacing_mm), "label": label, "affine": affine}


def scan(rng: np.random.Generator, signal: np.ndarray, spacing_mm: tuple[float, float, float]) -> np.ndarray:
    """A CT as it comes from the scanner: int16 HU of `signal` (XYZ, HU), with blur and correlated noise.

    The noise is that of a reconstruction: smooth over about a millimetre in the plane, hardly so across slices, and
    stronger deep in the body, where fewer photons come through.
    """
    plane_mm, slice_mm = rng.uniform(0.5, 0.9), rng.uniform(0.6, 1.6)
    sigma = rng.uniform(8, 22)
    image = signal.astype(np.float32)
    for axis, blur_mm in enumerate((plane_mm, plane_mm, slice_mm)):
        if blur_mm / spacing_mm[axis] > 0.2:  # less than that does not reach the neighbouring voxel
            image = ndimage.gaussian_filter1d(image, blur_mm / spacing_mm[axis], axis, truncate=3)
    depth = ndimage.uniform_filter((signal > -300).astype(np.float32), [round(120 / mm) for mm in spacing_mm[:2]] + [1])
    noise = rng.standard_normal(signal.shape, dtype=np.float32)
    grain = [max(1.0 / mm, 0.3) for mm in spacing_mm[:2]] + [0.3]
    noise = ndimage.gaussian_filter(noise, grain, truncate=3)
    noise *= sigma / max(float(noise.std()), 1e-6)
    image += noise * (0.4 + 0.9 * depth)
    return np.clip(np.rint(image), -1024, 3071).astype(np.int16)


def spacing_of(spacing: Sequence[float] | None, size: tuple[int, int, int]) -> tuple[float, float, float]:
    """`spacing` as three positive lengths, from `FIELD_MM` where it is None; ValueError otherwise."""
    if spacing is None:
        x, y, z = (length / n for length, n in zip(FIELD_MM, size, strict=True))
        return x, y, z
    try:
        values = tuple(float(mm) for mm in spacing)
    except (TypeError, ValueError):
        values = ()
    if len(values) != 3 or not all(0 < mm < 50 for mm in values):
        raise ValueError(
            f"spacing is {spacing!r}; expected three lengths in mm, each below 50; give for example 1.6,1.6,2.5."
        )
    return values[0], values[1], values[2]


__all__ = ["FIELD_MM", "ORGANS", "SHAPE", "ct", "make_ct", "scan", "spacing_of"]
