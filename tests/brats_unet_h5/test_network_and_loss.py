"""Network, loss and what is made of the logits: by hand, and against what they must equal."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from brats_unet_h5 import DecideLabelsd, DiceBCELoss, ProbabilitiesOfd, build_network, require_square
from brats_unet_h5.loss import one_against_rest, target_masks
from bundlekit.brats.regions import nested_labels, regions_of
from bundlekit.errors import BundleError
from bundlekit.inference.windows import ForegroundInferer
from bundlekit.weights.loading import load_network

# --- network ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("target", "count"), [("regions", 3), ("classes", 4)])
@pytest.mark.parametrize("res_units", [0, 2])
def test_networks_have_the_channels_of_their_target(target: str, count: int, res_units: int) -> None:
    network = build_network(target, channels=[2, 3, 4], res_units=res_units)
    assert network(torch.rand(2, 4, 8, 8, 12)).shape == (2, count, 8, 8, 12)
    found, setting = network.identify(network.state_dict())
    assert target in found
    assert setting == f'--target {target} --channels "[2,3,4]" --res_units {res_units}'
    assert network.inference_bytes((8, 8, 8)) > 0


@pytest.mark.parametrize("other", [{"target": "classes"}, {"channels": [2, 4]}, {"res_units": 1}])
def test_weights_of_another_network_are_refused_by_name(other: dict[str, Any]) -> None:
    mine = {"target": "regions", "channels": [2, 3, 4], "res_units": 0}
    state = build_network(**(mine | other)).state_dict()
    with pytest.raises(BundleError, match="give what it was trained with: --target"):
        load_network(build_network(**mine), state, "model.pt")
    with pytest.raises(BundleError, match="another network"):
        load_network(build_network(**mine), {"a.weight": torch.zeros(1)}, "model.pt")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"target": "tumour"}, "target must be one of regions, classes"),
        ({"channels": [4]}, "two or more positive widths"),
        ({"channels": [4, 0]}, "two or more positive widths"),
        ({"res_units": -1}, "res_units 0 or more"),
    ],
)
def test_bad_networks(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_network(**arguments)


def test_a_size_that_does_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match=r"uniform_shape and patch_size must divide by 4"):
        build_network(channels=[2, 2, 2])(torch.rand(1, 4, 8, 8, 6))


# --- loss -------------------------------------------------------------------------------------------------------------


def test_regions_of_one_voxel_by_hand() -> None:
    """Logits 0 (p = 1/2) at an oedema voxel: WT is there, TC and ET are not."""
    loss = DiceBCELoss("regions", smooth=1.0)
    dice = [1 - (2 * 0.5 + 1) / (0.5 + 1 + 1), 1 - 1 / (0.5 + 1), 1 - 1 / (0.5 + 1)]
    got = loss(torch.zeros(1, 3, 1, 1, 1), torch.full((1, 1, 1, 1, 1), 2))
    assert float(got) == pytest.approx(sum(dice) / 3 + math.log(2), rel=1e-6)


def test_classes_of_one_voxel_by_hand() -> None:
    loss = DiceBCELoss("classes", bce=0.5)
    dice = [1 - (2 * 0.25 + 1) / (0.25 + 1 + 1), *[1 - 1 / (0.25 + 1)] * 3]
    bce = -(math.log(0.25) + 3 * math.log(0.75)) / 4
    got = loss(torch.zeros(1, 4, 1, 1, 1), torch.full((1, 1, 1, 1, 1), 3))
    expected = sum([1 - 1.5 / 2.25, *dice[1:]]) / 4 + 0.5 * bce
    assert float(got) == pytest.approx(expected, rel=1e-6)


def test_one_against_rest_is_the_softmax() -> None:
    logits = torch.randn(2, 4, 3, 3, 3) * 5
    torch.testing.assert_close(one_against_rest(logits).sigmoid(), logits.softmax(1))


def test_loss_of_regions_vanishes_where_all_are_empty() -> None:
    nothing = torch.full((1, 3, 4, 4, 4), -60.0)
    assert float(DiceBCELoss("regions")(nothing, torch.zeros(1, 1, 4, 4, 4))) < 1e-5


@pytest.mark.parametrize(("target", "count"), [("regions", 3), ("classes", 4)])
def test_loss_vanishes_at_the_truth_and_commutes_with_flips(target: str, count: int) -> None:
    label = torch.randint(0, 4, (2, 1, 6, 6, 6))
    loss = DiceBCELoss(target)
    truth = target_masks(label, target).float()
    assert float(loss(60 * (2 * truth - 1), label)) < 1e-5
    logits = torch.randn(2, count, 6, 6, 6)
    torch.testing.assert_close(loss(logits.flip(2), label.flip(2)), loss(logits, label))
    assert torch.isfinite(loss(logits.half() * 1000, label))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"target": "x"}, "target must be"), ({"bce": -1}, "bce must be"), ({"smooth": 0}, "smooth")],
)
def test_bad_losses(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DiceBCELoss(**arguments)
    with pytest.raises(ValueError, match="N = 3 for regions"):
        DiceBCELoss()(torch.zeros(1, 4, 2, 2, 2), torch.zeros(1, 1, 2, 2, 2))


# --- from logits to labels --------------------------------------------------------------------------------------------


def test_labels_nest_whatever_the_three_channels_say() -> None:
    """All eight combinations of WT, TC, ET in one row."""
    p = torch.tensor([[w, t, e] for w in (0.1, 0.9) for t in (0.2, 0.8) for e in (0.3, 0.7)]).T.reshape(3, 8, 1, 1)
    label = nested_labels(p)
    assert label.flatten().tolist() == [0, 0, 0, 0, 2, 2, 1, 3]
    assert label.dtype == torch.uint8
    whole, core, enhancing = regions_of(nested_labels(torch.rand(3, 8, 8, 8)))
    assert not (core & ~whole & 1).any()
    assert not (enhancing & ~core & 1).any()


@pytest.mark.parametrize(("target", "count"), [("regions", 3), ("classes", 4)])
def test_truth_comes_back_as_labels_and_regions(target: str, count: int) -> None:
    label = torch.randint(0, 4, (1, 5, 5, 5))
    logits = 20 * (2 * target_masks(label[None], target)[0].float() - 1)
    data = ProbabilitiesOfd(target)({"pred": logits})
    data = DecideLabelsd(target, keep=True)(data)
    assert torch.equal(data["pred"].as_tensor(), label.to(torch.uint8))
    assert torch.equal((data["probabilities"] > 0.5).as_tensor().to(torch.uint8), regions_of(label))
    outside = DecideLabelsd(target)({"pred": torch.zeros(count, 2, 2, 2)})  # no probability outside the box
    assert not outside["pred"].any()


@pytest.mark.parametrize("make", [lambda: DecideLabelsd("regions", 1.0), lambda: ProbabilitiesOfd("x")])
def test_bad_decisions(make: Any) -> None:
    with pytest.raises(ValueError, match="must be"):
        make()


@pytest.mark.parametrize(("background", "expected"), [(None, [-10, -10, -10]), (0, [10, -10, -10])])
def test_air_has_no_tumour_in_either_target(background: int | None, expected: list[float]) -> None:
    """Windows that hold nothing are not shown to the network: no region is there, or the background class is."""
    x = torch.zeros(1, 4, 8, 4, 4)
    x[:, :, 4:] = 1
    inferer = ForegroundInferer([4, 4, 4], overlap=0, mode="constant", background=background)
    out = inferer(x, lambda windows: torch.full((len(windows), 3, 4, 4, 4), 7.0))
    assert out[0, :, 0, 0, 0].tolist() == expected
    assert out[0, :, 7, 0, 0].tolist() == [7, 7, 7]


def test_quarter_turns_need_a_square() -> None:
    require_square(0.0, (128, 144, 128))
    require_square(0.5, (128, 128, 96))
    with pytest.raises(BundleError, match=r"--rotate90_probability is 0.5, and volumes are 128x144x128"):
        require_square(0.5, (128, 144, 128))
