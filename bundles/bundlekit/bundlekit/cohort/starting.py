"""From a bundle, a data set and settings to the plan of a cohort and its cases."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from pydoc import locate
from typing import Any

from monai.bundle import ConfigParser

from bundlekit.cases.case import Case
from bundlekit.cases.folders import absolute
from bundlekit.cohort.bids import DESCRIPTION, channels_of, find_entries, is_bids, read_filters
from bundlekit.cohort.pipeline import Plan, made_from
from bundlekit.configs import read_configs, refuse_settings
from bundlekit.errors import BundleError, Finding, bundle_error_in
from bundlekit.values import is_expression

_OWN = ("dataset_dir", "datalist", "output_dir", "shard", "num_workers", "report")  # a cohort's, or of no use in one


def plan_cohort(
    bundle: Path,
    dataset: str,
    out: str,
    configs: Sequence[str],
    settings: Mapping[str, Any],
    threads: int | None,
    participants: Sequence[str] = (),
    filter_file: str | None = None,
) -> tuple[Plan, list[Case], list[Finding]]:
    """The plan of a cohort, its sound cases, and what is wrong with the others.

    A folder with a `dataset_description.json` is a BIDS data set, and the results become a BIDS derivative.

    Args:
        bundle: its folder.
        dataset: folder of cases, a BIDS data set, or a MONAI datalist.
        out: folder for the results.
        configs: names of files in the bundle's `configs`, one over the other.
        settings: values for entries of the configs.
        threads: of a worker.
        participants: of a BIDS data set, those that are taken; none: all.
        filter_file: of a BIDS data set, see `bundlekit.cohort.bids.read_filters`.

    Raises:
        BundleError: for a setting that there is not or that cannot be, missing weights, no case at all, or results
            that would lie among the scans.
    """
    root, output_dir = absolute(dataset), Path(out).expanduser().absolute()
    if not root.exists():
        raise BundleError(f"{root}: no such file or folder; expected the data set.")
    bids = is_bids(root)
    root = root.resolve() if bids else root  # of any other, a link may name the case
    if not bids and (participants or filter_file):
        raise BundleError(
            f"{root} has no {DESCRIPTION}, so that it is no BIDS data set, whose participants can be chosen."
        )
    real, real_out = root.resolve(), output_dir.resolve()
    if real_out == real or (real in real_out.parents and not (bids and real / "derivatives" in real_out.parents)):
        raise BundleError(
            f"{output_dir} lies in the data set {root}, where results are taken for scans the next time; give another "
            "folder, or in a BIDS data set one in derivatives/."
        )
    for name in configs:
        if not (bundle / "configs" / name).is_file():
            there = ", ".join(sorted(file.name for file in (bundle / "configs").glob("inference*")))
            raise BundleError(f"{bundle.name} has no configs/{name}; there are {there}.")
    known: Any = read_configs(bundle, configs, {}).config
    for name in settings:
        if name in _OWN:
            raise BundleError(f"--{name} is not for a cohort; leave it out.")
    refuse_settings(known, settings, f"{bundle.name}'s inference")
    settings = {name: _absolute(name, value) for name, value in settings.items()}
    if bids and "write_brain" in known:
        settings = {"write_brain": False, **settings}  # BIDS has no name for the file
    parser = read_configs(bundle, configs, {**settings, "output_dir": str(output_dir)})
    try:
        made = made_from(bundle, parser, settings)
        cases, findings = _scan_bids(parser, bundle, root, participants, filter_file) if bids else _scan(parser, root)
    except RuntimeError as error:  # MONAI's, of an expression
        message = bundle_error_in(error)
        if message is None:
            raise
        raise BundleError(message) from error
    source = str(root) if bids else None
    plan = Plan(str(bundle), tuple(configs), dict(settings), str(output_dir), source, threads, made)
    return plan, cases, findings


def _scan_bids(
    parser: ConfigParser, bundle: Path, root: Path, participants: Sequence[str], filter_file: str | None
) -> tuple[list[Case], list[Finding]]:
    """Cases and findings of a BIDS data set."""
    fill = bool(parser.get_parsed_content("fill_missing")) if "fill_missing" in parser else False
    filters = read_filters(filter_file) if filter_file else None
    entries, findings = find_entries(root, channels_of(bundle), fill, participants, filters)
    if not entries:
        if findings:
            return [], findings
        wanted = ", ".join(channels_of(bundle))
        raise BundleError(f"{root}: no scan that {bundle.name} takes ({wanted}); expected them in sub-*/[ses-*/]anat.")
    with tempfile.TemporaryDirectory() as folder:
        datalist = Path(folder, "datalist.json")
        datalist.write_text(json.dumps({"testing": entries}))
        cases, more = _scan(parser, datalist)
    in_place = [
        replace(one, file=one.file.replace(str(datalist), str(root))) for one in more
    ]  # of the file that is gone
    return cases, findings + in_place


def _scan(parser: ConfigParser, root: Path) -> tuple[list[Case], list[Finding]]:
    """Cases and findings of the config's search, by the function `scan_cases` of its module.

    Args:
        parser: of the configs.
        root: folder of the data set, or a datalist.
    """
    parser["datalist" if root.is_file() and root.suffix == ".json" else "dataset_dir"] = str(root)
    find_cases: Any = locate(parser["cases"]["_target_"])
    module = find_cases.__module__
    parser["cases"] = {**parser["cases"], "_target_": f"{module}.scan_cases"}
    cases, findings = parser.get_parsed_content("cases")
    refused = {finding.case for finding in findings if finding.case}  # none of the cases of such a name
    return [case for case in cases if case["case"] not in refused], findings


def _absolute(name: str, value: Any) -> Any:
    """Paths hold on every worker, whatever its working directory."""
    paths = ("checkpoint", "lowres", "ckpt_dir", "mask_bundle", "cv_dir")
    is_path = name in paths and isinstance(value, str) and not is_expression(value)
    return os.path.abspath(os.path.expanduser(value)) if is_path else value
