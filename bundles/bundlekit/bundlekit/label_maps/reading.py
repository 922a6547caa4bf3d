"""Decode a label map in FreeSurfer's numbering as the structures that are painted one by one."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import Transform

from bundlekit.errors import BundleError, Finding
from bundlekit.images.nifti import read_affine, read_volume
from bundlekit.label_maps.numberings import EXTRA_CEREBRAL, STRUCTURES, require_structures, to_structures

_log = logging.getLogger(__name__)
_HEAD = 3  # structures outside of the brain that a head has at least: skin, bone, other soft tissue


def read_structures(file: str) -> tuple[np.ndarray, np.ndarray]:
    """A label map in FreeSurfer's numbering as indices into `numberings.STRUCTURES`, with its affine.

    Args:
        file: NIfTI or MGH file.

    Returns:
        HWD uint8 and the 4x4 affine (mm).

    Raises:
        BundleError: for a file that is not whole, for numbers that FreeSurfer does not have, for a map of tissues, and
            for an empty one.
    """
    labels = read_volume(file)
    structures = to_structures(labels, file)
    if not structures.any():
        raise BundleError(Finding(file, "0 in every voxel", "a label map of a head", "mend the file, or take it out"))
    require_structures(labels, file)
    return structures, read_affine(file)


class LoadStructuresd(Transform):
    """Decode and check one case that is a label map alone, as `find_label_maps` gives it.

    The output holds `structures` (1xHWD uint8 `MetaTensor`, indices into `numberings.STRUCTURES`), `case`, and the file
    as `source` and `label_file`.

    Args:
        whole_head: warn of a map without the fluid around the brain, or with hardly anything outside of it.

    Raises:
        BundleError: for a file that is not whole, for numbers that FreeSurfer does not have, and for an empty map.
    """

    def __init__(self, whole_head: bool = False) -> None:
        self.whole_head = whole_head

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Decode `data`."""
        structures, affine = read_structures(data["label"])
        if self.whole_head:
            found = np.flatnonzero(np.bincount(structures.ravel(), minlength=len(STRUCTURES)))
            outside = [STRUCTURES[k].name for k in found if k and k in EXTRA_CEREBRAL]
            if len(outside) < _HEAD or not any(STRUCTURES[k].name == "sulcal CSF" for k in found):
                _log.warning(
                    "%s: outside of the brain there is %s, and the fluid around it is %slabelled; a network learns "
                    "from it what a brain is, but not what else a head has",
                    data["label"],
                    ", ".join(outside) or "nothing",
                    "" if any(STRUCTURES[k].name == "sulcal CSF" for k in found) else "not ",
                )
        return {
            "structures": MetaTensor(torch.from_numpy(structures)[None], affine=torch.from_numpy(affine)),
            "case": data["case"],
            "source": data["label"],
            "label_file": data["label"],
        }
