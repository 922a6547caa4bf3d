"""The four scans of a head with a tumour: T1, contrast-enhanced T1, T2 and FLAIR.

Signals are relative to the white matter of the same scan; typical values were read off public BraTS 2021 cases and
vary at random per case. The scanner then adds vessels, a bias field, thick slices, blur and Rician noise.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from monai.networks.layers import gaussian_1d, separable_filtering

from bundlekit.virtual.anatomy import Anatomy
from bundlekit.virtual.fields import Axes, SmoothField
from bundlekit.virtual.tumour import ENHANCING, NECROSIS, Lesion

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


class Vessels:
    """What all scans of a case have in common beside anatomy and tumour: its vessels and the grain of its tissue.

    Draw it once, then put it on any grid.
    """

    def __init__(self, rng: np.random.Generator) -> None:
        self._one, self._two, self._grain, self._patch = (SmoothField.draw(rng, mm) for mm in (11.0, 13.0, 3.5, 5.0))

    def shared_maps(
        self, anatomy: Anatomy[torch.Tensor], lesion: Lesion, axes: Axes, brain: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Vectors over the voxels `brain` (positions in the raveled grid), as float32 or bool."""
        maps = {name: getattr(anatomy, name).ravel()[brain] for name in ("gm", "wm", "csf", "detail")}
        labels = lesion.labels.ravel()[brain]
        one, two, grain, patch = (
            field.at(axes).ravel()[brain] for field in (self._one, self._two, self._grain, self._patch)
        )
        vessel = torch.exp(-(one**2 + two**2) / 0.05) * (3 * maps["csf"] - 0.2).clamp(0, 1)
        # The sagittal sinus: the rim of the brain between the hemispheres, above the ventricles.
        side, depth, height = (getattr(anatomy, name).ravel()[brain] for name in ("side_mm", "depth_mm", "height_mm"))
        sinus = torch.exp(-((side / 2.5) ** 2)) * (1 - depth / 3.5).clamp(0, 1) * (height > 0)
        return maps | {
            "necrosis": labels == NECROSIS,
            "rim": labels == ENHANCING,
            "oedema": lesion.oedema.ravel()[brain],
            "vessel": torch.maximum(vessel, (1.5 * sinus).clamp(0, 1)),
            "grain": grain,
            "patch": patch,
        }


@dataclass(frozen=True)
class Exposure:
    """How one image is acquired; lengths in mm, signals relative to white matter. See `draw_exposure`.

    `white`: the unit of the scanner, white matter's value; `sigma`: of the noise; `blur_mm`: standard deviation along
    x, y and z; `noise`: seed of what is drawn for each voxel.
    """

    white: float
    sigma: float
    blur_mm: tuple[float, float, float]
    noise: np.random.Generator


def low_grade(lesion: Lesion) -> bool:
    """Whether hardly any of the core enhances: it then looks like the solid core of a low-grade tumour."""
    return bool((lesion.labels == ENHANCING).sum() <= 0.1 * (lesion.labels == NECROSIS).sum())


