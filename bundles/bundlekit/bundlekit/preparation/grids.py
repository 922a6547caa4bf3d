"""Where voxels lie, and images brought from one grid to another.

Positions are in mm and RAS+, as NIfTI has them. SimpleITK computes in LPS+: only this module and `registration` know.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import nibabel as nib
import numpy as np
import SimpleITK as sitk  # noqa: N813

from bundlekit.images.nifti import same_places, voxel_ml

_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
_SHEAR = 1e-3  # cosine between two axes of a grid: what rounding of a header explains


@dataclass(frozen=True)
class Grid:
    """A box of voxels.

    Args:
        shape: voxels along i, j and k.
        affine: 4x4, voxel to mm, RAS+.
    """

    shape: tuple[int, int, int]
    affine: np.ndarray

    @property
    def spacing(self) -> np.ndarray:
        """Edges of a voxel, mm."""
        return np.linalg.norm(self.affine[:3, :3], axis=0)

    @property
    def voxel_ml(self) -> float:
        """Volume of a voxel."""
        return voxel_ml(self.affine)

    @property
    def axes(self) -> str:
        """Where the three axes lead to, e.g. "LPS"."""
        return "".join(nib.aff2axcodes(self.affine))

    @property
    def sheared(self) -> bool:
        """Whether its axes are not at right angles, which no rigid move of a scan gives."""
        unit = self.affine[:3, :3] / self.spacing
        return bool(np.abs(unit.T @ unit - np.eye(3)).max() > _SHEAR)

    def same_as(self, other: Grid) -> bool:
        """Whether both have the same voxels in the same places, see `same_places`."""
        return self.shape == other.shape and same_places(self.affine, other.affine, self.shape)

    def as_dict(self) -> dict[str, Any]:
        """For a JSON file."""
        return {
            "shape": list(self.shape),
            "spacing_mm": self.spacing.round(5).tolist(),
            "axes": self.axes,
            "affine_ras": self.affine.tolist(),
        }

    @staticmethod
    def from_dict(values: dict[str, Any]) -> Grid:
        """As `as_dict` gave it."""
        shape = (int(n) for n in values["shape"])
        return Grid(tuple(shape), np.asarray(values["affine_ras"], np.float64))  # type: ignore[arg-type]


def cubes(grid: Grid, spacing_mm: float = 1.0) -> Grid:
    """The grid of cubes that covers the same box along the same directions, its axes in the order of BraTS (LPS).

    Args:
        grid: of a scan.
        spacing_mm: edge of a voxel.
    """
    now = nib.io_orientation(grid.affine)
    turn = nib.orientations.ornt_transform(now, nib.orientations.axcodes2ornt("LPS"))
    affine = grid.affine @ nib.orientations.inv_ornt_aff(turn, grid.shape)
    lengths = np.asarray(grid.shape, float)[np.argsort(turn[:, 0])]  # voxels along the new axes
    edges = np.linalg.norm(affine[:3, :3], axis=0)
    shape = np.maximum(np.ceil(lengths * edges / spacing_mm - 1e-3), 1).astype(int)
    out = affine.copy()
    out[:3, :3] = affine[:3, :3] / edges * spacing_mm
    # both boxes have the same middle
    out[:3, 3] = affine[:3, :3] @ ((lengths - 1) / 2) + affine[:3, 3] - out[:3, :3] @ ((shape - 1) / 2)
    return Grid(tuple(int(n) for n in shape), out)  # type: ignore[arg-type]


def split(grid: Grid, parts: Sequence[int]) -> Grid:
    """The grid whose voxels are those of `grid`, each cut into so many parts along i, j and k."""
    cut = np.asarray(parts, float)
    affine = grid.affine.copy()
    affine[:3, :3] = grid.affine[:3, :3] / cut
    affine[:3, 3] = grid.affine[:3, 3] + affine[:3, :3] @ ((1 - cut) / 2)
    return Grid(tuple(int(n * p) for n, p in zip(grid.shape, parts, strict=True)), affine)  # type: ignore[arg-type]


def to_itk(array: np.ndarray, affine: np.ndarray) -> sitk.Image:
    """An image of SimpleITK.

    Args:
        array: HWD; bool as uint8.
        affine: 4x4 without shear, voxel to mm, RAS+.
    """
    image = sitk.GetImageFromArray((array.astype(np.uint8) if array.dtype == bool else array).transpose(2, 1, 0))
    spacing, origin, direction = _geometry(affine)
    image.SetSpacing(spacing)
    image.SetOrigin(origin)
    image.SetDirection(direction)
    return image


def _geometry(affine: np.ndarray) -> tuple[list[float], list[float], list[float]]:
    """Spacing, origin and direction as SimpleITK has them, of an affine (RAS+) without shear."""
    lps = _TO_LPS @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    left, _, right = np.linalg.svd(lps[:3, :3] / spacing)  # at right angles to the last digit, as ITK wants it
    return spacing.tolist(), lps[:3, 3].tolist(), (left @ right).ravel().tolist()


def itk_transform(ras: np.ndarray) -> sitk.AffineTransform:
    """A 4x4 matrix (mm, RAS+) as SimpleITK has it."""
    lps = _TO_LPS @ ras @ _TO_LPS
    transform = sitk.AffineTransform(3)
    transform.SetMatrix(lps[:3, :3].ravel().tolist())
    transform.SetTranslation(lps[:3, 3].tolist())
    return transform


def ras_matrix(transform: sitk.Transform) -> np.ndarray:
    """The 4x4 matrix (mm, RAS+) of a linear transform of SimpleITK."""
    base = np.asarray(transform.TransformPoint((0.0, 0.0, 0.0)))
    columns = [np.asarray(transform.TransformPoint(unit)) - base for unit in np.eye(3).tolist()]
    lps = np.eye(4)
    lps[:3, :3], lps[:3, 3] = np.stack(columns, axis=1), base
    return _TO_LPS @ lps @ _TO_LPS


def resample(
    array: np.ndarray,
    affine: np.ndarray,
    grid: Grid,
    moved: np.ndarray | None = None,
    outside: float = 0.0,
    spline: bool = False,
) -> np.ndarray:
    """An image on another grid, interpolated once: HWD float32.

    Args:
        array: HWD.
        affine: 4x4 of the image, mm, RAS+.
        grid: of the result.
        moved: 4x4, from a point of the result to that of the image, mm, RAS+; None: they are the same.
        outside: value beyond the image.
        spline: by cubic B-splines, which may leave the range of the image; else linearly.
    """
    if (moved is None or np.array_equal(moved, np.eye(4))) and Grid(array.shape, affine).same_as(grid):  # type: ignore[arg-type]
        return np.ascontiguousarray(array, np.float32)
    source = to_itk(np.ascontiguousarray(array, np.float32), affine)
    spacing, origin, direction = _geometry(grid.affine)
    resampler = sitk.ResampleImageFilter()
    resampler.SetSize([int(n) for n in grid.shape])
    resampler.SetOutputSpacing(spacing)
    resampler.SetOutputOrigin(origin)
    resampler.SetOutputDirection(direction)
    resampler.SetInterpolator(sitk.sitkBSpline3 if spline else sitk.sitkLinear)
    resampler.SetDefaultPixelValue(float(outside))
    if moved is not None:
        resampler.SetTransform(itk_transform(moved))
    return np.ascontiguousarray(sitk.GetArrayFromImage(resampler.Execute(source)).transpose(2, 1, 0))
