"""A fine-tuning has to beat the weights it starts from."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from bundlekit.errors import BundleError
from bundlekit.training.beginning import RequireBetter
from bundlekit.weights.loading import read_checkpoint
from tests.bundlekit.training.conftest import Run, narrow
from tests.conftest import assert_equal


def fine_tune(tmp_path: Path, rate: float, seed: int = 0) -> tuple[Run, RequireBetter]:
    """A run of three epochs that is compared with the weights of seed 0."""
    torch.save(narrow(seed=0).state_dict(), tmp_path / "served.pt")
    run = Run(tmp_path / "new", epochs=3, seed=seed)
    run.optimizer.param_groups[0]["lr"] = run.optimizer.param_groups[0]["initial_lr"] = rate
    run.lr_scheduler.base_lrs = [rate]
    first = RequireBetter(run.validator, run.network, str(tmp_path / "served.pt"))
    first.attach(run.trainer)
    return run.run(), first


def test_a_better_network_is_saved(tmp_path: Path) -> None:
    run, first = fine_tune(tmp_path, 0.01)
    assert first.after is not None
    assert first.after < first.before, "a distance: less is better"
    assert run.validator.state.best_metric == pytest.approx(first.after)
    assert (tmp_path / "new" / "model.pt").is_file()


def test_a_worse_network_is_not(tmp_path: Path) -> None:
    run, first = fine_tune(tmp_path, 100.0)
    assert first.after is not None
    assert first.after > first.before
    assert run.validator.state.best_metric_epoch == 0
    assert run.validator.state.best_metric == first.before
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["last.pt"]


def test_training_from_the_start_is_compared_too(tmp_path: Path) -> None:
    """With weights that it does not start from; the network is its own again after that."""
    _, first = fine_tune(tmp_path, 0.0, seed=1)
    assert math.isfinite(first.before)
    assert_equal(read_checkpoint(str(tmp_path / "new" / "last.pt"))["model"], narrow(seed=1).state_dict())
    assert first.after is not None
    assert first.after != first.before
    assert (tmp_path / "new" / "model.pt").is_file() == (first.after < first.before)


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    torch.save(narrow((4, 8)).state_dict(), tmp_path / "served.pt")
    run = Run(tmp_path / "new", epochs=1)
    RequireBetter(run.validator, run.network, str(tmp_path / "served.pt")).attach(run.trainer)
    with pytest.raises(BundleError):
        run.run()
    assert not (tmp_path / "new").exists()
