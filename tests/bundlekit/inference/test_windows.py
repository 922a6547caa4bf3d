"""Tests of inference: windows, air, flips, one pass, and the labels at the end."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from monai.data import MetaTensor, decollate_batch, list_data_collate
from monai.inferers import SlidingWindowInferer
from torch import nn

import bundlekit.inference.windows as inferer_module
from brats_resunet import ResUNet
from bundlekit.errors import BundleError
from bundlekit.inference.windows import ForegroundInferer, _without_air, argmax_labels

torch.set_num_threads(1)

CLASSES = 3
BACKGROUND = torch.tensor([10.0, -10.0, -10.0])[:, None, None, None]


class Network(nn.Module):
    """A convolution that knows left from right, and counts what it sees."""

    def __init__(self, bytes_per_voxel: float = 0) -> None:
        super().__init__()
        self.conv = nn.Conv3d(2, CLASSES, 3, padding=1)
        generator = torch.Generator().manual_seed(0)
        for parameter in self.parameters():
            nn.init.normal_(parameter, generator=generator)
        self.requires_grad_(False)
        self.bytes_per_voxel = bytes_per_voxel
        self.calls: list[torch.Tensor] = []

    @property
    def windows(self) -> int:
        return sum(len(call) for call in self.calls)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls.append(x.clone())
        return self.conv(x)

    def inference_bytes(self, shape: Sequence[int]) -> int:
        return int(self.bytes_per_voxel * np.prod(shape))


def brain(*shape: int, seed: int = 0) -> torch.Tensor:
    """BCHWD without a voxel of air."""
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) + 0.5


# --- windows ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 2, 16, 16, 16), (1, 2, 13, 9, 17), (2, 2, 9, 8, 12)])
@pytest.mark.parametrize("mode", ["gaussian", "constant"])
@pytest.mark.parametrize(("overlap", "batch"), [(0, 1), (0.5, 1), (0.25, 4)])
def test_without_air_as_monai(shape: tuple[int, ...], mode: str, overlap: float, batch: int) -> None:
    x, network = brain(*shape), Network()
    expected = SlidingWindowInferer((8, 8, 8), batch, overlap, mode=mode)(x, network)
    calls = len(network.calls)
    got = ForegroundInferer((8, 8, 8), overlap, batch, mode=mode)(x, network)
    assert torch.equal(got, expected)
    assert len(network.calls) == 2 * calls


def test_volume_smaller_than_the_window_as_monai() -> None:
    x = brain(1, 2, 5, 12, 6)
    expected = SlidingWindowInferer((8, 8, 8), 1, 0.5, mode="gaussian")(x, Network())
    got = ForegroundInferer((8, 8, 8))(x, Network())
    assert got.shape == (1, CLASSES, 5, 12, 6)
    assert torch.equal(got, expected)


def test_windows_overlap_by_half_by_default() -> None:
    network = Network()
    ForegroundInferer((8, 8, 8))(brain(1, 2, 8, 8, 24), network)
    assert len(network.calls) == 5


def test_blending_is_gaussian_by_default() -> None:
    x = brain(1, 2, 8, 8, 12)
    gaussian, constant = (ForegroundInferer((8, 8, 8), mode=mode)(x, Network()) for mode in ("gaussian", "constant"))
    default = ForegroundInferer((8, 8, 8))(x, Network())
    assert torch.equal(default, gaussian)
    assert not torch.equal(default, constant)


def test_further_arguments_reach_the_network() -> None:
    def network(x: torch.Tensor, factor: float, shift: float = 0) -> torch.Tensor:
        return x * factor + shift

    x = brain(1, 2, 8, 8, 8)
    x[:, :, :4] = 0
    for whole_brain in (False, True):
        module = Network()
        module.forward = network  # type: ignore[method-assign, assignment]
        got = ForegroundInferer((4, 8, 8), overlap=0, mode="constant", whole_brain=whole_brain)(
            x, module, 2.0, shift=1.0
        )
        torch.testing.assert_close(got[:, :, 4:], x[:, :, 4:] * 2 + 1)


# --- air ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [1, 2, 3, 4, 7])
@pytest.mark.parametrize(
    "tissue",
    [(True, False, False, True), (False, True, False, True), (False, False, False, True), (True, True, True, False)],
)
def test_windows_of_air_are_background(tissue: tuple[bool, ...], batch: int) -> None:
    x = brain(1, 2, 4, 4, 16)
    for n, present in enumerate(tissue):
        x[..., 4 * n : 4 * n + 4] *= present
    network = Network()
    got = ForegroundInferer((4, 4, 4), overlap=0, sw_batch_size=batch, mode="constant")(x, network)
    plain = Network()
    for n, present in enumerate(tissue):
        window = slice(4 * n, 4 * n + 4)
        expected = plain(x[..., window]) if present else BACKGROUND.expand(1, CLASSES, 4, 4, 4)
        torch.testing.assert_close(got[..., window], expected)
    seen = [bool(window.any()) for call in network.calls for window in call]
    assert seen.count(True) == sum(tissue)
    # where the first pass is all air, one window of it tells how many classes there are
    assert seen.count(False) == (not any(tissue[:batch]))


def test_a_gpu_is_waited_for_once_a_batch(waits: type[Any]) -> None:
    """By `tolist`, which is not counted."""
    windows = brain(3, 2, 4, 4, 4)
    windows[1] = 0
    for batch in (windows, windows[:1], windows[1:2]):
        with waits() as counted:
            _without_air(Network())(batch)
        assert not counted.numbers + counted.places


@pytest.mark.parametrize("flips", [False, True])
@pytest.mark.parametrize("batch", [1, 3, 8])
def test_volume_of_air_is_background_after_one_window(flips: bool, batch: int) -> None:
    network = Network()
    inferer = ForegroundInferer((4, 4, 4), overlap=0.5, sw_batch_size=batch, flips=flips)
    got = inferer(torch.zeros(1, 2, 9, 8, 7), network)
    torch.testing.assert_close(got, BACKGROUND.expand(1, CLASSES, 9, 8, 7))
    assert network.windows == 1
    assert not argmax_labels(got[0]).any()


@pytest.mark.parametrize("channel", [0, 1])
@pytest.mark.parametrize("value", [1e-6, -1.0])
def test_one_voxel_of_one_channel_is_tissue(channel: int, value: float) -> None:
    x = torch.zeros(1, 2, 4, 4, 8)
    x[0, channel, 3, 3, 7] = value
    network = Network()
    got = ForegroundInferer((4, 4, 4), overlap=0, sw_batch_size=2)(x, network)
    assert [call.any().item() for call in network.calls] == [True]
    torch.testing.assert_close(got[..., 4:], Network()(x[..., 4:]))


def test_each_volume_of_a_batch_has_its_own_air() -> None:
    x = brain(2, 2, 4, 4, 8)
    x[0, ..., :4] = 0
    x[1, ..., 4:] = 0
    got = ForegroundInferer((4, 4, 4), overlap=0, sw_batch_size=4, mode="constant")(x, Network())
    background = BACKGROUND.expand(CLASSES, 4, 4, 4)
    torch.testing.assert_close(got[0, ..., :4], background)
    torch.testing.assert_close(got[1, ..., 4:], background)
    torch.testing.assert_close(got[:1, ..., 4:], Network()(x[:1, ..., 4:]))


def test_background_of_air_holds_in_half_precision_networks() -> None:
    class Half(Network):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x).bfloat16()

    x = brain(1, 2, 4, 4, 8)
    x[..., 4:] = 0
    got = ForegroundInferer((4, 4, 4), overlap=0, sw_batch_size=2, mode="constant")(x, Half())
    assert got.dtype == torch.float32
    torch.testing.assert_close(got[..., 4:], BACKGROUND.expand(1, CLASSES, 4, 4, 4))


# --- flips --------------------------------------------------------------------------------------------------------


def average_by_hand(x: torch.Tensor, predict: Any) -> torch.Tensor:
    outs = []
    for mirrored in itertools.product((False, True), repeat=3):
        axes = [axis for axis, flip in zip((2, 3, 4), mirrored, strict=True) if flip]
        outs.append(torch.flip(predict(torch.flip(x, axes)), axes))
    assert len(outs) == 8
    return torch.stack(outs).mean(dim=0)


@pytest.mark.parametrize("whole_brain", [False, True])
def test_flips_are_the_average_of_eight(whole_brain: bool) -> None:
    x = brain(1, 2, 9, 8, 11)
    alone = ForegroundInferer((8, 8, 8), whole_brain=whole_brain)
    got = ForegroundInferer((8, 8, 8), whole_brain=whole_brain, flips=True)(x, Network())
    torch.testing.assert_close(got, average_by_hand(x, lambda v: alone(v, Network())), rtol=1e-5, atol=1e-5)
    assert (got - alone(x, Network())).abs().max() > 0.01


def test_flips_see_each_orientation_once() -> None:
    network = Network()
    ForegroundInferer((8, 8, 8), whole_brain=True, flips=True)(brain(1, 2, 8, 8, 8), network)
    assert len({call.numpy().tobytes() for call in network.calls}) == len(network.calls) == 8


@pytest.mark.parametrize(("flips", "whole_brain"), [(True, False), (False, True), (True, True)])
def test_a_network_that_returns_its_input_does_not_spoil_it(flips: bool, whole_brain: bool) -> None:
    # windows without flips are MONAI's: it weights the network's output in place
    network = Network()
    network.forward = lambda x: x  # type: ignore[method-assign, assignment]
    x = brain(1, 2, 8, 8, 8)
    before = x.clone()
    got = ForegroundInferer((8, 8, 8), flips=flips, whole_brain=whole_brain)(x, network)
    assert torch.equal(x, before)
    torch.testing.assert_close(got, before)


@pytest.mark.parametrize("whole_brain", [False, True])
def test_a_network_that_reuses_its_output_does_not_spoil_the_average(whole_brain: bool) -> None:
    class Reusing(Network):
        buffer = torch.zeros(1, CLASSES, 8, 8, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.buffer.copy_(super().forward(x))

    x = brain(1, 2, 8, 8, 8)
    got = ForegroundInferer((8, 8, 8), whole_brain=whole_brain, flips=True)(x, Reusing())
    torch.testing.assert_close(got, average_by_hand(x, Network()), rtol=1e-5, atol=1e-5)


# --- one pass -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrapped", [False, True])
def test_whole_brain_is_the_network_on_the_volume(wrapped: bool, caplog: pytest.LogCaptureFixture) -> None:
    network = Network(bytes_per_voxel=1)
    x = brain(1, 2, 13, 9, 17)
    x[..., :8] = 0  # no window, so no window of air
    with caplog.at_level(logging.INFO, logger="bundlekit"):
        # distributed wrappers keep the network in `module`
        module = nn.Sequential() if wrapped else network
        if wrapped:
            module.module = network
            module.forward = network.forward
        got = ForegroundInferer((8, 8, 8), whole_brain=True)(x, module)
    assert torch.equal(got, Network()(x))
    assert [tuple(call.shape) for call in network.calls] == [(1, 2, 13, 9, 17)]
    assert [(r.levelname, "13x9x17" in r.getMessage()) for r in caplog.records] == [("INFO", True)]


def test_whole_brain_falls_back_to_windows_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    x, network = brain(1, 2, 13, 9, 17), Network(bytes_per_voxel=2**50)
    with caplog.at_level(logging.INFO, logger="bundlekit"):
        got = ForegroundInferer((8, 8, 8), whole_brain=True)(x, network)
    assert torch.equal(got, ForegroundInferer((8, 8, 8))(x, Network()))
    assert {tuple(call.shape) for call in network.calls} == {(1, 2, 8, 8, 8)}
    assert [(r.levelname, "falling back to windows" in r.getMessage()) for r in caplog.records] == [("WARNING", True)]


@pytest.mark.parametrize(
    ("batch", "needed", "one_pass"),  # 1000 bytes are free, of which 800 may be taken
    [(1, 799, True), (1, 801, False), (2, 399, True), (2, 401, False)],
)
def test_whole_brain_takes_up_to_four_fifths_of_the_free_memory(
    batch: int, needed: int, one_pass: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Memory:
        available = 1000

    monkeypatch.setattr(inferer_module.psutil, "virtual_memory", Memory)
    network = Network(bytes_per_voxel=needed / 10**3)
    ForegroundInferer((8, 8, 8), whole_brain=True)(brain(batch, 2, 10, 10, 10), network)
    assert (len(network.calls) == 1) == one_pass


def test_free_memory_of_a_gpu_counts_what_pytorch_keeps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a card of 8 GiB, the case before has left 5 GiB with the allocator, of which 1 GiB is in use."""
    gib = 2**30
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (2 * gib, 8 * gib))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 5 * gib)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 1 * gib)
    assert inferer_module._free_bytes(torch.device("cuda", 0)) == 6 * gib


