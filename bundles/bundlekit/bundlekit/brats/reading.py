"""Decode the files of a case once, and check every voxel."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import Transform

from bundlekit.brats.cases import find_cases
from bundlekit.brats.prepared import refuse_unprepared
from bundlekit.cases.served import is_served, load_served
from bundlekit.errors import BundleError, Finding
from bundlekit.images.air import air_at_zero, air_for_nan
from bundlekit.images.nifti import check_voxels, read_affine, read_array, tells_orientation, without_rounding


def read_label(path: str, label_values: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """A segmentation as class indices on its own grid, with its affine.

    Args:
        path: NIfTI file.
        label_values: the file's values of background, NCR, ED and ET.

    Returns:
        HWD uint8 with 0 background, 1 NCR, 2 ED, 3 ET, and the 4x4 affine (mm).

    Raises:
        BundleError: if the file holds any other value.
    """
    raw = read_array(path)
    return class_indices(raw[..., 0] if raw.ndim == 4 else raw, label_values, path), read_affine(path)


def class_indices(raw: np.ndarray, label_values: Sequence[int], path: str) -> np.ndarray:
    """Class indices of a label map: 0 background, 1 NCR, 2 ED, 3 ET, in uint8.

    Args:
        raw: the label map, of any shape and type.
        label_values: its values of background, NCR, ED and ET.
        path: of its file, for the message.

    Raises:
        BundleError: if it holds any other value.
    """
    values = [int(v) for v in label_values]
    raw = without_rounding(raw)
    out = np.zeros(raw.shape, np.uint8)
    known = raw == values[0]
    for index, value in enumerate(values[1:], start=1):
        hit = raw == value
        out[hit] = index
        known |= hit
    if not known.all():
        unknown = np.unique(raw[~known])
        fix = "mend the label"
        if values[:3] == [0, 1, 2]:  # those of Decathlon are not forced
            fix += ", or force the value of enhancing tumour with --et_label 3 or --et_label 4"
        if {3, 4} <= {*unknown.tolist(), *values}:
            fix += "; BraTS 2024 post-treatment labels (4 = resection cavity) are another task than this bundle's"
        raise BundleError(
            Finding(
                path,
                f"label value(s) {', '.join(f'{v:g}' for v in unknown[:8])} in {int((~known).sum())} voxel(s)",
                f"only {values[0]} (background), {values[1]} (NCR), {values[2]} (ED), {values[3]} (ET)",
                fix,
            )
        )
    return out


class LoadCased(Transform):
    """Decode and check one case (see `cases`): the only place where voxels of an input are read.

    The output holds `image` (4xHWD float32 `MetaTensor` in the order T1, T1ce, T2, FLAIR, with the affine of the first
    file; air is 0, also where the files hold another constant there), `label` (1xHWD uint8 class indices 0..3, only if
    `with_label`), and for those who write or score: `case`, `source` (first image file), `label_file` ("" if none) and
    `label_values` (4 integers).

    Where `image` is a path instead of a case's list of files, as from MONAI Label, it may be any of the four files,
    their folder, or a 4-D file: the case it belongs to is found and checked as `find_cases` does, and other keys are
    kept.

    Args:
        with_label: whether to decode the segmentation too.
        allow_unprepared: whether to take scans with the skull or in thick slices, see `prepared`.

    Raises:
        BundleError: for a file that is not whole, a NaN or infinite voxel, a constant modality, an unknown label
            value, all findings of the case at once; for a scan that is not prepared.
    """

    def __init__(self, with_label: bool = True, allow_unprepared: bool = False) -> None:
        self.with_label = with_label
        self.allow_unprepared = allow_unprepared

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Decode `data`, one case as `cases.find_cases` gives it, or one that a path names."""
        if is_served(data):
            return load_served(self, find_cases, data)
        findings: list[Finding] = []
        files = list(data["image"])
        channels: list[np.ndarray | None] = []
        for file in files:
            if not file:  # a missing modality that is filled with zeros
                channels.append(None)
                continue
            try:
                array = read_array(file)
            except BundleError as error:
                findings += error.findings
                continue
            if len(files) == 1:
                named = [(f"{file} (channel {channel})", array[..., channel]) for channel in data["channels"]]
            else:
                named = [(file, array[..., 0] if array.ndim == 4 else array)]
            for name, own in named:
                own = air_for_nan(own, name)
                findings += check_voxels(name, own)
                channels.append(own)
        label = None
        if self.with_label:
            try:
                label, _ = read_label(data["label"], data["label_values"])
            except BundleError as error:
                findings += error.findings
        if findings:
            raise BundleError(findings)
        source = next(file for file in files if file)
        shape = next(channel.shape for channel in channels if channel is not None)
        image = np.empty((len(channels), *shape), np.float32)
        names = files if len(files) > 1 else [f"{source} (channel {channel})" for channel in data["channels"]]
        for out, part, name in zip(image, channels, names, strict=True):
            out[...] = 0 if part is None else air_at_zero(part, name)
        affine = torch.from_numpy(read_affine(source))
        if not self.allow_unprepared:
            refuse_unprepared(source, image, affine.numpy())
        result: dict[Hashable, Any] = {
            "image": MetaTensor(torch.from_numpy(image), affine=affine),
            "case": data["case"],
            "source": source,
            "label_file": data["label"],
            "grid_known": tells_orientation(source),
            "label_values": torch.tensor([int(v) for v in data["label_values"]]),
        }
        if label is not None:
            result["label"] = MetaTensor(torch.from_numpy(label)[None], affine=affine)
        return result
