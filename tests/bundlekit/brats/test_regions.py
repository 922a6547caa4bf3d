"""Tests of the nested regions."""

from __future__ import annotations

import pytest
import torch
from monai.data import MetaTensor

from bundlekit.brats.regions import REGIONS, RegionProbabilitiesd, labels_by_region, region_labels, regions_of

torch.set_num_threads(1)


@pytest.mark.parametrize(
    ("index", "expected"),  # WT, TC, ET
    [(0, [0, 0, 0]), (1, [1, 1, 0]), (2, [1, 0, 0]), (3, [1, 1, 1])],
)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.float32])
def test_regions_of_each_class(index: int, expected: list[int], dtype: torch.dtype) -> None:
    label = torch.zeros(1, 2, 3, 4, dtype=dtype)
    label[0, 1, 2, 3] = index
    masks = regions_of(label)
    assert masks.shape == (3, 2, 3, 4)
    assert masks.dtype == torch.uint8
    assert masks[:, 1, 2, 3].tolist() == expected
    assert int(masks.sum()) == sum(expected)


def test_regions_are_named_in_the_order_of_their_masks() -> None:
    assert list(REGIONS) == ["WT", "TC", "ET"]


def test_regions_nest() -> None:
    label = torch.randint(0, 4, (1, 6, 6, 6), generator=torch.Generator().manual_seed(0))
    whole, core, enhancing = regions_of(label)
    assert (enhancing <= core).all()
    assert (core <= whole).all()
    assert 0 < int(enhancing.sum()) < int(core.sum()) < int(whole.sum()) < label.numel()


def test_a_temperature_makes_the_probabilities_less_sure() -> None:
    logits = MetaTensor(torch.tensor([0.0, 1.0, 2.0, 5.0])[:, None, None, None])
    sure, less = (RegionProbabilitiesd(temperature=t)({"pred": logits})["probabilities"] for t in (1.0, 2.0))
    assert torch.equal(less, RegionProbabilitiesd()({"pred": logits / 2})["probabilities"])
    assert (less < sure).all()
    for wrong in (0, -1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="temperature must be above 0"):
            RegionProbabilitiesd(temperature=wrong)


@pytest.mark.parametrize(
    ("parts", "expected"),  # odds of background, NCR, ED, ET; probability of WT, TC, ET
    [
        ((1, 1, 1, 1), (0.75, 0.5, 0.25)),
        ((5, 2, 2, 1), (0.5, 0.3, 0.1)),
        ((1, 0, 3, 0), (0.75, 0, 0)),
        ((0, 0, 0, 9), (1, 1, 1)),
    ],
)
def test_probabilities_are_sums_of_the_classes(parts: tuple[int, ...], expected: tuple[float, ...]) -> None:
    logits = torch.tensor(parts).float().log()[:, None, None, None].expand(4, 2, 3, 4)
    probabilities = RegionProbabilitiesd()({"pred": logits})["probabilities"]
    assert probabilities.shape == (3, 2, 3, 4)
    for channel, value in zip(probabilities, expected, strict=True):
        torch.testing.assert_close(channel.as_tensor(), torch.full((2, 3, 4), float(value)))


def test_probabilities_leave_the_rest_of_the_item_alone() -> None:
    logits = torch.randn(4, 2, 2, 2)
    item = {"pred": logits, "case": "a"}
    result = RegionProbabilitiesd()(item)
    assert set(item) == {"pred", "case"}
    assert set(result) == {"pred", "case", "probabilities"}
    assert result["pred"] is logits


def test_probabilities_of_half_precision_are_single() -> None:
    logits = torch.randn(4, 3, 3, 3, generator=torch.Generator().manual_seed(0)).half()
    result, expected = (RegionProbabilitiesd()({"pred": x})["probabilities"] for x in (logits, logits.float()))
    assert result.dtype == torch.float32
    assert torch.equal(result, expected)


def test_probabilities_are_on_the_grid_of_the_logits() -> None:
    affine = torch.diag(torch.tensor([2.0, 3.0, 4.0, 1.0], dtype=torch.float64))
    logits = MetaTensor(torch.randn(4, 2, 2, 2), affine=affine, meta={"note": "kept"})
    result = RegionProbabilitiesd()({"pred": logits})["probabilities"]
    assert isinstance(result, MetaTensor)
    assert torch.equal(result.affine, affine)
    assert result.meta["note"] == "kept"


def test_probabilities_moved_to_another_grid_leave_the_logits_on_theirs() -> None:
    logits = MetaTensor(torch.randn(4, 2, 2, 2), affine=torch.eye(4))
    result = RegionProbabilitiesd()({"pred": logits})["probabilities"]
    result.affine = 5 * torch.eye(4)
    assert float(logits.affine[0, 0]) == 1


def test_labels_of_probabilities_are_those_of_their_logits() -> None:
    logits = 3 * torch.randn(4, 7, 8, 9, generator=torch.Generator().manual_seed(0))
    labels = labels_by_region(logits.softmax(0))
    assert torch.equal(labels, region_labels(logits))
    assert set(labels.unique().tolist()) == {0, 1, 2, 3}
    undecided = torch.tensor([0.4, 0.3, 0.3, 0.0]).view(4, 1, 1, 1)  # background is the most probable class
    assert labels_by_region(undecided).item() == 2