@pytest.mark.parametrize("flips", [False, True])
def test_a_pass_that_runs_out_of_memory_is_done_in_windows(flips: bool, caplog: pytest.LogCaptureFixture) -> None:
    class Small(Network):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if x[0, 0].numel() > 512 and len(self.calls) >= int(flips):  # the second of the flips
                raise torch.OutOfMemoryError("CUDA out of memory")
            return super().forward(x)

    x, network = brain(1, 2, 13, 9, 17), Small()
    with caplog.at_level(logging.WARNING, logger="bundlekit"):
        got = ForegroundInferer((8, 8, 8), whole_brain=True, flips=flips)(x, network)
    assert torch.equal(got, ForegroundInferer((8, 8, 8), flips=flips)(x, Network()))
    assert ["ran out of memory" in r.getMessage() for r in caplog.records] == [True]


def test_whole_brain_of_a_network_without_an_estimate_uses_windows(caplog: pytest.LogCaptureFixture) -> None:
    x, conv = brain(1, 2, 9, 9, 9), Network().conv
    got = ForegroundInferer((8, 8, 8), whole_brain=True)(x, conv)
    assert torch.equal(got, ForegroundInferer((8, 8, 8))(x, conv))
    assert ["Conv3d gives no memory estimate" in r.getMessage() for r in caplog.records] == [True]


