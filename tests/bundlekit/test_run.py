"""What every run begins with."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.engines import SupervisedEvaluator

from bundlekit import errors, memory, run
from bundlekit.errors import BundleError
from bundlekit.version import __version__


@pytest.fixture(autouse=True)
def process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the process as it was."""
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setattr(errors.logging, "setLogRecordFactory", lambda factory: None)
    monkeypatch.setattr(memory, "_set", lambda library, options: False)


def test_every_generator_starts_from_the_seed() -> None:
    drawn = []
    for _ in range(2):
        run.prepare_run("cpu", 7)
        drawn.append((float(np.random.rand()), float(torch.rand(1))))
    assert drawn[0] == drawn[1]


@pytest.mark.parametrize("seed", [None, 0])
@pytest.mark.parametrize("deterministic", [False, True])
def test_cudnn_is_deterministic_or_fast(deterministic: bool, seed: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", not deterministic)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", deterministic)
    run.prepare_run("cpu", seed, deterministic)
    assert torch.backends.cudnn.deterministic == deterministic
    assert torch.backends.cudnn.benchmark == (not deterministic)


def test_errors_are_shown_clearly_from_here_on() -> None:
    before = sys.excepthook
    run.prepare_run("cpu", None)
    assert sys.excepthook is not before


def test_nothing_is_said_to_be_resumed_that_is_not(caplog: pytest.LogCaptureFixture) -> None:
    run.prepare_run("cpu", None)
    network = torch.nn.Conv3d(1, 1, 1)
    evaluator = SupervisedEvaluator(torch.device("cpu"), [{"image": torch.ones(1, 1, 2, 2, 2)}], network)
    with caplog.at_level(logging.INFO):
        evaluator.run()
    assert "Engine run finished" in caplog.text
    assert "resuming" not in caplog.text


def test_unknown_settings_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    (tmp_path / "train.yaml").write_text("epochs: 1\n")
    arguments = ["run", "training", "--config_file", str(tmp_path / "train.yaml"), "--epoch", "3"]
    monkeypatch.setattr(sys, "argv", ["/site-packages/monai/bundle/__main__.py", *arguments])
    with pytest.raises(BundleError, match="did you mean --epochs"):
        run.prepare_run("cpu", 0)


@pytest.mark.parametrize("device", ["toaster", "cuda:99", 3.5, 0])
def test_a_device_that_is_not_there_is_named(device: str) -> None:
    with pytest.raises(BundleError, match=rf"--device is '{device}'; expected one of cpu"):
        run.prepare_run(device, 0)


@pytest.mark.parametrize(
    ("device", "threads", "workers"), [("cpu", 2, 0), ("cpu", 7, 0), ("cpu", 8, 4), ("cuda:1", 1, 4)]
)
def test_a_small_cpu_does_not_load_beside_its_network(
    device: str, threads: int, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    assert run.loader_workers(device) == workers
    assert run.loader_workers(torch.device(device)) == workers


@pytest.fixture
def unpacked(tmp_path: Path) -> Path:
    """Folder of a bundle whose package pip has installed elsewhere."""
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "metadata.json").write_text('{"version": "9.8.7"}')
    (tmp_path / "bundlekit").mkdir()
    (tmp_path / "bundlekit" / "version.py").write_text(f'__version__ = "{__version__}"\n')
    return tmp_path


def test_the_version_is_that_of_the_folder_that_is_named(unpacked: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    run.prepare_run("cpu", None, bundle_root=unpacked)
    assert f"{unpacked.name} 9.8.7 with bundlekit {__version__}, in {unpacked}" in caplog.text


def test_a_folder_of_another_release_is_refused(unpacked: Path) -> None:
    (unpacked / "bundlekit" / "version.py").write_text('__version__ = "99.1.0"\n')
    with pytest.raises(BundleError, match=f"{unpacked.name} .*came with bundlekit 99.1.0, but this process .*"):
        run.prepare_run("cpu", None, bundle_root=unpacked)
