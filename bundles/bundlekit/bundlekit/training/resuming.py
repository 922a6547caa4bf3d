"""A run that goes on where it was stopped, as if it had not been."""

from __future__ import annotations

import filecmp
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from torch import nn

from bundlekit.cases.datalist import TRAINED_ON, read_record
from bundlekit.errors import BundleError, Finding, other_settings
from bundlekit.files import write_content
from bundlekit.training.command import RESUME, require_own_folder, require_same_command
from bundlekit.training.saving import named_apart
from bundlekit.weights.loading import load_network, read_checkpoint
from bundlekit.weights.settings import AFTER_TRAINING, SETTINGS, companions, trained_settings

_log = logging.getLogger(__name__)


class ResumeRun:
    """MONAI handler: continue the run that `SaveCheckpoints` wrote, from the epoch after the saved one.

    Args:
        path: `last.pt`.
        network: as in `SaveCheckpoints`.
        optimizer: as in `SaveCheckpoints`.
        lr_scheduler: as in `SaveCheckpoints`.
        validator: as in `SaveCheckpoints`.
        settings: as in `RecordRun`; compared with what the run recorded.
        split: as in `RecordRun`; compared with what the run recorded, so that no case changes sides.
        ckpt_dir: where the run goes on to write; it holds this run, or none: then it gets the best network so far, the
            cases behind the weights that a fine-tuning began with, and the command. None: it is not looked at.
        also: as in `SaveCheckpoints`; one that the file does not have (it is of an earlier version) starts anew.
    """

    def __init__(
        self,
        path: str,
        network: nn.Module,
        optimizer: torch.optim.Optimizer,
        lr_scheduler: Any,
        validator: Engine | None = None,
        settings: Mapping[str, Any] | None = None,
        also: Mapping[str, Any] | None = None,
        split: Mapping[str, Any] | None = None,
        ckpt_dir: str | None = None,
    ) -> None:
        self.ckpt_dir = ckpt_dir
        self.also = named_apart(also)
        self.split = split
        self.path = path
        self.settings = settings
        self.network = network
        self.optimizer = optimizer
        self.lr_scheduler = lr_scheduler
        self.validator = validator

    def attach(self, engine: Engine) -> None:
        """Register with a trainer."""
        engine.add_event_handler(Events.STARTED, self)

    def __call__(self, engine: Engine) -> None:
        """Load everything.

        Raises:
            BundleError: if the folder has another run, or is not that of the `resume.json` that was given; if the file
                is missing, damaged, no checkpoint of a run, or of another network; or if it is already at the last
                epoch, or was made with another number of epochs or of iterations per epoch.
        """
        self._no_other_run()
        require_own_folder(self.ckpt_dir or str(Path(self.path).parent))
        saved = read_checkpoint(self.path)
        if not {"model", "optimizer", "lr_scheduler", "trainer"} <= set(saved):
            raise BundleError(
                Finding(
                    self.path,
                    "a file with " + ", ".join(sorted(map(str, saved))[:4]),
                    "the state of a run (model, optimizer, lr_scheduler, trainer)",
                    "give the last.pt that training wrote, with --resume_from",
                )
            )
        at = saved["trainer"]
        if at["epoch"] >= engine.state.max_epochs:
            raise BundleError(
                Finding(
                    self.path,
                    f"a run that has finished epoch {at['epoch']}",
                    f"one before epoch {engine.state.max_epochs}",
                    "nothing is left to do: evaluate it, or begin anew with its weights (finetune.yaml, --pretrained)"
                    if hasattr(self.lr_scheduler, "T_max")
                    else "nothing is left to do: evaluate it, or go on with more --epochs",
                )
            )
        if at["max_epochs"] != engine.state.max_epochs and hasattr(self.lr_scheduler, "T_max"):
            raise BundleError(
                Finding(
                    self.path,
                    f"a run of {at['max_epochs']} epochs",
                    f"one of {engine.state.max_epochs}",
                    f"the learning rate's cosine spans the run: resume with --epochs {at['max_epochs']}; to train "
                    "longer, begin anew from its weights",
                )
            )
        if at["epoch_length"] != engine.state.epoch_length:
            raise BundleError(
                Finding(
                    self.path,
                    f"a run of {at['epoch_length']} iterations per epoch",
                    f"{engine.state.epoch_length}, from the present cases, batch_size and processes",
                    "resume with the settings of the first start",
                )
            )
        require_same_command(str(Path(self.path).parent))
        self._same_settings()
        self._same_split()
        load_network(self.network, saved["model"], self.path)
        for name, part in self.also.items():
            if name in saved:
                part.load_state_dict(saved[name])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.lr_scheduler.load_state_dict(saved["lr_scheduler"])
        engine.state.epoch, engine.state.iteration = at["epoch"], at["iteration"]
        scaler = getattr(engine, "scaler", None)
        if scaler is not None and saved.get("scaler"):
            scaler.load_state_dict(saved["scaler"])
        if self.validator is not None and saved.get("best"):
            state: Any = self.validator.state
            state.best_metric, state.best_metric_epoch = saved["best"]["metric"], saved["best"]["epoch"]
        self._bring_along()
        _log.info("resumed %s after epoch %d of %d", self.path, at["epoch"], engine.state.max_epochs)

    def _no_other_run(self) -> None:
        """Refuse to write over a run that is not the one that goes on."""
        if self.ckpt_dir is None:
            return
        here, there = Path(self.ckpt_dir), Path(self.path).parent
        others = [name for name in ("last.pt", "model.pt") if (here / name).is_file()]
        if others == ["model.pt"] and _same_bytes(here / "model.pt", there / "model.pt"):
            return  # brought along by a start that ended before its first epoch here
        if others and here.resolve() != there.resolve():
            expected = f"the run that {self.path} is of, or no run"
            fix = f"give --ckpt_dir {there}, or an empty folder"
            if "last.pt" in others:
                fix += f"; or go on with this run: --resume_from {here / 'last.pt'}"
            raise BundleError(Finding(str(here), f"another run ({', '.join(others)})", expected, fix))

    def _bring_along(self) -> None:
        """Copy what belongs to the run into another folder, in which it goes on."""
        here, there = Path(self.ckpt_dir or ""), Path(self.path).parent
        if self.ckpt_dir is None or here.resolve() == there.resolve() or idist.get_rank() != 0:
            return
        for name in (SETTINGS, *companions(there / "model.pt"), "model.pt", TRAINED_ON, RESUME):
            if (there / name).is_file():
                write_content(here / name, (there / name).read_bytes(), "ckpt_dir")

    def _same_settings(self) -> None:
        if self.settings is None:
            return
        now = {key: value for key, value in self.settings.items() if key != AFTER_TRAINING}
        now = json.loads(json.dumps(now))  # as they are recorded: tuples are lists
        recorded = {**now, **trained_settings(self.path)}
        differing = [key for key in now if json.dumps(now[key]) != json.dumps(recorded[key])]  # order counts too
        if differing:
            fix = "resume with the settings of the first start"
            raise BundleError(other_settings(self.path, "a run", differing, recorded, now, fix))

    def _same_split(self) -> None:
        datalist = Path(self.path).parent / "datalist.json"
        if not self.split or not datalist.is_file():
            return
        recorded: Any = read_record(datalist)
        for part in ("training", "validation"):
            before = {entry["case"] for entry in recorded.get(part, [])}
            now = {case["case"] for case in self.split.get(part, [])}
            if before != now:
                some = sorted(before ^ now)
                raise BundleError(
                    Finding(
                        str(datalist),
                        f"a run with {len(before)} cases for {part}",
                        f"the same cases; {', '.join(some[:5])}{', ...' if len(some) > 5 else ''} changed sides",
                        "resume with the data and the split of the first start (datalist, fold, num_folds, fold_seed)",
                    )
                )


def _same_bytes(one: Path, other: Path) -> bool:
    return other.is_file() and filecmp.cmp(one, other, shallow=False)