def test_whole_brain_of_the_bundles_network() -> None:
    network = ResUNet(2, CLASSES, (2, 3, 4), 1).eval()
    x = brain(1, 2, 9, 10, 11)
    with torch.no_grad():
        assert torch.equal(ForegroundInferer((8, 8, 8), whole_brain=True)(x, network), network(x))


# --- geometry -----------------------------------------------------------------------------------------------------

AFFINE = torch.diag(torch.tensor([2.0, 3.0, 4.0, 1.0], dtype=torch.float64))


@pytest.mark.parametrize("flips", [False, True])
@pytest.mark.parametrize("whole_brain", [False, True])
def test_geometry_is_kept_and_the_values_are_those_of_a_plain_tensor(flips: bool, whole_brain: bool) -> None:
    x = brain(1, 2, 9, 8, 8)
    inferer = ForegroundInferer((8, 8, 8), flips=flips, whole_brain=whole_brain)
    got = inferer(MetaTensor(x.clone(), affine=AFFINE, meta={"note": "kept"}), Network())
    assert isinstance(got, MetaTensor)
    assert torch.equal(got.affine, AFFINE)
    assert got.meta["note"] == "kept"
    plain = inferer(x, Network())
    assert not isinstance(plain, MetaTensor)
    assert torch.equal(got.as_tensor(), plain)


