"""Weights are loaded strictly, and no bad file does harm."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from ignite.engine import Engine
from torch import nn

from brats_resunet.network import ResUNet
from bundlekit.errors import BundleError
from bundlekit.weights.loading import LoadWeights, load_matching, load_network
from tests.bundlekit.training.conftest import CHANNELS, narrow, resume_error, save
from tests.conftest import assert_equal


class Exploit:
    """Runs a command when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple:
        return os.system, (f"touch {self.marker}",)


def write_bad(path: Path, kind: str) -> None:
    save(path.parent, narrow())
    whole = (path.parent / "last.pt").read_bytes()
    marker = path.parent / "executed"
    if kind == "random":
        path.write_bytes(os.urandom(4096))
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "text":
        path.write_text("404: not found")
    elif kind == "half":
        path.write_bytes(whole[: len(whole) // 2])
    elif kind == "exploit":
        torch.save({"model": Exploit(marker), "optimizer": {}, "lr_scheduler": {}, "trainer": {}}, path)
    elif kind == "pickled exploit":
        path.write_bytes(pickle.dumps(Exploit(marker)))
    elif kind == "whole network":
        torch.save(narrow(), path)
    elif kind == "list":
        torch.save([torch.zeros(3)], path)
    elif kind == "tensor":
        torch.save(torch.zeros(3), path)
    elif kind == "folder":
        path.mkdir()
    else:
        assert kind == "missing"


BAD = ["random", "empty", "text", "half", "exploit", "pickled exploit", "whole network", "list", "tensor", "folder"]


@pytest.mark.parametrize("kind", [*BAD, "missing"])
@pytest.mark.parametrize("handler", ["resume", "load"])
def test_file_that_is_no_checkpoint(tmp_path: Path, kind: str, handler: str) -> None:
    path = tmp_path / "bad.pt"
    write_bad(path, kind)
    if handler == "resume":
        message = resume_error(tmp_path, path)
    else:
        network = narrow()
        with pytest.raises(BundleError) as caught:
            LoadWeights(str(path), network)(Engine(lambda *_: None))
        assert_equal(network.state_dict(), narrow().state_dict())
        message = str(caught.value)
        assert caught.value.findings[0].file == str(path)
    assert not (tmp_path / "executed").exists()
    if kind in ("missing", "folder"):
        assert "no such file" in message
        assert "--checkpoint" in message
        assert "--resume_from" in message


def test_exploit_would_work_without_protection(tmp_path: Path) -> None:
    write_bad(tmp_path / "bad.pt", "exploit")
    torch.load(tmp_path / "bad.pt", weights_only=False)
    assert (tmp_path / "executed").exists()


@pytest.mark.parametrize("name", ["model.pt", "last.pt"])
def test_weights_are_loaded_when_an_engine_starts(tmp_path: Path, name: str) -> None:
    save(tmp_path, narrow(seed=3))
    network = narrow(seed=4)
    seen: list[bool] = []
    engine = Engine(lambda *_: seen.append(torch.equal(network.heads[0].weight, narrow(seed=3).heads[0].weight)))
    LoadWeights(str(tmp_path / name), network).attach(engine)
    engine.run([0])
    assert seen == [True]
    assert_equal(network.state_dict(), narrow(seed=3).state_dict())


@pytest.mark.parametrize(
    ("state", "found", "fix"),
    [
        (narrow((4, 8, 16)).state_dict(), "a Res-UNet of channels [4, 8, 16]", '--channels "[4,8,16]"'),
        (narrow((2, 4, 8)).state_dict(), "a Res-UNet of channels [2, 4, 8]", '--channels "[2,4,8]"'),
        (narrow((2, 4, 8), heads=1).state_dict(), "a Res-UNet of channels [2, 4, 8]", '--channels "[2,4,8]"'),
        (ResUNet(in_channels=3, channels=CHANNELS, supervised_levels=0).state_dict(), "differs in encoder.0", "bundle"),
        (ResUNet(out_channels=5, channels=CHANNELS, supervised_levels=0).state_dict(), "differs in heads.0", "bundle"),
        (nn.Conv3d(4, 4, 3).state_dict(), "another network (weight, bias", "bundle"),
        ({f"module.{k}": v for k, v in narrow().state_dict().items()}, "another network (module.encoder", "bundle"),
        ({}, "another network", "bundle"),
    ],
)
def test_weights_of_another_network(state: dict[str, torch.Tensor], found: str, fix: str) -> None:
    network = narrow()
    with pytest.raises(BundleError) as caught:
        load_network(network, state, "x.pt")
    (finding,) = caught.value.findings
    assert finding.file == "x.pt"
    assert found in finding.found
    assert finding.expected == "a Res-UNet of channels [2, 4]"
    assert fix in finding.fix
    assert_equal(network.state_dict(), narrow().state_dict())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(value: float) -> None:
    network, state = narrow(), narrow(seed=3).state_dict()
    state["heads.0.bias"][1] = value
    with pytest.raises(BundleError, match=r"NaN or infinite values in 1 of \d+ tensors, heads.0.bias the first"):
        load_network(network, state, "x.pt")
    assert_equal(network.state_dict(), narrow().state_dict())


@pytest.mark.parametrize("state", [{"a": "text"}, "text", [1, 2], {"heads.0.bias": 3}])
def test_what_is_no_weights_is_refused(state: Any, tmp_path: Path) -> None:
    torch.save({"model": state}, tmp_path / "last.pt")
    with pytest.raises(BundleError, match="values that are no tensors"):
        LoadWeights(str(tmp_path / "last.pt"), narrow())(Engine(lambda *_: None))


def test_weights_to_start_from_do_not_replace_those_of_a_resumed_run(tmp_path: Path) -> None:
    save(tmp_path, narrow(seed=3))
    network, trainer = narrow(), Engine(lambda *_: None)
    trainer.state.iteration = 4
    with pytest.raises(BundleError, match=r"Put resume.yaml last"):
        LoadWeights(str(tmp_path / "model.pt"), network)(trainer)
    assert_equal(network.state_dict(), narrow().state_dict())


def test_missing_and_additional_weights_are_refused() -> None:
    network, whole = narrow((2, 4, 8), heads=1), narrow((2, 4, 8), heads=1).state_dict()
    for state, key in [
        ({k: v for k, v in whole.items() if k != "heads.1.bias"}, "heads.1.bias"),
        ({**whole, "heads.2.weight": torch.zeros(1)}, "heads.2.weight"),
    ]:
        with pytest.raises(BundleError, match=f"differs in {key}"):
            load_network(network, state, "x.pt")


def test_layers_of_another_network_that_fit_are_taken_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    other, network = (torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, n)) for n in (2, 5))
    last = network[1].weight.clone()
    torch.save(other.state_dict(), tmp_path / "model.pt")
    load_matching(network, str(tmp_path / "model.pt"))
    torch.testing.assert_close(network[0].weight, other[0].weight)
    assert torch.equal(network[1].weight, last)
    assert "2 tensors are taken over, 2 begin anew" in caplog.text


@pytest.mark.parametrize(
    ("state", "found"),
    [({"x": torch.ones(3)}, r"another network \(x, ...\)"), ({"0.weight": torch.full((3, 2), torch.nan)}, "NaN")],
)
def test_what_begins_nothing_is_refused(state: dict[str, torch.Tensor], found: str, tmp_path: Path) -> None:
    torch.save(state, tmp_path / "model.pt")
    with pytest.raises(BundleError, match=found):
        load_matching(torch.nn.Sequential(torch.nn.Linear(2, 3)), str(tmp_path / "model.pt"))
    with pytest.raises(BundleError, match="no such file"):
        load_matching(torch.nn.Linear(2, 3), str(tmp_path / "none.pt"))
