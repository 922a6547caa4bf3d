"""A cohort: what of it is to be done, done by many workers, with one table of volumes and one of failures."""

from __future__ import annotations

import contextlib
import csv
import io
import logging
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from bundlekit.cases.case import Case
from bundlekit.cohort.bids import begin_derivative, require_derivative, some, write_volumes_tsv
from bundlekit.cohort.cluster import Workers, connected, dask
from bundlekit.cohort.pipeline import Plan, segment_case
from bundlekit.cohort.records import CORRECTED, DAMAGED, DONE, KEPT, MISSING, UNREADABLE, Records
from bundlekit.errors import BundleError, Finding, printable
from bundlekit.files import write_content
from bundlekit.report.table import DICTIONARY, MASK_CORRECTED, TABLE, VolumeTable, flagged

_log = logging.getLogger(__name__)
FAILURES, JOBS = "failures.csv", "jobs"
_COLUMNS = ("case", "reason")
_TABLES = (TABLE, DICTIONARY, FAILURES, "volumes.tsv")
_PART = re.compile(r"\.(.+)\.[0-9a-f]{8}\.part")


@dataclass
class Outcome:
    """What became of a cohort.

    Args:
        computed: cases that were computed now.
        done: cases that were done already.
        failures: reason by case, or by file where no case came about.
    """

    computed: list[str] = field(default_factory=list)
    done: list[str] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{len(self.computed)} computed, {len(self.done)} were done already, {len(self.failures)} failed"


def to_do(cases: Sequence[Case], plan: Plan) -> dict[str, str]:
    """Why each case must be computed, by name, see `Records.why`; "" if it is done."""
    records = Records(plan.output_dir)
    bar = tqdm(cases, desc="looking", disable=None, leave=False)
    return {str(case["case"]): records.why(case, plan.made_from) for case in bar}


def run_cohort(
    cases: Sequence[Case], findings: Sequence[Finding], plan: Plan, workers: Workers, collect: bool = True
) -> Outcome:
    """Compute the cases that are not done, each once.

    A case whose worker dies goes to another one. What fails is told in `failures.csv`, which is there with its head
    alone where nothing does, and the others go on. `volumes.csv` has the rows of all cases with a record, by name; of a
    BIDS derivative it is `volumes.tsv`.

    Args:
        cases: of the data set.
        findings: what is wrong with others of it.
        plan: what is done with each.
        workers: that do it.
        collect: write the tables of volumes and of failures; False where several commands share the folder.

    Raises:
        BundleError: for what lets no case be computed.
    """
    out = Path(plan.output_dir)
    if plan.bids is not None:
        require_derivative(out, plan.made_from["bundle"])  # before anything is written there
    outcome = Outcome(failures=_findings(findings))
    why = to_do(cases, plan)
    outcome.done = [name for name, reason in why.items() if reason == DONE]
    outcome.failures |= {name: reason for name, reason in why.items() if reason.startswith(KEPT)}
    left = [case for case in cases if why[str(case["case"])] != DONE and str(case["case"]) not in outcome.failures]
    records = Records(out)
    for case in left:
        if why[str(case["case"])] == DAMAGED:
            records.put_aside(case)
    if collect:
        write_failures(out, outcome.failures)
    table = VolumeTable(out)
    if plan.bids is None:
        table.begin()
    else:
        made = plan.made_from
        begin_derivative(out, made["bundle"], made["version"], Path(plan.bids))
    try:
        if left:
            with connected(workers, out / JOBS) as client:
                for name, result in _results(client, left, plan, workers.retries):
                    if "volumes" in result:
                        outcome.computed.append(name)
                        if plan.bids is None:
                            table.append(result["volumes"])  # without a look at all others; `collect_volumes` sorts
                    else:
                        outcome.failures[name] = result["refused"]
                        _log.warning("%s: failed: %s", name, result["refused"])
                        if collect:
                            write_failures(out, outcome.failures)
    finally:
        if collect:
            by_name = {str(case["case"]): case for case in cases}
            done = {*outcome.done, *outcome.computed}

            def changed(record: Mapping[str, Any]) -> list[str]:
                name = record["case"]
                return [] if name in done else records.changed(record, plan.made_from, by_name.get(name))

            collect_volumes(out, plan.bids is not None, changed)
    _remove_parts(out, {str(case["case"]) for case in left}, collect)
    return outcome


