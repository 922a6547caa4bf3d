"""Decode cases: whole, for a cache, or the part of them that a patch needs; the only place that reads voxels."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import Transform

from bundlekit.brats.axes import in_order
from bundlekit.brats.cases import GO_ON
from bundlekit.brats.naming import MODALITIES
from bundlekit.brats.prepared import refuse_unprepared
from bundlekit.brats.reading import class_indices
from bundlekit.cases.case import MOST_MISSING, Case
from bundlekit.errors import BundleError, Finding
from bundlekit.images.air import without_ringing
from bundlekit.images.hdf5 import affine_in, open_h5
from bundlekit.images.intensities import air_of, without_air
from bundlekit.images.nifti import check_voxels

Box = tuple[slice, slice, slice]
_log = logging.getLogger(__name__)
_WHOLE: Box = (slice(None), slice(None), slice(None))


def read_image(case: Mapping[Any, Any], box: Box = _WHOLE) -> np.ndarray:
    """Intensities of a box of a case, CHWD in the order T1, T1ce, T2, FLAIR and in the type of the file.

    A missing modality is zeros. Reads the HDF5 chunks that the box touches; of a case in slices, the files that it
    touches.

    Raises:
        BundleError: if a file cannot be decoded.
    """
    channels = [int(c) for c in case["channels"]]
    image = _read(case, "image", box)[channels]
    image[[number for number, channel in enumerate(channels) if channel < 0]] = 0
    return image


def read_mask(case: Mapping[Any, Any], box: Box = _WHOLE) -> np.ndarray:
    """Mask of a box of a case as the file has it, CHWD; C is 1 for integer labels.

    Raises:
        BundleError: if a file cannot be decoded.
    """
    return _read(case, "mask", box)


def read_classes(case: Mapping[Any, Any], box: Box = _WHOLE) -> np.ndarray:
    """Reference of a box of a case as class indices, HWD uint8: 0 background, 1 NCR, 2 ED, 3 ET.

    Raises:
        BundleError: if a file cannot be decoded, or holds a value that is no label, or channels that overlap or do not
            nest as their names say.
    """
    mask, file = read_mask(case, box), str(case["label"])
    if len(mask) == 1 and mask.dtype == bool:
        fix = "write the labels as integers, or a channel for each class or region"
        raise BundleError(Finding(file, "a mask of true and false, which is of one class", "NCR, ED and ET", fix))
    if len(mask) == 1:
        return class_indices(mask[0], case["label_values"], file)
    names = list(case["mask_channels"])
    values = np.unique(mask)
    if not np.isin(values, (0, 1)).all() and not np.isin(values, (0, 255)).all():
        found = f"mask value(s) {', '.join(f'{v:g}' for v in values[:8])} in a mask of {len(mask)} channels"
        fix = "mend the mask, or name another dataset with --mask_key"
        raise BundleError(Finding(file, found, "only 0 and 1 (or 0 and 255) in a mask with channels", fix))
    part = {name: mask[index] != 0 for index, name in enumerate(names)}
    fix = 'say what the channels are with --mask_channels, e.g. "[NCR,ED,ET]" or "[WT,TC,ET]"'
    if "WT" in part:
        stray = int((part["TC"] & ~part["WT"]).sum() + (part["ET"] & ~part["TC"]).sum())
        if stray:
            found = f"{stray} voxel(s) of a region outside the one around it, for channels {', '.join(names)}"
            raise BundleError(Finding(file, found, "regions that nest: ET in TC in WT", fix))
        return part["WT"].astype(np.uint8) * 2 - (part["TC"] & ~part["ET"]) + part["ET"].astype(np.uint8)
    double = int((sum(part[name].astype(np.uint8) for name in ("NCR", "ED", "ET")) > 1).sum())
    if double:
        found = f"{double} voxel(s) of two classes, for channels {', '.join(names)}"
        raise BundleError(Finding(file, found, "classes that do not overlap", fix))
    return (part["NCR"] + 2 * part["ED"] + 3 * part["ET"]).astype(np.uint8)


def read_label(path: str, label_values: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Reference of a file that explains itself (see `cases.find_cases`), as class indices HWD uint8, with its affine.

    Raises:
        BundleError: as `read_classes`, or if the file does not explain itself.
    """
    from .cases import find_cases

    (case,) = find_cases(path)
    return label_reader([case])(str(case["label"]), label_values)


