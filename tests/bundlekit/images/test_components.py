"""Components of masks, compared with SciPy's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Transform
from scipy import ndimage

from bundlekit.brats.cleaning import RelabelUnenhancedd, RemoveCorelessd
from bundlekit.images.components import components, large_components

TOUCHING = np.ones((3, 3, 3))


def masks() -> list[np.ndarray]:
    """Random masks of odd shapes, in either order of memory, and the fullest ones of single voxels."""
    random = np.random.default_rng(0)
    found = []
    for position in range(60):
        mask = random.random(random.integers(1, 20, 3)) < random.choice([0.02, 0.1, 0.2, 0.5])
        found.append(np.asfortranarray(mask) if position % 2 else mask)
    for shape in [(1, 1, 3), (3, 1, 1), (3, 3, 1), (5, 5, 5), (2, 3, 7)]:
        lattice = np.zeros(shape, bool)
        lattice[::2, ::2, ::2] = True
        found.append(lattice)
    return found


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int16])
def test_numbers_are_those_of_scipy(dtype: type) -> None:
    for mask in masks():
        expected, count = ndimage.label(mask, TOUCHING)
        numbers, n = components(mask.astype(dtype))
        assert n == count
        np.testing.assert_array_equal(numbers, expected)


@pytest.mark.parametrize("minimum_voxels", [1, 2, 5, 50])
def test_small_ones_are_left_out(minimum_voxels: int) -> None:
    for mask in masks():
        numbers, count = ndimage.label(mask, TOUCHING)
        large = np.bincount(numbers.ravel(), minlength=count + 1) >= minimum_voxels
        np.testing.assert_array_equal(large_components(mask, minimum_voxels), mask & large[numbers])


def cleaned(step: Transform, labels: np.ndarray) -> np.ndarray:
    return step({"pred": MetaTensor(torch.from_numpy(labels)[None])})["pred"].numpy()[0]


def test_cleaning_goes_by_scipys_components() -> None:
    random = np.random.default_rng(1)
    for mask in masks():
        labels = np.where(mask, random.integers(1, 4, mask.shape), 0).astype(np.uint8)
        core = np.isin(labels, (1, 3))
        numbers, count = ndimage.label(core, TOUCHING)
        enhancing = set(numbers[labels == 3].tolist())
        expected = np.where(core & ~np.isin(numbers, list(enhancing)), 2, labels) if enhancing else labels
        np.testing.assert_array_equal(cleaned(RelabelUnenhancedd(0.001), labels), expected)
        numbers, count = ndimage.label(mask, TOUCHING)
        kept = [n for n in range(1, count + 1) if core[numbers == n].sum() >= 2]
        kept = kept or [1 + int(np.bincount(numbers.ravel())[1:].argmax())] if count else kept
        np.testing.assert_array_equal(cleaned(RemoveCorelessd(0.002), labels), labels * np.isin(numbers, kept))
