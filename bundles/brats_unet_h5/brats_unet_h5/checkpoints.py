"""Checkpoints that are written whole, resume a run exactly, and say what is wrong when they do not fit."""

# One of the modules that every bundle carries: edit it in tools/vendored/, then `make sync`.
from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from torch import nn

from .errors import BundleError, Finding
from .files import write_result
from .settings import CHOSEN_LATER, recorded_settings, write_settings
from .shipped import RECORD, check_shipped
from .split import write_datalist

_log = logging.getLogger(__name__)
_PARTS = ("model", "optimizer", "lr_scheduler", "trainer", "scaler", "best")  # of every last.pt


def require_new_run(ckpt_dir: str, overwrite: bool = False) -> None:
    """Refuse to start a run where another one has been, or where the bundle's own weights are.

    Args:
        ckpt_dir: of the new run.
        overwrite: replace the earlier run, or (resume.yaml) go on with it.

    Raises:
        BundleError: if the folder holds a `last.pt`, or weights that came with the bundle, and `overwrite` is False.
    """
    last, shipped = Path(ckpt_dir, "last.pt"), Path(ckpt_dir, RECORD)
    if shipped.is_file() and not overwrite:
        raise BundleError(
            Finding(
                ckpt_dir,
                "the weights that came with the bundle",
                "a folder of your own for the new run",
                "set --ckpt_dir to it (and give it to evaluation and inference, which otherwise use the weights that "
                "came with the bundle), or replace those with --overwrite True",
            )
        )
    if last.is_file() and not overwrite:
        raise BundleError(
            Finding(
                str(last),
                "an earlier run",
                "a folder without one",
                "go on with it (add configs/resume.yaml to --config_file), set --ckpt_dir to another folder, or "
                "replace it with --overwrite True",
            )
        )


