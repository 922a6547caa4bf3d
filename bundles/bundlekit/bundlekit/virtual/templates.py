"""Anatomies of real people: whole-head or brain label maps in FreeSurfer's numbering, in place of the ICBM152 average.

A map is turned until its hemispheres mirror each other, scaled to the box of the ICBM152 brain and sampled on its grid
of 1 mm, so that all that is known of places in that template (midline, height of the commissures) holds here too.
"""

from __future__ import annotations

from functools import cache

import nibabel as nib
import numpy as np
import torch
from scipy import ndimage
from scipy.spatial.transform import Rotation

from bundlekit.images.nifti import read_affine, read_volume, whole_numbers
from bundlekit.label_maps import numberings

# left and right numbers of what comes in pairs: white matter, cortex, cerebellum (two), thalamus, caudate, putamen
_PAIRS = ((2, 41), (3, 42), (7, 46), (8, 47), (10, 49), (11, 50), (12, 51))
# T1 signal (white matter 1) of what is neither like cortex nor like white matter
_T1 = {"thalamus": 0.88, "pallidum": 0.93, "putamen": 0.83, "caudate": 0.79, "brain stem": 0.94, "ventral DC": 0.93}
_TISSUE_T1 = (0.0, 0.28, 0.75, 1.0)  # background, CSF, grey and white matter; as anatomy.py has it
_PARTIAL_MM = 0.6  # standard deviation of the blur that makes fractions of labels
_CLOSING_MM = 6.0  # sulci narrower than twice this belong to the stripped brain ...
_RIM_MM = 1.5  # ... and so does this much fluid around it


def template_of(file: str, like: torch.Tensor, first_mm: tuple[float, float, float]) -> torch.Tensor:
    """Maps of one person in place of a template's: (1, 4, X, Y, Z), float32.

    Args:
        file: label map in FreeSurfer's numbering, of any orientation and voxel size.
        like: the template, (1, 4, X, Y, Z) on a grid of 1 mm: grey, white, T1 (1 = white matter), depth in mm.
        first_mm: position of its first voxel.

    Raises:
        ValueError: if a number is not FreeSurfer's, or there is hardly any grey and white matter.
    """
    numbers = whole_numbers(read_volume(file), file)
    beyond = np.unique(numbers[(numbers < 0) | (numbers > np.iinfo(np.int16).max)])[:8].tolist()
    if beyond:
        raise ValueError(f"{file}: the numbers {beyond} are not FreeSurfer's; expected a map of that numbering.")
    image = nib.as_closest_canonical(nib.Nifti1Image(numbers.astype(np.int16), read_affine(file)))
    numbers = np.asarray(image.dataobj)
    tissue, brain, t1 = _tables()
    counts = np.bincount(numbers.ravel().view(np.uint16), minlength=len(tissue))
    unknown = [int(number) for number in np.flatnonzero(counts) if number >= len(tissue) or tissue[number] == 255]
    if unknown:
        raise ValueError(f"{file}: the numbers {unknown[:8]} are not FreeSurfer's; expected a map of that numbering.")
    if min(counts[: len(tissue)][tissue == k].sum() for k in (numberings.GM, numberings.WM)) < 1000:
        raise ValueError(f"{file}: hardly any grey and white matter; expected the label map of a whole brain.")
    box = _box_around(brain[numbers], 2)
    numbers = numbers[box]
    affine = image.affine @ nib.affines.from_matvec(np.eye(3), [part.start for part in box])
    shape = tuple(like.shape[2:])
    matrix, offset = _pose(numbers, tissue[numbers], affine, like, first_mm)
    moved = ndimage.affine_transform(numbers, matrix, offset, output_shape=shape, order=0)
    kinds = tissue[moved]
    parts = [ndimage.gaussian_filter((kinds == k).astype(np.float32), _PARTIAL_MM) for k in (2, 3)]
    signal = ndimage.gaussian_filter(t1[moved], _PARTIAL_MM)
    depth = _depth(brain[moved], (kinds == 2) | (kinds == 3))
    return torch.from_numpy(np.stack([*parts, signal, depth]).astype(np.float32))[None]


