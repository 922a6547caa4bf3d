"""The nested regions in which BraTS trains and scores."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from typing import Any

import torch
from monai.data import MetaTensor
from monai.transforms import Transform

NCR, ED, ET = 1, 2, 3  # class indices; of metastases NETC, SNFH, ET
# whole tumour, tumour core, enhancing tumour
REGIONS: dict[str, tuple[int, ...]] = {"WT": (NCR, ED, ET), "TC": (NCR, ET), "ET": (ET,)}
_LEAST = 1e-7  # probability: what single precision tells from 0 beside 1


def regions_of(label: torch.Tensor) -> torch.Tensor:
    """Masks of WT, TC and ET (3HWD uint8) of class indices (1HWD); they nest: ET in TC in WT.

    MONAI's `ConvertToMultiChannelBasedOnBratsClasses` gives TC, WT, ET, of a data set's own label values.
    """
    masks = [torch.stack([label[0] == c for c in classes]).any(dim=0) for classes in REGIONS.values()]
    return torch.stack(masks).to(torch.uint8)


def region_probabilities(logits: torch.Tensor) -> torch.Tensor:
    """Summed softmax of each region's classes, B3HWD in the order WT, TC, ET, of logits of the classes (B4HWD)."""
    return _summed(torch.softmax(logits, dim=1))


def class_logits(regions: torch.Tensor) -> torch.Tensor:
    """Logits of background, NCR, ED and ET (B4HWD) whose summed softmax is `regions`.

    Args:
        regions: probabilities of WT, TC and ET, B3HWD; where they do not nest, the inner one is taken for as much as
            the outer one.
    """
    whole, core, enhancing = regions.unbind(dim=1)
    core = torch.minimum(core, whole)
    enhancing = torch.minimum(enhancing, core)
    classes = torch.stack([1 - whole, core - enhancing, whole - core, enhancing], dim=1)
    return classes.clamp_(min=_LEAST).log_()


def nested_labels(probabilities: torch.Tensor, threshold: float = 0.5) -> torch.Tensor:
    """Class indices (1HWD uint8) of probabilities of WT, TC, ET (3HWD), decided from the outside in.

    A voxel is tumour where WT is above `threshold`, core where TC is too, and enhancing where ET is too.
    """
    whole, core, enhancing = probabilities > threshold
    core = core & whole
    enhancing = enhancing & core
    # 2 ED; 1 NCR within the core, 3 ET within that
    label = whole.to(torch.uint8) * 2 - core.to(torch.uint8) + enhancing.to(torch.uint8) * 2
    return label[None]


def region_labels(logits: torch.Tensor) -> torch.Tensor:
    """Class indices (1HWD uint8) of logits (4HWD) by their regions: `nested_labels` of the summed softmax.

    The most probable class can be the background where tumour is more likely than none: of 0.4 background, 0.3 NCR and
    0.3 ED. Here that is tumour.
    """
    return nested_labels(region_probabilities(torch.as_tensor(logits).float()[None])[0])


def labels_by_region(probabilities: torch.Tensor) -> torch.Tensor:
    """`region_labels` of probabilities of the classes in place of logits: 4HWD, those of a voxel make up 1."""
    return nested_labels(_summed(torch.as_tensor(probabilities).float()[None])[0])


def _summed(classes: torch.Tensor) -> torch.Tensor:
    """Probabilities of WT, TC and ET, B3HWD, of those of the classes (B4HWD)."""
    return torch.stack([classes[:, list(inside)].sum(dim=1) for inside in REGIONS.values()], dim=1)


class RegionProbabilitiesd(Transform):
    """Add `probabilities`: the summed softmax of each region's classes, 3HWD float32 in the order WT, TC, ET.

    Args:
        temperature: that the logits `pred` (NHWD) are divided by, above 0 (Guo et al., On Calibration of Modern Neural
            Networks, ICML 2017). Above 1: less sure.

    Raises:
        ValueError: if `temperature` is not above 0.
    """

    def __init__(self, temperature: float = 1.0) -> None:
        if not 0 < temperature < math.inf:
            raise ValueError(f"temperature must be above 0, got {temperature}.")
        self.temperature = temperature

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Add the probabilities to a copy of `data`, on the grid of the logits."""
        logits = data["pred"]
        regions = region_probabilities(torch.as_tensor(logits).float()[None] / self.temperature)[0]
        return {**data, "probabilities": MetaTensor(regions, meta=dict(getattr(logits, "meta", {})))}
