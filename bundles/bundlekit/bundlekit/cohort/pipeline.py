"""A bundle's inference for one case after the other in one process, which loads and compiles the network once."""

from __future__ import annotations

import hashlib
import json
import socket
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from pydoc import locate
from typing import Any

import torch
from ignite.engine import Events
from monai.bundle import ConfigParser

from bundlekit.cases.case import Case
from bundlekit.cohort.bids import folder_of, write_sidecars
from bundlekit.cohort.records import DONE, Records, inputs_of
from bundlekit.command_line import beside_defaults
from bundlekit.configs import read_configs
from bundlekit.errors import BundleError, bundle_error_in, ends_run
from bundlekit.files import sha256_of
from bundlekit.images.writing import WriteSegmentations
from bundlekit.inference.brain_masks import mask_configs
from bundlekit.inference.windows import ForegroundInferer
from bundlekit.report.handler import WriteVolumes
from bundlekit.version import __version__
from bundlekit.weights.loading import LoadWeights

_RUN = "inferring"
# entries of a config that say where something is, or how fast it is computed, but not what comes out
_NO_MATTER = {
    *(
        "imports",
        "bundle_root",
        "dataset_dir",
        "datalist",
        "shard",
        "output_dir",
        "ckpt_dir",
        "checkpoint",
        "lowres",
        "weights",
    ),
    *("device", "num_workers", "report", "initialize", "inferring", "run", "dataloader"),
}


@dataclass(frozen=True)
class Plan:
    """What is done with every case of a cohort: all that a worker has to know.

    Args:
        bundle: folder of the bundle.
        configs: files in its `configs`, one over the other.
        settings: values for entries of the configs, by name.
        output_dir: folder of the results.
        bids: the BIDS data set, whose results are named and placed as BIDS has them; None: of any other one.
        threads: of a worker, for PyTorch and OpenVINO; None: as it comes.
        made_from: what a record must hold for a case to be done, see `made_from`.
    """

    bundle: str
    configs: tuple[str, ...]
    settings: dict[str, Any]
    output_dir: str
    bids: str | None = None
    threads: int | None = None
    made_from: dict[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """What tells it from another one."""
        return json.dumps(asdict(self), sort_keys=True, default=str)


def made_from(bundle: Path, parser: ConfigParser, settings: Mapping[str, Any]) -> dict[str, Any]:
    """What the results of every case are made from, beside its files.

    Args:
        bundle: its folder.
        parser: of its configs, with the settings.
        settings: those that were given.

    Raises:
        BundleError: if weights are missing.
    """
    weights = parser.get_parsed_content("weights")
    weights = [weights] if isinstance(weights, str) else list(weights)
    for file in weights:
        if not Path(file).is_file():
            raise BundleError(
                f"{file}: no such file; expected the weights of {bundle.name}. Give --checkpoint or --lowres."
            )
    masks = {}
    if "mask_bundle" in parser:  # the brain is found first, by another network
        folder = Path(parser.get_parsed_content("mask_bundle"))
        configs, checkpoint = mask_configs(folder, {})
        masks = {
            "mask_version": _version(folder),
            "mask_weights_sha256": sha256_of(checkpoint),
            "mask_config_sha256": _config_sha256(configs),
        }
    given = {key: value for key, value in settings.items() if key not in _NO_MATTER}
    return {
        "bundle": bundle.name,
        "version": _version(bundle),
        "bundlekit": __version__,
        "weights_sha256": [sha256_of(file) for file in weights],
        **masks,
        "settings": json.loads(json.dumps(given, default=str)),  # as a record has them: Fire makes tuples
        "config_sha256": _config_sha256(parser),
    }


def _version(bundle: Path) -> str:
    return str(json.loads((bundle / "configs" / "metadata.json").read_text())["version"])


def _config_sha256(parser: ConfigParser) -> str:
    """Of what decides in configs, and of the settings that the weights came with."""
    whole: Any = parser.config
    config: dict[str, Any] = {key: value for key, value in whole.items() if key not in _NO_MATTER}
    config["settings"] = parser.get_parsed_content("settings") if "settings" in parser else {}
    return hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode()).hexdigest()


