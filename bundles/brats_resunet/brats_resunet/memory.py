"""Memory of large tensors on a CPU: kept by the process, instead of fetched from the system anew in every step."""

# One of the modules that every bundle carries: edit it in tools/vendored/, then `make sync`.

from __future__ import annotations

import ctypes
import os
import sys
from typing import Any

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4  # of glibc's mallopt(3)
_KEPT = 2**31 - 2**20  # bytes of free memory that the process keeps
_AT_ONCE = 2**28  # bytes that it asks the system for at a time


def keep_freed_memory(device: Any = "cpu") -> bool:
    """Have glibc keep freed memory for the next tensor; returns whether it does.

    By default it gives every block of more than 32 MB back to the system, which hands it out again page by page,
    zeroed: a third of the time of a training step on a CPU, a fifth of an inference's. Nothing happens for another
    device, for another C library, or where the user has chosen (`MALLOC_...` or `LD_PRELOAD` in the environment).

    Args:
        device: that computes.
    """
    chosen = "LD_PRELOAD" in os.environ or any(name.startswith("MALLOC_") for name in os.environ)
    if not str(device).startswith("cpu") or chosen or not sys.platform.startswith("linux"):
        return False
    library = ctypes.CDLL(None)
    if not hasattr(library, "gnu_get_libc_version"):
        return False
    accepted = [library.mallopt(*pair) for pair in ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, _KEPT), (_TOP_PAD, _AT_ONCE))]
    return all(accepted)


def give_back_freed_memory() -> None:
    """Give what the process keeps back to the system, so that it counts as free there."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform.startswith("linux") else None
    if trim is not None:
        trim(0)