def _results(client: Any, cases: Sequence[Case], plan: Plan, retries: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Name and result of each case, in the order in which they are done.

    Raises:
        BundleError: if a worker says that no case can be computed.
    """
    distributed = dask()
    names = [str(case["case"]) for case in cases]
    futures = client.map(segment_case, [plan] * len(cases), list(cases), key=_keys(client, names), retries=retries)
    name_of = dict(zip((future.key for future in futures), names, strict=True))
    finished = distributed.as_completed(futures)
    del futures  # so that each result is let go when it was seen
    with contextlib.closing(tqdm(total=len(cases), desc="cases", disable=None)) as bar:
        for future in finished:
            bar.update()
            name = name_of[future.key]
            if future.status == "finished":
                result = future.result()
                if result.get("ends_run"):
                    raise BundleError(f"{name}: {result['refused']}")
                yield name, result
            else:
                yield name, {"refused": _reason(future.exception(), retries)}


def _keys(client: Any, names: Sequence[str]) -> list[Any]:
    """Names of the tasks, of one group that no earlier run on these workers has had."""
    return [(f"segment-{client.id[-12:]}", number) for number in range(len(names))]


def _remove_parts(output_dir: Path, cases: Collection[str], tables: bool) -> None:
    """Remove what killed workers had begun to write of these cases, and a killed command of tables."""
    for path in output_dir.rglob(".*.part"):  # see `write_whole`
        match = _PART.fullmatch(path.name)
        if not match:
            continue
        of_case = match[1].removesuffix(".json") in cases or match[1].rpartition("_")[0] in cases
        if of_case or (tables and match[1] in _TABLES and path.parent == output_dir):
            path.unlink(missing_ok=True)


def _reason(error: BaseException | None, retries: int) -> str:
    if type(error).__name__ == "KilledWorker":
        return (
            f"the worker died each time it was computed, {retries + 1} times: it was killed, or its memory ran out; "
            "take fewer workers on one machine (--jobs), or give jobs of a cluster more memory (--memory)"
        )
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"


def _findings(findings: Iterable[Finding]) -> dict[str, str]:
    """Reasons by file, or by case where its name is wrong: what the search found."""
    reasons: dict[str, list[str]] = {}
    for finding in findings:
        where = f"{finding.file}: " if finding.case else ""
        text = f"{where}found {finding.found}; expected {finding.expected}; {finding.fix}"
        reasons.setdefault(finding.case or finding.file, []).append(text)
    return {file: " | ".join(texts) for file, texts in reasons.items()}


def write_failures(output_dir: Path, failures: Mapping[str, str]) -> None:
    """Write `failures.csv`: a row for each case, or file, that could not be computed, with its reason.

    Raises:
        BundleError: if it cannot be written.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_COLUMNS)
    writer.writerows(sorted((name, " ".join(reason.split())) for name, reason in failures.items()))
    write_content(output_dir / FAILURES, printable(text.getvalue()), "output_dir")


def _flags(mask: str, changed: Sequence[str]) -> dict[str, str]:
    """Flags of rows that no longer hold, and what is told of each.

    Args:
        mask: what became of the mask, see `Records.mask_of`.
        changed: what is another now, see `Records.changed`.
    """
    flags = dict(MASK_CORRECTED) if mask == CORRECTED else {}
    if mask == MISSING:
        flags["mask_missing"] = "The mask is no longer there"
    elif mask == DAMAGED or mask.startswith(UNREADABLE):
        flags["mask_unreadable"] = "The mask can no longer be read"
    if changed:
        flags["outdated"] = f"Changed since this row was written: {', '.join(changed)}"
    return flags


def collect_volumes(
    output_dir: Path, bids: bool = False, changed: Callable[[Mapping[str, Any]], Sequence[str]] | None = None
) -> None:
    """Write `volumes.csv` of all cases with a record, and of those that were in it without one, by case.

    Rows that no longer hold stay and have a flag: `mask_corrected`, `mask_missing`, `mask_unreadable`, `outdated`; the
    log tells of which cases. The record of a mask that another run has written since does not count.

    Args:
        output_dir: folder of the results.
        bids: it is a BIDS derivative, and has `volumes.tsv`, of the cases with a record.
        changed: what a record was made from and is another now; None: of scans alone, where the record has them.

    Raises:
        BundleError: if it cannot be written.
    """
    records = Records(output_dir)
    found = {}
    cases_of: dict[str, list[str]] = {}
    for record in records.all():
        if (mask := records.mask_of(record)) == "changed":  # its rows are of another mask
            continue
        flags = _flags(mask, changed(record) if changed is not None else records.changed(record, {}))
        found[record["case"]] = [flagged(row, flags) for row in record["volumes"]]
        for flag in flags:
            cases_of.setdefault(flag, []).append(record["case"])
    for flag, names in cases_of.items():
        _log.warning("%s: %d case(s) with the flag %s: %s", output_dir, len(names), flag, some(names))
    if bids:
        write_volumes_tsv(output_dir, [row for case in sorted(found) for row in found[case]])
        return

    def with_found(before: list[dict[str, str]]) -> list[dict[str, Any]]:
        rows: dict[str, list[dict[str, Any]]] = {}
        for row in before:
            rows.setdefault(row["case"], []).append(row)
        rows.update(found)
        return [row for case in sorted(rows) for row in rows[case]]

    VolumeTable(output_dir).rewrite(with_found)
