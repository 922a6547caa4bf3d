"""Axes in the order that the networks have learned: side, front and back, top."""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import nibabel as nib
import numpy as np
from monai.data import MetaTensor
from monai.transforms import InvertibleTransform, MapTransform, Orientation
from nibabel.orientations import io_orientation

_ENDS = ("LR", "AP", "SI")  # in the order of BraTS's axes


def in_order(affine: np.ndarray) -> bool:
    """Whether the first axis runs most along left and right, the second front and back, the third up and down.

    Args:
        affine: 4x4, voxel to mm, RAS+.
    """
    return bool((io_orientation(affine)[:, 0] == [0, 1, 2]).all())


class AxesInOrderd(MapTransform, InvertibleTransform):
    """Turn a volume whose axes are in another order than BraTS's, such as one on the grid of a sagittal T1.

    Training mirrors along every axis, so that directions stay as they are: what is in order is not touched. No voxel is
    interpolated, and `Invertd` turns back. A file without an affine is in order as far as anybody knows.

    Args:
        keys: NHWD `MetaTensor`s.
        allow_missing_keys: pass over those that are not there.
    """

    def __init__(self, keys: Sequence[str] = ("image",), allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        # kept, since each knows its own records when inverted; none changes, so that threads can share them
        self._turns = {"".join(ends): Orientation("".join(ends), labels=None) for ends in itertools.product(*_ENDS)}

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Turn what is there."""
        turned = dict(data)
        for key in self.key_iterator(turned):
            turned[key] = self._turn_of(turned[key])(turned[key])
        return turned

    def inverse(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Turn back what was turned."""
        turned = dict(data)
        for key in self.key_iterator(turned):
            if isinstance(turned[key], MetaTensor):
                turned[key] = self._turn_of(turned[key]).inverse(turned[key])
        return turned

    def _turn_of(self, image: MetaTensor) -> Orientation:
        """What puts the axes of a volume in order, the same before and after."""
        codes = nib.aff2axcodes(np.asarray(image.affine))
        return self._turns["".join(sorted(codes, key="".join(_ENDS).index))]
