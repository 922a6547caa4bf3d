"""The configured loss on tensors small enough to count by hand."""

from __future__ import annotations

import pytest
import torch
from monai.bundle import ConfigParser

from tests.conftest import ROOT

TRAIN = ROOT / "bundles" / "brain_tissue_vnet" / "configs" / "train.yaml"

SURE = 50.0  # a logit whose softmax is 1


def loss_of(include_background: bool = True, smooth: float = 1.0) -> torch.nn.Module:
    parser = ConfigParser()
    parser.read_config(str(TRAIN))
    parser.update({"include_background": include_background, "smooth": smooth})
    return parser.get_parsed_content("loss")


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
        ([0, 1, 2, 3], [0, 255, 2, 255], True, 0.0),
        ([0, 3, 2, 1], [0, 255, 2, 255], True, 0.0),
        # absent from both costs nothing
        ([0, 0], [0, 0], False, 0.0),
        # nothing is known at all
        ([1, 2], [255, 255], True, 0.0),
        # all wrong: classes 0, 1: 1 - 1/3 each with two voxels
        ([1, 1], [0, 0], True, (2 / 3 + 2 / 3 + 0 + 0) / 4),
    ],
)
def test_counted_by_hand(pred: list[int], truth: list[int], background: bool, expected: float) -> None:
    loss = loss_of(background)(logits_of(pred), target(truth))
    assert float(loss) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("background", [True, False])
@pytest.mark.parametrize("smooth", [0.5, 3.0])
def test_against_the_formula(background: bool, smooth: float) -> None:
    torch.manual_seed(0)
    x, y = torch.randn(3, 4, 5, 6, 7), torch.randint(0, 4, (3, 1, 5, 6, 7))
    y[:, :, 1] = 255
    p, known = torch.softmax(x, 1), (y != 255)[:, 0]
    terms = []
    for sample in range(3):
        for c in range(0 if background else 1, 4):
            pc, gc = p[sample, c][known[sample]], (y[sample, 0] == c)[known[sample]].float()
            terms.append(1 - (2 * (pc * gc).sum() + smooth) / (pc.sum() + gc.sum() + smooth))
    torch.testing.assert_close(loss_of(background, smooth)(x, y), torch.stack(terms).mean())


def test_unknown_voxels_get_no_gradient() -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 4, 4, 4, 4, requires_grad=True)
    y = torch.randint(0, 4, (1, 1, 4, 4, 4))
    y[0, 0, :2] = 255
    loss_of()(x, y).backward()
    assert x.grad is not None
    assert bool((x.grad[:, :, :2] == 0).all())
    assert bool((x.grad[:, :, 2:] != 0).any())


def test_gradient() -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 4, 2, 2, 2, dtype=torch.float64, requires_grad=True)
    y = torch.randint(0, 4, (1, 1, 2, 2, 2))
    y[0, 0, 0, 0, 0] = 255
    loss = loss_of()
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
    assert float(loss_of()(x, y)) == pytest.approx(0.9, abs=0.01)
