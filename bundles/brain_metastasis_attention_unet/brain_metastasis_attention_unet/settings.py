"""Settings that belong together, checked before anything starts."""

from __future__ import annotations

from collections.abc import Sequence

from bundlekit.errors import BundleError

FITS = ("native", "resize")


def check_settings(fit: str, slab: int | None = None, uniform_shape: Sequence[int] = ()) -> None:
    """Refuse a `fit` that does not exist and slabs that do not go with it.

    Args:
        fit: "native" or "resize".
        slab: slices of a slab, or None.
        uniform_shape: voxels of the resized volume.

    Raises:
        BundleError: naming the value and what it may be.
    """
    if fit not in FITS:
        raise BundleError(f"fit is {fit!r}; expected {' or '.join(FITS)}.")
    if slab is None:
        return
    if fit != "resize":
        raise BundleError(
            f"slab is {slab}, but slabs are drawn from resized volumes and fit is {fit}. Add --fit resize, or leave "
            "slab out to train on patches."
        )
    if not 1 <= slab <= uniform_shape[-1]:
        raise BundleError(f"slab is {slab}; expected 1 to {uniform_shape[-1]}, the slices of uniform_shape.")
