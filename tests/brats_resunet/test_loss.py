"""Tests of the loss: by hand, against loops over voxels, then what it must not depend on."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from monai.losses import DeepSupervisionLoss

from brats_resunet import RegionDiceLoss

torch.set_num_threads(1)

BRATS = ((1, 2, 3), (1, 3), (3,))


def sure(classes: Sequence[int] | Sequence[Sequence[int]], number: int = 4) -> torch.Tensor:
    """Logits, B x number x V x 1 x 1, of a network that is sure of one class in each voxel."""
    index = torch.as_tensor(classes).reshape(-1, torch.as_tensor(classes).shape[-1])
    return 200.0 * torch.nn.functional.one_hot(index, number).movedim(-1, 1)[..., None, None].float()


def truth(classes: Sequence[int] | Sequence[Sequence[int]]) -> torch.Tensor:
    index = torch.as_tensor(classes)
    return index.reshape(-1, 1, index.shape[-1], 1, 1)


def random_case(
    shape: tuple[int, ...] = (2, 4, 3, 4, 2), scale: float = 2.0, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(shape, generator=generator)
    return logits, torch.randint(0, shape[1], (shape[0], 1, *shape[2:]), generator=generator)


def by_loops(
    logits: np.ndarray,
    target: np.ndarray,
    regions: Sequence[Sequence[int]] = BRATS,
    smooth: float = 1.0,
    batch: bool = False,
) -> float:
    """The loss, one voxel after the other in double precision."""
    sums = np.zeros((logits.shape[0], len(regions), 3))
    for case, number in itertools.product(range(logits.shape[0]), range(len(regions))):
        for voxel in np.ndindex(*logits.shape[2:]):
            values = [float(logits[(case, c, *voxel)]) for c in range(logits.shape[1])]
            exps = [math.exp(v - max(values)) for v in values]
            p = sum(exps[c] for c in regions[number]) / sum(exps)
            g = 1.0 if int(target[(case, 0, *voxel)]) in regions[number] else 0.0
            sums[case, number] += p * g, p, g
    if batch:
        sums = sums.sum(axis=0, keepdims=True)
    losses = [1 - (2 * pg + smooth) / (p + g + smooth) for pg, p, g in sums.reshape(-1, 3)]
    return sum(losses) / len(losses)


# --- by hand: sure of one class in each of four voxels ------------------------------------------------------------


@pytest.mark.parametrize(
    ("true", "predicted", "smooth", "expected"),  # expected: WT, TC, ET
    [
        pytest.param([0, 1, 2, 3], [0, 1, 2, 3], 1.0, (0, 0, 0), id="perfect"),
        pytest.param([0, 0, 0, 0], [0, 0, 0, 0], 1.0, (0, 0, 0), id="both empty"),
        pytest.param([3, 3, 3, 3], [0, 0, 0, 0], 1.0, (4 / 5, 4 / 5, 4 / 5), id="prediction empty"),
        pytest.param([0, 0, 0, 0], [3, 3, 3, 3], 1.0, (4 / 5, 4 / 5, 4 / 5), id="truth empty"),
        pytest.param([0, 0, 0, 3], [0, 0, 0, 0], 1.0, (1 / 2, 1 / 2, 1 / 2), id="one voxel missed"),
        pytest.param([0, 0, 0, 3], [0, 0, 3, 0], 1.0, (2 / 3, 2 / 3, 2 / 3), id="one voxel displaced"),
        pytest.param([0, 0, 0, 3], [0, 0, 3, 3], 1.0, (1 / 4, 1 / 4, 1 / 4), id="one voxel too many"),
        pytest.param([0, 0, 0, 3], [0, 0, 0, 1], 1.0, (0, 0, 1 / 2), id="NCR for ET"),
        pytest.param([0, 0, 0, 3], [0, 0, 0, 2], 1.0, (0, 1 / 2, 1 / 2), id="ED for ET"),
        pytest.param([0, 0, 0, 1], [0, 0, 0, 2], 1.0, (0, 1 / 2, 0), id="ED for NCR"),
        pytest.param([0, 0, 0, 3], [0, 0, 3, 0], 1e-6, (1, 1, 1), id="worst, hardly smoothed"),
        pytest.param([0, 0, 0, 3], [0, 0, 3, 3], 3.0, (1 / 6, 1 / 6, 1 / 6), id="smooth of 3"),
    ],
)
def test_sure_predictions(true: list[int], predicted: list[int], smooth: float, expected: tuple[float, ...]) -> None:
    loss = RegionDiceLoss(smooth=smooth)(sure(predicted), truth(true))
    assert loss.ndim == 0
    assert float(loss) == pytest.approx(sum(expected) / 3, abs=2e-6)
    for region, value in zip(BRATS, expected, strict=True):
        alone = RegionDiceLoss([region], smooth)(sure(predicted), truth(true))
        assert float(alone) == pytest.approx(value, abs=2e-6)


def test_undecided_prediction_of_eight_empty_voxels() -> None:
    # a quarter for each class: 6, 4 and 2 voxels' worth of WT, TC and ET
    loss = RegionDiceLoss()(torch.zeros(1, 4, 2, 2, 2), torch.zeros(1, 1, 2, 2, 2))
    assert float(loss) == pytest.approx((6 / 7 + 4 / 5 + 2 / 3) / 3)


@pytest.mark.parametrize(
    ("batch", "expected"),
    [
        (False, (0 + 2 / 3) / 2),  # a perfect sample of 2 voxels, and 2 false voxels in an empty one
        (True, 1 - (2 * 2 + 1) / (4 + 2 + 1)),  # the same voxels in one sum
    ],
)
def test_sums_of_a_batch_are_pooled_or_not(batch: bool, expected: float) -> None:
    true, predicted = [[3, 3, 0, 0], [0, 0, 0, 0]], [[3, 3, 0, 0], [0, 0, 3, 3]]
    assert float(RegionDiceLoss(batch=batch)(sure(predicted), truth(true))) == pytest.approx(expected)


def test_default_regions_are_those_of_brats() -> None:
    assert RegionDiceLoss().regions == [(1, 2, 3), (1, 3), (3,)]


# --- against loops over voxels ------------------------------------------------------------------------------------

REGION_SETS = [BRATS, [(3,)], [(1,), (2,), (3,)], [(2, 3), (1, 2)], [(3, 1)]]


@pytest.mark.parametrize("batch", [False, True])
@pytest.mark.parametrize("smooth", [1e-5, 1.0, 20.0])
@pytest.mark.parametrize("regions", REGION_SETS)
def test_agrees_with_loops(regions: Sequence[Sequence[int]], smooth: float, batch: bool) -> None:
    logits, target = random_case()
    target[1] = torch.where(target[1] == 3, 0, target[1])  # one sample without ET
    expected = by_loops(logits.numpy(), target.numpy(), regions, smooth, batch)
    assert float(RegionDiceLoss(regions, smooth, batch)(logits, target)) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("classes", [2, 5, 7])
def test_agrees_with_loops_for_other_numbers_of_classes(classes: int) -> None:
    logits, target = random_case((2, classes, 3, 2, 2))
    regions = [tuple(range(1, classes)), (classes - 1,)]
    expected = by_loops(logits.numpy(), target.numpy(), regions)
    assert float(RegionDiceLoss(regions)(logits, target)) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("batch", [False, True])
def test_gradient_agrees_with_finite_differences_of_the_loops(batch: bool) -> None:
    # the loss computes in single precision, so that the differences are those of the reference
    logits, target = random_case((2, 4, 2, 2, 1))
    logits.requires_grad_()
    RegionDiceLoss(batch=batch)(logits, target).backward()
    at, step = logits.detach().double().numpy(), 1e-5
    expected = np.zeros_like(at)
    for index in np.ndindex(*at.shape):
        sides = []
        for sign in (1, -1):
            moved = at.copy()
            moved[index] += sign * step
            sides.append(by_loops(moved, target.numpy(), batch=batch))
        expected[index] = (sides[0] - sides[1]) / (2 * step)
    assert np.abs(expected).max() > 0.01
    np.testing.assert_allclose(logits.grad.numpy(), expected, atol=1e-6)


def test_a_perfect_prediction_is_a_minimum_and_an_empty_patch_still_teaches() -> None:
    logits = torch.zeros(1, 4, 2, 2, 2, requires_grad=True)
    RegionDiceLoss()(logits, torch.zeros(1, 1, 2, 2, 2)).backward()
    assert (logits.grad[:, 0] < 0).all()  # a descent step raises the background
    assert (logits.grad[:, 3] > 0).all()


# --- precision ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("batch", [False, True])
def test_half_precision_of_more_voxels_than_half_can_count(dtype: torch.dtype, batch: bool) -> None:
    logits, target = random_case((1, 4, 42, 42, 42))
    logits[:, 1:] += 4  # most of 74088 voxels are tumour: its sum is beyond the largest half
    logits = logits.to(dtype).requires_grad_()
    loss = RegionDiceLoss(batch=batch)(logits, target)
    assert loss.dtype == torch.float32
    expected = RegionDiceLoss(batch=batch)(logits.detach().double(), target)
    assert loss.item() == pytest.approx(expected.item(), abs=1e-6)
    loss.backward()
    assert logits.grad.dtype == dtype
    assert logits.grad.isfinite().all()


def test_autocast_changes_nothing() -> None:
    logits, target = random_case()
    logits = logits.bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        loss = RegionDiceLoss()(logits, target)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, RegionDiceLoss()(logits, target))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64, torch.float16, torch.float32])
def test_target_of_any_numeric_type(dtype: torch.dtype) -> None:
    logits, target = random_case()
    assert torch.equal(RegionDiceLoss()(logits, target.to(dtype)), RegionDiceLoss()(logits, target))


@pytest.mark.parametrize("value", [-1e4, 1e4])
def test_extreme_logits_are_finite(value: float) -> None:
    logits = torch.full((1, 4, 2, 2, 2), 0.0)
    logits[:, 1] = value
    logits.requires_grad_()
    loss = RegionDiceLoss()(logits, torch.ones(1, 1, 2, 2, 2))
    loss.backward()
    assert 0 <= loss.item() <= 1
    assert logits.grad.isfinite().all()


# --- what it must not depend on -----------------------------------------------------------------------------------


def test_order_of_voxels_makes_no_difference() -> None:
    logits, target = random_case()
    order = torch.randperm(24, generator=torch.Generator().manual_seed(1))
    shuffled = [x.flatten(2)[..., order].reshape(x.shape) for x in (logits, target)]
    torch.testing.assert_close(RegionDiceLoss()(*shuffled), RegionDiceLoss()(logits, target))
    moved_alone = RegionDiceLoss()(shuffled[0], target)
    assert abs(float(moved_alone - RegionDiceLoss()(logits, target))) > 1e-4


@pytest.mark.parametrize("axes", [(2,), (3,), (4,), (2, 3, 4)])
def test_flips_make_no_difference(axes: tuple[int, ...]) -> None:
    logits, target = random_case()
    flipped = RegionDiceLoss()(logits.flip(axes), target.flip(axes))
    torch.testing.assert_close(flipped, RegionDiceLoss()(logits, target))


def test_order_within_and_of_regions_makes_no_difference() -> None:
    logits, target = random_case()
    other = RegionDiceLoss([(3,), (3, 1), (2, 3, 1)])(logits, target)
    torch.testing.assert_close(other, RegionDiceLoss()(logits, target))


def test_a_constant_added_to_all_logits_makes_no_difference() -> None:
    logits, target = random_case()
    torch.testing.assert_close(RegionDiceLoss()(logits + 7, target), RegionDiceLoss()(logits, target))


@pytest.mark.parametrize("batch", [False, True])
def test_images_are_volumes_of_one_slice(batch: bool) -> None:
    logits, target = random_case((2, 4, 5, 6, 1))
    loss = RegionDiceLoss(batch=batch)
    torch.testing.assert_close(loss(logits[..., 0], target[..., 0]), loss(logits, target))


def test_inputs_are_left_as_they_were() -> None:
    logits, target = random_case()
    copies = logits.clone(), target.clone()
    RegionDiceLoss()(logits, target)
    assert torch.equal(logits, copies[0])
    assert torch.equal(target, copies[1])


# --- refusals -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("logits", "target"),
    [
        ((2, 4, 3, 3, 3), (2, 3, 3, 3)),  # no channel
        ((2, 4, 3, 3, 3), (2, 4, 3, 3, 3)),  # one-hot
        ((2, 4, 3, 3, 3), (1, 1, 3, 3, 3)),  # another batch
        ((2, 4, 3, 3, 3), (2, 1, 3, 3, 4)),  # another size
        ((2, 4, 3, 3, 3), (2, 1, 3, 3)),  # another number of axes
        ((2, 3, 3, 3, 3), (2, 1, 3, 3, 3)),  # no class 3
    ],
)
def test_shapes_that_do_not_belong_together(logits: tuple[int, ...], target: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="expected logits") as error:
        RegionDiceLoss()(torch.zeros(logits), torch.zeros(target))
    assert str(logits) in str(error.value)
    assert str(target) in str(error.value)


@pytest.mark.parametrize(
    ("regions", "smooth", "message"),
    [
        ([()], 1.0, "foreground class"),
        ([(1, 1)], 1.0, "foreground class"),
        ([(0, 1)], 1.0, "foreground class"),
        ([(1,), (-1,)], 1.0, "foreground class"),
        ([], 1.0, "at least one region"),
        ([(1,)], 0.0, "smooth > 0"),
        ([(1,)], -1.0, "smooth > 0"),
    ],
)
def test_wrong_constructor_arguments(regions: list[tuple[int, ...]], smooth: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RegionDiceLoss(regions, smooth)


# --- deep supervision ---------------------------------------------------------------------------------------------


def test_deep_supervision_is_the_weighted_sum_on_subsampled_truth() -> None:
    logits, target = random_case((2, 4, 8, 8, 8))
    outputs = [logits, *(random_case((2, 4, n, n, n), seed=n)[0] for n in (4, 2))]
    # nearest voxel to the middle of each block of 2 and 4
    targets = [target, target[..., 1::2, 1::2, 1::2], target[..., 2::4, 2::4, 2::4]]
    weights = [1.0, 0.5, 0.25]
    parts = [by_loops(o.numpy(), t.numpy()) for o, t in zip(outputs, targets, strict=True)]
    loss = DeepSupervisionLoss(RegionDiceLoss(), weights=weights)(outputs, target.float())
    expected = sum(w * part for w, part in zip(weights, parts, strict=True))
    assert float(loss) == pytest.approx(expected, abs=1e-6)


def test_deep_supervision_takes_labels_as_stored() -> None:
    logits, target = random_case((1, 4, 8, 8, 8))
    outputs = [logits, logits[..., ::2, ::2, ::2], logits[..., ::4, ::4, ::4]]
    loss = DeepSupervisionLoss(RegionDiceLoss(), weights=[1.0, 0.5, 0.25])
    torch.testing.assert_close(loss(outputs, target.to(torch.uint8)), loss(outputs, target.float()))


def test_cross_entropy_is_added_with_its_weight_and_revives_a_lost_class() -> None:
    logits = torch.tensor([[[4.0]], [[0.0]], [[0.0]], [[0.0]]])[None].requires_grad_()  # 1 x 4 x 1 x 1
    target = torch.tensor([[[[2]]]])
    plain, added = RegionDiceLoss(), RegionDiceLoss(cross_entropy=0.5)
    entropy = -torch.log_softmax(logits[0, :, 0, 0], 0)[2]
    torch.testing.assert_close(added(logits, target), plain(logits, target) + 0.5 * entropy)
    with pytest.raises(ValueError, match="cross_entropy"):
        RegionDiceLoss(cross_entropy=-1)
    lost = torch.tensor([[[30.0]], [[0.0]], [[0.0]], [[0.0]]])[None].requires_grad_()
    (weak,) = torch.autograd.grad(plain(lost, target), lost)
    (strong,) = torch.autograd.grad(added(lost, target), lost)
    assert weak[0, 2].abs() < 1e-9
    assert strong[0, 2] < -0.4


def test_sum_over_the_regions_is_the_scale_of_upstreams_curve() -> None:
    """Wholly wrong at three resolutions, of weights 1, 1/2 and 1/4: above 4."""
    x, y = sure([[0] * 2000]), truth([[3] * 2000])
    mean, total = RegionDiceLoss(), RegionDiceLoss(reduction="sum")
    torch.testing.assert_close(total(x, y), 3 * mean(x, y))
    deep = DeepSupervisionLoss(total, weights=[1.0, 0.5, 0.25])
    assert 4 < float(deep([x, x, x], y)) <= 5.25
    entropy = RegionDiceLoss(reduction="sum", cross_entropy=1)(x, y) - total(x, y)
    torch.testing.assert_close(entropy, RegionDiceLoss(cross_entropy=1)(x, y) - mean(x, y))
    with pytest.raises(ValueError, match="reduction must be mean or sum, got 'none'"):
        RegionDiceLoss(reduction="none")