def test_logits_moved_to_another_grid_leave_the_image_on_its_own() -> None:
    x = MetaTensor(brain(1, 2, 8, 8, 8), affine=AFFINE)
    got = ForegroundInferer((8, 8, 8))(x, Network())
    got.affine = 5 * torch.eye(4)
    assert torch.equal(x.affine, AFFINE)


def test_geometry_of_each_case_of_a_batch() -> None:
    affines = [AFFINE, 2 * AFFINE]
    items = [MetaTensor(brain(2, 8, 8, 8), affine=affine) for affine in affines]
    batch = list_data_collate([{"image": item} for item in items])["image"]
    got = decollate_batch(ForegroundInferer((8, 8, 8))(batch, Network()))
    assert [torch.equal(item.affine, affine) for item, affine in zip(got, affines, strict=True)] == [True, True]


def test_network_gets_a_plain_tensor() -> None:
    kinds = []

    def network(x: torch.Tensor) -> torch.Tensor:
        kinds.append(type(x))
        return x

    ForegroundInferer((8, 8, 8))(MetaTensor(brain(1, 2, 8, 8, 8)), network)
    assert kinds == [torch.Tensor]


# --- labels -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("logits", "expected"),
    [
        ((1, 0, 0, 0), 0),
        ((0, 1, 0, 0), 1),
        ((0, 0, 0, 1), 3),
        ((-4, -3, -2, -5), 2),
        ((0, 0, 0, 0), 0),  # ties go to the lower class
        ((0, 2, 1, 2), 1),
        ((1, 2, 3, 3), 2),
        ((float("-inf"), float("-inf"), 0, float("-inf")), 2),
        ((0, float("inf"), 0, float("inf")), 1),
        ((5,), 0),
    ],
)
def test_label_of_one_voxel(logits: tuple[float, ...], expected: int) -> None:
    x = torch.tensor(logits).float().reshape(-1, 1, 1, 1)
    label = argmax_labels(x)
    assert label.shape == (1, 1, 1, 1)
    assert label.dtype == torch.uint8
    assert label.item() == expected == torch.argmax(x, dim=0).item()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("classes", [1, 2, 4, 256])
