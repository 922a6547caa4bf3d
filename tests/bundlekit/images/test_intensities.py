"""What is air, and normalisation by the rest: hand-computable, then a head with and without noise around it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from bundlekit.images.intensities import (
    air_of,
    check_method,
    foreground,
    limits_of,
    normalise,
    select_foreground,
    statistics,
    without_air,
)
from tests.bundlekit.conftest import ball


@pytest.mark.parametrize("air", [0.0, 4.0])
def test_foreground_is_the_head_with_and_without_noise_in_the_air(air: float) -> None:
    truth = ball() > 0
    found = foreground(ball(air=air))
    assert np.mean(found == truth) > 0.999
    assert select_foreground(torch.from_numpy(ball(air=air))[None]).dtype == torch.bool


def test_foreground_keeps_negative_intensities_of_a_stripped_scan() -> None:
    image = ball() - 120 * (ball() > 0)
    np.testing.assert_array_equal(foreground(image), image != 0)


def test_air_of_volumes_and_slices() -> None:
    volume = np.zeros((4, 8, 8, 8))
    volume[:, 1:7, 1:7, 1:7] = np.arange(4 * 6**3).reshape(4, 6, 6, 6) + 1
    for per_slice in (False, True):
        assert not air_of(volume, per_slice).any()
    shifted = volume + np.array([0, 1, -2, 3.5])[:, None, None, None]
    air = air_of(shifted)
    assert air.ravel().tolist() == [0, 1, -2, 3.5]
    np.testing.assert_array_equal(without_air(shifted, air), volume)
    scaled = volume * 2 - np.arange(1, 9)  # every slice on a scale of its own
    np.testing.assert_array_equal(without_air(scaled, air_of(scaled, per_slice=True)), 2 * volume)
    shifted[1, 0, 0, 0] = 7  # no air in that corner: nothing is subtracted
    assert air_of(shifted).ravel().tolist() == [0, 0, -2, 3.5]


@pytest.mark.parametrize(
    ("dtype", "brain", "air"),
    [
        (np.uint8, 30, 80),
        (np.int8, -100, 100),
        (np.uint16, 7, 60000),
        (np.int16, -30000, 30000),
        (np.float16, -2047, 2048),
        (np.int32, 16777217, 16777216),  # 2^24 + 1: no number of 32 bits
        (np.uint32, 3, 4000000000),
        (np.float64, 1 / 3, -0.3),
    ],
)
def test_air_is_subtracted_in_floating_point(dtype: Any, brain: float, air: float) -> None:
    volume = np.full((4, 5, 5, 5), air, dtype)
    volume[:, 2, 2, 2] = brain
    found = air_of(volume)
    expected = np.zeros(volume.shape, np.float32)
    expected[:, 2, 2, 2] = float(dtype(brain)) - float(dtype(air))
    for given in (found, found.astype(np.float64)):  # of whole cases, and as it is kept for chunks
        result = without_air(volume, given)
        assert result.dtype == np.float32
        np.testing.assert_array_equal(result, expected)


def test_zscore_by_hand() -> None:
    offset, scale = statistics(np.array([1.0, 2.0, 3.0, 6.0]), "zscore")
    assert (offset, scale) == (3.0, pytest.approx(3.5**0.5))
    found = normalise(np.array([3.0, 3.0 + 2 * scale, 100.0, -100.0]), offset, scale, "zscore")
    np.testing.assert_allclose(found, [0, 2, 6, -6])


def test_percentiles_by_hand() -> None:
    offset, scale = statistics(np.arange(201.0), "percentile")
    assert (offset, scale) == (1.0, 198.0)
    found = normalise(torch.tensor([0.0, 1.0, 100.0, 199.0, 200.0]), offset, scale, "percentile")
    assert found.tolist() == [0, 0, 0.5, 1, 1]


@pytest.mark.parametrize("method", ["zscore", "percentile"])
def test_a_constant_sample_does_not_divide_by_nothing(method: str) -> None:
    offset, scale = statistics(np.full(4, 7.0), method)
    assert normalise(np.array([7.0]), offset, scale, method).tolist() == [0.0]


def test_limits_and_unknown_method() -> None:
    assert limits_of("zscore") == (-6, 6)
    assert limits_of("percentile") == (0, 1)
    with pytest.raises(ValueError, match="normalise must be one of zscore, percentile, got 'none'"):
        check_method("none")
