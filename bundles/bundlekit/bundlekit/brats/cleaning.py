"""What is known of the tumour core, put into predictions: no holes, oedema around it, enhancement at it.

The transforms take `pred`: class indices, 1HWD `MetaTensor` on the scan's own grid.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Hashable, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import Transform
from monai.utils import convert_to_numpy
from scipy import ndimage

from bundlekit.brats.regions import ED, ET, NCR, REGIONS
from bundlekit.images.components import components, large_components
from bundlekit.images.nifti import voxel_ml

_log = logging.getLogger(__name__)

_NEARLY = 1 - 1e-6  # headers hold 32-bit numbers: 50 voxels of 0.9999998 mm3 are 0.05 ml


class FillCored(Transform):
    """Make what the tumour core encloses on all sides (3-D) part of it: NCR, whatever it was called.

    An enhancing rim has its necrosis within, never oedema or healthy tissue. MONAI's `FillHoles` takes one class at a
    time: what NCR and ET enclose together stays a hole, and what ET encloses becomes ET.

    Args:
        enabled: False leaves the prediction as it is.

    Raises:
        ValueError: if `enabled` is neither True nor False.
    """

    def __init__(self, enabled: bool = True) -> None:
        if not isinstance(enabled, bool):
            raise ValueError(f"fill_core must be true or false, got {enabled!r}.")
        self.enabled = enabled

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Fill the core."""
        if not self.enabled:
            return dict(data)
        pred = data["pred"]
        return {**data, "pred": _like(pred, fill_core(convert_to_numpy(pred)[0]))}


class RelabelUnenhancedd(Transform):
    """In a tumour that enhances, make parts of the core without any enhancement oedema.

    A core that does not enhance at all is that of a low-grade glioma; beside one that does, it is oedema or healthy
    tissue that looks like necrosis.

    Args:
        minimum_ml: a case with this much ET or more enhances, in ml; 0 leaves every prediction as it is.

    Raises:
        ValueError: if `minimum_ml` is negative or not finite.
    """

    def __init__(self, minimum_ml: float) -> None:
        self.minimum_ml = _volume("minimum_enhancing_ml", minimum_ml)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Relabel the prediction."""
        pred = data["pred"]
        if not self.minimum_ml or int((pred == ET).sum()) * voxel_ml(pred.affine) < self.minimum_ml * _NEARLY:
            return dict(data)
        return {**data, "pred": _like(pred, relabel_unenhanced(convert_to_numpy(pred)[0]))}


class RemoveCorelessd(Transform):
    """Set components of the whole tumour with less tumour core than a minimum to background.

    Oedema lies around a core, and networks that call bright tissue elsewhere oedema seldom see a core in it. Where no
    component has enough core the largest one stays: its core may have been missed. MONAI's `RemoveSmallObjects` goes
    by the size of a component alone, and false oedema is not small.

    Args:
        minimum_ml: core (NCR and ET) that a 26-connected component must hold, in ml; 0 keeps all.

    Raises:
        ValueError: if `minimum_ml` is negative or not finite.
    """

    def __init__(self, minimum_ml: float) -> None:
        self.minimum_ml = _volume("minimum_core_ml", minimum_ml)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Clean the prediction."""
        if not self.minimum_ml:
            return dict(data)
        pred = data["pred"]
        return {
            **data,
            "pred": _like(pred, remove_coreless(convert_to_numpy(pred)[0], self.minimum_ml, voxel_ml(pred.affine))),
        }


class RemoveSmallPartsd(Transform):
    """Set components of the whole tumour that are small beside the largest to background, and say so.

    A glioma is mostly one mass; a small part that a network finds apart from it, near or far, is mostly false, and one
    far away moves HD95 by centimetres. MONAI's `RemoveSmallObjects` goes by one size for all cases,
    `KeepLargestConnectedComponent` by a number of components: neither keeps the lesions of a tumour with several
    centres.

    Adds `removed_ml`: what is gone, in ml. Where enhancing tumour is among it, which a second lesion may be, the log
    warns.

    Args:
        minimum_share: of the largest 26-connected component, 0 to 1; smaller ones go. 0 keeps all.

    Raises:
        ValueError: if `minimum_share` is outside 0..1.
    """

    def __init__(self, minimum_share: float) -> None:
        if not 0 <= minimum_share <= 1:
            raise ValueError(f"minimum_share must be from 0 to 1, got {minimum_share}.")
        self.minimum_share = float(minimum_share)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Clean the prediction."""
        if not self.minimum_share:
            return dict(data)
        pred = data["pred"]
        labels = convert_to_numpy(pred)[0]
        kept = remove_small_parts(labels, self.minimum_share)
        removed_ml = float(np.count_nonzero(labels) - np.count_nonzero(kept)) * voxel_ml(pred.affine)
        if removed_ml:
            enhancing_ml = float(np.count_nonzero((labels == ET) & (kept == 0))) * voxel_ml(pred.affine)
            told = f"{removed_ml:.2f} ml apart from the largest part of the tumour removed"
            told += f", {enhancing_ml:.2f} ml of it enhancing" if enhancing_ml else ""
            told += f", in parts below {self.minimum_share:g} of it; --minimum_share 0 keeps them"
            level = logging.WARNING if enhancing_ml else logging.INFO
            _log.log(level, "%s: %s", data.get("case", "the mask"), told)
        return {**data, "pred": _like(pred, kept), "removed_ml": removed_ml}


class RelabelSmallComponentsd(Transform):
    """Make components of TC that are smaller than a minimum ED, and those of ET within the core NCR.

    Lesion-wise scores count each of them as a lesion. MONAI's `RemoveSmallObjects` makes them background, a hole in the
    tumour. A region that has no larger component is left as it is; ET in a small component of TC goes with it.

    Args:
        minimum_ml: volume that a 26-connected component of the region must have, in ml; 0 leaves every prediction.

    Raises:
        ValueError: if `minimum_ml` is negative or not finite.
    """

    def __init__(self, minimum_ml: float) -> None:
        self.minimum_ml = _volume("minimum_component_ml", minimum_ml)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Relabel the prediction."""
        pred = data["pred"]
        minimum = math.ceil(self.minimum_ml / voxel_ml(pred.affine) * _NEARLY) if self.minimum_ml else 0
        if minimum <= 1:
            return dict(data)
        return {**data, "pred": _like(pred, relabel_small_components(convert_to_numpy(pred)[0], minimum))}