class Pipeline:
    """A bundle's inference, made ready once for many cases.

    It is that of the bundle's configs, step by step, with a data set of one case at a time. What differs: there is no
    progress bar, `num_workers` is 0, and the rows of `volumes.csv` are handed back in place of being written.

    Args:
        plan: what is done.

    Raises:
        BundleError: for a setting that cannot be, and for missing, damaged or other weights.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.records = Records(plan.output_dir)
        self._parser: ConfigParser | None = None
        self._cases: list[Case] = []
        self._writers: list[Any] = []
        self._rows: list[dict[str, Any]] = []
        self._names: tuple[list[str], list[str]] = ([], [])  # of classes and regions
        self.completed = False  # whether the evaluator has come to its end with the last case

    @property
    def ready(self) -> bool:
        """Whether the network is loaded."""
        return self._parser is not None

    def segment(self, case: Case) -> dict[str, Any]:
        """Compute a case and write its results and its record.

        Returns:
            The record's `volumes`.

        Raises:
            BundleError: if the case is refused, as a plain run refuses it, or a result cannot be written.
        """
        started = time.monotonic()
        inputs = inputs_of(case)
        parser = self._parser or self._load(case)
        self._cases[:] = [case]
        self._rows.clear()
        self.completed = False
        for writer in self._writers:
            self._place(writer, case)
        name = str(case["case"])
        files = [path for writer in self._writers for path in writer.files_of(name)]
        before = {path: _state(path) for path in files}
        for step in range(len(parser[_RUN])):  # MONAI keeps what a step gave, and does not run it again
            parser.ref_resolver.remove_resolved_content(f"{_RUN}::{step}")
            parser.get_parsed_content(f"{_RUN}::{step}")
        outputs = [path for path in files if _state(path) not in (None, before[path])]  # not those of an earlier run
        if files[0] not in outputs or not self._rows:
            raise RuntimeError(f"{name}: {self.plan.bundle} wrote no mask")
        if self.plan.bids is not None:
            classes, regions = self._names
            outputs += write_sidecars(outputs, case, classes, regions, Path(self.plan.bids), self.plan.made_from)
        told = {
            **self.plan.made_from,
            "volumes": list(self._rows),
            "computed_by": self._rows[0]["computed_by"],
            "seconds": round(time.monotonic() - started, 3),
            "host": socket.gethostname(),
            "finished": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        }
        self.records.remove_others(case, outputs)
        self.records.write(case, outputs, inputs, told)
        return {"volumes": told["volumes"]}

    def _load(self, case: Case) -> ConfigParser:
        """The configs with everything made but the case, and the weights loaded."""
        if self.plan.threads is not None:
            torch.set_num_threads(self.plan.threads)
        alone = {"dataset_dir": None, "datalist": None, "shard": None, "num_workers": 0, "report": False}
        where = {"output_dir": self.plan.output_dir, **self._device()}
        parser = read_configs(self.plan.bundle, self.plan.configs, {**where, **self.plan.settings, **alone})
        parser["handlers"] = [
            handler for handler in parser["handlers"] if handler["_target_"].rpartition(".")[2] != "Progress"
        ]
        inferer = locate(str(parser["inferer"]["_target_"]))
        if isinstance(inferer, type) and issubclass(inferer, ForegroundInferer):
            parser["inferer"]["progress"] = False
        parser.get_parsed_content("initialize")
        self._cases = parser.get_parsed_content("dataset").data  # the handlers have the same list
        self._cases[:] = [case]  # MONAI's evaluators do nothing for a data set that was empty when they were made
        evaluator = parser.get_parsed_content("evaluator")
        evaluator.add_event_handler(Events.COMPLETED, self._complete)
        handlers = parser.get_parsed_content("handlers")
        for handler in handlers:
            if isinstance(handler, LoadWeights):
                handler(evaluator)
                evaluator.remove_event_handler(handler, Events.STARTED)
            elif isinstance(handler, WriteVolumes):
                handler.table = _Rows(self._rows)  # type: ignore[assignment]
                handler.given = beside_defaults(self.plan.configs, self.plan.made_from.get("settings", {}))
                self._names = handler.classes, list(handler.regions)
        if (found := self._weights(parser)) != self.plan.made_from["weights_sha256"]:
            where_ = ", ".join(found)
            raise BundleError(f"the weights of {self.plan.bundle} are others here ({where_}) than where the run began.")
        self._writers = [handler for handler in handlers if hasattr(handler, "files_of")]
        self._parser = parser
        return parser

    def _complete(self) -> None:
        self.completed = True

    @staticmethod
    def _weights(parser: ConfigParser) -> list[str]:
        weights = parser.get_parsed_content("weights")
        return [sha256_of(file) for file in ([weights] if isinstance(weights, str) else weights)]

    @staticmethod
    def _device() -> dict[str, str]:
        """The GPU of this worker where there are several: the workers of a machine are numbered."""
        count = torch.cuda.device_count()
        name = _worker_name()
        return {"device": f"cuda:{int(name) % count}"} if count > 1 and name.isdigit() else {}

    def _place(self, writer: Any, case: Case) -> None:
        """Have a handler write where the results of a case belong."""
        if self.plan.bids is None:
            return
        writer.output_dir = Path(self.plan.output_dir) / folder_of(str(case["case"]))
        if isinstance(writer, WriteSegmentations):
            writer.suffix, writer.probabilities = "dseg", "probseg"


def _state(path: Path) -> tuple[int, int] | None:
    """What tells a file from one that is written in its place; None if there is none."""
    try:
        seen = path.stat()
    except FileNotFoundError:
        return None
    return seen.st_ino, seen.st_mtime_ns


class _Rows:
    """In place of `VolumeTable`: keeps the rows of a case."""

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self._rows = rows

    def begin(self, keeps: Any = None) -> None:
        """Nothing is to be made ready."""

    def add(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Keep them."""
        self._rows += map(dict, rows)


