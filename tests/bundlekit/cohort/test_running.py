"""Cohorts on workers: masks as of a plain run, nothing twice, failures told, workers that die."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import json
import os
import shutil
import signal
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

import tools.cohort
from bundlekit.cohort import pipeline, running
from bundlekit.cohort.bids import write_volumes_tsv
from bundlekit.cohort.cluster import Workers
from bundlekit.cohort.running import run_cohort, to_do
from bundlekit.configs import read_configs
from bundlekit.errors import BundleError
from bundlekit.report.table import COLUMNS, VolumeTable
from tests.bundlekit.cohort.conftest import Planned
from tests.conftest import ROOT, Run, bundle_run
from tests.forked_commands import RUN_LIBRARIES

distributed = pytest.importorskip("distributed", reason="the extra `cohort` is not installed")
ONE = Workers(jobs=1, dashboard=0)


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """One worker that is a thread: no process has to start."""

    @contextlib.contextmanager
    def connected(*_: Any) -> Iterator[Any]:
        with (
            distributed.LocalCluster(
                n_workers=1, threads_per_worker=1, processes=False, dashboard_address="127.0.0.1:0"
            ) as one,
            distributed.Client(one) as client,
        ):
            yield client

    monkeypatch.setattr(running, "connected", connected)


@pytest.fixture
def forked_workers(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Worker processes are forks of one that has imported what they need, as distributed's own tests have it."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # PyTorch looks when it is imported, before a worker is told
    with import_module("dask").config.set({"distributed.worker.multiprocessing-method": "forkserver"}):
        import_module("distributed.utils").get_mp_context().set_forkserver_preload(
            ["distributed", "bundlekit.cohort.pipeline", *RUN_LIBRARIES]
        )
        yield


@pytest.fixture
def plain(run: Run, cases: Path, tiny_model: Path, tmp_path: Path) -> Path:
    """Masks of a plain run."""
    command = bundle_run("inferring", "inference.yaml")
    where = ["--dataset_dir", cases, "--ckpt_dir", tiny_model, "--output_dir", tmp_path / "plain"]
    run(*command, *where, "--num_workers", "0", "--runtime", "torch")
    return tmp_path / "plain"


def failures(out: Path) -> dict[str, str]:
    with (out / "failures.csv").open(newline="") as file:
        return {row["case"]: row["reason"] for row in csv.DictReader(file)}


def outdated(out: Path) -> list[str]:
    """Cases all of whose rows have the flag."""
    flagged: dict[str, set[bool]] = {}
    for row in VolumeTable(out).rows():
        flagged.setdefault(row["case"], set()).add("outdated" in row["flags"].split(";"))
    return [case for case, found in flagged.items() if found == {True}]


def names(out: Path, pattern: str = "*_seg.nii.gz") -> list[str]:
    return sorted(path.name for path in out.rglob(pattern))


@pytest.mark.usefixtures("forked_workers")
def test_masks_and_volumes_are_those_of_a_plain_run_and_a_second_run_does_nothing(
    planned: Planned, plain: Path, tmp_path: Path
) -> None:
    """With two processes, one of which is killed while it computes."""
    plan, found, findings = planned()
    begun = tmp_path / "out" / "records"
    assert set(to_do(found, plan).values()) == {"missing"}
    assert not (tmp_path / "out").exists()
    workers = Workers(jobs=2, threads=1, dashboard=0)
    killed: list[int] = []

    original = running._results

    def killing(client: Any, *arguments: Any) -> Iterator[Any]:
        for result in original(client, *arguments):
            if not killed:  # the first case is done, the others are computed
                (pid, *_) = client.run(os.getpid).values()
                killed.append(pid)
                os.kill(pid, signal.SIGKILL)
            yield result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(running, "_results", killing)
        outcome = run_cohort(found, findings, plan, workers)
    assert len(killed) == 1
    assert sorted(outcome.computed) == [case["case"] for case in found]
    assert outcome.failures == failures(tmp_path / "out") == {}
    assert names(tmp_path / "out") == names(plain)
    for name in [*names(plain), "volumes.csv"]:
        assert (tmp_path / "out" / name).read_bytes() == (plain / name).read_bytes(), name
    before = {path: path.read_bytes() for path in begun.iterdir()}
    again = run_cohort(found, findings, plan, Workers(scheduler="tcp://127.0.0.1:9"))  # nothing to do: none is asked
    assert (again.computed, len(again.done)) == ([], 3)
    assert {path: path.read_bytes() for path in begun.iterdir()} == before


@pytest.mark.usefixtures("in_this_process")
def test_what_changed_is_computed_again_and_what_fails_is_told(planned: Planned, cases: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    first, second, third = sorted(folder.name for folder in cases.iterdir())
    truncated = cases / second / f"{second}_t2.nii.gz"
    whole = truncated.read_bytes()
    truncated.write_bytes(whole[: len(whole) // 2])
    outcome = run_cohort(*planned()[1:], planned()[0], ONE)
    assert outcome.computed == [first, third]
    assert failures(out).keys() == {second}
    assert "cannot be decoded to its end" in failures(out)[second]
    assert names(out) == [f"{first}_seg.nii.gz", f"{third}_seg.nii.gz"]
    truncated.write_bytes(whole)
    (out / f"{third}_seg.nii.gz").unlink()
    for name in (f"{third}_seg.nii.gz", "volumes.csv"):
        (out / f".{name}.0123abcd.part").write_bytes(b"of a worker or a command that was killed")
    plan, found, findings = planned()
    assert to_do(found, plan) == {first: "", second: "missing", third: "missing"}
    outcome = run_cohort(found, findings, plan, ONE)
    assert (outcome.computed, outcome.done, failures(out)) == ([second, third], [first], {})
    assert not names(out, ".*")
    rows = list(csv.DictReader((out / "volumes.csv").open(newline="")))
    assert [row["case"] for row in rows] == [name for name in (first, second, third) for _ in range(6)]
    (cases / third / f"{third}_flair.nii.gz").unlink()  # a case that the search refuses
    plan, found, findings = planned(save_probabilities=True)
    assert to_do(found, plan) == dict.fromkeys((first, second), "changed: settings, config_sha256")
    outcome = run_cohort(found, findings, plan, ONE)
    assert outcome.computed == [first, second]
    assert list(failures(out)) == [third], "one row for a case, whatever its findings name"
    assert f"{third}: found case {third} has" in failures(out)[third], "which names the place"
    assert outdated(out) == [third]
    assert names(out, "*_probabilities.nii.gz") == [f"{name}_probabilities.nii.gz" for name in (first, second)]
    record = json.loads((out / "records" / f"{first}.json").read_text())
    assert [entry["file"] for entry in record["outputs"]] == [
        f"{first}_{kind}.nii.gz" for kind in ("seg", "probabilities")
    ]


@pytest.mark.usefixtures("in_this_process")
def test_rows_of_a_case_that_fails_again_are_flagged(
    planned: Planned, cases: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    plan, found, findings = planned()
    names_ = [case["case"] for case in found]
    run_cohort(found, findings, plan, ONE)
    assert not outdated(out)

    def refused(*_: Any) -> dict[str, Any]:
        return {"refused": "a damaged scan", "ends_run": False}

    monkeypatch.setattr(running, "segment_case", refused)
    file = Path(found[0]["image"][0])
    file.write_bytes(file.read_bytes()[:-9])
    outcome = run_cohort(found, findings, plan, ONE)
    assert (list(outcome.failures), outcome.done) == (names_[:1], names_[1:])
    assert outdated(out) == names_[:1]
    assert f"{names_[0]}_seg.nii.gz" in names(out)
    run_cohort(found, findings, planned(flips=True)[0], ONE)
    assert outdated(out) == names_
    shutil.move(cases, tmp_path / "moved")  # which is no reason to compute or to flag anything
    plan, found, findings = planned(dataset=tmp_path / "moved")
    assert run_cohort(found, findings, plan, ONE).done == names_[1:]
    assert outdated(out) == names_[:1]


@pytest.mark.usefixtures("in_this_process")
def test_weights_that_cannot_be_used_end_the_run(planned: Planned, tiny_model: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad"
    bad.mkdir()
    (bad / "model.pt").write_bytes(b"no checkpoint")
    (bad / "settings.json").write_bytes((tiny_model / "settings.json").read_bytes())
    plan, found, findings = planned(ckpt_dir=str(bad))
    with pytest.raises(BundleError, match="a whole PyTorch checkpoint"):
        run_cohort(found, findings, plan, ONE)
    assert not names(tmp_path / "out")


@pytest.mark.usefixtures("in_this_process")
def test_what_is_no_fault_of_a_case_is_tried_again(planned: Planned, monkeypatch: pytest.MonkeyPatch) -> None:
    plan, found, findings = planned()
    tried, looks = [], []
    rows = {case["case"]: [{**dict.fromkeys(COLUMNS, ""), "case": case["case"]}] for case in found}
    earlier = [row for of_case in rows.values() for row in of_case]
    VolumeTable(plan.output_dir).rewrite(lambda _: earlier)
    read = VolumeTable.rows

    def segment(self: Any, case: Any) -> dict[str, Any]:
        tried.append(case["case"])
        if case is not found[0] and case["case"] == found[0]["case"]:
            raise OSError("the file server does not answer")
        return {"volumes": rows[case["case"]]}

    monkeypatch.setattr(VolumeTable, "rows", lambda table: looks.append(table) or read(table))
    monkeypatch.setattr(pipeline.Pipeline, "segment", segment)
    outcome = run_cohort(found, findings, plan, Workers(jobs=1, retries=2))
    assert tried.count(found[0]["case"]) == 3
    assert outcome.failures == {found[0]["case"]: "OSError: the file server does not answer"}
    assert len(outcome.computed) == 2
    assert len(looks) == 2, "the whole table is read when it is begun and at the end"


def test_names_that_are_no_files_or_doubled_are_not_computed(planned: Planned, cases: Path, tmp_path: Path) -> None:
    folders = sorted(cases.iterdir())
    images = [[str(f / f"{f.name}_{end}.nii.gz") for end in ("t1", "t1ce", "t2", "flair")] for f in folders]
    Path(images[2][0]).write_bytes(b"damaged")  # the other one of its name is not computed either
    entries = [{"image": files, "case": name} for files, name in zip(images, ("same", "good", "same"), strict=True)]
    entries.append({"image": images[0], "case": "../evil"})
    datalist = tmp_path / "list.json"
    datalist.write_text(json.dumps({"testing": entries}))
    _, found, findings = planned(dataset=datalist)
    assert [case["case"] for case in found] == ["good"]
    reasons = running._findings(findings)
    assert "case same more than once" in reasons["same"]
    assert "leads to another folder" in reasons["../evil"]


def test_a_case_after_one_that_failed_half_way_is_computed(planned: Planned, tmp_path: Path) -> None:
    out = tmp_path / "out"
    plan, (first, second, third), _ = planned()
    out.mkdir()
    (out / f"{second['case']}_seg.nii.gz").write_bytes(b"of somebody else: refused when the evaluator starts")
    earlier = out / f"{third['case']}_probabilities.nii.gz"
    earlier.write_bytes(b"of no record")
    assert "volumes" in pipeline.segment_case(plan, first)
    told = pipeline.segment_case(plan, second)
    assert "a file that no bundle has put its name to" in told["refused"]
    assert not told["ends_run"]
    assert "volumes" in pipeline.segment_case(plan, third)
    record = json.loads((out / "records" / f"{third['case']}.json").read_text())
    assert [entry["file"] for entry in record["outputs"]] == [f"{third['case']}_seg.nii.gz"]
    assert earlier.is_file()


def test_the_brain_masks_count_where_they_are_used(tiny_model: Path, tmp_path: Path) -> None:
    masks = tmp_path / "brain_mask_unet"
    shutil.copytree(ROOT / "bundles" / "brain_mask_unet" / "configs", masks / "configs")
    (masks / "models").mkdir()
    tissue, files = ROOT / "bundles" / "brain_tissue_vnet", ["inference.yaml", "whole_head.yaml"]
    settings = {"checkpoint": str(tiny_model / "model.pt"), "mask_bundle": str(masks), "settings": {}}
    hashes = []
    for weights in (b"one", b"other"):
        (masks / "models" / "model.pt").write_bytes(weights)
        hashes.append(pipeline.made_from(tissue, read_configs(tissue, files, settings), {})["mask_weights_sha256"])
    assert hashes == [hashlib.sha256(weights).hexdigest() for weights in (b"one", b"other")]
    before = pipeline.made_from(tissue, read_configs(tissue, files, settings), {})
    for name, old, new in (("metadata.json", '"version": "', '"version": "9'), ("inference.yaml", "0.25", "0.5")):
        file = masks / "configs" / name
        file.write_text(file.read_text().replace(old, new, 1))
    after = pipeline.made_from(tissue, read_configs(tissue, files, settings), {})
    assert {name for name in after if after[name] != before[name]} == {"mask_version", "mask_config_sha256"}
    del settings["mask_bundle"]
    alone = pipeline.made_from(tissue, read_configs(tissue, files[:1], settings), {})
    assert not [name for name in alone if name.startswith("mask")]


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"overlapp": 0.5}, "Did you mean --overlap"),
        ({"overlap": 2}, "--overlap is 2; expected"),
        ({"shard": "1/2"}, "--shard is not for a cohort"),
        ({"checkpoint": "nowhere.pt"}, "nowhere.pt: no such file; expected the weights"),
    ],
)
def test_settings_that_cannot_be_are_refused(planned: Planned, settings: dict[str, Any], told: str) -> None:
    with pytest.raises(BundleError, match=told):
        planned(**settings)


def test_results_among_the_scans_are_refused(planned: Planned, cases: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="lies in the data set"):
        planned(out=cases / "out")
    (tmp_path / "link").symlink_to(cases)
    with pytest.raises(BundleError, match="lies in the data set"):
        planned(out=tmp_path / "link" / "out")


def test_a_package_that_is_missing_is_told(planned: Planned, monkeypatch: pytest.MonkeyPatch) -> None:
    plan, found, findings = planned()
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(BundleError, match=r"distributed is not installed, .*\[cohort\]"):
        run_cohort(found, findings, plan, ONE)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"kind": "sge"}, "--cluster is 'sge'; expected local, slurm, pbs, lsf, htcondor"),
        ({"jobs": 0}, "--jobs is 0"),
        ({"retries": 1.5}, "--retries is 1.5"),
        ({"walltime": "4h"}, "--walltime is '4h'; expected HH:MM:SS"),
        ({"walltime": "04:00"}, "--walltime is '04:00'; expected HH:MM:SS"),
        ({"wait": 0}, "--wait is 0; expected"),
        ({"memory": "16GB", "queue": "gpu"}, "--memory, --queue: of no use with --cluster local"),
        ({"scheduler": "tcp://a:1", "kind": "slurm", "jobs": 2}, "--cluster, --jobs: of no use with --scheduler"),
        ({"kind": "htcondor", "account": "me"}, "--account: of no use with --cluster htcondor"),
        ({"kind": "htcondor", "directives": ["--gres=gpu", "-x"]}, "--directives has -x; HTCondor expects"),
    ],
)
def test_workers_that_cannot_be_are_refused(given: dict[str, Any], told: str) -> None:
    with pytest.raises(BundleError) as error:
        Workers(**given)
    assert told in str(error.value)


@pytest.mark.parametrize("reason", ["corrected: the mask stays", "unreadable: the mask stays"])
def test_a_mask_that_keeps_a_case_from_being_computed_is_told_without_a_worker(
    planned: Planned, reason: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plan, (first, *others), _ = planned()
    why = {first["case"]: reason, **{case["case"]: "" for case in others}}
    monkeypatch.setattr(running, "to_do", lambda *_: why)
    outcome = run_cohort([first, *others], [], plan, Workers(scheduler="tcp://127.0.0.1:9"))  # which is not asked
    assert (len(outcome.done), outcome.failures) == (2, {first["case"]: reason})
    assert failures(Path(plan.output_dir)) == outcome.failures
    tools.cohort._tell(outcome.failures, 3)
    assert "0 of 3 cases would be computed, 2 are done, 1 would fail." in capsys.readouterr().out


def test_rows_of_a_plain_run_stay_where_no_worker_comes(
    planned: Planned, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, found, findings = planned()
    (tmp_path / "out").mkdir()
    table = VolumeTable(tmp_path / "out")
    table.begin()
    table.add([{**dict.fromkeys(COLUMNS, ""), "case": found[0]["case"]}])

    def none_comes(*_: Any) -> Any:
        raise BundleError("no worker came")

    monkeypatch.setattr(running, "connected", none_comes)
    with pytest.raises(BundleError, match="no worker came"):
        run_cohort(found, findings, plan, ONE)
    assert [row["case"] for row in table.rows()] == [found[0]["case"]]


def test_names_in_another_encoding_are_told(tmp_path: Path) -> None:
    running.write_failures(tmp_path, {"P\udce9re.nii": "damaged"})
    assert failures(tmp_path) == {"P\\udce9re.nii": "damaged"}
    write_volumes_tsv(tmp_path, [{**dict.fromkeys(COLUMNS, ""), "case": "sub-01", "reasons": "P\udce9re"}])
    assert "P\\udce9re" in (tmp_path / "volumes.tsv").read_text()


def test_paths_and_settings_are_recorded_in_one_form(planned: Planned, cases: Path, tmp_path: Path) -> None:
    link = tmp_path / "other" / "link"
    link.parent.mkdir()
    link.symlink_to(cases)
    plan, found, _ = planned(channel_order=(1, 2, 3, 0))
    assert json.loads(json.dumps(plan.made_from)) == plan.made_from
    for way, first in ((cases / ".." / "cases", cases), (link, link), (link / ".." / "cases", cases)):
        assert planned(dataset=way)[1][0]["image"][0] == found[0]["image"][0].replace(str(cases), str(first))


def test_an_expression_is_no_path(planned: Planned, tiny_model: Path) -> None:
    plan, *_ = planned(checkpoint="$@ckpt_dir + '/model.pt'")
    assert plan.made_from["weights_sha256"] == planned()[0].made_from["weights_sha256"]
