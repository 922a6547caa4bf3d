"""The command line of a BIDS App: `bundles-app BIDS OUT participant|group`."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

from bundlekit.cohort.bids import DESCRIPTION, is_bids, require_ours
from bundlekit.cohort.cluster import KINDS, Workers
from bundlekit.cohort.running import collect_volumes, run_cohort
from bundlekit.cohort.starting import plan_cohort
from bundlekit.errors import BundleError, printable
from bundlekit.version import __version__

_GIVE = "give the folder of its unpacked zip, or in a checkout the bundle's name"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns:
        The exit status: 0 if every case is done, 3 if some failed, 1 if none could be begun.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    given = _parser().parse_args(arguments)
    try:
        return _group(given) if given.analysis_level == "group" else _participant(given)
    except (ValueError, OSError) as error:
        print(f"ERROR: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="bundles-app", description="Segment a BIDS data set with a bundle.")
    parser.add_argument("bids_dir", type=Path, help="BIDS data set")
    parser.add_argument("output_dir", type=Path, help="folder for the derivative")
    parser.add_argument("analysis_level", choices=("participant", "group"),
                        help="participant: masks; group: volumes.tsv of all participants")  # fmt: skip
    parser.add_argument("--bundle", help="folder of a bundle (an unpacked zip), or its name in a checkout")
    parser.add_argument("--participant-label", "--participant_label", nargs="+", default=[], metavar="LABEL",
                        help="participants, without sub-; all if not given")  # fmt: skip
    parser.add_argument("--bids-filter-file", help='JSON, entities by channel: {"T1": {"acq": "mprage"}}')
    parser.add_argument("--configs", nargs="+", default=["inference.yaml"], metavar="FILE",
                        help="of the bundle, one over the other, e.g. inference.yaml whole_head.yaml")  # fmt: skip
    parser.add_argument("--set", nargs="+", default=[], metavar="NAME=VALUE", help="settings of inference.yaml")
    parser.add_argument("--jobs", type=int, help="workers")
    parser.add_argument("--threads", type=int, help="cores of each")
    parser.add_argument("--cluster", choices=KINDS, default="local", help="where the workers are")
    parser.add_argument("--walltime", default="04:00:00", help="of a job")
    parser.add_argument("--memory", default="8GB", help="of a job")
    parser.add_argument("--queue", help="of the jobs")
    parser.add_argument("--dashboard", type=int, default=8787, help="port of Dask's dashboard on this machine")
    parser.add_argument("--wait", type=int, default=30, help="minutes that the first worker may take to come")
    parser.add_argument("--skip-bids-validation", action="store_true",
                        help="accepted, since other BIDS Apps have it: nothing is validated here")  # fmt: skip
    parser.add_argument("--version", action="version", version=f"bundles-app {__version__}")
    return parser


def _participant(given: argparse.Namespace) -> int:
    if not is_bids(given.bids_dir):
        raise BundleError(f"{given.bids_dir} has no {DESCRIPTION}; expected a BIDS data set.")
    workers = Workers(
        kind=given.cluster,
        jobs=given.jobs,
        threads=given.threads,
        walltime=given.walltime,
        memory=given.memory,
        queue=given.queue,
        dashboard=given.dashboard,
        wait=given.wait,
    )
    plan, cases, findings = plan_cohort(
        _bundle(given.bundle),
        str(given.bids_dir),
        str(given.output_dir),
        given.configs,
        _settings(given.set),
        workers.threads_of_each,
        given.participant_label,
        given.bids_filter_file,
    )
    outcome = run_cohort(cases, findings, plan, workers, collect=False)  # other participants may be under way
    for name, reason in sorted(outcome.failures.items()):
        print(f"failed: {name}: {reason}", file=sys.stderr)
    print(outcome)
    return 3 if outcome.failures else 0


def _group(given: argparse.Namespace) -> int:
    require_ours(given.output_dir)
    collect_volumes(given.output_dir, bids=True)
    print(printable(str(given.output_dir / "volumes.tsv")))
    return 0


def _bundle(name: str | None) -> Path:
    """Folder of a bundle.

    Raises:
        BundleError: if there is none.
    """
    if not name:
        raise BundleError(f"--bundle is missing; {_GIVE}.")
    spec = find_spec(name) if name.isidentifier() else None
    installed = Path(spec.origin).resolve().parents[1] if spec is not None and spec.origin else None
    for folder in (Path(name).expanduser().absolute(), installed):
        if folder is not None and (folder / "configs" / "metadata.json").is_file():
            return folder
    found = "its Python alone is installed, without configs and weights" if installed else "no bundle's folder"
    raise BundleError(f"--bundle {name}: {found}; {_GIVE}.")


def _settings(given: Sequence[str]) -> dict[str, Any]:
    """Settings from `name=value`, values as in YAML."""
    wrong = [one for one in given if "=" not in one]
    if wrong:
        raise BundleError(f"--set {' '.join(wrong)}; expected name=value, such as flips=true.")
    settings = {}
    for one in given:
        name, _, value = one.partition("=")
        try:
            settings[name] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            problem = " ".join(str(error).split())
            fix = f"expected one; a text with such characters has quotes of its own: {name}='\"...\"'"
            raise BundleError(f"--set {one}: no value in YAML ({problem}); {fix}.") from None
    return settings


if __name__ == "__main__":
    sys.exit(main())