def relabel_small_components(labels: np.ndarray, minimum_voxels: int) -> np.ndarray:
    """A copy of a class map HWD whose small components of TC are ED, and those of ET within the rest of TC are NCR.

    Args:
        labels: class indices as in `regions`, 0 is background.
        minimum_voxels: components of fewer are small; a region of small ones alone is left as it is, but ET in a small
            component of TC goes with it.
    """
    relabelled = labels.copy()
    box = ndimage.find_objects(np.isin(labels, REGIONS["TC"]).view(np.uint8))
    for region, instead in (("TC", ED), ("ET", NCR)) if box else ():
        inside = relabelled[box[0]]
        mask = np.isin(inside, REGIONS[region])
        large = large_components(mask, minimum_voxels)
        if large.any():
            inside[mask & ~large] = instead
    return relabelled


def fill_core(labels: np.ndarray) -> np.ndarray:
    """A copy of a class map HWD in which all that NCR and ET enclose (face neighbours lead out of a hole) becomes NCR.

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


def relabel_unenhanced(labels: np.ndarray) -> np.ndarray:
    """A copy of a class map HWD in which 26-connected components of the core without ET are oedema.

    Args:
        labels: class indices as in `regions`, 0 is background.
    """
    relabelled = labels.copy()
    box = ndimage.find_objects(np.isin(labels, REGIONS["TC"]).view(np.uint8))
    if box:
        inside = relabelled[box[0]]
        numbers, n = components(np.isin(inside, REGIONS["TC"]))
        enhances = np.bincount(numbers[inside == ET], minlength=n + 1) > 0
        inside[(numbers > 0) & ~enhances[numbers]] = ED
    return relabelled


def remove_coreless(labels: np.ndarray, minimum_ml: float, voxel_ml: float) -> np.ndarray:
    """A copy of a class map HWD without the tumour components that hold less core than `minimum_ml`.

    Args:
        labels: class indices as in `regions`, 0 is background.
        minimum_ml: volume of NCR and ET together, in ml; the largest component stays if none holds as much.
        voxel_ml: volume of a voxel, in ml.
    """
    return _without_parts(labels, partial(_has_core, minimum_ml=minimum_ml, voxel_ml=voxel_ml))


def remove_small_parts(labels: np.ndarray, minimum_share: float) -> np.ndarray:
    """A copy of a class map HWD without the tumour components smaller than a share of the largest.

    Args:
        labels: class indices as in `regions`, 0 is background.
        minimum_share: 0 to 1; the largest always stays.
    """
    return _without_parts(labels, lambda _, numbers, sizes: sizes >= minimum_share * sizes.max())


def _without_parts(labels: np.ndarray, keep: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]) -> np.ndarray:
    """A copy of a class map HWD with only those 26-connected components of the whole tumour that `keep` says.

    Args:
        labels: class indices, 0 is background.
        keep: from the classes, the components' numbers 1 to N (0 is background), and their N sizes in voxels, whether
            each of the N is kept.
    """
    kept = labels.copy()
    box = ndimage.find_objects((labels != 0).view(np.uint8))
    if box:
        inside = kept[box[0]]
        numbers, n = components(inside)
        sizes = np.bincount(numbers.ravel(), minlength=n + 1)[1:]
        inside[~np.concatenate([[False], keep(inside, numbers, sizes)])[numbers]] = 0
    return kept


def _has_core(
    inside: np.ndarray, numbers: np.ndarray, sizes: np.ndarray, minimum_ml: float, voxel_ml: float
) -> np.ndarray:
    """Whether a component holds enough core; where none does, whether it is the largest."""
    core = np.bincount(numbers[np.isin(inside, REGIONS["TC"])], minlength=len(sizes) + 1)[1:]
    enough = core * voxel_ml >= minimum_ml * _NEARLY
    return enough if enough.any() else np.arange(len(sizes)) == sizes.argmax()


def _volume(name: str, value: float) -> float:
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"{name} must be a number of 0 or more, got {value}.")
    return float(value)


def _like(pred: MetaTensor, labels: np.ndarray) -> MetaTensor:
    return MetaTensor(torch.from_numpy(labels)[None], meta=dict(pred.meta))
