"""What is known of the tumour core, put into predictions: no holes, oedema around it, enhancement at it."""

from __future__ import annotations

import logging
import math
from collections.abc import Hashable, Mapping
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


class _Cleaning(Transform):
    """Replace `pred` by what `_clean` makes of it: class indices, 1HWD `MetaTensor` on the scan's own grid."""

    setting: float  # 0 or False: the prediction stays as it is
    region = "WT"  # in whose box `_clean` works

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Clean the prediction."""
        if not self.setting:
            return dict(data)
        pred = data["pred"]
        labels = convert_to_numpy(pred)[0].copy()
        box = ndimage.find_objects(np.isin(labels, REGIONS[self.region]).view(np.uint8))
        if box:
            self._clean(labels[box[0]], voxel_ml(pred.affine))
        return {**data, "pred": MetaTensor(torch.from_numpy(labels)[None], meta=dict(pred.meta))}

    def _clean(self, labels: np.ndarray, voxel_ml: float) -> None:
        """Change classes in place.

        Args:
            labels: class indices as in `regions`, HWD, in the box around `region`; 0 is background.
            voxel_ml: volume of a voxel, in ml.
        """
        raise NotImplementedError


class FillCored(_Cleaning):
    """Make what the tumour core encloses on all sides (3-D) part of it: NCR, whatever it was called.

    An enhancing rim has its necrosis within, never oedema or healthy tissue. MONAI's `FillHoles` takes one class at a
    time: what NCR and ET enclose together stays a hole, and what ET encloses becomes ET.

    Args:
        enabled: False leaves the prediction as it is.

    Raises:
        ValueError: if `enabled` is neither True nor False.
    """

    region = "TC"

    def __init__(self, enabled: bool = True) -> None:
        if not isinstance(enabled, bool):
            raise ValueError(f"fill_core must be true or false, got {enabled!r}.")
        self.setting = enabled

    def _clean(self, labels: np.ndarray, voxel_ml: float) -> None:
        core = np.isin(labels, REGIONS["TC"])
        labels[ndimage.binary_fill_holes(core) & ~core] = NCR  # face neighbours lead out of a hole


class RelabelUnenhancedd(_Cleaning):
    """In a tumour that enhances, make 26-connected parts of the core without any enhancement oedema.

    A core that does not enhance at all is that of a low-grade glioma; beside one that does, it is oedema or healthy
    tissue that looks like necrosis.

    Args:
        minimum_ml: a case with this much ET or more enhances, in ml; 0 leaves every prediction as it is.

    Raises:
        ValueError: if `minimum_ml` is negative or not finite.
    """

    region = "TC"

    def __init__(self, minimum_ml: float) -> None:
        self.setting = _volume("minimum_enhancing_ml", minimum_ml)

    def _clean(self, labels: np.ndarray, voxel_ml: float) -> None:
        if np.count_nonzero(labels == ET) * voxel_ml < self.setting * _NEARLY:
            return
        numbers, n = components(np.isin(labels, REGIONS["TC"]))
        enhances = np.bincount(numbers[labels == ET], minlength=n + 1) > 0
        labels[(numbers > 0) & ~enhances[numbers]] = ED


class RemoveCorelessd(_Cleaning):
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
        self.setting = _volume("minimum_core_ml", minimum_ml)

    def _clean(self, labels: np.ndarray, voxel_ml: float) -> None:
        numbers, n = components(labels)
        core = np.bincount(numbers[np.isin(labels, REGIONS["TC"])], minlength=n + 1)
        kept = core * voxel_ml >= self.setting * _NEARLY
        if not kept.any():
            kept[np.bincount(numbers[numbers > 0]).argmax()] = True
        labels[~kept[numbers]] = 0


class RemoveSmallPartsd(_Cleaning):
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
        self.setting = float(minimum_share)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Clean the prediction, and tell what is gone."""
        cleaned = super().__call__(data)
        if not self.setting:
            return cleaned
        before, after = (convert_to_numpy(item["pred"]) for item in (data, cleaned))
        gone = before[after != before]
        removed_ml = len(gone) * voxel_ml(data["pred"].affine)
        enhancing_ml = int((gone == ET).sum()) * voxel_ml(data["pred"].affine)
        if removed_ml:
            told = f"{removed_ml:.2f} ml apart from the largest part of the tumour removed"
            told += f", {enhancing_ml:.2f} ml of it enhancing" if enhancing_ml else ""
            told += f", in parts below {self.setting:g} of it; --minimum_share 0 keeps them"
            level = logging.WARNING if enhancing_ml else logging.INFO
            _log.log(level, "%s: %s", data.get("case", "the mask"), told)
        return {**cleaned, "removed_ml": removed_ml}

    def _clean(self, labels: np.ndarray, voxel_ml: float) -> None:
        numbers, _ = components(labels)
        sizes = np.bincount(numbers[numbers > 0])
        labels[(sizes < self.setting * sizes.max())[numbers]] = 0


class RelabelSmallComponentsd(_Cleaning):
    """Make components of TC that are smaller than a minimum ED, and those of ET within the core NCR.

    Lesion-wise scores count each of them as a lesion. MONAI's `RemoveSmallObjects` makes them background, a hole in the
    tumour. A region that has no larger component is left as it is; ET in a small component of TC goes with it.

    Args:
        minimum_ml: volume that a 26-connected component of the region must have, in ml; 0 leaves every prediction.

    Raises:
        ValueError: if `minimum_ml` is negative or not finite.
    """

    region = "TC"

    def __init__(self, minimum_ml: float) -> None:
        self.setting = _volume("minimum_component_ml", minimum_ml)

    def _clean(self, labels: np.ndarray, voxel_ml: float) -> None:
        minimum_voxels = math.ceil(self.setting / voxel_ml * _NEARLY)
        for region, instead in (("TC", ED), ("ET", NCR)):
            mask = np.isin(labels, REGIONS[region])
            large = large_components(mask, minimum_voxels)
            if large.any():
                labels[mask & ~large] = instead


def _volume(name: str, value: float) -> float:
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"{name} must be a number of 0 or more, got {value}.")
    return float(value)
