"""What is air, and normalisation by the rest: hand-computable, then a head with and without noise around it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bundlekit.images.intensities import check_method, foreground, limits_of, normalise, select_foreground, statistics
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