def _worker_name() -> str:
    """Name of the Dask worker that runs this; "" where none does."""
    distributed = sys.modules.get("distributed")
    try:
        return str(distributed.get_worker().name) if distributed is not None else ""
    except ValueError:
        return ""


_loaded: dict[str, Pipeline] = {}
_one_at_a_time = threading.Lock()  # a worker with several threads has one network


def segment_case(plan: Plan, case: Case) -> dict[str, Any]:
    """The task of a worker: compute a case; the network is loaded with the first one.

    Args:
        plan: what is done.
        case: as `find_cases` gives it.

    Returns:
        What `Pipeline.segment` returns; or `refused`, why the case cannot be computed, with `ends_run` if no other case
        can be computed either.
    """
    with _one_at_a_time:
        records = Records(plan.output_dir)
        if records.why(case, plan.made_from) == DONE:  # by a worker that died before it could say so
            record = records.read(str(case["case"])) or {}
            return {"volumes": record["volumes"]}
        pipeline = _loaded.get(plan.key)
        try:
            if pipeline is None:
                _loaded.clear()  # of another run on the same workers: its memory is let go
                pipeline = _loaded[plan.key] = Pipeline(plan)
            return pipeline.segment(case)
        except BaseException as error:
            made = pipeline is not None and pipeline.ready
            if pipeline is None or not pipeline.completed:
                _loaded.clear()  # an evaluator that an error has left half-way would compute nothing of the next case
            message = bundle_error_in(error) if isinstance(error, (RuntimeError, ValueError)) else None
            if message is None:
                raise
            return {"refused": message, "ends_run": not made or ends_run(error)}
