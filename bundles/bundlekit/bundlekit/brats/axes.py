"""Axes in the order that the networks have learned: side, front and back, top."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import nibabel as nib
import numpy as np
from monai.data import MetaTensor
from monai.transforms import InvertibleTransform, MapTransform, Orientation
from nibabel.orientations import io_orientation

_ORDER = "LRAPSI"  # pairs of ends, in the order of BraTS's axes


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
        self._turn = Orientation(axcodes="LPS", labels=None)  # one object, which knows its own records when inverted

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Turn what is there."""
        turned = dict(data)
        for key in self.key_iterator(turned):
            codes = nib.aff2axcodes(np.asarray(turned[key].affine))
            self._turn.axcodes = "".join(sorted(codes, key=_ORDER.index))
            turned[key] = self._turn(turned[key])
        return turned

    def inverse(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Turn back what was turned."""
        turned = dict(data)
        for key in self.key_iterator(turned):
            if isinstance(turned[key], MetaTensor):
                turned[key] = self._turn.inverse(turned[key])
        return turned
