"""The four scans of a head with a tumour: T1, contrast-enhanced T1, T2 and FLAIR.

Signals are relative to the white matter of the same scan; typical values were read off public BraTS 2021 cases and
vary at random per case. The scanner then adds vessels, a bias field, thick slices, blur and Rician noise.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from tools.virtual.anatomy import Anatomy
from tools.virtual.fields import Axes, SmoothField
from tools.virtual.tumour import ENHANCING, NECROSIS, Lesion

MODALITIES = ("t1", "t1ce", "t2", "flair")

# Signal of grey matter, fluid, oedema, necrosis, solid low-grade core and enhancing tumour, each as a range; how the
# template's T1 detail shows; and the range of the vessels' signal.
_Range = tuple[float, float]
CONTRAST: dict[str, dict[str, _Range]] = {
    "t1": {
        "gm": (0.72, 0.85), "csf": (0.28, 0.50), "oedema": (0.76, 0.98), "necrosis": (0.50, 0.92),
        "solid": (0.60, 0.85), "rim": (0.76, 1.05), "detail": (0.9, 1.1), "vessel": (0.5, 0.9),
    },
    "t1ce": {
        "gm": (0.76, 0.90), "csf": (0.30, 0.55), "oedema": (0.74, 0.98), "necrosis": (0.50, 0.85),
        "solid": (0.60, 0.85), "rim": (1.10, 2.20), "detail": (0.8, 1.0), "vessel": (1.4, 2.3),
    },
    "t2": {
        "gm": (1.15, 1.40), "csf": (2.2, 3.9), "oedema": (1.55, 2.40), "necrosis": (1.8, 3.2),
        "solid": (1.8, 3.0), "rim": (1.45, 2.20), "detail": (-0.7, -0.4), "vessel": (0.4, 0.8),
    },
    "flair": {
        "gm": (1.08, 1.32), "csf": (0.20, 0.60), "oedema": (1.40, 2.20), "necrosis": (0.9, 2.2),
        "solid": (1.4, 2.4), "rim": (1.35, 2.1), "detail": (-0.35, -0.15), "vessel": (0.4, 0.8),
    },
}  # fmt: skip


def scan(
    rng: np.random.Generator, anatomy: Anatomy, lesion: Lesion, axes: Axes, spacing_mm: tuple[float, float, float]
) -> dict[str, np.ndarray]:
    """One int16 (X, Y, Z) image per name in MODALITIES: at least 1 inside the brain, 0 outside.

    White matter lies between about 120 and 2500, log-uniform, since scanners have no common unit.
    """
    brain = np.flatnonzero(anatomy.brain)
    shared = shared_maps(rng, anatomy, lesion, axes, brain)
    images = {}
    for modality in MODALITIES:
        contrast = {name: rng.uniform(*limits) for name, limits in CONTRAST[modality].items()}
        signal = clean_signal(contrast, shared, modality)
        signal *= np.exp(rng.uniform(0.03, 0.16) * SmoothField.draw(rng, 80.0).at(axes).ravel()[brain])
        images[modality] = acquire(rng, signal, contrast["csf"], brain, anatomy.brain.shape, spacing_mm)
    return images


def shared_maps(
    rng: np.random.Generator, anatomy: Anatomy, lesion: Lesion, axes: Axes, brain: np.ndarray
) -> dict[str, np.ndarray]:
    """What all scans of a case have in common, as float32 or bool vectors over the brain's voxels."""
    maps = {name: getattr(anatomy, name).ravel()[brain] for name in ("gm", "wm", "csf", "detail")}
    labels = lesion.labels.ravel()[brain]
    one, two, grain, patch = (SmoothField.draw(rng, pitch).at(axes).ravel()[brain] for pitch in (11.0, 13.0, 3.5, 5.0))
    vessel = np.exp(-(one**2 + two**2) / 0.05) * np.clip(3 * maps["csf"] - 0.2, 0, 1)
    # The sagittal sinus: the rim of the brain between the hemispheres, above the ventricles.
    side, depth, height = (getattr(anatomy, name).ravel()[brain] for name in ("side_mm", "depth_mm", "height_mm"))
    sinus = np.exp(-((side / 2.5) ** 2)) * np.clip(1 - depth / 3.5, 0, 1) * (height > 0)
    return maps | {
        "necrosis": labels == NECROSIS,
        "rim": labels == ENHANCING,
        "low_grade": np.asarray((lesion.labels == ENHANCING).sum() <= 0.1 * (lesion.labels == NECROSIS).sum()),
        "oedema": lesion.oedema.ravel()[brain],
        "vessel": np.maximum(vessel, np.clip(1.5 * sinus, 0, 1)),
        "grain": grain,
        "patch": patch,
    }


def clean_signal(contrast: dict[str, float], shared: dict[str, np.ndarray], modality: str) -> np.ndarray:
    """Noise-free signal over the brain's voxels, white matter = 1."""
    signal = shared["wm"] + contrast["gm"] * shared["gm"] + contrast["csf"] * shared["csf"]
    signal += contrast["detail"] * shared["detail"]
    wet = shared["oedema"] * (1 - shared["csf"]) * (0.9 - 0.3 * shared["gm"] + 0.12 * shared["patch"]).clip(0, 1)
    signal += wet * (contrast["oedema"] - signal)
    core = "solid" if shared["low_grade"] else "necrosis"
    dull = 1 + 0.07 * shared["patch"]
    signal = np.where(shared["necrosis"], contrast[core] * dull, signal)
    uneven = 1 + (0.22 if modality == "t1ce" else 0.07) * np.clip(shared["patch"], -1.5, 2)
    signal = np.where(shared["rim"], contrast["rim"] * uneven, signal)
    signal += shared["vessel"] * ~shared["rim"] * (contrast["vessel"] - signal)
    signal *= 1 + 0.02 * shared["grain"]
    return signal.astype(np.float32)


def acquire(
    rng: np.random.Generator,
    signal: np.ndarray,
    fluid: float,
    brain: np.ndarray,
    shape: tuple[int, ...],
    spacing_mm: tuple[float, float, float],
    thin: bool = False,
) -> np.ndarray:
    """One int16 image of `signal` (over the voxels `brain`, white matter = 1): at least 1 inside, 0 outside.

    `thin`: no thick slices, as in a three-dimensional sequence; otherwise half of the images have them.
    """
    white = np.exp(rng.uniform(np.log(120), np.log(2500)))
    sigma = rng.uniform(0.015, 0.07)
    thick, slice_mm, plane_mm = rng.uniform() < 0.5, rng.uniform(0.9, 2.4), rng.uniform(0.35, 0.7)
    slices = int(rng.choice(3, p=(0.1, 0.1, 0.8)))  # mostly axial
    real = signal + sigma * rng.standard_normal(len(brain), dtype=np.float32)
    imaginary = sigma * rng.standard_normal(len(brain), dtype=np.float32)
    volume = np.full(shape, fluid, np.float32)  # as if the fluid went on outside, so blur does not darken the rim
    volume.ravel()[brain] = np.hypot(real, imaginary)
    for axis in range(3):
        blur_mm = slice_mm if thick and not thin and axis == slices else plane_mm
        if blur_mm / spacing_mm[axis] > 0.2:  # less than that does not reach the neighbouring voxel
            volume = ndimage.gaussian_filter1d(volume, blur_mm / spacing_mm[axis], axis, mode="nearest", truncate=2.5)
    image = np.zeros(shape, np.int16)
    image.ravel()[brain] = np.clip(np.rint(volume.ravel()[brain] * white), 1, 32767).astype(np.int16)
    return image
