"""Freed memory stays with the process on a CPU, so that the next tensor costs no page faults."""

from __future__ import annotations

import platform

import pytest

from tests.conftest import Run

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc's malloc is told so")
COUNT = """
import os, psutil, resource, torch
from bundlekit.memory import give_back_freed_memory, keep_freed_memory
torch.set_num_threads(1)
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
rss = lambda: psutil.Process().memory_info().rss
def five():
    before = faults()
    for _ in range(5):
        torch.ones(2**24)  # 64 MB
    return faults() - before
def count(device):
    kept = keep_freed_memory(device)
    for _ in range(20 if kept else 1):  # until the heap has a place for it
        torch.ones(2**24)
    during, before = five(), rss()
    give_back_freed_memory()
    print(kept, during, before - rss(), flush=True)
    if not os.fork():
        print(five(), flush=True)
        os._exit(0)
    os.wait()
for device, variable in (("cpu", ""), ("cuda:0", ""), ("cpu", "MALLOC_ARENA_MAX")):
    if not os.fork():
        os.environ.update({variable: "1"} if variable else {})
        count(device)
        os._exit(0)
    os.wait()
"""


def test_a_tensor_of_the_same_size_costs_no_page_faults_unless_on_a_gpu_or_where_the_user_has_chosen(
    run: Run, environment: dict[str, str]
) -> None:
    for name in [name for name in environment if name.startswith(("MALLOC_", "GLIBC_TUNABLES", "LD_PRELOAD"))]:
        del environment[name]
    done = run("-c", COUNT)
    here, in_child, *others = done.stdout.splitlines()
    kept, faults, given_back = here.split()
    assert kept == "True"
    assert int(faults) < 100  # with the pages of 64 MB fetched five times: 80,000, or 160 huge ones
    assert int(given_back) > 2**25
    assert int(in_child) > 100, "loader processes keep nothing"
    for line in (others[0], others[2]):
        kept, faults, _ = line.split()
        assert kept == "False"
        assert int(faults) > 100
