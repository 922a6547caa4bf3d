"""Tests of what is put into predictions about the tumour core."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from bundlekit.brats.cleaning import FillCored, RelabelUnenhancedd, RemoveCorelessd

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
