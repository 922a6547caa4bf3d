"""A small training with checkpoints, as `configs/train.yaml` builds one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from ignite.engine import Events
from ignite.metrics import Average
from monai.data import DataLoader, Dataset, DistributedSampler
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.handlers import LrScheduleHandler, ValidationHandler
from monai.inferers import SimpleInferer
from torch import nn

from brats_resunet.network import ResUNet
from bundlekit.errors import BundleError
from bundlekit.training.resuming import ResumeRun
from bundlekit.training.saving import SaveCheckpoints
from tests.conftest import assert_equal

CHANNELS = (2, 4)


def narrow(channels: Sequence[int] = CHANNELS, seed: int = 0, heads: int = 0) -> ResUNet:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return ResUNet(channels=channels, supervised_levels=heads)


def batches(cases: int = 4) -> DataLoader:
    """One patch of 4 channels and 4x4x4 voxels a batch, in another order each epoch."""
    noise = torch.Generator().manual_seed(7)
    data = Dataset(
        [
            {"image": torch.randn(4, 4, 4, 4, generator=noise), "label": torch.randn(4, 4, 4, 4, generator=noise)}
            for _ in range(cases)
        ]
    )
    return DataLoader(data, sampler=DistributedSampler(data, num_replicas=1, rank=0, shuffle=True, seed=1))


class Run:
    """A trainer as `configs/train.yaml` builds it: schedule, validation, checkpoints, in this order."""

    def __init__(
        self,
        folder: Path,
        epochs: int = 4,
        cases: int = 4,
        seed: int = 0,
        resume: Path | None = None,
        score: Callable = lambda output: (output[0]["pred"] - output[0]["label"]).square().mean(),
    ) -> None:
        self.network = narrow(seed=seed)
        self.optimizer = torch.optim.AdamW(self.network.parameters(), lr=0.01)
        self.lr_scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, T_max=epochs)
        self.rates: list[float] = []
        self.validator = SupervisedEvaluator(
            device=torch.device("cpu"),
            val_data_loader=batches(1),
            network=self.network,
            inferer=SimpleInferer(),
            key_val_metric={"score": Average(score)},
            metric_cmp_fn=lambda current, best: current < best,
        )
        state = (self.network, self.optimizer, self.lr_scheduler, self.validator)
        handlers: list[Any] = [
            LrScheduleHandler(self.lr_scheduler, print_lr=False),
            ValidationHandler(1, self.validator),
            SaveCheckpoints(str(folder), *state),
        ]
        if resume is not None:
            handlers.append(ResumeRun(str(resume), *state, ckpt_dir=str(folder)))
        self.trainer = SupervisedTrainer(
            device=torch.device("cpu"),
            max_epochs=epochs,
            train_data_loader=batches(cases),
            network=self.network,
            optimizer=self.optimizer,
            loss_function=nn.MSELoss(),
            inferer=SimpleInferer(),
            train_handlers=handlers,
        )
        self.trainer.add_event_handler(
            Events.EPOCH_STARTED, lambda: self.rates.append(self.optimizer.param_groups[0]["lr"])
        )

    def run(self, stop_after: int | None = None) -> Run:
        if stop_after is not None:
            # as when it is killed: after the files are written, before anything else
            self.trainer.add_event_handler(Events.EPOCH_COMPLETED(once=stop_after), lambda engine: engine.terminate())
        self.trainer.run()
        return self


def save(folder: Path, network: nn.Module, epoch: int = 1, validator: Any = None) -> None:
    """What `SaveCheckpoints` does after an epoch."""
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=4)
    state = SimpleNamespace(epoch=epoch, iteration=4 * epoch, epoch_length=4, max_epochs=4)
    SaveCheckpoints(str(folder), network, optimizer, schedule, validator)(SimpleNamespace(state=state))  # type: ignore[arg-type]


def resume_error(tmp_path: Path, path: Path, **run: Any) -> str:
    """Message of the refusal; the network is as it was and the checkpoint too."""
    before = path.read_bytes() if path.is_file() else None
    resumed = Run(tmp_path / "new", resume=path, **run)
    weights = deepcopy(resumed.network.state_dict())
    with pytest.raises(BundleError) as caught:
        resumed.run()
    (finding,) = caught.value.findings
    assert finding.file == str(path)
    assert finding.found
    assert finding.expected
    assert finding.fix
    assert_equal(resumed.network.state_dict(), weights)
    assert not (tmp_path / "new").exists()
    assert before == (path.read_bytes() if path.is_file() else None)
    return str(caught.value)
