"""What a request may say: names that are no paths, paths that stay in their folders, settings, labels on a grid."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from urllib.parse import parse_qsl

import nibabel as nib
import numpy as np

from bundlekit.errors import BundleError, Finding
from bundlekit.expressions import refuse_expressions
from bundlekit.images.nifti import open_nifti, same_places, without_rounding
from bundlekit.values import wrong_value

NIFTI = (".nii", ".nii.gz")
_SHOWN = 10  # names in a list of them
_SESSION = re.compile(r"[0-9a-f-]{36}")  # a UUID, as MONAI Label gives them
# of train.yaml, but not for a request to set: where files lie, and what the server itself decides
_OF_THE_SERVER = {
    "bundle_root", "dataset_dir", "datalist", "output_dir", "ckpt_dir", "cache_dir", "overwrite", "device", "rank",
    "world_size", "settings", "imports", "initialize", "training", "run",
}  # fmt: skip

_COMPUTED = ("amp", "num_workers")  # plain settings whose default is found out


def plain_name(value: Any, what: str) -> str:
    """A name that a file or a folder can have, and that leads nowhere else.

    Raises:
        BundleError: for a path, an empty or hidden name, control characters, or what is no string.
    """
    if (
        not isinstance(value, str)
        or not re.fullmatch(r"[^/\\\x00-\x1f\x7f]+", value)
        or value.startswith(".")
        or len(value.encode()) > 200
    ):
        raise BundleError(f"{what} is {value!r}; expected a name of at most 200 bytes: no path, not hidden.")
    return value


def check_address(path: str, query: str) -> None:
    """Refuse an address of a request whose parts would lead out of their folders, or have an archive unpacked.

    Args:
        path: of the address, decoded.
        query: of the address, as it was sent.

    Raises:
        BundleError: for a name of an image, label, tag or session that is none, `uncompress`, or `..` in the path.
    """
    sessions = [path.removeprefix("/session/")] if path.startswith("/session/") else []
    for key, value in parse_qsl(query, keep_blank_values=True):
        if key == "session_id":
            sessions.append(value)
        if key == "uncompress" and value.lower() not in ("false", "0", ""):
            raise BundleError("archives are not unpacked: send the files.")
        if path.startswith("/datastore") and key in ("image", "id", "label", "tag") and value:
            plain_name(value, key)
    for session in filter(None, sessions):
        if not _SESSION.fullmatch(session):
            raise BundleError(f"the session is {session!r}; expected the session_id that PUT /session/ gave.")
    if ".." in path.split("/"):
        raise BundleError("a path with .. leads elsewhere.")


def inside(path: str, folders: Iterable[str]) -> str | None:
    """The path without `..`, if it lies in one of the folders; None if not. Links below a folder are its owner's.

    Args:
        path: absolute.
        folders: absolute.
    """
    for folder in folders:
        for form in (os.path.normpath, os.path.realpath):
            if "\0" not in path and (form(path) + os.sep).startswith(form(folder).rstrip(os.sep) + os.sep):
                return form(path)
    return None


def listed(names: Iterable[str]) -> str:
    """The first ten of the names in sorted order, and how many there are: "2: A, B"."""
    known = sorted(names)
    more = f", ... ({len(known) - _SHOWN} more)" if len(known) > _SHOWN else ""
    return f"{len(known)}: {', '.join(known[:_SHOWN])}{more}" if known else "0"


def training_settings(request: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """Those values of a request that are settings of `train.yaml`.

    Args:
        request: of a training.
        config: `train.yaml`.

    Raises:
        BundleError: for an expression, a key of `train.yaml` that is no plain setting (paths, components), or a value
            that the setting cannot be.
    """
    refuse_expressions(request, "the request")
    found = {key: value for key, value in request.items() if key in config and key not in ("model", "device")}
    for key, value in found.items():
        if key in _OF_THE_SERVER or not (_is_plain(config[key]) or key in _COMPUTED):
            raise BundleError(
                f"the request: {key!r} cannot be set from here; see the settings at the top of train.yaml."
            )
        if not _is_plain(value):
            raise BundleError(f"the request: {key} is {value!r}; expected a number, a word or a list of them.")
        expected = wrong_value(key, value, config[key])
        if expected:
            raise BundleError(f"the request: {key} is {value!r}; expected {expected}.")
    return found


def _is_plain(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(_is_plain(part) for part in value)
    return not isinstance(value, dict) and not (isinstance(value, str) and value[:1] in ("$", "@", "%"))


def check_label(file: str, scans: Sequence[str], name: str) -> None:
    """Refuse what is no label map on the grid of a case.

    Args:
        file: NIfTI of the label, whole numbers from 0 on.
        scans: one image of the case for each bundle that knows it; the label must have the grid of one. One that has
            no header of its place (HDF5) is not compared.
        name: of the case, for the message.

    Raises:
        BundleError: saying what was found, and what was expected.
    """

    def refuse(found: str, expected: str, fix: str) -> BundleError:
        return BundleError(Finding(f"the label sent for {name}", found, expected, fix))

    image = _nifti(file)
    if image is None:
        raise refuse("no NIfTI file that can be read", "a label map as .nii or .nii.gz", "save it as NIfTI")
    grids = [header for scan in scans if (header := _header(scan)) is not None]
    if len(grids) == len(scans) > 0 and not any(_same_grid(image, grid) for grid in grids):
        wanted = f"the grid of {os.path.basename(scans[0])}: {_grid(grids[0])}"
        raise refuse(_grid(image), wanted, "save the label on the grid of the scan")
    try:
        voxels = without_rounding(np.asarray(image.dataobj))
    except Exception as error:  # nibabel raises a dozen types for what is one thing to the user
        raise refuse(f"voxels that cannot be decoded ({error})", "a whole file", "save it again") from error
    whole = np.issubdtype(voxels.dtype, np.number) and not np.issubdtype(voxels.dtype, np.complexfloating)
    if not whole or not np.isfinite(voxels).all() or (voxels < 0).any() or (voxels != np.floor(voxels)).any():
        raise refuse("values that are no classes", "whole numbers from 0 on", "save the segmentation, not the scan")


def check_image(file: str, name: str) -> None:
    """Refuse an upload that is no NIfTI volume.

    Args:
        file: that was sent.
        name: of the case it is to be, for the message.

    Raises:
        BundleError: saying so.
    """
    image = _nifti(file)
    if image is None or len(image.shape) not in (3, 4):
        found, expected = "no NIfTI volume that can be read", "a scan as .nii or .nii.gz"
        raise BundleError(Finding(f"the image sent for {name}", found, expected, "convert it"))


def _nifti(file: str) -> Any:
    """Header of a NIfTI file; None for any other."""
    try:
        image = nib.load(file) if file.endswith(NIFTI) else None
    except Exception:  # nibabel raises a dozen types
        return None
    return image if isinstance(image, nib.Nifti1Image) else None


def _header(file: str) -> Any:
    """Header of a NIfTI file or of FreeSurfer's; None for any other."""
    try:
        return open_nifti(file) if file.endswith((*NIFTI, ".mgz", ".mgh")) else None
    except Exception:  # nibabel raises a dozen types
        return None


def _same_grid(label: Any, scan: Any) -> bool:
    shape = label.shape[:3] if label.shape[3:] == (1,) else label.shape
    return shape == scan.shape[:3] and same_places(label.affine, scan.affine, shape)


def _grid(image: Any) -> str:
    return f"{'x'.join(map(str, image.shape))} voxels, affine {np.round(image.affine[:3], 3).tolist()}"
