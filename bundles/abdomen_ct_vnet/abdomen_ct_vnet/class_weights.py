"""Class weights for the loss, given or derived from the labels of the cases that train."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np

from bundlekit.cases.case import Case
from bundlekit.class_weights import balanced_weights, count_voxels
from bundlekit.errors import BundleError, Finding

from .organs import Classes
from .reading import read_label

_log = logging.getLogger(__name__)


def class_weights_of(
    weights: Sequence[float] | None, classes: Classes, cases: Sequence[Case], rule: str = "balanced"
) -> list[float]:
    """Weights of background and the classes.

    Args:
        weights: as set, background first; None: derived from the labels of `cases`.
        classes: of the network.
        cases: that train. Without any, and without weights, all are 1, so that a pipeline can be inspected without
            data.
        rule: "balanced": see `bundlekit.class_weights.balanced_weights`; "sqrt": the square root of that, milder where
            an organ is a ten-thousandth of the volume.

    Raises:
        BundleError: for another number of weights than classes, another rule, or a class that is in no label.
    """
    if rule not in ("balanced", "sqrt"):
        raise BundleError(f"weight_rule is {rule!r}; expected balanced or sqrt.")
    names = ["background", *classes]
    if weights is not None:
        if len(weights) != len(names):
            raise BundleError(
                Finding(
                    "--class_weights",
                    f"{len(weights)} value(s)",
                    f"{len(names)}: {', '.join(names)}",
                    "give one for each, or --class_weights '$None' to derive them from the training labels",
                )
            )
        return [float(w) for w in weights]
    if not cases:
        return [1.0] * len(names)
    counts = count_voxels(lambda case: read_label(case)[0], cases, len(names))
    balanced = balanced_weights(counts, names)
    found = [float(f"{w:.4g}") for w in (balanced if rule == "balanced" else np.sqrt(balanced))]
    _log.info("class weights (%s): %s", rule, ", ".join(f"{n} {w:g}" for n, w in zip(names, found, strict=True)))
    return found
