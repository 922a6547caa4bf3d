"""The scan that a page shows behind a mask."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from monai.utils import convert_to_numpy

from bundlekit.cases.case import Case
from bundlekit.errors import BundleError

_log = logging.getLogger(__name__)
_MODALITIES = ("T1", "T1ce", "T2", "FLAIR")  # as each bundle with four channels decodes them


@dataclass(frozen=True)
class Scan:
    """What is seen of a case.

    Args:
        channels: name -> voxels HWD, one or more.
        affine: 4x4, mm.
        shown: name of the channel in pictures.
        window: intensities that are black and white; None: by the voxels.
        sides_known: whether the affine is the file's own, so that left is left.
    """

    channels: Mapping[str, np.ndarray]
    affine: np.ndarray
    shown: str
    window: Sequence[float] | None = None
    sides_known: bool = True

    @property
    def voxels(self) -> np.ndarray:
        """Of the channel in pictures."""
        return self.channels[self.shown]


class ScansOf:
    """The `Scan` of a case, by the case's name; the argument of `pages.write_report`.

    Args:
        cases: of the data set.
        load: the bundle's transform that decodes a case: `image`, CHWD on the scan's own grid.
        window: intensities that are black and white; None: by the scan.
        shown: modality in pictures, of cases that have four; the first that there is, where it is missing.
    """

    def __init__(
        self,
        cases: Sequence[Case],
        load: Callable[[Any], Mapping[Any, Any]] | None,
        window: Sequence[float] | None = None,
        shown: str = "FLAIR",
    ) -> None:
        self._cases = {str(case["case"]): case for case in cases}
        self._load = load
        self._window = window
        self._shown = shown

    def __call__(self, name: str) -> Scan | None:
        """All modalities that hold anything, one of them in pictures; None where there is no scan, or a damaged one."""
        if self._load is None or name not in self._cases:
            return None
        try:
            loaded = self._load(self._cases[name])
        except BundleError as error:
            _log.warning("%s: no picture: %s", name, error)
            return None
        image, sides_known = loaded["image"], bool(loaded.get("grid_known", True))
        names = _MODALITIES if len(image) == len(_MODALITIES) else [f"scan {n + 1}" for n in range(len(image))]
        channels = {key: convert_to_numpy(channel) for key, channel in zip(names, image, strict=True)}
        first = self._shown if self._shown in names else names[0]
        seen = {key: channel for key, channel in channels.items() if channel.any()} or {first: channels[first]}
        shown = first if first in seen else next(iter(seen))
        return Scan(seen, np.asarray(image.affine, float), shown, self._window, sides_known)
