"""Read NIfTI and MGH files: headers cheaply, voxels fast, and nothing damaged without a word."""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import nibabel as nib
import numpy as np
from isal import igzip
from monai.utils import convert_to_numpy
from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation, ornt_transform

from bundlekit.errors import BundleError, Finding

_ROUNDING = 1e-3, 0.05  # least and most by which a label may be off a whole number

_LARGEST, _SMALLEST = float(np.finfo(np.float32).max), float(np.finfo(np.float32).tiny)
_SAMPLE = 500_000  # voxels that are looked at for the usual intensity
_USUAL = 99.9  # % of them that are below it
_SPIKE = 300.0  # times that: with one voxel in a million, the standard deviation is a quarter off


def read_array(path: str) -> np.ndarray:
    """Voxels of a NIfTI or MGH file in its own axis order (i, j, k[, channel]) and type, intensity scaling applied.

    The file is inflated by ISA-L: twice as fast as nibabel's own path and as fast as ITK, and unlike both it notices
    every damaged file (nibabel misses a wrong checksum, ITK fills what is cut off with zeros and says nothing).

    Raises:
        BundleError: if the file cannot be decoded to its end, or a voxel of it is no single real number (colours,
            complex numbers).
    """
    try:
        raw = Path(path).read_bytes()
        if raw[:2] == b"\x1f\x8b":
            raw = igzip.decompress(raw)
        array = np.asarray(type(open_nifti(path)).from_bytes(raw).dataobj)
    except Exception as error:  # nibabel, gzip and the system raise a dozen types for what is one thing to the user
        raise BundleError(
            Finding(
                str(path),
                f"cannot be decoded to its end ({type(error).__name__}: {error})",
                "a complete NIfTI file",
                "copy or download the file again; `gzip -t` tells whether it is whole",
            )
        ) from error
    require_numbers(array, path)
    return array


def rounding_of(labels: np.ndarray) -> float:
    """By how much a label of a map may be off a whole number.

    nibabel writes floats into an integer type by a slope in the header: 8 bits hold numbers up to the largest label to
    a 510th of it.

    Args:
        labels: of any shape and type.
    """
    least, most = _ROUNDING
    largest = float(np.abs(labels[np.isfinite(labels)]).max(initial=0.0)) if labels.dtype.kind == "f" else 0.0
    return min(max(least, largest / 500), most)


def without_rounding(labels: np.ndarray) -> np.ndarray:
    """A label map in which numbers that a slope in the header left beside whole ones are whole, see `rounding_of`.

    Args:
        labels: of any shape and type; integers stay as they are.
    """
    if labels.dtype.kind != "f":
        return labels
    whole = np.rint(labels)
    return np.where(np.abs(labels - whole) <= rounding_of(labels), whole, labels)


def whole_numbers(labels: np.ndarray, file: str) -> np.ndarray:
    """A label map in an integer type.

    Args:
        labels: of any shape and type.
        file: it is from, for the message.

    Raises:
        BundleError: for a voxel that is no whole number.
    """
    if np.issubdtype(labels.dtype, np.integer):
        return labels.astype(np.int64) if labels.dtype == np.uint64 else labels  # NumPy takes no uint64 for an index
    if labels.dtype == bool:
        return labels.view(np.uint8)
    if np.isfinite(labels).all():
        whole = np.rint(labels).astype(np.int32)
        wrong = np.abs(labels - whole) > rounding_of(labels)
        if not wrong.any():
            return whole
    else:
        wrong = ~np.isfinite(labels)
    raise BundleError(
        Finding(
            file,
            f"{int(wrong.sum())} voxel(s) that are not whole numbers, e.g. {float(labels[wrong][0]):.9g}",
            "a label map; every voxel the number of a structure",
            "give the label itself; resample labels with nearest-neighbour interpolation",
        )
    )


def require_numbers(array: np.ndarray, path: str) -> None:
    """Refuse voxels that are no single real numbers.

    Args:
        array: voxels as they are in the file.
        path: of the file, for the message.

    Raises:
        BundleError: for colours, complex numbers and text.
    """
    if array.dtype.kind not in "biuf":
        kind = "colours (RGB)" if array.dtype.fields else "complex numbers" if array.dtype.kind == "c" else "no numbers"
        fix = "give the scan or label map itself; of complex data, the magnitude as a file of its own"
        raise BundleError(Finding(str(path), f"voxels that are {kind}", "one real number in each voxel", fix))


def read_volume(path: str) -> np.ndarray:
    """Voxels of a 3-D file, or of a 4-D one that has one frame, as `read_array` gives them.

    Raises:
        BundleError: if the file is not whole or has more frames.
    """
    array = read_array(path)
    if array.ndim == 4 and array.shape[3] == 1:
        array = array[..., 0]
    if array.ndim != 3:
        shape = "x".join(map(str, array.shape))
        raise BundleError(Finding(path, f"an image of shape {shape}", "a 3-D volume", "give one frame of it"))
    return array


def tells_orientation(path: str | os.PathLike) -> bool:
    """Whether the header says where the voxels lie; without a code, readers of NIfTI guess left and right.

    Raises:
        ValueError: as `open_nifti`.
    """
    image = open_nifti(path)
    return isinstance(image, nib.MGHImage) or any(form_of(image, kind)[1] > 0 for kind in ("sform", "qform"))


