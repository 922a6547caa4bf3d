"""The network is compiled while the first case is read, and what fails then is told by the first window."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from monai.engines import SupervisedEvaluator
from torch import nn

from bundlekit import CompileAhead, ForegroundInferer
from bundlekit.errors import BundleError
from bundlekit.inference import runtimes
from bundlekit.inference.runtimes import Runtime, openvino

WINDOW = (16, 16, 16)


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Conv3d(1, 2, 3, padding=1)


def run(network: nn.Module, inferer: object, data: Iterator[dict[str, torch.Tensor]] | list) -> torch.Tensor:
    handlers = [CompileAhead(network, 1)]
    evaluator = SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=data,
        epoch_length=1,
        network=network,
        inferer=inferer,  # type: ignore[arg-type]
        val_handlers=handlers,
    )
    evaluator.run()
    return evaluator.state.output[0]["pred"]


def test_it_is_compiled_by_the_time_the_first_case_is_read(
    network: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inferer = ForegroundInferer(WINDOW, runtime="openvino", precision="f32")
    inferer.runtime = Runtime("openvino", "f32", str(tmp_path))
    image = torch.rand(1, 1, 24, 16, 16)
    Runtime("openvino", "f32", str(tmp_path)).predictor(network, image)(image)  # in an earlier run
    compiled = threading.Event()
    queues: list[int] = []
    queue = Runtime._queue

    def counted(self: Runtime, *args: object) -> object:
        made = queue(self, *args)  # type: ignore[arg-type]
        queues.append(id(made))
        compiled.set()
        return made

    monkeypatch.setattr(Runtime, "_queue", counted)

    def reading() -> Iterator[dict[str, torch.Tensor]]:
        assert compiled.wait(60)  # nothing has been handed over yet
        yield {"image": image}

    found = run(network, inferer, reading())
    assert len(queues) > 1  # the windows asked for it again,
    assert len(set(queues)) == 1  # and got the one that was made ahead
    expected = ForegroundInferer(WINDOW)(image, network)[0]
    torch.testing.assert_close(torch.as_tensor(found), expected.detach(), rtol=1e-3, atol=1e-3)


def test_the_log_is_whole_while_a_new_network_waits_for_its_conversion(
    network: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    inferer = ForegroundInferer(WINDOW, runtime="openvino", precision="f32")
    inferer.runtime = Runtime("openvino", "f32", str(tmp_path))
    converting = threading.Event()
    convert = openvino().convert_model

    def slow(*args: object, **kwargs: object) -> object:
        logging.getLogger().setLevel(logging.ERROR)  # as OpenVINO does
        converting.set()
        return convert(*args, **kwargs)

    monkeypatch.setattr(openvino(), "convert_model", slow)

    def reading() -> Iterator[dict[str, torch.Tensor]]:
        converting.wait(0.5)
        logging.getLogger("bundlekit.reading").warning("thick slices")
        yield {"image": torch.rand(1, 1, *WINDOW)}

    run(network, inferer, reading())
    assert "thick slices" in caplog.text


def test_what_cannot_be_had_is_told(network: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtimes, "computes_bfloat16", lambda: False)
    inferer = ForegroundInferer(WINDOW, runtime="auto", precision="bf16")
    with pytest.raises(BundleError, match="no instructions"):
        run(network, inferer, [{"image": torch.rand(1, 1, *WINDOW)}])


@pytest.mark.parametrize("inferer", [ForegroundInferer(WINDOW), ForegroundInferer(WINDOW, runtime="torch")])
def test_networks_of_pytorch_are_left_alone(inferer: ForegroundInferer, network: nn.Module) -> None:
    image = torch.rand(1, 1, *WINDOW)
    found = run(network, inferer, [{"image": image}])
    with torch.no_grad():
        torch.testing.assert_close(torch.as_tensor(found), network(image)[0], rtol=2e-2, atol=2e-2)
