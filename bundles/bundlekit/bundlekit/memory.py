"""Memory of large tensors on a CPU: kept by the process, instead of fetched from the system anew in every step."""

from __future__ import annotations

import ctypes
import os
import sys
from typing import Any

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -2, -3, -4  # of glibc's mallopt(3)
# 2 GB are kept and fetched 256 MB at a time; no block has pages of its own, which are given back when it is freed
_KEEP = {_MMAP_MAX: 0, _TRIM_THRESHOLD: 2**31 - 2**20, _TOP_PAD: 2**28}
# what glibc comes to by itself once it has seen large blocks
_DEFAULT = {_MMAP_MAX: 2**16, _MMAP_THRESHOLD: 2**25, _TRIM_THRESHOLD: 2**26, _TOP_PAD: 2**17}
_CHOICES = ("MALLOC_", "GLIBC_TUNABLES", "LD_PRELOAD")


def keep_freed_memory(device: Any = "cpu") -> bool:
    """Have glibc keep freed memory for the next tensor; returns whether it does.

    By default it gives every block of more than 32 MB back to the system, which hands it out again page by page,
    zeroed: a third of the time of a training step on a CPU, a fifth of an inference's. Nothing happens for another
    device, for another C library, or where the user has chosen: `MALLOC_...`, `GLIBC_TUNABLES` or `LD_PRELOAD` in the
    environment (`MALLOC_TRIM_THRESHOLD_=131072` leaves everything as it was). Loader processes, which compute
    little and are many, keep nothing.

    Args:
        device: that computes.
    """
    chosen = any(value and name.startswith(_CHOICES) for name, value in os.environ.items())
    if not str(device).startswith("cpu") or chosen or not sys.platform.startswith("linux"):
        return False
    library = ctypes.CDLL(None)
    if not hasattr(library, "gnu_get_libc_version"):
        return False
    if not _set(library, _KEEP):
        return False
    os.register_at_fork(after_in_child=lambda: _set(library, _DEFAULT))
    return True


def _set(library: ctypes.CDLL, options: dict[int, int]) -> bool:
    accepted = [library.mallopt(*option) for option in options.items()]
    return all(accepted)


def give_back_freed_memory() -> None:
    """Give what the process keeps back to the system, so that it counts as free there."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform.startswith("linux") else None
    if trim is not None:
        trim(0)
