"""Balanced weights from counted voxels."""

from __future__ import annotations

import numpy as np
import pytest

from bundlekit.class_weights import balanced_weights, count_voxels
from bundlekit.errors import BundleError


def test_voxels_are_counted_over_all_labels() -> None:
    labels = {"a": np.array([[0, 0, 1]]), "b": np.array([2.0, 0.0])}
    cases = [{"case": name} for name in labels]
    assert count_voxels(lambda case: labels[case["case"]], cases).tolist() == [3, 1, 1]
    assert count_voxels(lambda case: labels[case["case"]], cases, n_classes=5).tolist() == [3, 1, 1, 0, 0]


def test_balanced_by_hand() -> None:
    """8 voxels, 3 classes: 8 / (3 * 4), 8 / (3 * 2), 8 / (3 * 2)."""
    assert balanced_weights(np.array([4, 2, 2])).tolist() == [8 / 12, 8 / 6, 8 / 6]


def test_a_class_without_voxels_is_named() -> None:
    with pytest.raises(BundleError, match="no voxel of spleen in the labels"):
        balanced_weights(np.array([4, 0, 2]), ["background", "spleen", "liver"])
    with pytest.raises(BundleError, match="no voxel of class 1"):
        balanced_weights(np.array([4, 0]))
