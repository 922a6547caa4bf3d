"""Whether a scan of the head still has its skull."""

from __future__ import annotations

import numpy as np

LARGEST_BRAIN_ML = 2100.0
"""Volume of a brain with its sulci, with something to spare: seen were 1146 to 1887 ml."""

_LARGE_ML = 1700.0  # a brain as large as this is there as a whole ...
_CUT = 0.2  # ... and does not cover this much of a face of the field: a neck does, and a head in a few thick slices
_RINGING = 1e-3  # of the bright intensities: what a spline leaves in the air; noise there is larger


def whole_head(image: np.ndarray, voxel_ml: float) -> str:
    """What shows that a scan is not skull-stripped, for a message; "" if nothing does.

    A stripped scan has one value outside of the brain, that of air, or almost: resampling by a spline leaves ringing
    there. Elsewhere there are skull and skin, and mostly noise in the air, too. Seen on 44 stripped brains
    (1146 to 1887 ml) and 16 heads (4836 ml or more; with their air set to 0, 1925 ml or more).

    Args:
        image: intensities, HWD; air that has one value is 0, see `intensities.without_air`.
        voxel_ml: volume of a voxel.
    """
    some = np.abs(image[::2, ::2, ::2])
    some = some[some > 0]
    tissue = np.abs(image) > (_RINGING * np.percentile(some, 99) if some.size else 0)
    volume = np.count_nonzero(tissue) * voxel_ml
    faces = [tissue.take(end, axis=axis).mean() for axis in range(image.ndim) for end in (0, -1)]
    if volume <= LARGEST_BRAIN_ML and not (volume > _LARGE_ML and max(faces) > _CUT):
        return ""
    return f"{volume:.0f} ml that is not air of one value ({tissue.mean():.0%} of the field): a head with its skull"
