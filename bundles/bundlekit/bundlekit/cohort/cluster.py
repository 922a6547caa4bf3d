"""Dask workers: processes of this machine, jobs of a batch system, or a cluster that runs already."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shlex
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from bundlekit.errors import BundleError

_log = logging.getLogger(__name__)

_JOBS = {"slurm": "SLURMCluster", "pbs": "PBSCluster", "lsf": "LSFCluster", "htcondor": "HTCondorCluster"}
KINDS = ("local", *_JOBS)
_LOOK = 20.0  # seconds between looks at the workers
_FIRST_LOOK = 1.0  # the same, until the first one is there
_NOTICE = 120.0  # seconds of a job's time that are left unused, in which its worker ends by itself
_OF_JOBS = ("walltime", "memory", "queue", "account", "directives", "prologue", "interface")
# settings that cannot do anything, by what computes
_NO_USE = {
    "--scheduler": ("kind", "jobs", "dashboard", *_OF_JOBS),
    "local": _OF_JOBS,
    "htcondor": ("queue", "account"),
}
_WALLTIME = re.compile(r"(?:(\d+)-)?(\d+):([0-5]\d):([0-5]\d)")
# a process that keeps the memory it has freed is not paused for it; one that takes too much is ended and its case told
_MEMORY = {f"distributed.worker.memory.{name}": False for name in ("target", "spill", "pause")}


@dataclass(frozen=True)
class Workers:
    """What computes a cohort.

    Args:
        kind: "local", processes of this machine; "slurm", "pbs", "lsf", "htcondor": jobs, each with one worker.
        scheduler: address of a Dask scheduler that runs already, e.g. tcp://10.0.0.5:8786, in place of `kind`.
        jobs: number of workers; None: on this machine one for each GPU, else one for every four cores.
        threads: cores of each; None: this machine's, shared equally, or 4 of a job.
        walltime: of a job, HH:MM:SS or D-HH:MM:SS.
        memory: of a job, e.g. 8GB.
        queue: partition or queue of the jobs.
        account: that the jobs are charged to.
        directives: more lines of the job's head, e.g. "--gres=gpu:1"; of HTCondor e.g. "request_gpus = 1".
        prologue: lines of the job's script before the worker starts, e.g. "module load cuda".
        interface: network interface that jobs and this process share, e.g. ib0.
        retries: how often a case is computed again when its worker died, or failed for no fault of the case.
        dashboard: port of Dask's dashboard on this machine, on its loopback address; 0: any.
        wait: minutes that the first worker may take to come.

    Raises:
        BundleError: for a value that cannot be, or one that these workers have no use for.
    """

    kind: str = "local"
    scheduler: str | None = None
    jobs: int | None = None
    threads: int | None = None
    walltime: str = "04:00:00"
    memory: str = "8GB"
    queue: str | None = None
    account: str | None = None
    directives: Sequence[str] = ()
    prologue: Sequence[str] = ()
    interface: str | None = None
    retries: int = 3
    dashboard: int = 8787
    wait: int = 30

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise BundleError(f"--cluster is {self.kind!r}; expected {', '.join(KINDS)}.")
        for name, least in (("jobs", 1), ("threads", 1), ("retries", 0), ("dashboard", 0), ("wait", 1)):
            value = getattr(self, name)
            optional = value is None and name in ("jobs", "threads")
            if not optional and (isinstance(value, bool) or not isinstance(value, int) or value < least):
                raise BundleError(f"--{name} is {value!r}; expected a whole number, {least} or more.")
        if not _WALLTIME.fullmatch(str(self.walltime)):
            raise BundleError(f"--walltime is {self.walltime!r}; expected HH:MM:SS, such as 04:00:00, or D-HH:MM:SS.")
        self._refuse_idle()

    def _refuse_idle(self) -> None:
        """Refuse what was given, and would be passed over without a word."""
        no_use = _NO_USE.get(self.kind if self.scheduler is None else "--scheduler", ())
        given = [one.name for one in fields(self) if getattr(self, one.name) not in (one.default, [], ())]
        idle = ["cluster" if name == "kind" else name for name in given if name in no_use]
        if idle:
            where = f"--cluster {self.kind}" if self.scheduler is None else "--scheduler"
            raise BundleError(f"--{', --'.join(idle)}: of no use with {where}; leave it out.")
        if self.kind == "htcondor" and (wrong := [line for line in self.directives if "=" not in line]):
            raise BundleError(f"--directives has {', '.join(wrong)}; HTCondor expects such as 'request_gpus = 1'.")

    @property
    def number(self) -> int:
        """How many workers there are to be."""
        return self.jobs or (torch.cuda.device_count() or max(1, _cores() // 4) if self.kind == "local" else 4)

    @property
    def threads_of_each(self) -> int | None:
        """Threads that each computes with; None: as a cluster that runs already has been told."""
        if self.threads is not None or self.scheduler is not None:
            return self.threads
        return max(1, _cores() // self.number) if self.kind == "local" else 4


def dask(package: str = "distributed") -> Any:
    """Dask's scheduler and workers, or `dask_jobqueue`.

    Raises:
        BundleError: if it is not installed.
    """
    try:
        return import_module(package)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("dask", "distributed", "dask_jobqueue"):
            raise
        raise BundleError(
            f"{error.name} is not installed, which a cohort needs: pip install -e '.[cohort]', or pip install "
            "'dask[distributed]' dask-jobqueue bokeh cryptography."
        ) from None


@contextlib.contextmanager
def connected(workers: Workers, folder: Path) -> Iterator[Any]:
    """A `distributed.Client` of these workers; those that were started end with it.

    What goes over the network of a cluster that is started here is encrypted, by keys made for this run. Dask's
    dashboard is bound to the loopback address. Jobs that end or are cancelled are submitted again as long as the run
    goes on.

    Args:
        workers: that compute.
        folder: that all machines share, for logs of jobs and the keys.

    Raises:
        BundleError: if Dask is not installed, the cluster cannot be reached, its jobs cannot be submitted, or no worker
            comes in time.
    """
    distributed = dask()
    logging.getLogger("distributed").setLevel(logging.ERROR)  # workers that come and go are told below
    settings = {
        **_MEMORY,
        "distributed.scheduler.allowed-failures": workers.retries,
        "distributed.scheduler.worker-saturation": 1.0,  # no case waits at a worker, where it would share its death
        "distributed.comm.timeouts.connect": "60s",
    }
    with contextlib.ExitStack() as stack, import_module("dask").config.set(settings):
        cluster: Any = None
        if workers.scheduler is not None:
            try:
                client = stack.enter_context(distributed.Client(workers.scheduler, timeout="30s"))
            except (OSError, ValueError) as error:
                raise BundleError(
                    f"--scheduler {workers.scheduler}: no Dask scheduler answers ({error}); expected the address of "
                    "one, such as tcp://10.0.0.5:8786."
                ) from error
        else:
            cluster = stack.enter_context(_local(workers) if workers.kind == "local" else _jobs(workers, folder))
            client = stack.enter_context(distributed.Client(cluster))
            if port := client.scheduler_info().get("services", {}).get("dashboard"):
                _log.info("dashboard: http://127.0.0.1:%s/status", port)
        stack.enter_context(_kept_up(client, cluster if workers.kind != "local" else None, workers))
        _first_worker(client, cluster, workers)
        yield client


def _local(workers: Workers) -> Any:
    distributed = dask()
    threads = workers.threads_of_each
    return distributed.LocalCluster(
        n_workers=workers.number,
        threads_per_worker=1,
        processes=True,
        host="127.0.0.1",
        security=_security(),
        dashboard_address=f"127.0.0.1:{workers.dashboard}",
        env={f"{name}_NUM_THREADS": threads for name in ("OMP", "MKL", "OPENBLAS")},
        silence_logs=logging.ERROR,
    )


def _jobs(workers: Workers, folder: Path) -> Any:
    threads = workers.threads_of_each
    if re.search(r"\s", str(folder)):  # Dask's command of a job has the keys' paths without quotes
        raise BundleError(
            f"--cluster {workers.kind}: {folder} has a blank, which its jobs cannot have; set another out."
        )
    folder.mkdir(parents=True, exist_ok=True)
    memory = " ".join(f"DASK_{name.upper().replace('.', '__')}=False" for name in _MEMORY)
    own = Path(__file__).resolve().parents[2]  # the folder that this package lies in, where it is not installed
    hours, minutes, seconds = _hours(workers.walltime)
    walltime = f"{hours:02}:{minutes:02}:{seconds:02}"
    directives: Any = list(workers.directives)
    if workers.kind == "htcondor":
        parts = (line.partition("=") for line in directives)
        directives = {name.strip(): value.strip() for name, _, value in parts}
    kinds: dict[str, dict[str, str | None]] = {
        "slurm": {"walltime": walltime, "queue": workers.queue, "account": workers.account},
        "pbs": {"walltime": walltime, "queue": workers.queue, "account": workers.account},
        "lsf": {"walltime": f"{hours:02}:{minutes:02}", "queue": workers.queue, "project": workers.account},
        "htcondor": {"disk": "2GB"},
    }
    cluster = getattr(dask("dask_jobqueue"), _JOBS[workers.kind])(
        cores=threads,
        processes=1,
        memory=workers.memory,
        python=shlex.quote(sys.executable),
        interface=workers.interface,
        security=_security(),
        protocol="tls://",
        shared_temp_directory=str(folder),
        log_directory=str(folder),
        job_extra_directives=directives,
        job_script_prologue=[
            f"export OMP_NUM_THREADS={threads} MKL_NUM_THREADS={threads} OPENBLAS_NUM_THREADS={threads}",
            f"export {memory}",
            f"export PYTHONPATH={shlex.quote(str(own))}${{PYTHONPATH:+:$PYTHONPATH}}",
            *workers.prologue,
        ],
        worker_extra_args=["--nthreads", "1", "--no-dashboard", *_lifetime(workers.walltime)],
        scheduler_options={"dashboard_address": f"127.0.0.1:{workers.dashboard}"},
        **{name: value for name, value in kinds[workers.kind].items() if value is not None},
    )
    cluster.scale(jobs=workers.number)
    return cluster


def _security() -> Any:
    """Keys for this run alone."""
    try:
        return dask().Security.temporary()
    except ImportError as error:
        raise BundleError(
            f"cryptography is not installed, which a cohort needs ({error}): pip install cryptography."
        ) from error


def _hours(walltime: str) -> tuple[int, int, int]:
    """Hours, minutes and seconds of a walltime that may have days."""
    days, hours, minutes, seconds = (int(part or 0) for part in _WALLTIME.fullmatch(walltime).groups())  # type: ignore[union-attr]
    return days * 24 + hours, minutes, seconds


def _lifetime(walltime: str) -> list[str]:
    """Arguments of a worker that ends by itself before its job is ended.

    A case that it does not finish within Dask's half a minute is computed anew by another one.
    """
    hours, minutes, seconds = _hours(walltime)
    total = (hours * 60 + minutes) * 60 + seconds
    return ["--lifetime", f"{total - _NOTICE:.0f}s", "--lifetime-stagger", "30s"] if total > 5 * _NOTICE else []


def _first_worker(client: Any, cluster: Any, workers: Workers) -> None:
    """Wait for a worker.

    Raises:
        BundleError: if a job cannot be submitted, or none comes in time.
    """
    end = time.monotonic() + 60 * workers.wait
    while not client.scheduler_info(n_workers=-1)["workers"]:
        if workers.scheduler is None and workers.kind != "local":
            _submit_again(cluster, workers.kind)
        if time.monotonic() > end:
            where = "jobs/ has the logs of jobs that began" if cluster is not None else "start some for this scheduler"
            raise BundleError(
                f"no worker came within {workers.wait} minutes; expected one. Look whether jobs wait in the queue or "
                f"end at once ({where}), or wait longer: --wait MINUTES."
            )
        time.sleep(_FIRST_LOOK)


def _submit_again(cluster: Any, kind: str) -> None:
    """Submit those jobs once more that the batch system did not take.

    Raises:
        BundleError: with the batch system's message, if it does not take one.
    """
    status = dask().Status
    left = [job for job in cluster.workers.values() if job.status == status.created]  # until it is submitted
    for job in left:
        try:
            cluster.sync(_awaited, job)
        except (RuntimeError, OSError, ValueError) as error:
            for other in left:
                other.status = status.failed  # or Dask takes it for one that it has to end
            raise BundleError(
                f"--cluster {kind}: a job cannot be submitted: {error}\nExpected a batch system that takes it; look at "
                "--queue, --account, --walltime, --memory and --directives."
            ) from error


async def _awaited(job: Any) -> None:
    await job


@contextlib.contextmanager
def _kept_up(client: Any, cluster: Any, workers: Workers) -> Iterator[None]:
    """Look now and then how many workers there are: tell changes, and have ended jobs submitted again."""
    done = threading.Event()

    def look() -> None:
        before = -1
        while not done.wait(_LOOK):
            with contextlib.suppress(Exception):  # a scheduler that is busy, a batch system that does not answer
                there = len(client.scheduler_info(n_workers=-1)["workers"])
                if not there and before:
                    _log.warning("no worker is there; waiting for one")
                before = there
                if cluster is not None and there < workers.number:
                    cluster.scale(jobs=workers.number)

    thread = threading.Thread(target=look, daemon=True, name="looks at the workers")
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join(5)


def _cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