@cache
def _tables() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """By number: tissue (255: no such number), whether it is brain or its fluid, T1 signal."""
    size = 1 << 15
    tissue, brain, t1 = np.full(size, 255, np.uint8), np.zeros(size, bool), np.zeros(size, np.float32)
    for structure in numberings.STRUCTURES:
        ids = list(structure.ids)
        kind = structure.tissue if structure.tissue < 4 else 3  # brain stem, lesions: white matter
        tissue[ids] = kind if structure.brain else 0
        brain[ids] = structure.brain and structure.ids != (0,)
        t1[ids] = _T1.get(structure.name, _TISSUE_T1[kind]) if structure.brain else 0
    brain[0] = False
    tissue[0] = 0
    return tissue, brain, t1


def _pose(
    numbers: np.ndarray,
    kinds: np.ndarray,
    affine: np.ndarray,
    like: torch.Tensor,
    first_mm: tuple[float, float, float],
) -> tuple[np.ndarray, np.ndarray]:
    """Matrix and offset from voxels of the template to voxels of the label map."""
    places = {number: np.argwhere(numbers == number) for number in np.ravel(_PAIRS)}
    found = [pair for pair in _PAIRS if min(len(places[number]) for number in pair) > 50]
    turn, middle = np.eye(3), None
    if len(found) >= 3:
        centres = np.asarray([[places[number].mean(0) for number in pair] for pair in found])
        sides = nib.affines.apply_affine(affine, centres)
        across = (sides[:, 1] - sides[:, 0]).sum(0)  # RAS: from left to right is +x
        turn = Rotation.align_vectors([[1, 0, 0]], [across / np.linalg.norm(across)])[0].as_matrix()
        middle = float((sides.mean(1) @ turn.T)[:, 0].mean())
    points = np.argwhere((kinds == 2) | (kinds == 3))[::7]
    low, high = _box(nib.affines.apply_affine(affine, points) @ turn.T)
    voxels = np.argwhere((like[0, 0] + like[0, 1]).numpy() > 0.5)[::7]
    own_low, own_high = _box(voxels + np.asarray(first_mm))
    scale = (own_high - own_low) / (high - low)  # of template mm per mm
    centre, own_centre = (low + high) / 2, (own_low + own_high) / 2
    if middle is not None:
        centre[0], own_centre[0] = middle, 0.0
    # template voxel -> template mm -> turned mm -> mm -> voxel
    to_turned = np.diag(1 / scale)
    to_voxel = np.linalg.inv(affine)
    matrix = to_voxel[:3, :3] @ turn.T @ to_turned
    start = turn.T @ (to_turned @ (np.asarray(first_mm) - own_centre) + centre)
    return matrix, to_voxel[:3, :3] @ start + to_voxel[:3, 3]


def _box(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.percentile(points, 0.05, axis=0), np.percentile(points, 99.95, axis=0)


def _depth(brain: np.ndarray, tissue: np.ndarray) -> np.ndarray:
    """Distance (mm) to the surface that skull stripping leaves, positive inside; -6 far outside."""
    near = _box_around(tissue, 12)
    coarse = tissue[near][::2, ::2, ::2]  # 2 mm is fine enough for a rounded hull, and an eighth of the time
    inside = ndimage.distance_transform_edt(~coarse, sampling=2.0) <= _CLOSING_MM
    hull = ndimage.distance_transform_edt(np.pad(inside, 1, mode="edge"), sampling=2.0)[1:-1, 1:-1, 1:-1]
    hull = torch.from_numpy(hull.astype(np.float32))[None, None]
    grown = torch.nn.functional.interpolate(hull, tissue[near].shape, mode="trilinear", align_corners=True)[0, 0]
    from_hull = grown.numpy() - (_CLOSING_MM - _RIM_MM)  # positive inside
    deep = from_hull > 4  # vessels and membranes there count as fluid
    kept = ndimage.binary_fill_holes(((from_hull > 0) & brain[near]) | tissue[near] | deep)
    depth = np.full(brain.shape, -6, np.float32)
    depth[near] = ndimage.distance_transform_edt(kept) - ndimage.distance_transform_edt(~kept)
    return depth


def _box_around(mask: np.ndarray, margin: int) -> tuple[slice, ...]:
    lines = [np.flatnonzero(mask.any(axis=tuple({0, 1, 2} - {axis}))) for axis in range(3)]
    return tuple(slice(max(0, int(line[0]) - margin), int(line[-1]) + 1 + margin) for line in lines)
