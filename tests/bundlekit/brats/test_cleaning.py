"""Tests of what is put into predictions about the tumour core."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from bundlekit.brats.cleaning import (
    FillCored,
    RelabelSmallComponentsd,
    RelabelUnenhancedd,
    RemoveCorelessd,
    RemoveSmallPartsd,
)

NCR, ED, ET = 1, 2, 3


def case(spacing: tuple[float, ...] = (1.0, 1.0, 1.0)) -> MetaTensor:
    """A tumour with 5 voxels of core, oedema of more voxels without one, and a speck that touches it by a corner."""
    labels = torch.zeros(1, 24, 20, 16, dtype=torch.uint8)
    labels[0, 2:8, 2:8, 2:8] = ED
    labels[0, 4, 4, 3:6], labels[0, 5, 5, 3:5] = NCR, ET
    labels[0, 12:22, 2:18, 2:14] = ED
    labels[0, 22, 18, 14] = ET
    return MetaTensor(labels, affine=torch.diag(torch.tensor([*spacing, 1.0])))


def cleaned(minimum_ml: float, pred: MetaTensor) -> np.ndarray:
    given = pred.clone()
    found = RemoveCorelessd(minimum_ml)({"pred": pred, "image": "other"})
    assert found["image"] == "other"
    assert torch.equal(torch.as_tensor(pred), torch.as_tensor(given)), "the prediction given stays as it is"
    assert (found["pred"].dtype, found["pred"].shape) == (pred.dtype, pred.shape)
    assert torch.equal(found["pred"].affine, pred.affine)
    return found["pred"].numpy()[0]


@pytest.mark.parametrize(
    ("minimum_ml", "tumour", "elsewhere"),
    [(0, True, True), (0.001, True, True), (0.002, True, False), (0.005, True, False), (0.006, False, True)],
)
def test_components_are_kept_by_their_core_and_whole(minimum_ml: float, tumour: bool, elsewhere: bool) -> None:
    """5 voxels of core, 1 in what touches by a corner; where none has enough, the largest stays."""
    pred = case()
    found = cleaned(minimum_ml, pred)
    expected = pred.numpy()[0].copy()
    expected[:10] *= tumour
    expected[10:] *= elsewhere
    np.testing.assert_array_equal(found, expected)


def test_core_is_measured_in_millilitres() -> None:
    assert cleaned(0.02, case((2.0, 2.0, 1.0)))[4, 4, 4] == NCR, "5 voxels of 4 mm3 are 0.02 ml"
    assert cleaned(0.02, case((2.0, 2.0, 1.0)))[15, 5, 5] == 0
    assert cleaned(0.021, case((2.0, 2.0, 1.0)))[4, 4, 4] == 0
    assert cleaned(0.005, case((0.9999998,) * 3))[4, 4, 4] == NCR, "as a header's 32-bit number has 1 mm"


def test_an_empty_prediction_stays_empty() -> None:
    assert not cleaned(1.0, MetaTensor(torch.zeros(1, 5, 6, 7, dtype=torch.uint8))).any()


@pytest.mark.parametrize("minimum_ml", [-0.1, float("nan"), float("inf")])
def test_impossible_minimum(minimum_ml: float) -> None:
    with pytest.raises(ValueError, match=r"minimum_core_ml must be a number of 0 or more"):
        RemoveCorelessd(minimum_ml)


@pytest.mark.parametrize("hole", [0, ED])
def test_what_the_core_encloses_is_core(hole: int) -> None:
    labels = torch.zeros(1, 12, 12, 12, dtype=torch.uint8)
    labels[0, 1:11, 1:11, 1:11] = ED
    labels[0, 2:7, 2:7, 2:7] = ET
    labels[0, 3:6, 3:6, 3:6] = hole
    labels[0, 4, 4, 4] = NCR
    labels[0, 7:10, 7:10, 7:10] = ET
    labels[0, 8, 8, 8:10] = hole  # open at one side
    pred = MetaTensor(labels, affine=torch.diag(torch.tensor([1.0, 2.0, 3.0, 1.0])))
    expected = labels.clone()
    expected[0, 3:6, 3:6, 3:6] = NCR
    found = FillCored()({"pred": pred, "image": "other"})
    assert torch.equal(torch.as_tensor(found["pred"]), expected)
    assert torch.equal(found["pred"].affine, pred.affine)
    assert torch.equal(torch.as_tensor(pred), labels), "the prediction given stays as it is"
    assert FillCored(False)({"pred": pred})["pred"] is pred
    assert found["image"] == "other"


def test_fill_core_is_a_truth_value() -> None:
    with pytest.raises(ValueError, match=r"fill_core must be true or false, got 'False'"):
        FillCored("False")  # type: ignore[arg-type]


def test_nothing_to_fill() -> None:
    pred = MetaTensor(torch.full((1, 4, 5, 6), ED, dtype=torch.uint8))
    assert torch.equal(FillCored()({"pred": pred})["pred"], pred)


@pytest.mark.parametrize(
    ("minimum_enhancing_ml", "relabelled"), [(0, False), (0.001, True), (0.008, True), (0.009, False)]
)
def test_core_without_enhancement_beside_one_with_it(minimum_enhancing_ml: float, relabelled: bool) -> None:
    labels = torch.zeros(1, 12, 12, 12, dtype=torch.uint8)
    labels[0, 1:11, 1:11, 1:11] = ED
    labels[0, 2:5, 2:5, 2:5] = NCR
    labels[0, 5, 5, 5:7] = ET  # touches by a corner; two voxels of 4 mm3
    labels[0, 8:10, 8:10, 8:10] = NCR
    pred = MetaTensor(labels, affine=torch.diag(torch.tensor([2.0, 2.0, 1.0, 1.0])))
    expected = labels.clone()
    if relabelled:
        expected[0, 8:10, 8:10, 8:10] = ED
    found = RelabelUnenhancedd(minimum_enhancing_ml)({"pred": pred, "image": "other"})
    assert torch.equal(torch.as_tensor(found["pred"]), expected)
    assert torch.equal(found["pred"].affine, pred.affine)
    assert torch.equal(torch.as_tensor(pred), labels), "the prediction given stays as it is"
    assert found["image"] == "other"


def test_a_core_that_does_not_enhance_stays_a_core() -> None:
    pred = case()
    pred[pred == ET] = NCR
    assert torch.equal(RelabelUnenhancedd(0.001)({"pred": pred})["pred"], pred)


@pytest.mark.parametrize("minimum_enhancing_ml", [-1, float("nan"), float("inf")])
def test_impossible_volume_of_enhancement(minimum_enhancing_ml: float) -> None:
    with pytest.raises(ValueError, match=r"minimum_enhancing_ml must be a number of 0 or more"):
        RelabelUnenhancedd(minimum_enhancing_ml)


def parts() -> MetaTensor:
    """Components of 100, 30 and 9 voxels of 2 mm3, the second without oedema."""
    labels = torch.zeros(1, 20, 12, 12, dtype=torch.uint8)
    labels[0, :4, :5, :5] = ED
    labels[0, 8:11, :5, :2] = ET
    labels[0, 14:17, :3, 0] = NCR
    return MetaTensor(labels, affine=torch.diag(torch.tensor([2.0, 1.0, 1.0, 1.0])))


@pytest.mark.parametrize(
    ("share", "kept", "removed_ml"),
    [(0.09, 139, 0), (0.1, 130, 0.018), (0.3, 130, 0.018), (0.31, 100, 0.078), (1, 100, 0.078)],
)
def test_parts_that_are_small_beside_the_largest_are_removed(share: float, kept: int, removed_ml: float) -> None:
    pred = parts()
    before = pred.clone()
    found = RemoveSmallPartsd(share)({"pred": pred, "case": "a"})
    assert int((found["pred"] > 0).sum()) == kept
    assert found["removed_ml"] == pytest.approx(removed_ml)
    assert found["pred"][0, :4, :5, :5].eq(ED).all(), "the largest stays"
    assert torch.equal(torch.as_tensor(pred), torch.as_tensor(before))


def test_two_lesions_of_one_size_stay_and_so_does_a_single_voxel() -> None:
    labels = torch.zeros(1, 9, 3, 3, dtype=torch.uint8)
    labels[0, 0], labels[0, 6] = ET, ED
    for pred in (labels, torch.zeros_like(labels).index_fill_(1, torch.tensor([4]), NCR), torch.zeros_like(labels)):
        found = RemoveSmallPartsd(1)({"pred": MetaTensor(pred.clone())})
        assert torch.equal(torch.as_tensor(found["pred"]), pred)


def test_what_is_removed_is_told(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        RemoveSmallPartsd(0.5)({"pred": parts(), "case": "BraTS_7"})
    assert "BraTS_7: 0.08 ml apart from the largest part of the tumour removed" in caplog.text
    assert "removed_ml" not in RemoveSmallPartsd(0)({"pred": parts()})


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_impossible_share(share: float) -> None:
    with pytest.raises(ValueError, match="minimum_share must be from 0 to 1"):
        RemoveSmallPartsd(share)


def specks() -> MetaTensor:
    """In oedema a core of 40 voxels of 2 mm3 with 8 and 1 of ET, and one apart of 3 voxels, 2 of them ET."""
    labels = torch.full((1, 12, 12, 12), ED, dtype=torch.uint8)
    labels[0, :4, :2, :5] = NCR
    labels[0, :2, :2, :2], labels[0, 3, 1, 4] = ET, ET
    labels[0, 9, 9, 8:10], labels[0, 9, 9, 10] = ET, NCR
    return MetaTensor(labels, affine=torch.diag(torch.tensor([2.0, 1.0, 1.0, 1.0])))


@pytest.mark.parametrize(
    ("minimum_ml", "apart", "within"), [(0, False, False), (0.003, False, True), (0.007, True, True)]
)
def test_specks_of_a_region_are_of_the_region_around_it(minimum_ml: float, apart: bool, within: bool) -> None:
    pred = specks()
    expected = torch.as_tensor(pred).clone()
    if within:
        expected[0, 3, 1, 4] = NCR
    if apart:
        expected[0, 9, 9, 8:11] = ED
    found = RelabelSmallComponentsd(minimum_ml)({"pred": pred, "image": "other"})
    assert torch.equal(torch.as_tensor(found["pred"]), expected)
    assert torch.equal(found["pred"].affine, pred.affine)
    assert found["image"] == "other"


def test_the_only_components_of_a_region_stay_however_small() -> None:
    pred = specks()
    assert torch.equal(RelabelSmallComponentsd(1)({"pred": pred})["pred"], pred)
    alone = torch.zeros_like(pred)
    assert torch.equal(RelabelSmallComponentsd(1)({"pred": alone})["pred"], alone)


@pytest.mark.parametrize("minimum_ml", [-1, float("nan")])
def test_impossible_volume_of_a_component(minimum_ml: float) -> None:
    with pytest.raises(ValueError, match="minimum_component_ml must be a number of 0 or more"):
        RelabelSmallComponentsd(minimum_ml)
