"""Scores by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from brain_mask_unet.scores import mask_scores


def box(first: int, last: int) -> np.ndarray:
    mask = np.zeros((10, 4, 4), np.uint8)
    mask[first:last] = 1
    return mask


def test_shifted_by_a_slice() -> None:
    scores = mask_scores(box(1, 5), box(2, 6), np.diag([2.0, 1, 1, 1]))
    assert scores["dice_brain"] == pytest.approx(2 * 48 / 128)
    assert scores["sensitivity_brain"] == scores["precision_brain"] == pytest.approx(0.75)
    assert scores["hd95_brain"] == pytest.approx(2.0)
    assert scores["volume_truth_ml"] == scores["volume_pred_ml"] == pytest.approx(64 * 2 / 1000)


def test_volumes_of_a_sheared_grid() -> None:
    sheared = np.eye(4)
    sheared[0, 1] = 0.5  # an edge is longer, no voxel larger
    assert mask_scores(box(1, 5), box(2, 6), sheared)["volume_truth_ml"] == pytest.approx(64 / 1000)


def test_the_rule_for_an_empty_mask() -> None:
    empty, full = box(0, 0), box(0, 10)
    both = mask_scores(empty, empty, np.eye(4))
    assert (both["dice_brain"], both["hd95_brain"]) == (1, 0)
    one = mask_scores(empty, full, np.eye(4))
    assert (one["dice_brain"], one["sensitivity_brain"]) == (0, 0)
    assert one["hd95_brain"] == pytest.approx(math.sqrt(132))
    assert math.isnan(one["precision_brain"])


def test_any_value_above_0_is_brain() -> None:
    assert mask_scores(box(1, 5), box(1, 5) * 24, np.eye(4))["dice_brain"] == 1


def test_another_grid_is_refused() -> None:
    with pytest.raises(ValueError, match="one 3-D grid"):
        mask_scores(box(1, 5), box(1, 5)[1:], np.eye(4))
