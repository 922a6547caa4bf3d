"""Window and normalisation of a CT."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.transforms import NormalizeIntensity, ScaleIntensityRange, Transform

from bundlekit.errors import BundleError

NORMALISATIONS = ("unit", "zscore")
_BODY_HU = -500.0


def above_air(image: torch.Tensor) -> torch.Tensor:
    """Where a CT in HU shows more than air and lung; the couch, too."""
    return image > _BODY_HU


def check_settings(window: Sequence[float], normalise: str, spacing: Sequence[float] | None) -> None:
    """Refuse values that make no preprocessing, before anything is read.

    Args:
        window: two HU, the lower first.
        normalise: one of `NORMALISATIONS`.
        spacing: three lengths in mm, or None.

    Raises:
        BundleError: naming the setting, what was given and what is possible.
    """
    problems = []
    if len(window) != 2 or not window[0] < window[1]:
        problems.append(f"window is {list(window)}; expected two values in HU, the lower first, as [-160, 240].")
    if normalise not in NORMALISATIONS:
        problems.append(f"normalise is {normalise!r}; expected one of {', '.join(NORMALISATIONS)}.")
    if spacing is not None and (len(spacing) != 3 or min(spacing) <= 0):
        problems.append(f"spacing is {list(spacing)}; expected three lengths in mm, or null for the scan's own voxels.")
    if problems:
        raise BundleError("\n".join(problems))


class NormaliseCTd(Transform):
    """Clip a CT, `image` (1HWD), to a window of HU and bring it to a standard range.

    Args:
        window: HU that become the smallest and the largest value; what lies outside is clipped.
        method: "unit": the window becomes 0 to 1, so that air is exactly 0; "zscore": after that, mean 0 and standard
            deviation 1 over the volume.
    """

    def __init__(self, window: Sequence[float] = (-160.0, 240.0), method: str = "unit") -> None:
        check_settings(window, method, None)
        self.window = [float(hu) for hu in window]
        self.method = method
        self._scale = ScaleIntensityRange(self.window[0], self.window[1], b_min=0.0, b_max=1.0, clip=True)
        self._standardise = NormalizeIntensity()

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Normalise the image."""
        image = self._scale(data["image"])
        return {**data, "image": self._standardise(image) if self.method == "zscore" else image}
