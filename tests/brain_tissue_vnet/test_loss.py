"""The loss on tensors small enough to count by hand."""

from __future__ import annotations

import pytest
import torch
from brain_tissue_vnet.loss import TissueDiceLoss
from monai.losses import DiceLoss

SURE = 50.0  # a logit whose softmax is 1


def logits_of(classes: list[int], n: int = 4) -> torch.Tensor:
    """1 x n x len x 1 x 1 logits of a prediction without doubt."""
    return SURE * torch.nn.functional.one_hot(torch.tensor(classes), n).float().T[None, :, :, None, None]


def target(classes: list[int]) -> torch.Tensor:
    return torch.tensor(classes, dtype=torch.uint8)[None, None, :, None, None]


@pytest.mark.parametrize(
    ("pred", "truth", "background", "expected"),
    [
        # every class right: (2n + 1) / (2n + 1)
        ([0, 1, 2, 3], [0, 1, 2, 3], True, 0.0),
        # class 1: 1 - 1/2 (truth alone), class 2: 1 - 3/4, classes 0 and 3 right
        ([0, 2, 2, 3], [0, 1, 2, 3], True, (0 + 1 / 2 + 1 / 4 + 0) / 4),
        ([0, 2, 2, 3], [0, 1, 2, 3], False, (1 / 2 + 1 / 4 + 0) / 3),
        # two voxels of the label cannot say: what is predicted there does not matter
        ([0, 1, 2, 3], [0, 254, 2, 255], True, 0.0),
        ([0, 3, 2, 1], [0, 254, 2, 255], True, 0.0),
        # absent from both costs nothing
        ([0, 0], [0, 0], False, 0.0),
        # nothing is known at all
        ([1, 2], [255, 255], True, 0.0),
        # all wrong: classes 0, 1: 1 - 1/3 each with two voxels
        ([1, 1], [0, 0], True, (2 / 3 + 2 / 3 + 0 + 0) / 4),
    ],
)
def test_counted_by_hand(pred: list[int], truth: list[int], background: bool, expected: float) -> None:
    loss = TissueDiceLoss(include_background=background, smooth=1.0)(logits_of(pred), target(truth))
    assert float(loss) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("background", [True, False])
def test_without_unknown_voxels_it_is_monais(background: bool) -> None:
    torch.manual_seed(0)
    x, y = torch.randn(3, 4, 5, 6, 7), torch.randint(0, 4, (3, 1, 5, 6, 7))
    theirs = DiceLoss(
        include_background=background, softmax=True, to_onehot_y=True, smooth_nr=2.0, smooth_dr=2.0, batch=False
    )
    torch.testing.assert_close(TissueDiceLoss(background, smooth=2.0)(x, y), theirs(x, y))
    theirs = DiceLoss(
        include_background=background, softmax=True, to_onehot_y=True, smooth_nr=2.0, smooth_dr=2.0, batch=True
    )
    torch.testing.assert_close(TissueDiceLoss(background, smooth=2.0, batch=True)(x, y), theirs(x, y))


def test_unknown_voxels_get_no_gradient() -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 4, 4, 4, 4, requires_grad=True)
    y = torch.randint(0, 4, (1, 1, 4, 4, 4))
    y[0, 0, :2] = 255
    TissueDiceLoss()(x, y).backward()
    assert x.grad is not None
    assert bool((x.grad[:, :, :2] == 0).all())
    assert bool((x.grad[:, :, 2:] != 0).any())


def test_gradient() -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 4, 2, 2, 2, dtype=torch.float64, requires_grad=True)
    y = torch.randint(0, 4, (1, 1, 2, 2, 2))
    y[0, 0, 0, 0, 0] = 254
    loss = TissueDiceLoss()
    value = loss(x, y)
    (analytic,) = torch.autograd.grad(value, x)
    for index in [(0, 0, 1, 1, 1), (0, 2, 0, 1, 0), (0, 3, 1, 0, 1)]:
        step = torch.zeros_like(x)
        step[index] = 1e-2
        numeric = (loss(x + step, y) - loss(x - step, y)) / 2e-2
        assert numeric.item() == pytest.approx(analytic[index].item(), abs=2e-4)


def test_half_precision_does_not_overflow() -> None:
    x = torch.zeros(1, 4, 48, 48, 48, dtype=torch.float16)
    y = torch.zeros(1, 1, 48, 48, 48, dtype=torch.uint8)
    assert float(TissueDiceLoss()(x, y)) == pytest.approx(0.9, abs=0.01)


def test_wrong_arguments() -> None:
    with pytest.raises(ValueError, match="smooth must be positive"):
        TissueDiceLoss(smooth=0)
    with pytest.raises(ValueError, match=r"B1HW\[D\]"):
        TissueDiceLoss()(torch.zeros(1, 4, 2, 2, 2), torch.zeros(1, 2, 2, 2))
