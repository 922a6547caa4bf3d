"""Filters of painted volumes."""

from __future__ import annotations

import pytest
import torch

from bundlekit.virtual.filters import shift


def test_a_shifted_grid_holds_two_tissues_at_the_border() -> None:
    image = torch.zeros(6, 3, 3)
    image[3:] = 1
    moved = shift(image, (0.4, 0, 0))
    assert moved[:, 1, 1].tolist() == pytest.approx([0, 0, 0.4, 1, 1, 1])
    assert torch.equal(moved.round(), image)  # what a voxel holds more of is its label
    assert shift(image, (-0.4, 0, 0))[:, 1, 1].tolist() == pytest.approx([0, 0, 0, 0.6, 1, 1])


def test_along_three_axes_at_once() -> None:
    image = torch.zeros(3, 3, 3)
    image[1, 1, 1] = 1
    moved = shift(image, (0.25, 0.125, -0.125))
    assert float(moved.sum()) == pytest.approx(1)
    assert float(moved[1, 1, 1]) == pytest.approx(0.75 * 0.875 * 0.875)  # more than half
    assert float(moved[0, 0, 2]) == pytest.approx(0.25 * 0.125 * 0.125)


def test_more_than_half_a_voxel_is_refused() -> None:
    with pytest.raises(ValueError, match=r"0\.5 voxels or less"):
        shift(torch.zeros(2, 2, 2), (0.3, 0.2, -0.1))
