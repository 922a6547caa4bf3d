"""The weighted Dice and categorical focal loss, on tensors small enough for paper."""

from __future__ import annotations

import math

import pytest
import torch

from bundlekit import IgnoringDiceCELoss, WeightedDiceFocalLoss

SURE = 50.0


def pair(pred: list[int], truth: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    logits = SURE * torch.nn.functional.one_hot(torch.tensor(pred), 4).float().T[None, :, :, None, None]
    return logits, torch.tensor(truth)[None, None, :, None, None].float()


def test_dice_counted_by_hand() -> None:
    """Class 1: 1 - 1/2 (truth alone), class 2: 1 - 3/4, others right; smooth 1; weights 1, 2, 3, 0."""
    x, y = pair([0, 2, 2, 3], [0, 1, 2, 3])
    loss = WeightedDiceFocalLoss([1, 2, 3, 0], focal=0, smooth=1)
    assert float(loss(x, y)) == pytest.approx((1 * 0 + 2 * 1 / 2 + 3 * 1 / 4 + 0) / 6, abs=1e-6)
    assert float(WeightedDiceFocalLoss([0.1, 1, 1, 1], focal=0)(*pair([0, 1, 2, 3], [0, 1, 2, 3]))) == pytest.approx(
        0, abs=1e-6
    )


def test_focal_counted_by_hand() -> None:
    """Undecided between four classes: p = 1/4, so that a voxel costs w (3/4)^gamma log 4."""
    x, y = torch.zeros(1, 4, 4, 1, 1), torch.tensor([0, 1, 2, 3])[None, None, :, None, None].float()
    for gamma in (0, 1, 2):
        both = WeightedDiceFocalLoss([1, 1, 1, 5], gamma=gamma, weigh_focal=True, mean_one=False, focal=1)
        dice = WeightedDiceFocalLoss([1, 1, 1, 5], gamma=gamma, weigh_focal=True, mean_one=False, focal=0)
        expected = (1 + 1 + 1 + 5) / 4 * 0.75**gamma * math.log(4)
        assert float(both(x, y) - dice(x, y)) == pytest.approx(expected, rel=1e-5)
        half = WeightedDiceFocalLoss([1, 1, 1, 5], gamma=gamma, weigh_focal=True, mean_one=False, focal=0.5)
        assert float(half(x, y) - dice(x, y)) == pytest.approx(expected / 2, rel=1e-5)


def test_without_gamma_the_focal_term_is_cross_entropy() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(2, 4, 5, 5, 5), torch.randint(0, 4, (2, 1, 5, 5, 5)).float()
    loss, dice = WeightedDiceFocalLoss([1, 1, 1, 1], gamma=0), WeightedDiceFocalLoss([1, 1, 1, 1], focal=0)
    expected = torch.nn.functional.cross_entropy(x, y[:, 0].long())
    torch.testing.assert_close(loss(x, y) - dice(x, y), expected)


def test_two_voxels_by_hand() -> None:
    """Two voxels, two classes, logits 0: every probability is a half."""
    logits, target = torch.zeros(1, 2, 2, 1, 1), torch.tensor([0, 1]).view(1, 1, 2, 1, 1)
    # smooth 1: Dice of each class (2 * 0.5 + 1) / (1 + 1 + 1) = 2/3; focal of each voxel (1/2)^2 ln 2
    dice, focal = 1 / 3, 0.25 * math.log(2)
    assert float(WeightedDiceFocalLoss([1, 1])(logits, target)) == pytest.approx(dice + focal)
    assert float(WeightedDiceFocalLoss([1, 9], focal=0)(logits, target)) == pytest.approx(dice)
    assert float(WeightedDiceFocalLoss([3, 1], gamma=0)(logits, target)) == pytest.approx(dice + math.log(2))
    assert float(WeightedDiceFocalLoss([0, 1], weigh_focal=True)(logits, target)) == pytest.approx(dice + focal)


def test_weights_are_of_the_dice_term_and_only_their_ratios_matter() -> None:
    torch.manual_seed(0)
    logits, target = torch.randn(2, 3, 4, 4, 4), torch.randint(0, 3, (2, 1, 4, 4, 4))
    one, ten, other = (WeightedDiceFocalLoss(w)(logits, target) for w in ([1, 2, 3], [10, 20, 30], [3, 2, 1]))
    torch.testing.assert_close(one, ten)
    assert not torch.isclose(one, other)
    plain, weighed = (WeightedDiceFocalLoss([1, 2, 3], weigh_focal=w)(logits, target) for w in (False, True))
    assert not torch.isclose(plain, weighed)


def test_weights_as_they_are_given() -> None:
    """The mean over classes of weight times Dice loss: here each is 1/3, see above."""
    logits, target = torch.zeros(1, 2, 2, 1, 1), torch.tensor([0, 1]).view(1, 1, 2, 1, 1)
    loss = WeightedDiceFocalLoss([3, 9], focal=0, rescale=False)
    assert float(loss(logits, target)) == pytest.approx((3 + 9) / 2 / 3)
    loss = WeightedDiceFocalLoss([3, 9], gamma=0, rescale=False, weigh_focal=True)
    assert float(loss(logits, target)) == pytest.approx((3 + 9) / 2 * (1 / 3 + math.log(2)))


def test_half_precision_is_safe() -> None:
    x = torch.zeros(1, 4, 48, 48, 48, dtype=torch.float16)
    assert math.isfinite(float(WeightedDiceFocalLoss([0.1, 1, 1, 1])(x, torch.zeros(1, 1, 48, 48, 48))))


@pytest.mark.parametrize(
    "arguments",
    [
        {"class_weights": [-1, 1, 1, 1]},
        {"class_weights": [0, 0]},
        {"class_weights": [1, 1], "gamma": -1},
        {"class_weights": [1, 1], "focal": -1},
    ],
)
def test_wrong_arguments(arguments: dict) -> None:
    with pytest.raises(ValueError, match="must be 0 or more"):
        WeightedDiceFocalLoss(**arguments)


def test_cross_entropy_and_dice_leave_out_what_the_label_cannot_say() -> None:
    """Two undecided voxels and an ignored one: cross-entropy log 4; Dice (2/4 + 1) / (1 + 2/4 + 1), 1 / (2/4 + 1)."""
    x, y = torch.zeros(1, 4, 3, 1, 1), torch.tensor([0, 1, 255])[None, None, :, None, None]
    dice = IgnoringDiceCELoss()(x, y)
    present, absent = 1 - (2 / 4 + 1) / (1 + 2 / 4 + 1), 1 - 1 / (2 / 4 + 1)
    assert float(dice) == pytest.approx((2 * present + 2 * absent) / 4, abs=1e-6)
    assert float(IgnoringDiceCELoss(cross_entropy=0.5)(x, y) - dice) == pytest.approx(0.5 * math.log(4), abs=1e-6)
    x[:, :, 2] = 7 * torch.rand(4, 1, 1)
    assert float(IgnoringDiceCELoss()(x, y)) == pytest.approx(float(dice), abs=1e-6)


def test_a_patch_of_unknown_voxels_costs_nothing_more() -> None:
    x, y = torch.randn(1, 4, 2, 2, 2, requires_grad=True), torch.full((1, 1, 2, 2, 2), 255)
    loss = IgnoringDiceCELoss(cross_entropy=1)(x, y)
    loss.backward()
    assert float(loss.detach()) == 0
    assert x.grad is not None
    assert x.grad.isfinite().all()


def test_a_negative_weight_is_refused() -> None:
    with pytest.raises(ValueError, match="0 or more, got -1"):
        IgnoringDiceCELoss(cross_entropy=-1)
