"""Freed memory stays with the process on a CPU, so that the next tensor costs no page faults."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc's malloc is told so")
COUNT = """
import os, psutil, resource, torch
from bundlekit.memory import give_back_freed_memory, keep_freed_memory
torch.set_num_threads(1)
kept = keep_freed_memory({device!r})
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20 if kept else 1):  # until the heap has a place for it
    torch.ones(2**24)  # 64 MB
before = faults()
for _ in range(5):
    torch.ones(2**24)
during = faults() - before
rss = lambda: psutil.Process().memory_info().rss
before = rss()
give_back_freed_memory()
given_back = before - rss()
print(kept, during, given_back, flush=True)
if not os.fork():
    before = faults()
    for _ in range(5):
        torch.ones(2**24)
    print(faults() - before, flush=True)
"""


def count(device: str = "cpu", **environment: str) -> tuple[bool, int, int, int]:
    """Whether memory is kept, page faults of five tensors of 64 MB, bytes given back then, page faults in a child."""
    without = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_TUNABLES", "LD_PRELOAD"))}
    command = [sys.executable, "-c", COUNT.format(device=device)]
    done = subprocess.run(command, env=without | environment, capture_output=True, text=True, check=True)
    kept, faults, given_back, in_child = done.stdout.split()
    return kept == "True", int(faults), int(given_back), int(in_child)


def test_a_tensor_of_the_same_size_costs_no_page_faults() -> None:
    kept, faults, given_back, in_child = count()
    assert kept
    assert faults < 100  # with the pages of 64 MB fetched five times: 80,000, or 160 huge ones
    assert given_back > 2**25
    assert in_child > 100, "loader processes keep nothing"


def test_nothing_is_changed_on_a_gpu_or_where_the_user_has_chosen() -> None:
    for kept, faults, _, _ in (count("cuda:0"), count(MALLOC_ARENA_MAX="1")):
        assert not kept
        assert faults > 100
