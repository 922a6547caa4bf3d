"""Settings that belong together, checked before anything starts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bundlekit.errors import BundleError

FITS = ("native", "resize")
_ONE_EACH = (1.0, 1.0, 1.0, 1.0)  # background, NETC, SNFH, ET


def check_settings(
    fit: str, slab: int | None = None, uniform_shape: Sequence[int] = (), class_weights: Any = _ONE_EACH
) -> None:
    """Refuse a `fit` that does not exist, slabs that do not go with it, and too few weights or too many.

    Args:
        fit: "native" or "resize".
        slab: slices of a slab, or None.
        uniform_shape: voxels of the resized volume.
        class_weights: of background, NETC, SNFH and ET, 0 or more each.

    Raises:
        BundleError: naming the value and what it may be.
    """
    if fit not in FITS:
        raise BundleError(f"fit is {fit!r}; expected {' or '.join(FITS)}.")
    numbers = isinstance(class_weights, Sequence) and all(isinstance(one, (int, float)) for one in class_weights)
    if not numbers or len(class_weights) != len(_ONE_EACH) or min(class_weights) < 0:
        raise BundleError(
            f"class_weights is {class_weights!r}; expected {len(_ONE_EACH)} numbers, 0 or more, for background, NETC, "
            'SNFH and ET, such as "[0.1,1,1,1]".'
        )
    if slab is None:
        return
    if fit != "resize":
        raise BundleError(
            f"slab is {slab}, but slabs are drawn from resized volumes and fit is {fit}. Add --fit resize, or leave "
            "slab out to train on patches."
        )
    if not 1 <= slab <= uniform_shape[-1]:
        raise BundleError(f"slab is {slab}; expected 1 to {uniform_shape[-1]}, the slices of uniform_shape.")
