"""Modality dropout: how often, how many, and that the patch it is given stays as it was."""

from __future__ import annotations

import logging
from collections import Counter
from typing import Any

import pytest
import torch

from bundlekit.brats import RandDropModalitiesd, tell_filled

_DRAWS = 2000


def _dropped(**kwargs: Any) -> Counter[tuple[int, ...]]:
    transform = RandDropModalitiesd(**kwargs)
    transform.set_random_state(seed=3)
    found: Counter[tuple[int, ...]] = Counter()
    for _ in range(_DRAWS):
        transform.randomize(range(4))
        found[tuple(sorted(transform.dropped))] += 1
    return found


def test_one_or_two_of_four_all_alike() -> None:
    found = _dropped(prob=1.0)
    assert set(map(len, found)) == {1, 2}
    assert len(found) == 4 + 6
    assert sum(n for names, n in found.items() if len(names) == 1) == pytest.approx(_DRAWS / 2, abs=100)
    for names, n in found.items():
        assert n == pytest.approx(_DRAWS / (8 if len(names) == 1 else 12), rel=0.35)


def test_as_often_as_said() -> None:
    assert _dropped(prob=0.3)[()] == pytest.approx(0.7 * _DRAWS, abs=100)
    assert set(_dropped(prob=0.0)) == {()}


def test_one_modality_always_stays() -> None:
    transform = RandDropModalitiesd(prob=1.0, most=5)
    transform.set_random_state(seed=0)
    for _ in range(50):
        assert transform({"image": torch.ones(2, 2, 2, 2)})["image"].sum() == 8


@pytest.mark.parametrize(("filled", "kept"), [((0, 2), {1}), ((1, 2), {1}), ((0, 1, 2), {1}), ((0, 1, 2, 3), {0})])
def test_what_is_filled_with_zeros_counts_as_missing(filled: tuple[int, ...], kept: set[int]) -> None:
    """A case that came without some modalities keeps one of its others."""
    image = torch.ones(4, 2, 2, 2)
    image[list(filled)] = 0
    transform = RandDropModalitiesd(prob=1.0)
    transform.set_random_state(seed=2)
    for _ in range(50):
        result = transform({"image": image})["image"]
        assert int(result.flatten(1).any(1).sum()) in kept


def test_the_rest_and_the_input_stay() -> None:
    image = torch.rand(4, 2, 2, 2) + 1
    before = image.clone()
    transform = RandDropModalitiesd(prob=1.0)
    transform.set_random_state(seed=1)
    result = transform({"image": image, "label": 7})
    assert torch.equal(image, before)
    assert result["label"] == 7
    for channel in range(4):
        expected = 0 * before[channel] if channel in transform.dropped else before[channel]
        assert torch.equal(result["image"][channel], expected)


@pytest.mark.parametrize("wrong", [{"prob": 1.2}, {"most": 0}])
def test_wrong_values(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must be"):
        RandDropModalitiesd(**wrong)


def test_the_log_names_what_is_missing(caplog: pytest.LogCaptureFixture) -> None:
    cases: Any = [{"case": "a", "image": ["", "x", "", "y"]}, {"case": "b", "image": ["v", "x", "z", "y"]}]
    with caplog.at_level(logging.WARNING):
        tell_filled(cases)
        tell_filled(cases, 0.3)
    untrained, trained = caplog.messages
    assert untrained.startswith("a has no T1 and no T2: zeros in its place; the network was NOT trained for that")
    assert trained.endswith("the network was trained for that")
