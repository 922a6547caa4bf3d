"""Intensities of a scan: bias field, CLAHE, normalisation. Geometry is left to MONAI's own transforms."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
from monai.transforms import Transform
from skimage.exposure import equalize_adapthist

from bundlekit.errors import BundleError, Finding
from bundlekit.images.bias import without_bias_field
from bundlekit.images.intensities import PERCENTILES, foreground
from bundlekit.images.nifti import voxel_ml
from bundlekit.images.normalising import as_array, like
from bundlekit.images.stripping import LARGEST_BRAIN_ML, whole_head


class CheckSkullStrippedd(Transform):
    """Refuse a scan with the skull where the network has seen none.

    `image` (1HWD `MetaTensor`; air that has one value is 0) counts as whole head if more than a brain's volume is not
    air of one value, see `bundlekit.images.stripping`.

    Args:
        whole_head: whether the network was trained on scans of whole heads; True accepts everything.

    Raises:
        BundleError: while running, for a whole head where `whole_head` is False.
    """

    def __init__(self, whole_head: bool) -> None:
        self.whole_head = whole_head

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Check `data`, and return it as it is."""
        if not self.whole_head:
            image = data["image"]
            found = whole_head(image[0].numpy(), voxel_ml(image.affine))
            if found:
                raise BundleError(
                    Finding(
                        str(data["source"]),
                        found,
                        f"a skull-stripped scan: a brain of at most {LARGEST_BRAIN_ML:.0f} ml, and air of one value",
                        "add configs/whole_head.yaml to --config_file, which strips it with brain_mask_unet, or strip "
                        "it with another program; a network trained on heads takes them with --whole_head True",
                    )
                )
        return dict(data)


class N4d(Transform):
    """Bias field correction of `image` (1HWD) by N4 over what is not air, see `bundlekit.images.bias`.

    Air that is 0 stays 0; negative intensities are shifted to 0.

    Args:
        shrink: factor between the image's grid and that of the field.
        iterations: at each of the fitting levels.
    """

    def __init__(self, shrink: int = 4, iterations: Sequence[int] = (30, 30, 20)) -> None:
        self.shrink = shrink
        self.iterations = [int(n) for n in iterations]

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Divide the image by its field."""
        image = data["image"]
        array = as_array(image)[0]
        array = array - min(float(array.min()), 0.0)
        corrected = without_bias_field(array, foreground(array), self.shrink, self.iterations)
        return {**data, "image": like(image, corrected[None])}


class CLAHEd(Transform):
    """Contrast limited adaptive histogram equalisation in 3-D, scikit-image's.

    `image` (1HWD) is brought to 0 to 1 by its 0.5 and 99.5 % percentiles over what is not air; air that is 0 stays 0.
    About 1 s for a brain at 1 mm on one core; larger kernels cost more (64 voxels: 2 s).

    Zuiderveld, Contrast Limited Adaptive Histogram Equalization, Graphics Gems IV, 1994.

    Args:
        clip_limit: strength, from above 0 (hardly any) to 1 (full equalisation); 0 leaves the image as it is.
        kernel_size: voxels along each axis in which the histogram is equalised; None: an eighth of the image.

    Raises:
        ValueError: for a `clip_limit` outside 0 to 1.
    """

    def __init__(self, clip_limit: float = 0.01, kernel_size: int | None = None) -> None:
        if not 0 <= clip_limit <= 1:
            raise ValueError(f"clahe (the clip limit) must be from 0 to 1, got {clip_limit}.")
        self.clip_limit = float(clip_limit)
        self.kernel_size = kernel_size

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Equalise the image."""
        if not self.clip_limit:
            return dict(data)
        image = data["image"]
        array = as_array(image)[0]
        mask = foreground(array)
        low, high = np.percentile(array[mask], PERCENTILES) if mask.any() else (0.0, 1.0)
        scaled = np.clip((array - low) / max(high - low, 1e-6), 0, 1)
        equal = equalize_adapthist(scaled, kernel_size=self.kernel_size, clip_limit=self.clip_limit)
        equal[array == 0] = 0
        return {**data, "image": like(image, equal[None])}


def check_settings(fit: str, clahe: float = 0.0, n4: bool = False, painted: bool = False) -> None:
    """Refuse values that a config does not use, before anything is trained with them in name only.

    Args:
        fit: "resize" or "none".
        clahe: clip limit.
        n4: whether the bias field is corrected.
        painted: whether images are painted from label maps, patch by patch: nothing is done to whole volumes then.

    Raises:
        BundleError: naming the setting, what was given and what is possible.
    """
    if painted and (fit != "none" or clahe or n4):
        raise BundleError("fit, clahe and n4 work on whole scans; a training from label maps has none.")
    if fit not in ("resize", "none"):
        raise BundleError(f"fit is {fit!r}; expected resize or none (to pad, add configs/pad.yaml).")