def open_nifti(path: str | os.PathLike) -> nib.Nifti1Image:
    """`nibabel.load` for NIfTI and FreeSurfer's MGH alone: header and affine now, voxels when they are asked for.

    Raises:
        ValueError: if the file is of another format that nibabel knows, or half of a pair of .hdr and .img.
    """
    image = nib.load(path)
    if not isinstance(image, (nib.Nifti1Image, nib.MGHImage)):
        if isinstance(image, nib.AnalyzeImage | nib.Nifti1Pair):
            raise ValueError("one of a pair of .hdr and .img; convert them to one .nii or .nii.gz file")
        raise ValueError(f"{path} is {type(image).__name__}, not NIfTI or MGH")
    return cast("nib.Nifti1Image", image)


def is_dicom(path: str | os.PathLike) -> bool:
    """Whether a file is DICOM, by the four letters that follow its preamble."""
    try:
        with open(path, "rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


def read_affine(path: str) -> np.ndarray:
    """4x4 voxel-to-world matrix (mm, RAS+) of a NIfTI or MGH file, from its header alone."""
    return np.asarray(open_nifti(path).affine, dtype=np.float64)


def same_places(affine: np.ndarray, other: np.ndarray, shape: Sequence[int]) -> bool:
    """Whether two affines put the voxels of a volume into the same places, to a tenth of the smallest edge.

    Numbers of two affines that hardly differ say little: half a degree moves the far corner of a head by 2 mm.

    Args:
        affine: 4x4, voxel to mm.
        other: likewise.
        shape: voxels along i, j and k.
    """
    ends = np.array(list(itertools.product(*((0, n - 1) for n in shape[:3]))), np.float64)
    apart = ends @ (affine - other)[:3, :3].T + (affine - other)[:3, 3]
    edge = float(np.linalg.norm(affine[:3, :3], axis=0).min())
    return bool(np.linalg.norm(apart, axis=1).max() <= 0.1 * edge)


def voxel_ml(affine: Any) -> float:
    """Volume of a voxel, of a sheared affine too, in ml.

    Args:
        affine: 4x4, voxel to mm; an array or a tensor.
    """
    return abs(float(np.linalg.det(convert_to_numpy(affine)[:3, :3].astype(np.float64)))) / 1000


def on_axes_of(voxels: np.ndarray, affine: np.ndarray, other: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A volume with its axes in the order and the directions of another one, and its affine; no voxel is interpolated.

    Args:
        voxels: HWD, or HWDC.
        affine: 4x4, voxel to mm.
        other: of the other volume, likewise.
    """
    turn = ornt_transform(io_orientation(affine), io_orientation(other))
    return apply_orientation(voxels, turn), affine @ inv_ornt_aff(turn, voxels.shape[:3])


def form_of(image: nib.Nifti1Image, kind: str) -> tuple[np.ndarray | None, int]:
    """Matrix 4x4 (mm, RAS+) and code of a NIfTI image's "sform" or "qform"; None where the code is 0.

    A qform whose quaternion is none, beside an sform that is sound, is that of the affine.
    """
    try:
        matrix, code = getattr(image, f"get_{kind}")(coded=True)
    except ValueError:
        matrix, code = image.affine, image.header[f"{kind}_code"]
    return matrix, int(code)


def check_voxels(file: str, array: np.ndarray) -> list[Finding]:
    """What is wrong with the intensities of an image, which are computed with in float32.

    A NaN or infinite voxel, numbers that float32 cannot hold, the same value everywhere, or a few voxels so far beyond
    all others (300 times the 99.9 % percentile of those that are not 0) that any normalisation would follow them.

    Args:
        file: name for the message.
        array: real numbers, of any shape.
    """
    if np.issubdtype(array.dtype, np.floating):
        bad = int((~np.isfinite(array)).sum())
        if bad:
            return [
                Finding(
                    file, f"{bad} voxel(s) that are NaN or infinite", "finite intensities", "mend or remove the case"
                )
            ]
    low, high = float(array.min()), float(array.max())
    if low == high:
        return [
            Finding(file, f"the value {low:g} in every voxel", "an image", "replace the file, it holds no information")
        ]
    largest = max(abs(low), abs(high))
    if largest > _LARGEST or high - low < _SMALLEST:
        expected = f"numbers that 32 bits can hold, at most {_LARGEST:.0e} and at least {_SMALLEST:.0e} apart"
        fix = "rescale the image, e.g. to 0 to 1000; a wrong slope in the header (scl_slope) has this effect, too"
        return [Finding(file, f"intensities from {low:g} to {high:g}", expected, fix)]
    sample = array.ravel("K")[:: max(array.size // _SAMPLE, 1)]
    sample = np.abs(sample[sample != 0].astype(np.float64))
    usual = float(np.percentile(sample, _USUAL)) if sample.size else largest
    if largest > _SPIKE * usual > 0:
        found = f"a voxel of {high if high == largest else low:g} where {_USUAL:g} % are below {usual:g}"
        expected = "intensities of one scale; this voxel alone would decide the normalisation"
        return [Finding(file, found, expected, "set the outlying voxels to the value of their neighbours")]
    return []


def may_be_3d(path: str | os.PathLike) -> bool:
    """Whether a file may hold one volume: what cannot be read may, to be named later."""
    try:
        shape = cast("Any", nib.load(path)).shape  # of CIFTI, whose names end like those of scans, two numbers
    except Exception:  # nibabel raises a dozen types
        return True
    return len(shape) == 3 or (len(shape) == 4 and shape[3] == 1)
