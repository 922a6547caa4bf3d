"""Tissue scores on boxes that can be counted by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from brain_tissue_vnet.scores import tissue_scores
from bundlekit.label_maps.numberings import CSF, CSF_OR_GM, GM, IGNORE, WM

ONE_MM = np.eye(4)


def empty() -> np.ndarray:
    return np.zeros((10, 10, 10), np.uint8)


def test_perfect() -> None:
    truth = empty()
    truth[2:4], truth[4:6], truth[6:8] = CSF, GM, WM
    scores = tissue_scores(truth.copy(), truth, np.diag([1, 1, 2, 1.0]))
    for name in ("CSF", "GM", "WM"):
        assert (scores[f"dice_{name}"], scores[f"hd95_{name}"], scores[f"sensitivity_{name}"]) == (1, 0, 1)
        assert scores[f"volume_truth_ml_{name}"] == pytest.approx(200 * 2 / 1000)
        assert scores[f"volume_difference_ml_{name}"] == 0
    assert scores["union_dice_CSF_GM"] == 1
    assert scores["ignored_ml"] == 0


def test_a_shift_in_millimetres() -> None:
    truth, pred = empty(), empty()
    truth[2:6, 2:6, 2:6] = WM
    pred[3:7, 2:6, 2:6] = WM
    scores = tissue_scores(pred, truth, np.diag([3, 1, 1, 1.0]))
    assert scores["dice_WM"] == pytest.approx(2 * 48 / 128)
    assert scores["hd95_WM"] == pytest.approx(3)
    assert scores["sensitivity_WM"] == pytest.approx(0.75)
    assert scores["volume_truth_ml_WM"] == pytest.approx(64 * 3 / 1000)


def test_empty_classes() -> None:
    truth, pred = empty(), empty()
    truth[2:4] = GM
    pred[5:6] = CSF
    scores = tissue_scores(pred, truth, ONE_MM)
    diagonal = math.sqrt(300)
    assert (scores["dice_WM"], scores["hd95_WM"]) == (1, 0)
    assert (scores["dice_GM"], scores["hd95_GM"]) == (0, pytest.approx(diagonal))
    assert (scores["dice_CSF"], scores["hd95_CSF"]) == (0, pytest.approx(diagonal))
    assert math.isnan(scores["sensitivity_WM"])
    assert math.isnan(scores["sensitivity_CSF"])
    assert scores["sensitivity_GM"] == 0


def test_voxels_whose_label_cannot_say_count_for_no_class() -> None:
    truth = empty()
    truth[:, :, :2], truth[:, :, 2:4], truth[:, :, 4:6], truth[:, :, 6:8] = WM, GM, CSF_OR_GM, IGNORE
    pred = np.where(truth >= CSF_OR_GM, 0, truth)
    base = tissue_scores(pred, truth, ONE_MM)
    for wrong in (CSF, GM, WM):
        other = np.where(truth == IGNORE, wrong, pred)
        assert tissue_scores(other, truth, ONE_MM) == pytest.approx(base, nan_ok=True)
    assert base["ignored_ml"] == pytest.approx(0.4)
    assert base["dice_GM"] == base["dice_WM"] == base["dice_CSF"] == 1


def test_white_matter_claimed_in_the_cortex_is_wrong() -> None:
    truth, pred = empty(), empty()
    truth[2:4], truth[4:8] = WM, CSF_OR_GM
    pred[2:6] = WM
    scores = tissue_scores(pred, truth, ONE_MM)
    assert scores["dice_WM"] == pytest.approx(2 * 200 / (200 + 400))
    assert scores["hd95_WM"] == pytest.approx(2)
    assert scores["volume_difference_ml_WM"] == pytest.approx(0.2)
    assert scores["dice_GM"] == scores["dice_CSF"] == 1


def test_union_counts_cortex_with_its_sulci() -> None:
    truth, pred = empty(), empty()
    truth[2:6] = CSF_OR_GM
    pred[2:4], pred[4:6] = CSF, GM
    assert tissue_scores(pred, truth, ONE_MM)["union_dice_CSF_GM"] == 1
    pred[4:6] = WM
    assert tissue_scores(pred, truth, ONE_MM)["union_dice_CSF_GM"] == pytest.approx(2 * 200 / (200 + 400))
    assert math.isnan(tissue_scores(pred, empty(), ONE_MM)["union_dice_CSF_GM"])


def test_wrong_input() -> None:
    with pytest.raises(ValueError, match="share one 3-D grid"):
        tissue_scores(empty()[:5], empty(), ONE_MM)
    with pytest.raises(ValueError, match="classes 0 to 3 only"):
        tissue_scores(empty() + 4, empty(), ONE_MM)