def test_labels_as_argmax(classes: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(classes)
    ties = torch.randint(-2, 3, (classes, 7, 6, 5), generator=generator)
    for logits in (torch.randn(classes, 7, 6, 5, generator=generator).to(dtype), ties.to(dtype)):
        before = logits.clone()
        assert torch.equal(argmax_labels(logits), torch.argmax(logits, dim=0, keepdim=True).to(torch.uint8))
        assert torch.equal(logits, before)


def test_labels_keep_the_geometry() -> None:
    logits = MetaTensor(torch.randn(4, 3, 3, 3, generator=torch.Generator().manual_seed(0)), affine=AFFINE)
    label = argmax_labels(logits)
    assert isinstance(label, MetaTensor)
    assert torch.equal(label.affine, AFFINE)
    assert torch.equal(label.as_tensor(), argmax_labels(logits.as_tensor()))


@pytest.mark.parametrize("whole_brain", [True, False])
def test_a_mask_of_nan_is_refused_at_inference_alone(whole_brain: bool) -> None:
    class Broken(torch.nn.Conv3d):
        def inference_bytes(self, shape: object) -> int:
            return 0

    network, volume = Broken(1, 2, 1), torch.ones(1, 1, 8, 8, 8)
    network.bias.data[1] = float("nan")
    arguments = {"roi_size": [4, 4, 4], "whole_brain": whole_brain}
    with torch.no_grad():
        assert ForegroundInferer(**arguments)(volume, network).isnan().any(), "a training may come out of it"
        with pytest.raises(BundleError, match="the network gives NaN for this scan"):
            ForegroundInferer(**arguments, runtime="torch", precision="f32")(volume, network)
