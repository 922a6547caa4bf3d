"""From logits on the network's grid to classes on the scan's own."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import Transform
from monai.utils import convert_to_numpy
from nibabel.affines import voxel_sizes

_SHEAR_MM = 0.5  # over a whole volume: rounded headers have less, a gantry tilted by one degree ten times that
_CHUNK = 8  # slices of the scan's grid that are interpolated together


class NativeClassesd(Transform):
    """Softmax, interpolate the probabilities linearly to the scan's grid, and only there decide the class.

    A few slices at a time, so that 14 classes of a 512x512x300 scan do not need 4.4 GB for their probabilities;
    what is kept of a voxel is its class and whether that class's probability is above one half. Outside the box that
    the network saw is background. Orientation, voxel size, crop and pad are undone at once, from the two affines, which
    must differ by them alone.

    The input has `pred` (logits, NHWD) and `image`, whose affine is theirs. The output has `pred` (1HWD uint8
    `MetaTensor`, class indices), `confident` (1HWD uint8: probability above 0.5) and, if wanted, `probabilities` (NHWD
    float16), on the grid of `native_affine` and `native_shape`.

    Args:
        probabilities: keep them.

    Raises:
        ValueError: if the two grids are rotated or sheared against each other; `shear.check_shear` finds such scans
            beforehand.
    """

    def __init__(self, probabilities: bool = False) -> None:
        self.probabilities = probabilities

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Replace the logits."""
        affine = np.asarray(convert_to_numpy(data["native_affine"]), float)
        shape = [int(n) for n in data["native_shape"]]
        logits = torch.as_tensor(data["pred"]).detach()
        logits = (logits.as_tensor() if isinstance(logits, MetaTensor) else logits).float()
        here = np.asarray(convert_to_numpy(data["image"].affine), float)
        order, positions = grid_positions(affine, shape, here)
        probabilities = logits.softmax(dim=0).permute(0, *(1 + axis for axis in order))

        count = len(probabilities)
        classes = torch.zeros(shape, dtype=torch.uint8)
        confident = torch.zeros(shape, dtype=torch.uint8)
        everything = torch.zeros((count, *shape), dtype=torch.float16) if self.probabilities else None
        if everything is not None:
            everything[0] = 1
        inside = [_inside(p, n) for p, n in zip(positions, probabilities.shape[1:], strict=True)]
        for start in range(inside[0].start, inside[0].stop, _CHUNK):
            box = (slice(start, min(start + _CHUNK, inside[0].stop)), inside[1], inside[2])
            values = probabilities
            for axis, part in enumerate(box):
                values = _interpolate(values, 1 + axis, positions[axis][part])
            best, index = values.max(dim=0)
            classes[box], confident[box] = index.to(torch.uint8).cpu(), (best > 0.5).to(torch.uint8).cpu()
            if everything is not None:
                everything[(slice(None), *box)] = values.half().cpu()
        outside = torch.ones(shape, dtype=torch.bool)
        outside[tuple(inside)] = False
        confident[outside] = 1
        result = {
            **data,
            "pred": MetaTensor(classes[None], affine=torch.from_numpy(affine)),
            "confident": MetaTensor(confident[None], affine=torch.from_numpy(affine)),
        }
        return result if everything is None else {**result, "probabilities": everything}


def grid_positions(native: np.ndarray, shape: Sequence[int], here: np.ndarray) -> tuple[list[int], list[np.ndarray]]:
    """Where the voxels of a scan's grid lie on another one that differs by axis order, direction, step and offset.

    Args:
        native: 4x4 affine of the scan's grid.
        shape: its size, HWD.
        here: 4x4 affine of the other grid.

    Returns:
        For each axis of the scan's grid the other grid's axis along which it runs, and the positions on that axis, in
        voxels, of its `shape` voxels.

    Raises:
        ValueError: if the grids are rotated or sheared against each other, by more than 0.5 mm over the volume.
    """
    between = np.linalg.inv(here) @ native
    order = [int(axis) for axis in nib.orientations.io_orientation(between)[:, 0]]
    # io_orientation gives, for each axis of the scan, the axis of the other grid
    steps = [between[axis, i] for i, axis in enumerate(order)]
    rest = between[:3, :3].copy()
    for i, axis in enumerate(order):
        rest[axis, i] = 0
    drift_mm = np.abs(rest * np.asarray(shape)) * voxel_sizes(here)[:, None]
    if sorted(order) != [0, 1, 2] or drift_mm.max() > _SHEAR_MM:
        raise ValueError(f"the grids are rotated or sheared against each other: {np.round(between, 4).tolist()}")
    return order, [between[axis, 3] + step * np.arange(n) for axis, step, n in zip(order, steps, shape, strict=True)]


def _inside(positions: np.ndarray, size: int) -> slice:
    """The voxels whose positions lie on a grid of `size` voxels, a border of half a voxel of either grid included.

    A thick end slice is on it, though its centre lies beyond: MONAI lays turned grids centre on centre.
    """
    half = max(0.5, abs(positions[-1] - positions[0]) / max(len(positions) - 1, 1) / 2)
    found = np.flatnonzero((positions >= -half) & (positions <= size - 1 + half))
    return slice(int(found[0]), int(found[-1]) + 1) if len(found) else slice(0, 0)


def _interpolate(values: torch.Tensor, axis: int, positions: np.ndarray) -> torch.Tensor:
    """Linear interpolation along one axis; the border's value beyond the outermost voxels."""
    where = torch.from_numpy(np.clip(positions, 0, values.shape[axis] - 1)).to(values.device)
    below = where.floor().long().clamp(max=max(values.shape[axis] - 2, 0))
    share = (where - below).to(values.dtype)
    share = share.view([-1 if a == axis else 1 for a in range(values.ndim)])
    above = (below + 1).clamp(max=values.shape[axis] - 1)
    return torch.lerp(values.index_select(axis, below), values.index_select(axis, above), share)
