"""Volumes whose axes are in another order than BraTS's."""

from __future__ import annotations

import itertools
from concurrent.futures import ThreadPoolExecutor

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, CropForegroundd, Invertd

from bundlekit.brats.axes import AxesInOrderd, in_order

LPS = np.diag([-1.0, -1, 1, 1])


def volume(order: tuple[int, ...], signs: tuple[int, ...] = (1, 1, 1)) -> tuple[np.ndarray, MetaTensor]:
    """A volume in order, and the same with its axes in another one, some of them the other way round."""
    voxels = np.random.default_rng(0).integers(1, 99, (2, 5, 6, 7)).astype(np.float32)
    turn = np.stack([order, signs], 1)
    other = nib.orientations.apply_orientation(np.moveaxis(voxels, 0, -1), turn)
    affine = LPS @ nib.orientations.inv_ornt_aff(turn, voxels.shape[1:])
    return voxels, MetaTensor(torch.from_numpy(np.moveaxis(other, -1, 0).copy()), affine=torch.from_numpy(affine))


@pytest.mark.parametrize("order", itertools.permutations(range(3)))
def test_every_order_becomes_that_of_brats(order: tuple[int, ...]) -> None:
    voxels, other = volume(order)
    turned = AxesInOrderd()({"image": other})["image"]
    np.testing.assert_array_equal(turned, voxels)
    np.testing.assert_allclose(turned.affine, LPS)
    assert in_order(other.affine.numpy()) == (order == (0, 1, 2))
    assert in_order(turned.affine.numpy())


def test_directions_stay() -> None:
    voxels, other = volume((2, 0, 1), (-1, 1, 1))
    turned = AxesInOrderd()({"image": other})["image"]
    assert turned.shape == voxels.shape
    assert in_order(turned.affine.numpy())
    np.testing.assert_array_equal(turned, voxels[:, ::-1])


def test_a_mask_comes_back_on_the_grid_of_the_file() -> None:
    _, other = volume((1, 2, 0))
    other[:, :1] = 0
    preparing = Compose([AxesInOrderd(), CropForegroundd("image", "image", allow_smaller=True)])
    prepared = preparing({"image": other})
    assert prepared["image"].shape != other.shape
    prepared["pred"] = MetaTensor(prepared["image"][:1].as_tensor().clone())
    back = Invertd("pred", preparing, orig_keys="image")(prepared)["pred"]
    np.testing.assert_array_equal(back, other[:1])
    np.testing.assert_allclose(back.affine, other.affine)


def test_threads_share_it() -> None:
    """As MONAI's CacheDataset does."""
    turn = AxesInOrderd()
    pairs = [volume((1, 2, 0), signs) for signs in itertools.product((1, -1), repeat=3)] * 25
    with ThreadPoolExecutor(4) as threads:
        turned = threads.map(lambda pair: turn({"image": pair[1]})["image"], pairs)
        alone = [AxesInOrderd()({"image": other})["image"] for _, other in pairs]
        for together, expected in zip(turned, alone, strict=True):
            np.testing.assert_array_equal(together, expected)


def test_keys_that_are_not_there() -> None:
    _, other = volume((1, 0, 2))
    assert set(AxesInOrderd(["image", "label"], allow_missing_keys=True)({"image": other})) == {"image"}
    with pytest.raises(KeyError):
        AxesInOrderd(["image", "label"])({"image": other})
