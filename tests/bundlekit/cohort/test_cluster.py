"""Jobs of a batch system: what they are given, and workers that never come. No cluster starts."""

from __future__ import annotations

import asyncio
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bundlekit.cohort import cluster
from bundlekit.cohort.cluster import Workers
from bundlekit.errors import BundleError

distributed = pytest.importorskip("distributed", reason="the extra `cohort` is not installed")


def client(*workers: str) -> Any:
    """Of a scheduler with these workers."""
    return SimpleNamespace(scheduler_info=lambda n_workers: {"workers": dict.fromkeys(workers)})


class Job:
    """As of dask-jobqueue: submitted when it is awaited."""

    status = distributed.Status.created

    def __await__(self) -> Any:
        raise RuntimeError("sbatch: error: invalid partition specified: none")
        yield


def test_a_first_worker_that_never_comes_ends_the_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 10_000, 100))
    monkeypatch.setattr(cluster, "time", SimpleNamespace(monotonic=lambda: next(clock), sleep=lambda _: None))
    cluster._first_worker(client("one"), None, Workers())
    jobs = SimpleNamespace(workers={})
    with pytest.raises(BundleError, match=r"no worker came within 5 minutes[\s\S]*jobs/[\s\S]*--wait MINUTES"):
        cluster._first_worker(client(), jobs, Workers("slurm", wait=5))
    assert next(clock) == 600  # two looks at the time before it, and five minutes


def test_a_job_that_is_not_taken_ends_the_run_with_the_message() -> None:
    def sync(function: Callable[..., Any], *arguments: Any) -> Any:
        return asyncio.run(function(*arguments))

    jobs = SimpleNamespace(workers={0: Job()}, sync=sync)
    with pytest.raises(BundleError, match=r"--cluster slurm: a job cannot be submitted: sbatch: error: invalid"):
        cluster._first_worker(client(), jobs, Workers("slurm"))


@pytest.mark.parametrize(
    ("kind", "walltime", "directives", "given"),
    [
        ("slurm", "1-02:03:04", ["--gres=gpu:1"], ("26:03:04", ["--gres=gpu:1"])),
        ("pbs", "04:00:00", [], ("04:00:00", [])),
        ("lsf", "1-02:03:04", [], ("26:03", [])),
        ("htcondor", "04:00:00", ['+Want = "a=b"'], (None, {"+Want": '"a=b"'})),
    ],
)
def test_jobs_get_walltime_and_directives_in_their_form_and_no_dashboard(
    kind: str,
    walltime: str,
    directives: list[str],
    given: tuple[str | None, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: dict[str, Any] = {}

    def made(**arguments: Any) -> Any:
        asked.update(arguments)
        return SimpleNamespace(scale=lambda jobs: None)

    package = SimpleNamespace(**dict.fromkeys(cluster._JOBS.values(), made))
    monkeypatch.setattr(cluster, "dask", lambda name="distributed": package)
    monkeypatch.setattr(cluster, "_security", lambda: None)
    cluster._jobs(Workers(kind, walltime=walltime, directives=directives), tmp_path)
    assert (asked.get("walltime"), asked["job_extra_directives"]) == given
    assert "--no-dashboard" in asked["worker_extra_args"]
    assert shlex.split(asked["python"]) == [sys.executable]
    with pytest.raises(BundleError, match="my study has a blank"):
        cluster._jobs(Workers(kind, walltime=walltime, directives=directives), tmp_path / "my study")
    assert not (tmp_path / "my study").exists()
