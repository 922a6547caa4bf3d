"""Whether four scans are the modalities that they are given as, and whether they look like known cases.

Of each scan five quantiles between its darkest and its brightest voxels, of each pair the rank correlation over the
brain: 26 numbers, which no linear change of intensities moves. Their mean and covariance over 37 gliomas of BraTS tell
how likely the four scans are in the order in which they are given, and in each of the 23 others.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Hashable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from monai.transforms import Transform
from monai.utils import convert_to_numpy
from scipy.stats import rankdata

from bundlekit.brats.naming import MODALITIES

_STEP = 3  # voxels from one that is looked at to the next, along each axis
_LEAST = 1000  # voxels, below which nothing is said
_MARGIN = 2.0  # squared Mahalanobis distance, by which another order has to be closer
_QUANTILES = (1, 10, 25, 50, 75, 90, 99)
_SHRINKAGE = 0.1  # of the covariance to its diagonal
_ORDERS = list(itertools.permutations(range(len(MODALITIES))))
_FITTED = Path(__file__).with_name("order.json")


class CheckOrderd(Transform):
    """Add what the intensities of four scans tell of them.

    They are `image`: T1, T1ce, T2, FLAIR, 4HWD, 0 outside of the brain, of any linear scale of intensities.

    `missing_modalities`: names of those that are zeros alone, as `fill_missing` makes them; "" where all are there.
    `order_doubt`: in words, which modalities look like others; "" where none does or one is missing.
    `intensity_distance`: squared Mahalanobis distance of the 26 numbers from those of the 37 gliomas; 0 where one is
    missing. Of one of them from the 36 others it is 37 or less but for one (87).
    """

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Look at the scans."""
        doubt, distance = doubts(convert_to_numpy(data["image"]))
        missing = ", ".join(name for name, scan in zip(MODALITIES, data["image"], strict=False) if not scan.any())
        return {**data, "order_doubt": doubt, "intensity_distance": distance, "missing_modalities": missing}


def doubts(image: np.ndarray) -> tuple[str, float]:
    """Which modalities look like others, and how far all are from those of gliomas.

    Args:
        image: as of `CheckOrderd`.

    Returns:
        `order_doubt`, e.g. "the T2 looks like a FLAIR, the FLAIR like a T2", and `intensity_distance`.
    """
    found = measured(image)
    if found is None:
        return "", 0.0
    mean, inverse = _fitted()
    away = [_of_order(*found, order) - mean for order in _ORDERS]
    distances = np.array([part @ inverse @ part for part in away])
    order = _ORDERS[int(distances.argmin())]
    if distances[0] - distances.min() <= _MARGIN:  # the first order is that in which they are given
        return "", float(distances[0])
    pairs = [(given, MODALITIES[like]) for like, given in enumerate(order) if like != given]
    doubt = ", ".join(
        f"the {MODALITIES[given]} {'looks like' if not number else 'like'} a {like}"
        for number, (given, like) in enumerate(sorted(pairs))
    )
    return doubt, float(distances[0])


def measured(image: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """Rank correlations (4x4) and places of quantiles (4x5) of four scans; None where too little is seen of one.

    Args:
        image: as of `CheckOrderd`.
    """
    part = image[(slice(None), *(slice(None, None, _STEP),) * 3)]
    voxels = part[:, (part != 0).all(0)].astype(np.float64)
    if voxels.shape[1] < _LEAST:
        return None
    low, high = np.percentile(voxels, [0.5, 99.5], axis=1)
    voxels = np.clip(voxels, low[:, None], high[:, None])
    quantiles = np.percentile(voxels, _QUANTILES, axis=1)
    spread = quantiles[-1] - quantiles[0]
    if not spread.all():
        return None
    first, tenth, lower, middle, upper, ninetieth, _ = quantiles
    places = [middle - first, tenth - first, ninetieth - first, lower - first, upper - first]
    return np.corrcoef(rankdata(voxels, axis=1)), np.stack(places, 1) / spread[:, None]


def fit(cases: Sequence[tuple[np.ndarray, np.ndarray]]) -> dict[str, list]:
    """What `order.json` holds: `fit([measured(load(case)["image"].numpy()) for case in find_cases(DIR)])`.

    `load` is `LoadCased(with_label=False)`. Cases of which `measured` gives None are left out.

    Args:
        cases: as `measured` gives them, of scans in their own order.
    """
    numbers = np.stack([_of_order(*case, _ORDERS[0]) for case in cases])
    covariance = np.cov(numbers.T)
    covariance = (1 - _SHRINKAGE) * covariance + _SHRINKAGE * np.diag(np.diag(covariance))
    inverse = np.linalg.inv(covariance)
    return {
        "mean": [float(f"{value:.6g}") for value in numbers.mean(0)],
        "inverse": [[float(f"{value:.6g}") for value in row] for row in inverse],
    }


def _of_order(correlations: np.ndarray, places: np.ndarray, order: Sequence[int]) -> np.ndarray:
    """The 26 numbers of the scans in another order."""
    turned = list(order)
    pairs = np.triu_indices(len(turned), 1)
    return np.concatenate([correlations[np.ix_(turned, turned)][pairs], places[turned].ravel()])


@cache
def _fitted() -> tuple[np.ndarray, np.ndarray]:
    held = json.loads(_FITTED.read_text())
    return np.asarray(held["mean"]), np.asarray(held["inverse"])
