"""The scan that a picture shows behind a mask."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from monai.utils import convert_to_numpy

from bundlekit.cases.case import Case
from bundlekit.errors import BundleError

_FLAIR = 3  # of four modalities, in which most of a lesion is seen


class ScansOf:
    """Voxels, affine and window of a case's scan, by the case's name; the argument of `pages.write_report`.

    Args:
        cases: of the data set.
        load: the bundle's transform that decodes a case: `image`, CHWD on the scan's own grid.
        window: intensities that are black and white; None: by the scan.
    """

    def __init__(
        self,
        cases: Sequence[Case],
        load: Callable[[Any], Mapping[Any, Any]] | None,
        window: Sequence[float] | None = None,
    ) -> None:
        self._cases = {str(case["case"]): case for case in cases}
        self._load = load
        self._window = window

    def __call__(self, name: str) -> tuple[np.ndarray, np.ndarray, Sequence[float] | None] | None:
        """The FLAIR of four modalities, or what there is of them; None where there is no scan, or a damaged one."""
        if self._load is None or name not in self._cases:
            return None
        try:
            image = self._load(self._cases[name])["image"]
        except BundleError:  # inference has passed over it and said so
            return None
        channels = [convert_to_numpy(channel) for channel in image]
        first = channels[_FLAIR] if len(channels) > _FLAIR else channels[0]
        voxels = first if first.any() else next((channel for channel in channels if channel.any()), first)
        return voxels, np.asarray(image.affine, float), self._window
