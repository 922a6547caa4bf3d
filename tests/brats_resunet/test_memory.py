"""Freed memory stays with the process on a CPU, so that the next tensor costs no page faults."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

COUNT = """
import psutil, resource, torch
from brats_resunet.memory import give_back_freed_memory, keep_freed_memory
torch.set_num_threads(1)
kept = keep_freed_memory({device!r})
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):  # until the heap has a place for it
    torch.ones(2**25)  # 128 MB
before = faults()
for _ in range(5):
    torch.ones(2**25)
during = faults() - before
rss = lambda: psutil.Process().memory_info().rss
before = rss()
give_back_freed_memory()
print(kept, during, before - rss())
"""


def count(device: str = "cpu", **environment: str) -> tuple[bool, int, int]:
    """Whether freed memory is kept, page faults of five tensors of 128 MB, and the bytes given back after them."""
    without = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "LD_PRELOAD"))}
    command = [sys.executable, "-c", COUNT.format(device=device)]
    done = subprocess.run(command, env=without | environment, capture_output=True, text=True, check=True)
    kept, faults, given_back = done.stdout.split()
    return kept == "True", int(faults), int(given_back)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc's malloc is told so")
def test_a_tensor_of_the_same_size_costs_no_page_faults() -> None:
    kept, faults, given_back = count()
    assert kept
    assert faults < 100  # with the pages of 128 MB fetched five times: 160,000, or 320 huge ones
    assert given_back > 2**26


def test_nothing_is_changed_on_a_gpu_or_where_the_user_has_chosen() -> None:
    assert not count("cuda:0")[0]
    assert not count(MALLOC_ARENA_MAX="1")[0]
