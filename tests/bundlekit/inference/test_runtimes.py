"""OpenVINO computes what PyTorch computes; what is missing is said, and nothing is reported to anybody."""

from __future__ import annotations

import builtins
import logging
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from bundlekit.bfloat16 import computes_bfloat16
from bundlekit.errors import BundleError
from bundlekit.inference import runtimes
from bundlekit.inference.runtimes import Runtime, openvino
from tests.conftest import Run
from tools.bundles import names, parse

SHAPE = (32, 32, 32)
SMALL = {"channels": [4, 8, 16, 32], "init_filters": 4}


def network_of(bundle: str) -> nn.Module:
    """The network of a bundle's inference, of small widths, with weights drawn anew."""
    parser = parse(bundle, "inference.yaml")
    for name, value in SMALL.items():
        if name in parser.config:
            parser[name] = value
    torch.manual_seed(0)
    return parser.get_parsed_content("network_def").eval()


def volume(network: nn.Module, seed: int = 0, shape: tuple[int, ...] = SHAPE) -> torch.Tensor:
    first = next(parameter for parameter in network.parameters() if parameter.ndim == 5)
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(1, first.shape[1], *shape)).astype(np.float32))


@pytest.fixture
def runtime(tmp_path: Path) -> Callable[..., Runtime]:
    return lambda kind="openvino", precision="f32": Runtime(kind, precision, str(tmp_path / "converted"))


def logits(runtime: Runtime, network: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return runtime.predictor(network, inputs)(inputs)


@pytest.mark.parametrize("bundle", names())
def test_every_network_gives_the_same_logits(bundle: str, runtime: Callable[..., Runtime]) -> None:
    network = network_of(bundle)
    for shape in (SHAPE, (32, 48, 32)):  # the second: of a network that was traced with the first
        inputs = volume(network, shape=shape)
        with torch.no_grad():
            expected = network(inputs)
        found = logits(runtime(), network, inputs)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))


def test_windows_of_a_batch_are_computed_each_by_itself(runtime: Callable[..., Runtime]) -> None:
    network = network_of("brats_resunet")
    windows = torch.cat([volume(network, seed) for seed in range(3)])
    one = runtime()
    found = logits(one, network, windows)
    with torch.no_grad():
        torch.testing.assert_close(found, network(windows), rtol=1e-3, atol=1e-3)
    kept = found.clone()
    logits(one, network, windows.flip(0)).mul_(0)  # MONAI multiplies what it gets in place
    assert torch.equal(found, kept)


