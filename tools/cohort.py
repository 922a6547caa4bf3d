"""Many cases on many processes or machines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bundlekit.cohort.cluster import Workers
from bundlekit.cohort.records import KEPT
from bundlekit.cohort.running import FAILURES, run_cohort, to_do
from bundlekit.cohort.starting import plan_cohort
from bundlekit.errors import printable
from tools.bundles import folder_of


def cohort(
    bundle: str,
    dataset: str,
    out: str,
    dry_run: bool = False,
    cluster: str = "local",
    scheduler: str | None = None,
    jobs: int | None = None,
    threads: int | None = None,
    walltime: str = "04:00:00",
    memory: str = "8GB",
    queue: str | None = None,
    account: str | None = None,
    directives: str | Sequence[str] = (),
    prologue: str | Sequence[str] = (),
    interface: str | None = None,
    retries: int = 3,
    dashboard: int = 8787,
    wait: int = 30,
    configs: str | Sequence[str] = "inference.yaml",
    participant_label: str | Sequence[str] = (),
    bids_filter_file: str | None = None,
    **settings: Any,
) -> None:
    """Segment a data set on many workers: what is missing or changed, and nothing twice.

    Writes into OUT what the bundle's inference writes, records/CASE.json of each case, volumes.csv and failures.csv.
    Where DATASET is a BIDS data set, OUT is a BIDS derivative. The exit status is 0 if every case is done, 3 if some
    failed, 1 if none could be begun.

    Example: python -m tools cohort brats_resunet DATASET OUT --jobs 2

    Args:
        bundle: name of a bundle.
        dataset: folder of cases, a BIDS data set, or a MONAI datalist (.json).
        out: folder for the results.
        dry_run: say what would be computed, and why; write nothing.
        cluster: local, processes of this machine; or jobs of slurm, pbs, lsf, htcondor.
        scheduler: address of a Dask scheduler that runs already, in place of a cluster: tcp://10.0.0.5:8786.
        jobs: workers; None: on this machine one for each GPU, else for every four cores; of a batch system 4.
        threads: cores of each worker; None: this machine's, shared equally; of a job 4.
        walltime: of a job, HH:MM:SS or D-HH:MM:SS.
        memory: of a job.
        queue: partition or queue of the jobs.
        account: that the jobs are charged to.
        directives: more options of the jobs, such as --gres=gpu:1.
        prologue: commands of a job before its worker starts.
        interface: network interface that jobs and this process share.
        retries: how often a case is computed again when its worker died.
        dashboard: port of Dask's dashboard on this machine.
        wait: minutes that the first worker may take to come.
        configs: config files of the bundle, one over the other.
        participant_label: of a BIDS data set, those that are computed; None: all.
        bids_filter_file: of a BIDS data set, JSON with entities by channel: {"T1": {"acq": "mprage"}}.
        settings: those of the bundle's inference.yaml, e.g. --flips True.

    Raises:
        ValueError: for what keeps every case from being computed.
        SystemExit: with 3, if some cases failed.
    """
    workers = Workers(
        cluster, scheduler, jobs, threads, str(walltime), memory, queue, account,
        _lines(directives), _lines(prologue), interface, retries, dashboard, wait,
    )  # fmt: skip
    plan, cases, findings = plan_cohort(
        folder_of(bundle), str(dataset), str(out), _lines(configs), settings, workers.threads_of_each,
        _lines(participant_label), bids_filter_file,
    )  # fmt: skip
    if dry_run:
        _tell({case: why for case, why in to_do(cases, plan).items() if why}, len(cases))
        for finding in findings:
            print(printable(f"refused: {finding}"))
        return
    outcome = run_cohort(cases, findings, plan, workers)
    print(printable(f"{outcome}\n{plan.output_dir}"))
    if outcome.failures:
        print(f"see {FAILURES}")
        raise SystemExit(3)


def _lines(given: str | Sequence[str] | None) -> list[str]:
    if given is None:
        return []
    return [str(line) for line in given] if isinstance(given, (list, tuple)) else [str(given)]


def _tell(reasons: dict[str, str], cases: int) -> None:
    """Print what would be computed."""
    for case, why in reasons.items():
        print(printable(f"{case}: {why}"))
    kept = sum(why.startswith(KEPT) for why in reasons.values())
    failed = f", {kept} would fail" if kept else ""
    print(f"{len(reasons) - kept} of {cases} cases would be computed, {cases - len(reasons)} are done{failed}.")