class SaveCheckpoints:
    """MONAI handler: after each epoch the state of the run, and the network whenever it is the best so far.

    `last.pt` holds model, optimizer, schedule, trainer (epoch and iteration), AMP scaler and the best score, enough to
    continue as if the run had not stopped: the random state is a function of seed, epoch and index (see
    `dataset.PatchDataset`). `model.pt` is the state dict of the network with the best score, as MONAI expects it.
    Attach it after the handlers that step the schedule and validate. Written by rank 0 alone.

    Args:
        ckpt_dir: folder, made if missing.
        network: without its distributed wrapper.
        optimizer: of the network.
        lr_scheduler: of the optimizer.
        validator: evaluator whose `state.best_metric` decides; None: `model.pt` is the newest network.
        also: further objects whose `state_dict()` of plain values belongs to the run, by the name to save them under,
            e.g. the counter of an early stopping.
    """

    def __init__(
        self,
        ckpt_dir: str,
        network: nn.Module,
        optimizer: torch.optim.Optimizer,
        lr_scheduler: Any,
        validator: Engine | None = None,
        also: Mapping[str, Any] | None = None,
    ) -> None:
        self.also = _named_apart(also)
        self.ckpt_dir = Path(ckpt_dir)
        self.network = network
        self.optimizer = optimizer
        self.lr_scheduler = lr_scheduler
        self.validator = validator

    def attach(self, engine: Engine) -> None:
        """Register with a trainer."""
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Write the files of this epoch.

        Raises:
            BundleError: if they cannot be written; the files of the epoch before are intact then.
        """
        if idist.get_rank() != 0:
            return
        best: Any = self.validator.state if self.validator is not None else None
        if best is None or best.best_metric_epoch in (-1, engine.state.epoch):  # -1: not validated yet
            self._save("model.pt", self.network.state_dict())
        scaler = getattr(engine, "scaler", None)
        self._save(
            "last.pt",
            {
                "model": self.network.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "lr_scheduler": self.lr_scheduler.state_dict(),
                "trainer": {
                    "epoch": int(engine.state.epoch),
                    "iteration": int(engine.state.iteration),
                    "epoch_length": int(engine.state.epoch_length or 0),
                    "max_epochs": int(engine.state.max_epochs or 0),
                    # it came to its last epoch, or something stopped it early
                    "ended": engine.state.epoch >= (engine.state.max_epochs or 0)
                    or bool(getattr(engine, "should_terminate", False)),
                },
                "scaler": scaler.state_dict() if scaler is not None else {},
                "best": {"metric": float(best.best_metric), "epoch": int(best.best_metric_epoch)} if best else {},
                **{name: part.state_dict() for name, part in self.also.items()},
            },
        )

    def _save(self, name: str, content: Mapping[str, Any]) -> None:
        write_result(self.ckpt_dir / name, lambda file: torch.save(content, file), "ckpt_dir")


class StopInTime:
    """MONAI handler: end a training after the last epoch that fits into a time, so that it leaves a finished one.

    An epoch fits if it ends in time when it, and a validation after it, take as long as the longest so far. The first
    epoch always runs, and does not count among those once there is another: it prepares cases. Until a validation was
    seen it is taken to last as long as an epoch. What was reached can be resumed; `last.pt` is of the last epoch,
    `model.pt` of the last that was validated or the best. Attach it after `SaveCheckpoints`.

    Args:
        minutes: from the first step, more than 0.
        validator: evaluator that the trainer runs between epochs, if it does.

    Raises:
        ValueError: for what is not such a number.
    """

    def __init__(self, minutes: float, validator: Engine | None = None) -> None:
        if isinstance(minutes, bool) or not isinstance(minutes, (int, float)) or not minutes > 0:
            raise ValueError(f"time_limit must be a number of minutes, more than 0, got {minutes!r}.")
        self.seconds = 60 * minutes
        self.validator = validator
        self.started = self.last = self.validating = 0.0
        self.epochs: list[float] = []  # seconds of each, without validation
        self.validations: list[float] = []

    def attach(self, engine: Engine) -> None:
        """Register with a trainer, and with the validator."""
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)
        if self.validator is not None:
            self.validator.add_event_handler(Events.STARTED, self._validation_starts)
            self.validator.add_event_handler(Events.COMPLETED, self._validation_ends)

    def _start(self, engine: Engine) -> None:
        self.started = self.last = time.monotonic()
        self.epochs, self.validations = [], []

    def _validation_starts(self, engine: Engine) -> None:
        self.validating = time.monotonic()

    def _validation_ends(self, engine: Engine) -> None:
        took = time.monotonic() - self.validating
        self.validations.append(took)
        self.last += took  # no part of the epoch

    def __call__(self, engine: Engine) -> None:
        """End the training if the next epoch does not fit; every process of it, if one has no time left."""
        now = time.monotonic()
        self.epochs.append(now - self.last)
        self.last = now
        needed = max(self.epochs[1:] or self.epochs)
        if self.validator is not None:
            needed += max(self.validations, default=needed)
        left = self.seconds - (now - self.started) - needed
        if idist.all_reduce(left, op="MIN") < 0 and engine.state.epoch < (engine.state.max_epochs or 0):
            if idist.get_rank() == 0:
                _log.info(
                    "time limit: ended after epoch %d of %d; resume.yaml goes on from there",
                    engine.state.epoch,
                    engine.state.max_epochs,
                )
            engine.terminate()


class RecordRun:
    """MONAI handler: write `datalist.json` (the split) and `settings.json` beside the checkpoints when a run starts.

    Before its first epoch, that is after `ResumeRun` has accepted it. Written by rank 0 alone.

    Args:
        ckpt_dir: folder, made if missing.
        split: as `split.split_cases` returns it.
        settings: what inference has to do as training did.
    """

    def __init__(self, ckpt_dir: str, split: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
        self.ckpt_dir = ckpt_dir
        self.split = split
        self.settings = settings

    def attach(self, engine: Engine) -> None:
        """Register with a trainer."""
        engine.add_event_handler(Events.EPOCH_STARTED, self)

    def __call__(self, engine: Engine) -> None:
        """Write the two files; raises `BundleError` if that is not possible."""
        if self.split:
            if idist.get_rank() == 0:
                Path(self.ckpt_dir, RECORD).unlink(missing_ok=True)  # what it speaks of is being replaced
            write_datalist(self.split, str(Path(self.ckpt_dir, "datalist.json")), idist.get_rank())
            write_settings(self.settings, self.ckpt_dir, idist.get_rank())
            _log.info(
                "model.pt (the best network) and last.pt (to resume) go to %s; evaluate and infer with --ckpt_dir %s",
                self.ckpt_dir,
                self.ckpt_dir,
            )
        self.split = {}  # once is enough


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
    ) -> None:
        self.also = _named_apart(also)
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
            BundleError: if the file is missing, damaged, no checkpoint of a run, or of another network, or if it
                is already at the last epoch, or was made with another number of epochs or of iterations per epoch.
        """
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
                    "nothing is left to do: evaluate it, or go on with more --epochs where the learning rate's "
                    "schedule does not span the run",
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
        load_network(self.network, saved["model"], self.path)
        self._same_settings()
        self._same_split()
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
        _log.info("resumed %s after epoch %d of %d", self.path, at["epoch"], engine.state.max_epochs)

    def _same_settings(self) -> None:
        if self.settings is None:
            return
        now = {key: value for key, value in self.settings.items() if key not in CHOSEN_LATER}
        now = json.loads(json.dumps(now))  # as they are recorded: tuples are lists
        recorded = recorded_settings(self.path, now)
        differing = [key for key in now if json.dumps(now[key]) != json.dumps(recorded[key])]  # order counts too
        if differing:
            raise BundleError(
                Finding(
                    self.path,
                    "a run with " + ", ".join(f"{key} {recorded[key]}" for key in differing),
                    "the same settings; now " + ", ".join(f"{key} {now[key]}" for key in differing),
                    "resume with the settings of the first start",
                )
            )

    def _same_split(self) -> None:
        datalist = Path(self.path).parent / "datalist.json"
        if not self.split or not datalist.is_file():
            return
        recorded = json.loads(datalist.read_text())
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


