"""From the network's logits to probabilities, label map and masks."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import torch
from monai.data import MetaTensor
from monai.transforms import Transform

from bundlekit.brats.regions import REGIONS, nested_labels
from bundlekit.inference.windows import argmax_labels

from .network import TARGETS


class ProbabilitiesOfd(Transform):
    """Probabilities in place of the logits `pred` (NHWD), on their grid: these may be interpolated, labels may not.

    Args:
        target: "regions": sigmoid of WT, TC, ET; "classes": softmax of background, NCR, ED, ET.
    """

    def __init__(self, target: str) -> None:
        if target not in TARGETS:
            raise ValueError(f"target must be one of {', '.join(TARGETS)}, got {target!r}.")
        self.target = target

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Replace the logits."""
        logits = data["pred"]
        plain = torch.as_tensor(logits).float()
        out = plain.sigmoid() if self.target == "regions" else plain.softmax(dim=0)
        return {**data, "pred": MetaTensor(out, meta=dict(logits.meta)) if isinstance(logits, MetaTensor) else out}


class DecideLabelsd(Transform):
    """One label map (1HWD class indices) in place of the probabilities `pred` (NHWD).

    Regions are decided from the outside in: a voxel is tumour where WT is above `threshold`, core where TC is too, and
    enhancing where ET is too; so that ET lies in TC and TC in WT, whatever the three channels say. Classes: the most
    probable one. What lies outside the brain's box has no probability at all and is background.

    Args:
        target: as in `ProbabilitiesOfd`.
        threshold: of the regions, above 0 and below 1.
        keep: whether to add `probabilities` of WT, TC and ET (3HWD), as they are.

    Raises:
        ValueError: for a threshold outside 0 to 1.
    """

    def __init__(self, target: str, threshold: float = 0.5, keep: bool = False) -> None:
        if not 0 < threshold < 1:
            raise ValueError(f"threshold must be above 0 and below 1, got {threshold}.")
        self.target = target
        self.threshold = float(threshold)
        self.keep = keep

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Replace the probabilities."""
        given = data["pred"]
        p = torch.as_tensor(given)
        meta = dict(getattr(given, "meta", {}))
        result = {**data}
        if self.target == "classes":
            label = argmax_labels(p)
            regions = [p[list(classes)].sum(dim=0) for classes in REGIONS.values()] if self.keep else []
        else:
            label = nested_labels(p, self.threshold)
            regions = list(p)
        if self.keep:
            result["probabilities"] = MetaTensor(torch.stack(regions), meta=dict(meta))
        return result | {"pred": MetaTensor(label, meta=meta)}
