"""The soft Dice of a mask with the network's own probabilities."""

from __future__ import annotations

import pytest
import torch

from bundlekit import AddConfidenced
from bundlekit.brats.regions import region_labels


def logits(channels: int = 4) -> torch.Tensor:
    return 3 * torch.randn(channels, 37, 8, 9, generator=torch.Generator().manual_seed(0))


def soft_dice(p: torch.Tensor, m: torch.Tensor) -> float:
    return float(2 * (p * m).sum() / (p.sum() + m.sum()))


def test_of_classes_and_regions() -> None:
    given = logits()
    found = AddConfidenced(["NCR", "ED", "ET"], {"WT": (1, 2, 3), "TC": (1, 3)})({"pred": given})["confidence"]
    p, best = given.softmax(0), given.argmax(0)
    for name, channels in {"NCR": [1], "ED": [2], "ET": [3], "WT": [1, 2, 3], "TC": [1, 3]}.items():
        mask = torch.isin(best, torch.tensor(channels))
        assert found[name] == pytest.approx(soft_dice(p[channels].sum(0), mask), rel=1e-5)


def test_of_a_mask_that_is_made_in_another_way() -> None:
    given = logits()
    regions = {"WT": (1, 2, 3), "TC": (1, 3)}
    found = AddConfidenced(["NCR", "ED", "ET"], regions, labels=region_labels)({"pred": given})["confidence"]
    p, labels = given.softmax(0), region_labels(given)[0]
    mask = labels > 0
    assert not torch.equal(mask, given.argmax(0) > 0)
    assert found["WT"] == pytest.approx(soft_dice(1 - p[0], mask), rel=1e-5)
    assert found["NCR"] == pytest.approx(soft_dice(p[1], labels == 1), rel=1e-5)


def test_of_channels_of_their_own() -> None:
    given = logits(3)
    add = AddConfidenced(["WT", "TC", "ET"], {"WT": (1, 2, 3)}, activation="sigmoid", threshold=0.6)
    found = add({"pred": given})["confidence"]
    for channel, name in enumerate(["WT", "TC", "ET"]):
        p = given[channel].sigmoid()
        assert found[name] == pytest.approx(soft_dice(p, p > 0.6), rel=1e-5)


def test_sure_is_1_unsure_is_less_and_what_is_nowhere_has_none() -> None:
    given = torch.full((3, 20, 8, 8), -20.0)
    given[0] = 20
    given[:2, 4:16, 2:6, 2:6] = given[:2, 4:16, 2:6, 2:6].flip(0)
    add = AddConfidenced(["a", "b"])
    assert add({"pred": given})["confidence"] == {"a": pytest.approx(1)}
    assert add({"pred": given / 40})["confidence"]["a"] < 0.7


def test_another_activation_is_refused() -> None:
    with pytest.raises(ValueError, match="activation"):
        AddConfidenced(["a"], activation="relu")