class LoadWeights:
    """MONAI handler: load the network before an evaluator (or a trainer that fine-tunes) starts.

    Args:
        path: `model.pt` or `last.pt`.
        network: to load into, without its distributed wrapper.
    """

    def __init__(self, path: str, network: nn.Module) -> None:
        self.path = path
        self.network = network

    def attach(self, engine: Engine) -> None:
        """Register with an evaluator or a trainer."""
        engine.add_event_handler(Events.STARTED, self)

    def __call__(self, engine: Engine) -> None:
        """Load the weights; raises `BundleError` as `read_checkpoint` and `load_network` do."""
        saved = read_checkpoint(self.path)
        load_network(self.network, saved.get("model", saved), self.path)
        _log.info("loaded %s", self.path)


def read_checkpoint(path: str) -> dict[str, Any]:
    """Content of a checkpoint, read without running any code from it.

    Raises:
        BundleError: if it is missing or damaged.
    """
    if not Path(path).is_file():
        raise BundleError(
            Finding(
                path,
                "no such file",
                "a checkpoint",
                "train first, or name the file (inference: --checkpoint; fine-tuning: --pretrained; --resume_from)",
            )
        )
    check_shipped(path)
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(saved, dict):
            raise TypeError(f"holds a {type(saved).__name__}")
        return saved
    except Exception as error:  # a dozen types for what is one thing to the user
        raise BundleError(
            Finding(path, f"cannot be read ({type(error).__name__})", "a whole PyTorch checkpoint", "copy it again")
        ) from error


def load_network(network: nn.Module, state: Mapping[str, torch.Tensor], path: str) -> None:
    """Load a state dict strictly.

    Args:
        network: to load into; unchanged if the state does not fit. Its `identify(state)`, if it has one, says what a
            state dict belongs to: a description and the settings that give that network, ("", "") if it does not know;
            its `translate(state)` gives the state dict that is loaded, for a network that takes those of a kin.
        state: of the same network.
        path: of the file, for the message.

    Raises:
        BundleError: if the state belongs to another network or other widths.
    """
    translate: Any = getattr(network, "translate", dict)
    given, state = state, translate(state)
    expected: Mapping[str, torch.Tensor] = network.state_dict()
    wrong = [k for k in expected if k not in state or state[k].shape != expected[k].shape]
    extra = [k for k in state if k not in expected]
    if not wrong and not extra:
        network.load_state_dict(state)
        if len(state) < len(given):
            left = len(given) - len(state)
            _log.warning(
                "%s: %d values of another normalisation are left out; train the network before use", path, left
            )
        return
    identify: Any = getattr(network, "identify", lambda state: ("", ""))
    (found, setting), (wanted, own_setting) = identify(given), identify(expected)
    fix = "use a checkpoint of this bundle"
    if not found:
        found = f"another network ({', '.join(list(state)[:3])}, ...)"
    elif setting != own_setting:
        fix = f"give what it was trained with: {setting}"
    elif found == wanted:
        found += f" that differs in {(wrong + extra)[0]}"
    raise BundleError(Finding(path, found, wanted or type(network).__name__, fix))


def _named_apart(also: Mapping[str, Any] | None) -> dict[str, Any]:
    """`also` as a dict; ValueError if one of its names is that of another part of the file."""
    taken = [name for name in also or {} if name in _PARTS]
    if taken:
        raise ValueError(f"also must use other names than {', '.join(_PARTS)}, got {', '.join(taken)}.")
    return dict(also or {})
