"""Decode a label map in FreeSurfer's numbering as the structures that are painted one by one."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import Transform

from bundlekit.errors import BundleError, Finding
from bundlekit.images.nifti import read_affine, read_volume
from bundlekit.label_maps.numberings import to_structures


def read_structures(file: str) -> tuple[np.ndarray, np.ndarray]:
    """A label map in FreeSurfer's numbering as indices into `numberings.STRUCTURES`, with its affine.

    Args:
        file: NIfTI or MGH file.

    Returns:
        HWD uint8 and the 4x4 affine (mm).

    Raises:
        BundleError: for a file that is not whole, for numbers that FreeSurfer does not have, and for an empty map.
    """
    structures = to_structures(read_volume(file), file)
    if not structures.any():
        raise BundleError(Finding(file, "0 in every voxel", "a label map of a head", "mend the file, or take it out"))
    return structures, read_affine(file)


class LoadStructuresd(Transform):
    """Decode and check one case that is a label map alone, as `find_label_maps` gives it.

    The output holds `structures` (1xHWD uint8 `MetaTensor`, indices into `numberings.STRUCTURES`), `case`, and the file
    as `source` and `label_file`.

    Raises:
        BundleError: for a file that is not whole, for numbers that FreeSurfer does not have, and for an empty map.
    """

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Decode `data`."""
        structures, affine = read_structures(data["label"])
        return {
            "structures": MetaTensor(torch.from_numpy(structures)[None], affine=torch.from_numpy(affine)),
            "case": data["case"],
            "source": data["label"],
            "label_file": data["label"],
        }