def test_logits_do_not_depend_on_the_windows_before(
    runtime: Callable[..., Runtime], monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        network, one = network_of("brats_unet_h5"), runtime()
        windows = torch.cat([volume(network, seed) for seed in range(2)])
        queues: list[object] = []
        queue = Runtime._queue
        monkeypatch.setattr(Runtime, "_queue", lambda *args: queues.append(queue(*args)) or queues[-1])
        alone = logits(one, network, windows[:1])
        logits(one, network, windows)
        assert torch.equal(logits(one, network, windows[:1]), alone)
        assert queues[0] is queues[2]  # and not by luck: another way of sharing the threads may round alike
        assert queues[0] is not queues[1]
    finally:
        torch.set_num_threads(threads)


def test_two_threads_get_each_its_own_windows(runtime: Callable[..., Runtime]) -> None:
    network, one = network_of("brats_unet_h5"), runtime()
    volumes = [torch.cat([volume(network, 4 * n + k, (16, 16, 16)) for k in range(4)]) for n in range(2)]
    expected = [logits(one, network, windows) for windows in volumes]
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(2) as pool:
            for number, found in pool.map(lambda n: (n, logits(one, network, volumes[n])), [0, 1] * 100):
                assert torch.equal(found, expected[number])
    finally:
        sys.setswitchinterval(before)


def test_networks_of_an_ensemble_take_turns_in_one_module(
    runtime: Callable[..., Runtime], monkeypatch: pytest.MonkeyPatch
) -> None:
    network, one = network_of("brats_unet_h5"), runtime()
    states = []
    for factor in (1.0, 0.5, -1.0):
        states.append({name: tensor * factor for name, tensor in network.state_dict().items()})
    converted = []
    convert = Runtime._convert
    monkeypatch.setattr(Runtime, "_convert", lambda self, *a: converted.append(a[1]) or convert(self, *a))
    inputs = volume(network)
    for _ in range(2):
        for state in states:
            network.load_state_dict(state)
            with torch.no_grad():
                expected = network(inputs)
            torch.testing.assert_close(logits(one, network, inputs), expected, rtol=1e-3, atol=1e-3)
    assert len(converted) == len(set(converted)) == 3


def test_a_converted_network_is_kept_and_a_damaged_one_made_again(
    runtime: Callable[..., Runtime], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = network_of("brats_unet_h5")
    inputs = volume(network)
    expected = logits(runtime(), network, inputs)
    (kept,) = (tmp_path / "converted").iterdir()
    with monkeypatch.context() as patched:
        patched.setattr(openvino(), "convert_model", None)
        assert torch.equal(logits(runtime(), network, inputs), expected)
    content = bytearray((kept / "network.bin").read_bytes())
    content[len(content) // 2] ^= 0x40
    (kept / "network.bin").write_bytes(content)
    assert torch.equal(logits(runtime(), network, inputs), expected)
    assert (kept / "network.bin").read_bytes() != bytes(content)


def _of_one_repr(factor: float, added: float, scale: float = 1.0) -> nn.Module:
    """Networks that differ in their code, in what it closes over, and in what their repr does not show."""

    def add(x: torch.Tensor) -> torch.Tensor:
        return x + added

    if factor == 1:

        class Net(nn.Conv3d):
            def forward(self, inputs: torch.Tensor) -> torch.Tensor:
                return add(super().forward(inputs)) * self.scale
    else:

        class Net(nn.Conv3d):  # type: ignore[no-redef]
            def forward(self, inputs: torch.Tensor) -> torch.Tensor:
                return add(super().forward(inputs)) * self.scale * 3

    network = Net(1, 2, 1)
    network.scale = scale
    nn.init.ones_(network.weight)
    nn.init.zeros_(network.bias)
    return network.eval()


def test_a_converted_network_is_of_one_code(runtime: Callable[..., Runtime]) -> None:
    """Another class of the same name, structure and weights is another network."""
    inputs = torch.ones(1, 1, 8, 8, 8)
    for settings, expected in (((1, 0), 1), ((3, 0), 3), ((1, 1), 2), ((1, 0, 5), 5), ((1, 0), 1)):
        network = _of_one_repr(*settings)
        assert repr(network) == repr(_of_one_repr(1, 0))
        torch.testing.assert_close(logits(runtime(), network, inputs), torch.full((1, 2, 8, 8, 8), float(expected)))


def test_the_key_is_the_same_in_every_process(runtime: Callable[..., Runtime], run: Run) -> None:
    code = (
        "from bundlekit.inference.runtimes import Runtime\n"
        "from tests.bundlekit.inference.test_runtimes import network_of\n"
        "print(Runtime()._key(network_of('brain_tissue_vnet')))"
    )
    assert run("-c", code).stdout.split()[-1] == runtime()._key(network_of("brain_tissue_vnet"))


def test_without_room_for_the_converted_network_the_work_goes_on(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    network = network_of("brats_unet_h5")
    assert logits(Runtime("openvino", "f32", str(tmp_path / "file")), network, volume(network)).isfinite().all()


def test_nothing_is_reported_to_anybody(runtime: Callable[..., Runtime]) -> None:
    network = network_of("brats_unet_h5")
    logits(runtime(), network, volume(network))
    assert "openvino_telemetry" not in sys.modules
    from openvino.tools.ovc import telemetry_utils

    assert telemetry_utils.tm.__name__ == "openvino.tools.ovc.telemetry_stub"


def test_where_openvino_is_missing(
    runtime: Callable[..., Runtime], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def missing() -> None:
        raise ImportError("No module named 'openvino'")

    monkeypatch.setattr(runtimes, "openvino", missing)
    network = network_of("brats_unet_h5")
    inputs = volume(network)
    caplog.set_level(logging.INFO)
    with torch.no_grad():
        assert torch.equal(logits(runtime("auto"), network, inputs), network(inputs))
    assert "computed by PyTorch" in caplog.text
    assert "No module named 'openvino'" in caplog.text
    with pytest.raises(BundleError, match="--runtime torch"):
        logits(runtime("openvino"), network, inputs)


def test_networks_that_take_turns_let_their_memory_go(
    runtime: Callable[..., Runtime], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, network = runtime(), network_of("brats_unet_h5")
    inputs, states = volume(network), []
    for seed in range(3):
        torch.manual_seed(seed)
        for parameter in network.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
        states.append({name: value.clone() for name, value in network.state_dict().items()})
    for state in (*states, *states):
        network.load_state_dict(state)
        with torch.no_grad():
            expected = network(inputs)
        assert torch.allclose(logits(one, network, inputs), expected, atol=1e-3)
    assert len(one._converted) == len(one._compiled) == 3
    monkeypatch.setattr(runtimes, "_KEPT", 2)
    network.load_state_dict(states[0])
    logits(one, network, inputs)
    network.load_state_dict({name: value * 1.01 for name, value in states[0].items()})
    logits(one, network, inputs)
    assert len(one._converted) == len(one._compiled) == 2


def test_bf16_is_chosen_where_it_is_native_alone(
    runtime: Callable[..., Runtime], monkeypatch: pytest.MonkeyPatch
) -> None:
    network = network_of("brats_unet_h5")
    inputs = volume(network)
    for native, expected in ((True, "bf16"), (False, "f32")):
        monkeypatch.setattr(runtimes, "computes_bfloat16", lambda native=native: native)
        for kind in ("torch", "openvino"):
            one = runtime(kind, "auto")
            one.predictor(network, inputs)
            assert f", {expected}, " in one.description
    with pytest.raises(BundleError, match="--precision auto"):
        runtime("torch", "bf16").predictor(network, inputs)


@pytest.mark.skipif(not computes_bfloat16(), reason="this processor has no bf16")
@pytest.mark.parametrize("kind", ["torch", "openvino"])
def test_bf16_names_the_same_classes(kind: str, runtime: Callable[..., Runtime]) -> None:
    network = network_of("brats_resunet")
    inputs = volume(network)
    with torch.no_grad():
        expected = network(inputs)
    found = logits(runtime(kind, "bf16"), network, inputs)
    assert found.dtype == torch.float32
    assert not torch.equal(found, expected)
    torch.testing.assert_close(found, expected, rtol=0, atol=0.05 * float(expected.abs().max()))


@pytest.mark.parametrize(("name", "value"), [("runtime", "onnx"), ("precision", "int8")])
def test_unknown_choices_are_refused(name: str, value: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be one of .*, got '{value}'"):
        Runtime(**{name: value})


@pytest.mark.parametrize("first", [(37, 41, 35), SHAPE])  # traced with it, or with one that divides
@pytest.mark.parametrize("bundle", ["brain_tissue_vnet", "abdomen_ct_vnet"])
def test_a_shape_that_the_stride_does_not_divide(
    bundle: str, first: tuple[int, ...], runtime: Callable[..., Runtime], caplog: pytest.LogCaptureFixture
) -> None:
    """The V-Nets pad it, which traced ones do not: PyTorch computes it, and the log goes on."""
    caplog.set_level(logging.INFO)
    network, one = network_of(bundle), runtime("auto")
    for shape in (first, (37, 41, 35)):
        inputs = volume(network, shape=shape)
        with torch.no_grad():
            expected = network(inputs)
        found = logits(one, network, inputs)
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))
    assert "on 37x41x35 voxels: PyTorch does" in caplog.text
    assert logging.getLogger().level == logging.INFO
    with pytest.raises(BundleError, match="give --runtime torch"):
        logits(runtime("openvino"), network, inputs)


def test_what_cannot_be_converted_stays_with_pytorch(
    runtime: Callable[..., Runtime], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("cannot be traced\nfor many reasons")

    tried = []
    monkeypatch.setattr(Runtime, "_queue", lambda *_: tried.append(1) or fail())
    caplog.set_level(logging.INFO)
    network = network_of("brats_unet_h5")
    inputs = volume(network)
    one = runtime("auto")
    with torch.no_grad():
        for _ in range(2):
            assert torch.equal(logits(one, network, inputs), network(inputs))
    assert len(tried) == 1, "not for every window"
    assert "cannot compute this network on 32x32x32 voxels: PyTorch does" in caplog.text
    with pytest.raises(BundleError, match=r"cannot be traced\): give --runtime torch"):
        logits(runtime("openvino"), network, inputs)


def test_two_threads_may_import_openvino_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    imports = builtins.__import__

    def slow(name: str, *args: object, **kwargs: object) -> object:
        if name == "openvino":
            time.sleep(0.05)
        return imports(name, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(builtins, "__import__", slow)
    with ThreadPoolExecutor(2) as pool:
        assert len({id(module) for module in pool.map(lambda _: openvino.__wrapped__(), range(4))}) == 1