def label_reader(cases: Sequence[Case]) -> Callable[[str, Sequence[int]], tuple[np.ndarray, np.ndarray]]:
    """A function `(label file, label_values) -> (class indices HWD uint8, affine 4x4)` for the given cases."""
    by_file = {str(case["label"]): case for case in cases}

    def read(path: str, label_values: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        case = by_file[path]
        return read_classes({**case, "label_values": list(label_values)}), affine_of(case)

    return read


def affine_of(case: Mapping[Any, Any]) -> np.ndarray:
    """Voxel-to-world matrix of a case (4x4, mm): its file's attribute, the identity (1 mm) where there is none."""
    affine = _affine_in(case)
    return np.eye(4) if affine is None else affine


def _affine_in(case: Mapping[Any, Any]) -> np.ndarray | None:
    return affine_in(str(case["image"][0]), str(case["image_key"]))


class LoadHDF5d(Transform):
    """Decode and check one case (see `cases`).

    The output holds `image` (4xHWD float32 `MetaTensor` in the order T1, T1ce, T2, FLAIR, with the file's affine; air
    is 0), `label` (1xHWD uint8 class indices 0..3, only if `with_label`), and for those who write or score: `case`,
    `source` (first file), `label_file` ("" if none), `label_values` (4 integers), `native_affine` (4x4, mm) and
    `grid_known` (whether the file has it).

    Args:
        with_label: whether to decode the mask too.
        for_chunks: whether to add what `chunks` needs: `air` (what was subtracted) and `read_from` (the case).
        allow_unprepared: whether to take scans with the skull or in thick slices, see `bundlekit.brats.prepared`.
        fill_missing: whether one or two channels of one value are taken as missing modalities, which are zeros, like
            those that a file does not have.

    Raises:
        BundleError: for a file that is not whole, a NaN or infinite voxel, a constant modality, an unknown label, all
            findings of the case at once; for a scan that is not prepared.
    """

    def __init__(
        self,
        with_label: bool = True,
        for_chunks: bool = False,
        allow_unprepared: bool = False,
        fill_missing: bool = False,
    ) -> None:
        self.with_label = with_label
        self.allow_unprepared = allow_unprepared
        self.for_chunks = for_chunks
        self.fill_missing = fill_missing

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Decode `data`, one case as `cases.find_cases` gives it."""
        findings: list[Finding] = []
        source = str(data["image"][0])
        where = source if data["layout"] == "file" else f"{source} and its other slices"
        result: dict[Hashable, Any] = {}
        affine = torch.from_numpy(affine_of(data))
        try:
            image = read_image(data)
            if self.fill_missing:
                data = _without_empty(data, image, where)
            findings += _wrong_channels(data["channels"], image, where)
            if not findings:
                air = air_of(image, per_slice=data["layout"] == "slices")
                image = without_air(image, air)
                for modality, channel in zip(MODALITIES, image, strict=True):
                    mended = without_ringing(channel, f"{where} ({modality})")
                    if self.for_chunks and mended is not channel:  # parts are read as they are in the file
                        found = "small values of either sign around the brain, as a spline leaves them"
                        fix = "resample it linearly, set its air to 0, or train without chunks.yaml"
                        findings.append(Finding(f"{where} ({modality})", found, "air of one value", fix))
                    channel[...] = mended
                result["image"] = MetaTensor(torch.from_numpy(image), affine=affine)
                if self.for_chunks and not in_order(affine.numpy()):
                    found = f"axes that lead to {''.join(nib.aff2axcodes(affine.numpy()))}"
                    fix = "reorient the files, or train without chunks.yaml"
                    expected = "axes as BraTS has them: side, front and back, top"
                    raise BundleError(Finding(where, found, expected, fix))
                if self.for_chunks:
                    result |= {"air": torch.from_numpy(air.astype(np.float64)), "read_from": _anywhere(data)}
        except BundleError as error:
            findings += error.findings
        if self.with_label:
            try:
                label = torch.from_numpy(read_classes(data))[None]
                result["label"] = MetaTensor(label, affine=affine)
            except BundleError as error:
                findings += error.findings
        if findings:
            raise BundleError(list(dict.fromkeys(findings)))
        if not self.allow_unprepared:
            refuse_unprepared(where, result["image"].numpy(), affine.numpy())
        return result | {
            "case": data["case"],
            "source": source,
            "label_file": data["label"],
            "label_values": torch.tensor([int(v) for v in data["label_values"]]),
            "native_affine": affine,
            "grid_known": _affine_in(data) is not None,
        }


def _wrong_channels(channels: Sequence[int], image: np.ndarray, where: str) -> list[Finding]:
    """What is wrong with the channels that are there; `fill_missing` is offered where it takes them."""
    named = [
        (f"{where} ({name})", own) for name, own, n in zip(MODALITIES, image, channels, strict=True) if int(n) >= 0
    ]
    wrong = [(bool(own.min() == own.max()), finding) for name, own in named for finding in check_voxels(name, own)]
    may_go = sum(empty for empty, _ in wrong) + len(image) - len(named) <= MOST_MISSING
    return [replace(f, fix=f"{f.fix}; {GO_ON}") if may_go and empty else f for empty, f in wrong]


def _without_empty(case: Mapping[Hashable, Any], image: np.ndarray, where: str) -> Mapping[Hashable, Any]:
    """A case whose channels of one value count as missing, and are 0 in `image`, where there are at most two."""
    channels = [int(c) for c in case["channels"]]
    empty = [n for n, channel in enumerate(image) if channels[n] >= 0 and channel.min() == channel.max()]
    if not empty or len(empty) + sum(c < 0 for c in channels) > MOST_MISSING:
        return case
    image[empty] = 0
    names = ", ".join(MODALITIES[n] for n in empty)
    told = "%s has no %s: one value everywhere; zeros in its place (fill_missing), and the mask is worse"
    _log.warning(told, where, names)
    return {**case, "channels": [-1 if n in empty else c for n, c in enumerate(channels)]}


def _anywhere(case: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
    """A case whose files are found from any working directory, since a cache outlives it."""
    files = {key: case[key] for key in ("image", "label") if case.get(key)}
    absolute: dict[Hashable, Any] = {
        k: os.path.abspath(v) if isinstance(v, str) else [os.path.abspath(f) for f in v] for k, v in files.items()
    }
    return {**case, **absolute}


def _read(case: Mapping[Any, Any], role: str, box: Box) -> np.ndarray:
    """CHWD of the image or the mask, channels in the file's order."""
    key, axis = str(case[f"{role}_key"]), case[f"{role}_axis"]
    if case["layout"] == "file":
        with open_h5(str(case["image"][0])) as file:
            return _part(file[key], axis, box)
    slices: list[np.ndarray] = []
    for path in list(case["image"])[box[2]]:
        with open_h5(str(path)) as file:
            shape = tuple(file[key].shape) if key in file else ()
            part = _part(file[key], axis, box[:2]) if key in file else None
        if part is None or (slices and part.shape != slices[0].shape):
            found = f"{role} of shape {'x'.join(map(str, shape))}" if shape else f"no dataset {key}"
            fix = "export the slice again, or take the volume out of the folder"
            raise BundleError(Finding(str(path), found, "the same as in the other slices of its volume", fix))
        slices.append(part)
    return np.stack(slices, axis=-1)


def _part(item: Any, axis: int | None, box: Sequence[slice]) -> np.ndarray:
    """A box of a dataset, channels first."""
    index = list(box)
    if axis is not None:
        index.insert(axis, slice(None))
    part = item[tuple(index)]
    return part[None] if axis is None else np.moveaxis(part, axis, 0)