class Scans:
    """The four scans of a case, drawn once and made on any grid.

    Args:
        rng: of contrast and acquisition.
        solid: whether the core without enhancement is that of a low-grade tumour, see `low_grade`.
    """

    def __init__(self, rng: np.random.Generator, solid: bool) -> None:
        self.vessels = Vessels(rng)
        self._solid = solid
        self._contrast, self._bias, self._exposure = {}, {}, {}
        for modality in MODALITIES:
            self._contrast[modality] = {name: rng.uniform(*limits) for name, limits in CONTRAST[modality].items()}
            self._bias[modality] = rng.uniform(0.03, 0.16), SmoothField.draw(rng, 80.0)
            self._exposure[modality] = draw_exposure(rng)

    def clean(
        self, anatomy: Anatomy[torch.Tensor], lesion: Lesion, axes: Axes, brain: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Signal by modality over the voxels `brain`, white matter about 1, with the bias field, without noise."""
        shared = self.vessels.shared_maps(anatomy, lesion, axes, brain)
        found = {}
        for modality in MODALITIES:
            signal = clean_signal(self._contrast[modality], shared, modality, self._solid)
            strength, field = self._bias[modality]
            found[modality] = signal * torch.exp(strength * field.at(axes).ravel()[brain])
        return found

    def acquire(
        self,
        signals: Mapping[str, torch.Tensor],
        brain: torch.Tensor,
        shape: tuple[int, ...],
        spacing_mm: tuple[float, float, float],
        noise_of_mm: float | None = None,
    ) -> dict[str, torch.Tensor]:
        """Images (X, Y, Z) by modality, in the scanner's unit, of what `clean` gives; 0 outside the brain.

        `noise_of_mm`: with the noise that is left after the blur where voxels are that far apart.
        """
        found = {}
        for name, signal in signals.items():
            exposure = self._exposure[name]
            if noise_of_mm is not None:
                share = _noise_left(exposure.blur_mm, (noise_of_mm,) * 3) / _noise_left(exposure.blur_mm, spacing_mm)
                exposure = dataclasses.replace(exposure, sigma=exposure.sigma * share)
            found[name] = acquire(exposure, signal, self._contrast[name]["csf"], brain, shape, spacing_mm)
        return found


def clean_signal(
    contrast: Mapping[str, float], shared: Mapping[str, torch.Tensor], modality: str, solid: bool
) -> torch.Tensor:
    """Noise-free signal over the brain's voxels, white matter = 1; `solid`: see `Scans`."""
    signal = shared["wm"] + contrast["gm"] * shared["gm"] + contrast["csf"] * shared["csf"]
    signal += contrast["detail"] * shared["detail"]
    wet = shared["oedema"] * (1 - shared["csf"]) * (0.9 - 0.3 * shared["gm"] + 0.12 * shared["patch"]).clamp(0, 1)
    signal += wet * (contrast["oedema"] - signal)
    dull = 1 + 0.07 * shared["patch"]
    signal = torch.where(shared["necrosis"], contrast["solid" if solid else "necrosis"] * dull, signal)
    uneven = 1 + (0.22 if modality == "t1ce" else 0.07) * shared["patch"].clamp(-1.5, 2)
    signal = torch.where(shared["rim"], contrast["rim"] * uneven, signal)
    signal += shared["vessel"] * ~shared["rim"] * (contrast["vessel"] - signal)
    signal *= 1 + 0.02 * shared["grain"]
    return signal


def draw_exposure(rng: np.random.Generator, thin: bool = False) -> Exposure:
    """A random scanner. White matter lies between about 120 and 2500, log-uniform, since they have no common unit.

    `thin`: no thick slices, as in a three-dimensional sequence; otherwise half of the images have them.
    """
    white = float(np.exp(rng.uniform(np.log(120), np.log(2500))))
    sigma = float(rng.uniform(0.015, 0.07))
    thick, slice_mm, plane_mm = rng.uniform() < 0.5, rng.uniform(0.9, 2.4), rng.uniform(0.35, 0.7)
    slices = int(rng.choice(3, p=(0.1, 0.1, 0.8)))  # mostly axial
    x, y, z = (slice_mm if thick and not thin and axis == slices else plane_mm for axis in range(3))
    return Exposure(white, sigma, (x, y, z), np.random.default_rng(rng.integers(2**63)))


def acquire(
    exposure: Exposure,
    signal: torch.Tensor,
    fluid: float,
    brain: torch.Tensor,
    shape: tuple[int, ...],
    spacing_mm: tuple[float, float, float],
) -> torch.Tensor:
    """One image (X, Y, Z) of `signal` (over the voxels `brain`, white matter = 1): above 0 inside, 0 outside."""
    seed = int(exposure.noise.integers(2**63))
    generator = torch.Generator(signal.device).manual_seed(seed)
    noise = torch.randn((2, len(brain)), generator=generator, device=signal.device) * exposure.sigma
    # as if the fluid went on outside, so blur does not darken the rim
    volume = torch.full(shape, fluid, device=signal.device)
    volume.ravel()[brain] = torch.hypot(signal + noise[0], noise[1])
    kernels = [_kernel(blur / spacing) for blur, spacing in zip(exposure.blur_mm, spacing_mm, strict=True)]
    volume = separable_filtering(volume[None, None], kernels, mode="replicate")[0, 0]
    image = torch.zeros_like(volume)
    image.ravel()[brain] = (volume.ravel()[brain] * exposure.white).clamp(min=1e-3)
    return image


def as_int16(image: torch.Tensor) -> np.ndarray:
    """What a scanner stores: 1 or more wherever `image` is above 0."""
    return torch.where(image > 0, image.round().clamp(1, 32767), 0).to(torch.int16).cpu().numpy()


def _kernel(sigma: float) -> torch.Tensor:
    """Gaussian, up to 2.5 standard deviations away; a single 1 where it hardly reaches the neighbouring voxel."""
    return gaussian_1d(torch.tensor(sigma), 2.5, "sampled", normalize=True) if sigma > 0.2 else torch.ones(1)


def _noise_left(blur_mm: tuple[float, ...], spacing_mm: tuple[float, ...]) -> float:
    """Share of the noise's standard deviation that the blur leaves."""
    return math.prod(float(_kernel(blur / step).norm()) for blur, step in zip(blur_mm, spacing_mm, strict=True))
