"""What is known of the tumour core, put into predictions: it has no holes, and oedema lies around one."""

# One of the modules that the BraTS bundles carry: edit it in tools/vendored/brats/, then `make sync`.
from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import Transform
from monai.utils import convert_to_numpy
from nibabel.affines import voxel_sizes
from scipy import ndimage

from .regions import REGIONS

NCR = 1


class FillCored(Transform):
    """Make what the tumour core encloses on all sides (3-D) part of it: NCR, whatever it was called.

    An enhancing rim has its necrosis within, never oedema or healthy tissue.

    Args:
        enabled: False leaves the prediction as it is.
        key: class indices, 1HWD `MetaTensor`.
    """

    def __init__(self, enabled: bool = True, key: str = "pred") -> None:
        self.enabled = bool(enabled)
        self.key = key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Fill the core."""
        if not self.enabled:
            return dict(data)
        pred = data[self.key]
        filled = fill_core(convert_to_numpy(pred)[0])
        return {**data, self.key: MetaTensor(torch.from_numpy(filled)[None], meta=dict(pred.meta))}


class RemoveCorelessd(Transform):
    """Set components of the whole tumour with less tumour core than a minimum to background.

    Oedema lies around a core, and networks that call bright tissue elsewhere oedema seldom see a core in it. Where no
    component has enough core the largest one stays: its core may have been missed. MONAI's `RemoveSmallObjects` goes
    by the size of a component alone, and false oedema is not small.

    Args:
        minimum_ml: core (NCR and ET) that a 26-connected component must hold, in ml; 0 keeps all.
        key: class indices, 1HWD `MetaTensor` on the scan's own grid.

    Raises:
        ValueError: if `minimum_ml` is negative or not finite.
    """

    def __init__(self, minimum_ml: float, key: str = "pred") -> None:
        if not (math.isfinite(minimum_ml) and minimum_ml >= 0):
            raise ValueError(f"minimum_core_ml must be a number of 0 or more, got {minimum_ml}.")
        self.minimum_ml = float(minimum_ml)
        self.key = key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Clean the prediction."""
        if not self.minimum_ml:
            return dict(data)
        pred = data[self.key]
        spacing = voxel_sizes(convert_to_numpy(pred.affine))  # the image may be on another grid
        kept = remove_coreless(convert_to_numpy(pred)[0], self.minimum_ml, float(spacing.prod()))
        return {**data, self.key: MetaTensor(torch.from_numpy(kept)[None], meta=dict(pred.meta))}


def fill_core(labels: np.ndarray) -> np.ndarray:
    """A copy of a class map HWD in which all that NCR and ET enclose (face neighbours lead out of a hole) is NCR or ET.

    Args:
        labels: class indices as in `regions`, 0 is background.
    """
    filled = labels.copy()
    core = np.isin(labels, REGIONS["TC"])
    box = ndimage.find_objects(core.view(np.uint8))
    if box:  # a hole does not leave the box
        inside = filled[box[0]]
        inside[ndimage.binary_fill_holes(core[box[0]]) & ~core[box[0]]] = NCR
    return filled


def remove_coreless(labels: np.ndarray, minimum_ml: float, voxel_mm3: float) -> np.ndarray:
    """A copy of a class map HWD without the tumour components that hold less core than `minimum_ml`.

    Args:
        labels: class indices as in `regions`, 0 is background.
        minimum_ml: volume of NCR and ET together, in ml; the largest component stays if none holds as much.
        voxel_mm3: volume of a voxel, in mm3.
    """
    kept = labels.copy()
    box = ndimage.find_objects((labels != 0).view(np.uint8))
    if not box:
        return kept
    inside = kept[box[0]]
    numbers, n = ndimage.label(inside != 0, np.ones((3, 3, 3)))
    core = np.bincount(numbers[np.isin(inside, REGIONS["TC"])], minlength=n + 1)
    keep = core * (voxel_mm3 / 1000) >= minimum_ml - 1e-9  # headers hold 32-bit numbers
    keep[0] = False  # the background's number
    if not keep.any():
        keep[1 + np.bincount(numbers.ravel())[1:].argmax()] = True
    inside[~keep[numbers]] = 0
    return kept
