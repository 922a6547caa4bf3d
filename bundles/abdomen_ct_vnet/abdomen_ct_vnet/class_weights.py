"""Class weights for the loss, given or derived from the labels of the cases that train."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from bundlekit.cases.case import Case
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
        rule: "balanced": N / (K n) for N voxels, K classes and n voxels of the class, as `python -m tools weights`
            prints them; "sqrt": the square root of that, milder where an organ is a ten-thousandth of the volume.

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
                    "give one for each, or --class_weights null to derive them from the training labels",
                )
            )
        return [float(w) for w in weights]
    if not cases:
        return [1.0] * len(names)
    with ThreadPoolExecutor(4) as pool:
        found_in = list(pool.map(lambda case: np.bincount(read_label(case)[0].ravel(), minlength=len(names)), cases))
    counts = np.sum(found_in, axis=0)
    absent = [name for name, count in zip(names, counts, strict=True) if not count]
    if absent:
        raise BundleError(
            Finding(
                "--class_weights",
                f"no voxel of {', '.join(absent)} in the {len(cases)} training label(s)",
                "every class in some label",
                "leave that class out of --organs, or give --class_weights",
            )
        )
    balanced = counts.sum() / (len(names) * counts)
    found = [float(f"{w:.4g}") for w in (balanced if rule == "balanced" else np.sqrt(balanced))]
    _log.info("class weights (%s): %s", rule, ", ".join(f"{n} {w:g}" for n, w in zip(names, found, strict=True)))
    return found
