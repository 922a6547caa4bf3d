"""Class weights for a loss, from the labels of a data set."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from sklearn.utils.class_weight import compute_class_weight
from tqdm import tqdm

from bundlekit.cases.case import Case
from bundlekit.errors import BundleError, Finding


def count_voxels(
    read: Callable[[Case], np.ndarray], cases: Sequence[Case], n_classes: int = 0, num_workers: int = 4
) -> np.ndarray:
    """Voxels of each class in all labels together; a bar shows how far it is, on a terminal.

    Args:
        read: gives the class indices of a case, whole numbers from 0, of any shape.
        cases: labelled.
        n_classes: background included; 0: up to the highest class that is found.
        num_workers: threads that decode.
    """
    with ThreadPoolExecutor(num_workers) as pool:
        results = pool.map(lambda case: np.bincount(np.asarray(read(case)).astype(int).ravel()), cases)
        found = list(tqdm(results, total=len(cases), desc="class weights", unit="case", disable=None))
    counts = np.zeros(max([n_classes, *map(len, found)]), np.int64)
    for count in found:
        counts[: len(count)] += count
    return counts


def balanced_weights(counts: np.ndarray, names: Sequence[str] = ()) -> np.ndarray:
    """scikit-learn's balanced weights, N / (K n) for N voxels, K classes and n voxels of the class.

    Args:
        counts: voxels of each class.
        names: of the classes, for the message; their numbers where there are none.

    Raises:
        BundleError: if a class has no voxel.
    """
    classes = np.arange(len(counts))
    absent = [names[c] if names else f"class {c}" for c in range(len(counts)) if not counts[c]]
    if absent:
        raise BundleError(
            Finding(
                "class weights",
                f"no voxel of {', '.join(absent)} in the labels",
                "every class in some label",
                "leave that class out, or give --class_weights",
            )
        )
    return compute_class_weight("balanced", classes=classes, y=classes, sample_weight=counts)
