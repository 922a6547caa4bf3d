"""Checkpoints that are written whole, resume a run exactly, and say what is wrong when they do not fit."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from torch import nn

from bundlekit.cases.datalist import TRAINED_ON, read_record, trained_cases, write_datalist, write_trained_cases
from bundlekit.errors import BundleError, Finding
from bundlekit.files import write_content, write_result
from bundlekit.training.command import RESUME, how_to_resume, write_resume
from bundlekit.training.lock import lock_run, unlock_run
from bundlekit.weights.aside import keep_aside
from bundlekit.weights.loading import broken_weights
from bundlekit.weights.settings import AFTER_TRAINING, SETTINGS, read_settings, write_settings
from bundlekit.weights.shipped import RECORD

_log = logging.getLogger(__name__)
_PARTS = ("model", "optimizer", "lr_scheduler", "trainer", "scaler", "best")  # of every last.pt


def require_new_run(ckpt_dir: str, overwrite: bool = False, split: Mapping[str, Any] | None = None) -> None:
    """Refuse to start a run where another one has been or is, or where the weights that came with a bundle are.

    Until this process ends, or the trainer with `RecordRun` does, other trainings are kept out of the folder.

    Args:
        ckpt_dir: of the new run.
        overwrite: replace the earlier run, or (resume.yaml) go on with it.
        split: as `split.split_cases` returns it; without a case for training there will be no run to refuse.

    Raises:
        BundleError: if the folder holds a `last.pt`, or weights that came with the bundle, and `overwrite` is False;
            if another process trains there; if it is no folder.
    """
    if split is not None and not split["training"]:
        return
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
                f"go on with it ({how_to_resume(ckpt_dir)}), set --ckpt_dir to another folder, or replace it with "
                "--overwrite True",
            )
        )
    lock_run(ckpt_dir)


class SaveCheckpoints:
    """MONAI handler: after each epoch the state of the run, and the network whenever it is the best so far.

    `last.pt` holds model, optimizer, schedule, trainer (epoch and iteration), AMP scaler and the best score, enough to
    continue as if the run had not stopped: the random state is a function of seed, epoch and index (see
    `bundlekit.PatchDataset`). `model.pt` is the state dict of the network with the best score, as MONAI expects it.
    Attach it after the handlers that step the schedule and validate. Written by rank 0 alone. Ignite's `Checkpoint`
    with `DiskSaver(atomic=True)` renames without flushing to the disk, and what it shows of a full one is PyTorch's
    complaint about positions in a file.

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
        self.also = named_apart(also)
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
            BundleError: if they cannot be written, or the network has weights that are NaN or infinite; the files of
                the epoch before are intact then.
        """
        if idist.get_rank() != 0:
            return
        broken = broken_weights(self.network.state_dict())
        if broken:
            raise BundleError(
                Finding(
                    str(self.ckpt_dir),
                    f"NaN or infinite weights after epoch {engine.state.epoch}, in {broken[0]}",
                    "finite weights",
                    "lower --learning_rate; the checkpoints of the epoch before are whole",
                )
            )
        best: Any = self.validator.state if self.validator is not None else None
        gone = engine.state.epoch > 1 and not Path(self.ckpt_dir, "model.pt").is_file()
        gone = gone and not (best is not None and best.best_metric_epoch == 0)  # 0: of the start, see `RequireBetter`
        if best is None or gone or best.best_metric_epoch in (-1, engine.state.epoch):  # -1: not validated yet
            self._save("model.pt", self.network.state_dict())
        if gone:
            _log.warning("%s: model.pt is gone, so that of epoch %d is written", self.ckpt_dir, engine.state.epoch)
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


class RecordRun:
    """MONAI handler: write what a run is, beside its checkpoints, when it starts.

    `datalist.json` is the split, `settings.json` what inference has to do as training did, and `resume.json` the
    command with all its settings: `python -m monai.bundle run --args_file .../resume.json` goes on with the run. They
    are written before the first epoch, that is after `ResumeRun` has accepted it, and again, as they were, if they are
    gone after an epoch. Weights of an earlier run are moved to a folder in `earlier/` first, with what belongs to them:
    none lie beside the settings of the new run until it has saved its own. Rank 0 alone writes, but every process has
    it: they wait for each other before weights are moved. At the end the folder is open to others again.

    Args:
        ckpt_dir: folder, made if missing.
        split: as `bundlekit.split_cases` returns it.
        settings: what inference has to do as training did.
        second: the network is one that inference takes beside another one (`lowres`).
    """

    def __init__(
        self, ckpt_dir: str, split: Mapping[str, Any], settings: Mapping[str, Any], second: bool = False
    ) -> None:
        self.ckpt_dir = ckpt_dir
        self.split = split
        self.settings = settings
        self.second = second
        self.met = False
        self.started = False
        self.written: dict[str, bytes] = {}

    def attach(self, engine: Engine) -> None:
        """Register with a trainer."""
        engine.add_event_handler(Events.EPOCH_STARTED, self)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)
        engine.add_event_handler(Events.COMPLETED, lambda: unlock_run(self.ckpt_dir))

    def __call__(self, engine: Engine) -> None:
        """Write the files; raises `BundleError` if that is not possible."""
        if not self.met:
            idist.barrier()  # no process reads weights any more that a new run in their folder puts aside
            self.met = True
        if idist.get_rank() != 0 or not any(self.split.values()):
            return
        folder = Path(self.ckpt_dir)
        if self.started:
            gone = {name: text for name, text in self.written.items() if not (folder / name).is_file()}
            for name, text in gone.items():
                write_content(folder / name, text, "ckpt_dir")
            if gone:
                _log.warning("%s: %s gone and written again", self.ckpt_dir, ", ".join(gone))
            return
        if engine.state.epoch == 1:  # a new run, not a resumed one
            _put_aside(folder)
        folder.joinpath(RECORD).unlink(missing_ok=True)  # the file that it speaks of is being replaced
        write_datalist(self.split, str(folder / "datalist.json"))
        write_settings(self._with_choices(folder) if engine.state.epoch > 1 else self.settings, self.ckpt_dir)
        write_resume(self.ckpt_dir)
        files = [folder / name for name in ("datalist.json", SETTINGS, RESUME)]
        self.written = {file.name: file.read_bytes() for file in files if file.is_file()}
        self.started = True
        sides = ", ".join(f"{_count(cases)} for {part}" for part, cases in self.split.items())
        _log.info("%s", sides)
        use = f"evaluate and infer with --ckpt_dir {self.ckpt_dir}"
        if self.second:
            use = f"infer with it beside the first network: --lowres {folder / 'model.pt'}"
        _log.info("model.pt (the best network) and last.pt (to resume) go to %s; %s", self.ckpt_dir, use)

    def _with_choices(self, folder: Path) -> dict[str, Any]:
        """The settings, with what was chosen with the network that a resumed run goes on with."""
        chosen = read_settings(folder / "last.pt").get(AFTER_TRAINING, {})
        own = self.settings.get(AFTER_TRAINING, {})
        added = sorted(name for name in chosen if name not in own)
        if added:
            told = "%s: %s stay as they were chosen with the network of before; choose them again with the new one"
            _log.warning(told, self.ckpt_dir, ", ".join(added))
        return {**self.settings, **({AFTER_TRAINING: {**chosen, **own}} if chosen or own else {})}


def _put_aside(folder: Path) -> None:
    """Move the weights of an earlier run, and all that is recorded of it, to a new folder in `earlier/`."""
    names = ("model.pt", "last.pt", SETTINGS, RECORD, RESUME, TRAINED_ON, "datalist.json")
    if any((folder / name).is_file() for name in names[:2]):
        try:
            kept = keep_aside(folder, names)
        except OSError as error:
            expected, fix = "to move an earlier run aside", "free some space, or give another --ckpt_dir"
            raise BundleError(Finding(str(folder), f"cannot be written to ({error})", expected, fix)) from error
        _log.info("the earlier run in %s is kept in %s", folder, kept)
        for name in names:
            (folder / name).unlink(missing_ok=True)
    (folder / TRAINED_ON).unlink(missing_ok=True)


def _count(cases: Sequence[Mapping[str, Any]]) -> str:
    patients = len({case.get("patient") for case in cases})
    return f"{len(cases)} {'case' if len(cases) == 1 else 'cases'} of {patients} patient{'s' if patients > 1 else ''}"


class RecordPretraining:
    """MONAI handler: write `trained_on.json`, the cases behind the weights that a fine-tuning begins with.

    So that their scores are known to flatter the fine-tuned network, too. Written by rank 0 alone, before the first
    epoch, and again if it is gone after one; nothing is written where nothing is recorded beside the weights. A resumed
    run keeps what its start recorded, whatever lies beside the weights now. Attach it after `RecordRun`, which removes
    the file of an earlier run.

    Args:
        pretrained: the weights.
        ckpt_dir: folder of the new run, made if missing.
    """

    def __init__(self, pretrained: str, ckpt_dir: str) -> None:
        self.cases = trained_cases(Path(pretrained).parent)
        self.ckpt_dir = ckpt_dir
        self.started = False

    def attach(self, engine: Engine) -> None:
        """Register with a trainer."""
        engine.add_event_handler(Events.EPOCH_STARTED, self)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Write the file; raises `BundleError` if that is not possible."""
        if idist.get_rank() == 0:
            path = Path(self.ckpt_dir, TRAINED_ON)
            if path.is_file() and not self.started:  # of the first start of a resumed run
                self.cases = {str(e["case"]): str(e.get("patient") or "") for e in read_record(path)["training"]}
            elif self.cases and not path.is_file():
                write_trained_cases(self.cases, self.ckpt_dir)
        self.started = True


def named_apart(also: Mapping[str, Any] | None) -> dict[str, Any]:
    """`also` as a dict; ValueError if one of its names is that of another part of the file."""
    taken = [name for name in also or {} if name in _PARTS]
    if taken:
        raise ValueError(f"also must use other names than {', '.join(_PARTS)}, got {', '.join(taken)}.")
    return dict(also or {})
