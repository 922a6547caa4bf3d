"""The nested regions in which BraTS trains and scores."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.data import MetaTensor
from monai.transforms import Transform

# class indices 1 NCR (of metastases: NETC), 2 ED (SNFH), 3 ET; whole tumour, tumour core, enhancing tumour
REGIONS: dict[str, tuple[int, ...]] = {"WT": (1, 2, 3), "TC": (1, 3), "ET": (3,)}


def regions_of(label: torch.Tensor) -> torch.Tensor:
    """Masks of WT, TC and ET (3HWD uint8) of class indices (1HWD); they nest: ET in TC in WT.

    MONAI's `ConvertToMultiChannelBasedOnBratsClasses` gives TC, WT, ET, of a data set's own label values.
    """
    masks = [torch.stack([label[0] == c for c in classes]).any(dim=0) for classes in REGIONS.values()]
    return torch.stack(masks).to(torch.uint8)


def region_output(region: str) -> Callable[[Sequence[Mapping[str, torch.Tensor]]], tuple[list, list]]:
    """Output transform of an Ignite metric: the region's channel of `pred` and `label` (each 3HWD) of every item."""
    channel = list(REGIONS).index(region)

    def pick(output: Sequence[Mapping[str, torch.Tensor]]) -> tuple[list, list]:
        pred, label = ([item[key][channel : channel + 1] for item in output] for key in ("pred", "label"))
        return pred, label

    return pick


class RegionProbabilitiesd(Transform):
    """Add `probabilities`: the summed softmax of each region's classes, 3HWD float32 in the order WT, TC, ET.

    Args:
        key: logits, NHWD.
        temperature: that the logits are divided by, above 0 (Guo et al., On Calibration of Modern Neural Networks, ICML
            2017). Above 1: less sure.

    Raises:
        ValueError: if `temperature` is not above 0.
    """

    def __init__(self, key: str = "pred", temperature: float = 1.0) -> None:
        if not 0 < temperature < math.inf:
            raise ValueError(f"temperature must be above 0, got {temperature}.")
        self.key = key
        self.temperature = temperature

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Add the probabilities to a copy of `data`, on the grid of the logits."""
        logits = data[self.key]
        softmax = torch.softmax(torch.as_tensor(logits).float() / self.temperature, dim=0)
        regions = torch.stack([softmax[list(classes)].sum(dim=0) for classes in REGIONS.values()])
        return {**data, "probabilities": MetaTensor(regions, meta=dict(getattr(logits, "meta", {})))}
