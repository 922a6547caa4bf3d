"""Grids and moves, by hand."""

from __future__ import annotations

import nibabel as nib
import numpy as np

from bundlekit.preparation.grids import Grid, cubes, itk_transform, ras_matrix, resample, split


def test_cubes_cover_the_same_box() -> None:
    grid = Grid((10, 20, 4), np.array([[0, 0, 6.0, -7], [2.0, 0, 0, 5], [0, 0.5, 0, 9], [0, 0, 0, 1]]))  # ASR
    out = cubes(grid)
    assert grid.axes == "ASR"
    assert out.axes == "LPS"
    assert out.shape == (24, 20, 10)
    np.testing.assert_allclose(out.spacing, 1)
    for one in (grid, out):  # the middle of the box
        middle = one.affine @ [*((np.asarray(one.shape) - 1) / 2), 1]
        np.testing.assert_allclose(middle[:3], [2, 14, 13.75])


def test_cubes_of_a_brats_grid_are_that_grid() -> None:
    grid = Grid((24, 24, 15), np.array([[-1.0, 0, 0, 0], [0, -1.0, 0, 239], [0, 0, 1.0, 0], [0, 0, 0, 1]]))
    assert cubes(grid).same_as(grid)


def test_parts_of_a_voxel_have_its_middle() -> None:
    grid = Grid((2, 2, 2), np.diag([1.0, 1.0, 6.0, 1.0]))
    parts = split(grid, (1, 1, 3))
    assert parts.shape == (2, 2, 6)
    np.testing.assert_allclose([(parts.affine @ [0, 0, k, 1])[2] for k in range(3)], [-2, 0, 2])


def test_resampling_brings_a_voxel_where_the_affines_say() -> None:
    image = np.zeros((8, 9, 10), np.float32)
    image[2, 3, 4] = 1
    affine = np.array([[-1.0, 0, 0, 3], [0, 2.0, 0, -5], [0, 0, 1.0, 7], [0, 0, 0, 1]])
    turned = nib.as_closest_canonical(nib.Nifti1Image(image, affine))
    grid = Grid(turned.shape, turned.affine)
    np.testing.assert_allclose(resample(image, affine, grid), turned.get_fdata(), atol=1e-6)
    move = np.eye(4)
    move[:3, 3] = (1, 2, 0)  # a point of the result lies there in the image
    there = resample(image, affine, Grid(image.shape, affine), move)
    assert there[3, 2, 4] == 1


def test_moves_survive_the_way_through_itk() -> None:
    matrix = np.array([[0, -1.0, 0, 3], [1.0, 0, 0, -4], [0, 0, 1.0, 5], [0, 0, 0, 1]])
    np.testing.assert_allclose(ras_matrix(itk_transform(matrix)), matrix)
