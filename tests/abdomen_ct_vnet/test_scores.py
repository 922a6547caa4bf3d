"""Scores on boxes that can be counted by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from abdomen_ct_vnet.organs import UPSTREAM_ORGANS
from abdomen_ct_vnet.scores import case_scores, nsd, tolerances_of

TOLERANCES = {"a": 1.0, "b": 1.0}
ONE_MM = (1.0, 1.0, 1.0)


def empty() -> np.ndarray:
    return np.zeros((10, 10, 10), np.uint8)


def test_perfect() -> None:
    truth = empty()
    truth[2:4], truth[6:8] = 1, 2
    scores = case_scores(truth.copy(), truth, (1, 1, 2), TOLERANCES, np.ones_like(truth))
    for name in "ab":
        assert [scores[f"{key}_{name}"] for key in ("dice", "iou", "iou50", "nsd", "hd95")] == [1, 1, 1, 1, 0]
        assert scores[f"volume_truth_ml_{name}"] == pytest.approx(200 * 2 / 1000)
    assert [scores[key] for key in ("mean_iou", "mean_iou_organs", "mean_iou50", "accuracy")] == [1, 1, 1, 1]
    assert scores["accuracy_of_empty_mask"] == pytest.approx(0.6)


def test_a_shift_counted_by_hand() -> None:
    truth, pred = empty(), empty()
    truth[2:6, 2:6, 2:6] = 1
    pred[3:7, 2:6, 2:6] = 1
    scores = case_scores(pred, truth, (3, 1, 1), TOLERANCES)
    assert scores["dice_a"] == pytest.approx(2 * 48 / 128)
    assert scores["iou_a"] == pytest.approx(48 / 80)
    assert scores["hd95_a"] == pytest.approx(3)
    assert scores["accuracy"] == pytest.approx(1 - 32 / 1000)
    assert scores["mean_iou"] == pytest.approx((48 / 80 + 1 + 920 / 952) / 3)
    assert scores["mean_iou_organs"] == pytest.approx((48 / 80 + 1) / 2)
    assert math.isnan(scores["iou50_a"])
    assert math.isnan(scores["mean_iou50"])


def test_iou_at_one_half_counts_only_sure_voxels() -> None:
    truth, pred, sure = empty(), empty(), np.ones((10, 10, 10), np.uint8)
    truth[:2], pred[:2] = 1, 1
    sure[0], sure[9] = 0, 0  # half of the class, and a tenth of the image of the background
    scores = case_scores(pred, truth, ONE_MM, TOLERANCES, sure)
    assert scores["iou_a"] == 1
    assert scores["iou50_a"] == pytest.approx(0.5)
    assert scores["iou50_b"] == 1
    assert scores["mean_iou50"] == pytest.approx((700 / 800 + 0.5 + 1) / 3)


def test_surface_dice_at_its_tolerance() -> None:
    truth, pred = np.zeros((2, 12, 12, 12), bool)
    truth[2:6, 2:6, 2:6] = True
    pred[3:7, 2:6, 2:6] = True
    assert nsd(pred, truth, (2, 1, 1), 2.0) == 1
    # a cube of 4^3 has 56 surface voxels; 14 of each are 2 mm off the other's surface: its outer face but for what ...
    strict = nsd(pred, truth, (2, 1, 1), 0.5)
    edges_truth = truth & ~np.pad(truth[3:5, 3:5, 3:5], ((3, 7), (3, 7), (3, 7)))
    edges_pred = pred & ~np.pad(pred[4:6, 3:5, 3:5], ((4, 6), (3, 7), (3, 7)))
    shared = int((edges_truth & edges_pred).sum())
    assert strict == pytest.approx(2 * shared / int(edges_truth.sum() + edges_pred.sum()))
    assert nsd(truth, truth, (2, 1, 1), 0.0) == 1


def test_a_mask_at_the_border_of_the_image_has_a_surface_there() -> None:
    mask = np.ones((4, 4, 4), bool)
    assert nsd(mask, mask, ONE_MM, 1) == 1


def test_empty_classes() -> None:
    truth, pred = empty(), empty()
    truth[2:4] = 1
    scores = case_scores(pred, truth, ONE_MM, TOLERANCES, np.ones_like(pred))
    assert [scores[f"{key}_a"] for key in ("dice", "iou", "iou50", "nsd")] == [0, 0, 0, 0]
    assert scores["hd95_a"] == pytest.approx(math.sqrt(300))
    assert [scores[f"{key}_b"] for key in ("dice", "iou", "iou50", "nsd", "hd95")] == [1, 1, 1, 1, 0]
    assert scores["accuracy"] == scores["accuracy_of_empty_mask"] == pytest.approx(0.8)


def test_tolerances() -> None:
    assert tolerances_of(UPSTREAM_ORGANS) == {"liver": 5, "kidneys": 3, "spleen": 3}
    assert tolerances_of(UPSTREAM_ORGANS, 1.5) == {"liver": 1.5, "kidneys": 1.5, "spleen": 1.5}


def test_wrong_input() -> None:
    with pytest.raises(ValueError, match="share one 3-D grid"):
        case_scores(empty()[:5], empty(), ONE_MM, TOLERANCES)
    with pytest.raises(ValueError, match="classes 0 to 2 only"):
        case_scores(empty() + 3, empty(), ONE_MM, TOLERANCES)
