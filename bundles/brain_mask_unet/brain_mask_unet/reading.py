"""Decode a scan once, and check every voxel."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import Transform

from bundlekit.cases.served import is_served, load_served
from bundlekit.errors import BundleError
from bundlekit.images.air import air_at_zero, air_for_nan
from bundlekit.images.nifti import check_voxels, read_affine, read_volume, tells_orientation

from .cases import find_cases


class LoadScand(Transform):
    """Decode and check one scan, of any contrast (see `cases`).

    The output holds `image` (1xHWD float32 `MetaTensor`; a constant that the air holds is subtracted), and for those
    who write or score: `case`, `source` (the scan's file), `label_file` ("" if none), `label_values`.

    Where `image` is a path instead of a list, as from MONAI Label, the case it belongs to is found and checked as
    `find_cases` does, and other keys are kept.

    Raises:
        BundleError: for a file that is not whole, a NaN or infinite voxel, a constant image.
    """

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Decode `data`, a case of `cases.find_cases`, or the case of a path."""
        if is_served(data):
            return load_served(self, find_cases, data)
        (file,) = data["image"]
        voxels = air_for_nan(read_volume(file), file)
        findings = check_voxels(file, voxels)
        if findings:
            raise BundleError(findings)
        image = air_at_zero(voxels, file, lowest=True)
        return {
            "image": MetaTensor(torch.from_numpy(image)[None], affine=torch.from_numpy(read_affine(file))),
            "case": data["case"],
            "source": file,
            "label_file": data["label"],
            "grid_known": tells_orientation(file),
            "label_values": torch.tensor([int(value) for value in data["label_values"]]),
        }


def read_mask(file: str) -> tuple[np.ndarray, np.ndarray]:
    """A brain mask on its own grid, HWD bool (above 0; above 1 of FreeSurfer's brainmask), and its 4x4 affine (mm).

    In `brainmask.mgz`, a scan without its skull, a voxel that somebody erased is 1.

    Raises:
        BundleError: for a file that is not whole.
    """
    voxels = read_volume(file)
    erased = 1 if Path(file).name == "brainmask.mgz" and voxels.max() > 1 else 0
    return voxels > erased, read_affine(file)
