"""A stack of DICOM slices as a volume: in order, with its affine, nothing missing."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pydicom
from pydicom.pixels import pixel_array

from bundlekit.errors import BundleError, Finding
from bundlekit.images.intensities import air_of, without_air
from bundlekit.images.nifti import check_voxels
from bundlekit.preparation.dicom_decoding import register_decoder
from bundlekit.preparation.dicom_files import as_it_comes, read_whole
from bundlekit.preparation.dicom_series import Slice, Stack, read_stacks
from bundlekit.preparation.grids import Grid
from bundlekit.preparation.scans import Scan

LEAST_EDGE_MM = 100.0
"""Of a box around a whole brain: a shorter one is a part of a head, or no head."""

_LEAST_SLICES = 3
_SAME_GAP = (0.05, 0.02)  # mm, and share of the usual distance: what rounding of positions explains
_MASK_VALUES = 8  # an image has more
_STRAIGHT_MM = 0.5  # of a middle slice from the line between the outer ones
_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


def put_in_order(stack: Stack) -> None:
    """Sort the slices along their normal, upwards in its direction; `unfit` is set where they make no volume."""
    if stack.unfit:
        return
    if len(stack.slices) < _LEAST_SLICES:
        stack.unfit = f"{len(stack.slices)} slice(s): no volume"
        return
    along = np.asarray(stack.orientation).reshape(2, 3)
    if np.abs(along @ along.T - np.eye(2)).max() > 1e-3:
        stack.unfit = "directions of rows and columns that are not at right angles"
        return
    normal = np.cross(*along)
    stack.slices.sort(key=lambda one: float(np.dot(normal, _position(one))))
    stack.unfit = _gaps(stack, normal) or _slant(stack, normal) or _extent(stack)


def grid_of(stack: Stack) -> Grid:
    """Where the voxels lie: axis i along a row, j along a column, k from slice to slice; RAS+."""
    along_row, along_column = np.asarray(stack.orientation).reshape(2, 3)
    first, last = _position(stack.slices[0]), _position(stack.slices[-1])
    affine = np.eye(4)
    affine[:3, 0] = along_row * stack.spacing[1]
    affine[:3, 1] = along_column * stack.spacing[0]
    affine[:3, 2] = (last - first) / (len(stack.slices) - 1)
    affine[:3, 3] = first
    return Grid((stack.columns, stack.rows, len(stack.slices)), _TO_RAS @ affine)


def find_stack(root: str | os.PathLike, digest: str) -> Stack | None:
    """The stack with this digest in a folder; None if it is not there."""
    stacks = read_stacks(root)
    for stack in stacks:
        put_in_order(stack)
    return next((stack for stack in stacks if stack.digest == digest), None)


def read_voxels(stack: Stack) -> np.ndarray:
    """What was measured (stored value times slope plus intercept), float32 on `grid_of`.

    Raises:
        BundleError: naming each file whose voxels cannot be decoded to their end.
    """
    register_decoder()
    out = np.empty((stack.columns, stack.rows, len(stack.slices)), np.float32)
    findings = []
    file, header = Path(), pydicom.Dataset()
    for k, one in enumerate(stack.slices):
        try:
            with as_it_comes():
                if one.file != file:
                    file, header = one.file, read_whole(one.file)
                stored = pixel_array(header, index=one.frame)
        except Exception as error:  # pydicom and its decoders raise a dozen types
            told = str(error).strip().splitlines() or [type(error).__name__]
            fix = (
                "copy the file again from the PACS or the disc; a rare compression can be taken off, e.g. with gdcmconv"
            )
            found = f"voxels that cannot be decoded to their end ({told[0]})"
            findings.append(Finding(str(one.file), found, "a whole DICOM image", fix))
            file = Path()
            continue
        slope, intercept = one.scale
        out[:, :, k] = stored.T.astype(np.float32) * np.float32(slope) + np.float32(intercept)
        padding = header.get("PixelPaddingValue")
        if isinstance(padding, (int, float)):  # no measurement: air
            out[:, :, k][int(padding) == stored.T] = 0
    if findings:
        raise BundleError(findings)
    return out


def scan_of(modality: str, stack: Stack) -> Scan:
    """The scan of a head in a stack, checked as one of a NIfTI file.

    Raises:
        BundleError: if the voxels cannot be read, or are no image.
    """
    voxels = read_voxels(stack)
    findings = check_voxels(str(stack), voxels)
    if not findings and len(values := np.unique(voxels)) <= _MASK_VALUES:
        found = f"{len(values)} values, {', '.join(f'{value:g}' for value in values)}: a mask"
        findings.append(Finding(str(stack), found, "grey values", f"give another series for the {modality}"))
    if findings:
        raise BundleError(findings)
    voxels = np.ascontiguousarray(without_air(voxels[None], air_of(voxels[None]))[0], np.float32)
    return Scan(modality, Path(str(stack)), voxels, grid_of(stack), "", stack)


def _position(one: Slice) -> np.ndarray:
    return np.asarray(one.position if one.position is not None else (np.nan,) * 3)


def _gaps(stack: Stack, normal: np.ndarray) -> str:
    """That slices are doubled, missing, or not equally far from each other; "" if they are as they have to be."""
    heights = np.asarray([float(np.dot(normal, _position(one))) for one in stack.slices])
    if not np.isfinite(heights).all():
        return "slices whose place is not told"
    steps = np.diff(heights)
    usual = float(np.median(steps))
    doubled = np.flatnonzero(steps < max(_SAME_GAP[0] / 5, 0.1 * usual))
    if len(doubled):
        one, other = (_name(stack.slices[doubled[0] + end]) for end in (0, 1))
        return f"{len(doubled)} slice(s) more than once, e.g. {one} and {other} at {heights[doubled[0]]:.2f} mm"
    wide = np.flatnonzero(np.abs(steps - usual) > max(_SAME_GAP[0], _SAME_GAP[1] * usual))
    if not len(wide):
        return ""
    at = int(wide[0])
    between = (
        f"{steps[at]:.2f} mm between {_name(stack.slices[at])} and {_name(stack.slices[at + 1])}, else {usual:.2f} mm"
    )
    missing = np.round(steps[wide] / usual) - 1
    if (missing >= 1).all() and np.abs(steps[wide] / usual - missing - 1).max() < 0.1:
        return f"{int(missing.sum())} slice(s) missing: {between}"
    return f"slices that are not equally far apart: {between}"


def _name(one: Slice) -> str:
    return one.file.name + ("" if one.frame is None else f" frame {one.frame + 1}")


def _slant(stack: Stack, normal: np.ndarray) -> str:
    """That the stack leans (a tilted gantry) or bends; "" if it stands upright."""
    places = np.asarray([_position(one) for one in stack.slices])
    way = places[-1] - places[0]
    angle = float(np.degrees(np.arccos(np.clip(np.dot(way / np.linalg.norm(way), normal), -1, 1))))
    line = places[0] + np.linspace(0, 1, len(places))[:, None] * way
    away = float(np.linalg.norm(places - line, axis=1).max())
    if away > _STRAIGHT_MM:
        return f"slices that do not lie behind each other: one is {away:.1f} mm beside the line"
    if grid_of(stack).sheared:
        return f"slices that lean by {angle:.1f} degrees (a tilted gantry)"
    return ""


def _extent(stack: Stack) -> str:
    """That it is too small for a whole head; "" if it is not."""
    grid = grid_of(stack)
    edges = np.asarray(grid.shape) * grid.spacing
    if edges.min() >= LEAST_EDGE_MM:
        return ""
    return f"covers {' x '.join(f'{mm:.0f}' for mm in edges)} mm: not the whole head"
