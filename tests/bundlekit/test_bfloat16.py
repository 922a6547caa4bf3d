"""Tests of bfloat16 on a CPU: where it is used, what is computed in it, and what stays in single precision."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from monai.losses import DeepSupervisionLoss
from monai.networks.nets import UNet
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from brats_resunet import RegionDiceLoss, ResUNet
from bundlekit import bfloat16
from bundlekit.bfloat16 import (
    BFloat16Inferer,
    ChannelsLastInstanceNorm3d,
    channels_last_norms,
    computes_bfloat16,
)

torch.set_num_threads(1)


def small(training: bool = True) -> ResUNet:
    torch.manual_seed(0)
    return ResUNet(4, 4, (4, 6, 8), 1).train(training)


def volume(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def last(x: torch.Tensor) -> torch.Tensor:
    return x.contiguous(memory_format=torch.channels_last_3d)


# --- where ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("fpu avx2 avx512f avx512_bf16 amx_bf16", True),
        ("fpu avx2 avx512f avx512_bf16", True),
        ("fpu avx2 avx512f avx512_fp16 amx_int8", False),
        ("", False),
    ],
)
def test_only_processors_with_the_instructions(
    flags: str, expected: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\nmodel name\t: amx_bf16\nflags\t\t: {flags}\nbugs\t\t: x\n")
    monkeypatch.setattr(bfloat16, "_CPUINFO", tmp_path / "cpuinfo")
    assert computes_bfloat16() is computes_bfloat16(torch.device("cpu")) is expected
    assert BFloat16Inferer().enabled is expected
    assert not computes_bfloat16("cuda:0")
    assert not computes_bfloat16("mps")


def test_not_where_nothing_tells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bfloat16, "_CPUINFO", tmp_path / "none")
    assert not computes_bfloat16()


def test_not_enabled_is_the_plain_pass() -> None:
    network, x = small(), volume(2, 4, 9, 10, 11)
    for got, expected in zip(BFloat16Inferer(enabled=False)(x, network), network(x), strict=True):
        assert torch.equal(got, expected)


# --- what -----------------------------------------------------------------------------------------------------------


def test_convolutions_see_bfloat16_and_logits_are_single() -> None:
    network, seen = small(), []
    for module in network.modules():
        if isinstance(module, nn.Conv3d):
            module.register_forward_hook(lambda _m, _i, out: seen.append(out.dtype))
    outputs = BFloat16Inferer(enabled=True)(volume(2, 4, 9, 10, 11), network)
    assert set(seen) == {torch.bfloat16}
    assert [out.dtype for out in outputs] == [torch.float32] * 2
    assert not torch.is_autocast_enabled("cpu")
    one = BFloat16Inferer(enabled=True)(volume(1, 4, 9, 10, 11), network.eval())
    assert one.dtype == torch.float32


@pytest.mark.parametrize("batch", [1, 2])
def test_logits_and_gradients_are_those_of_single_precision_within_its_rounding(batch: int) -> None:
    x = volume(batch, 4, 16, 16, 16)
    target = torch.randint(0, 4, (batch, 1, 16, 16, 16), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
    loss = DeepSupervisionLoss(RegionDiceLoss(cross_entropy=1.0), weights=[1.0, 0.5])
    results = []
    for enabled in (False, True):
        network = small()
        value = loss(BFloat16Inferer(enabled=enabled)(x, network), target)
        value.backward()
        gradient = torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])
        assert gradient.dtype == value.dtype == torch.float32
        results.append((value.detach(), gradient))
    (single, expected), (half, got) = results
    assert abs(single - half) < 0.01 * single
    assert torch.cosine_similarity(expected, got, dim=0) > 0.99


@pytest.mark.parametrize(("kernel", "size", "in_half"), [(5, 4, False), (3, 2, False), (5, 5, True), (1, 1, True)])
def test_a_kernel_larger_than_the_image_is_computed_in_single_precision(kernel: int, size: int, in_half: bool) -> None:
    """Its gradient in bfloat16 is partly what happened to lie in memory, on AVX512-BF16: with NaN there, NaN."""
    convolution = nn.Conv3d(8, 8, kernel, padding=kernel // 2)
    seen: list[torch.dtype] = []
    convolution.register_forward_hook(lambda module, given, out: seen.append(out.dtype))
    image = volume(2, 8, size, size, size)
    for _ in range(10):
        for power in (10, 14, 18):
            torch.full((1 << power,), float("nan"))  # gone at once: what the next tensors may lie in
        convolution.zero_grad()
        BFloat16Inferer(enabled=True)(image, convolution).square().sum().backward()
        assert convolution.weight.grad is not None
        assert convolution.weight.grad.isfinite().all()
    assert set(seen) == {torch.bfloat16 if in_half else torch.float32}


def test_each_pass_sees_the_weights_of_now() -> None:
    network, x, inferer = small(False), volume(1, 4, 9, 9, 9), BFloat16Inferer(enabled=True)
    before = inferer(x, network)
    with torch.no_grad():
        for parameter in network.heads.parameters():
            parameter.mul_(2)
    torch.testing.assert_close(inferer(x, network), 2 * before)


def test_learns_as_single_precision_does() -> None:
    x, target = volume(2, 4, 12, 12, 12), (volume(2, 1, 12, 12, 12, seed=1) > 0.5).to(torch.uint8)
    loss = DeepSupervisionLoss(RegionDiceLoss(regions=[[1]], cross_entropy=1.0), weights=[1.0, 0.5])
    ends = []
    for enabled in (False, True):
        network, inferer = small(), BFloat16Inferer(enabled=enabled)
        optimizer = torch.optim.AdamW(network.parameters(), 5e-3)
        values = []
        for _ in range(30):
            optimizer.zero_grad()
            value = loss(inferer(x, network), target)
            value.backward()
            optimizer.step()
            values.append(value.item())
        assert values[-1] < 0.9 * values[0]
        ends.append(values[-1])
    assert ends[1] == pytest.approx(ends[0], rel=0.03)


def test_through_the_wrapper_of_several_processes(tmp_path: Path) -> None:
    x, network = volume(1, 4, 9, 9, 9), small()
    expected = BFloat16Inferer(enabled=True)(x, network)
    torch.distributed.init_process_group("gloo", f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        got = BFloat16Inferer(enabled=True)(x, DistributedDataParallel(copy.deepcopy(network)))
    finally:
        torch.distributed.destroy_process_group()
    assert all(torch.equal(g, e) for g, e in zip(got, expected, strict=True))


# --- the norm -------------------------------------------------------------------------------------------------------


def norms(channels: int) -> tuple[ChannelsLastInstanceNorm3d, nn.InstanceNorm3d]:
    own, torchs = ChannelsLastInstanceNorm3d(channels, affine=True), nn.InstanceNorm3d(channels, affine=True)
    with torch.no_grad():
        own.weight.copy_(volume(channels))
        own.bias.copy_(volume(channels, seed=1))
    torchs.load_state_dict(own.state_dict())
    return own, torchs


@pytest.mark.parametrize("shape", [(1, 3, 4, 5, 6), (3, 3, 4, 5, 6), (2, 1, 4, 5, 6), (2, 8, 1, 1, 2)])
@pytest.mark.parametrize("training", [True, False])
def test_norm_is_pytorchs_in_value_and_gradient(shape: tuple[int, ...], training: bool) -> None:
    own, torchs = norms(shape[1])
    x, weight = 3 * volume(*shape) + 1, volume(*shape, seed=2)
    gradients = []
    for norm, order in ((own, last), (torchs, torch.clone)):
        given = x.clone().requires_grad_()
        out = norm.train(training)(order(given))
        (out * weight).sum().backward()
        gradients.append((out, given.grad, norm.weight.grad, norm.bias.grad))
    for got, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


def test_norm_keeps_the_order_of_the_channels() -> None:
    own, _ = norms(4)
    for batch in (1, 2):
        x = volume(batch, 4, 5, 6, 7)
        assert own(last(x)).is_contiguous(memory_format=torch.channels_last_3d)
        assert own(x).is_contiguous()


def test_norm_of_bfloat16_has_sums_in_single_precision() -> None:
    own, torchs = norms(2)
    x = (100 + volume(1, 2, 32, 32, 32)).bfloat16()  # sums of 3 million: bfloat16 has three digits
    got = own(last(x))
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got.float(), torchs(x.float()), rtol=0.02, atol=0.02)


def test_norms_of_another_network_are_swapped_with_their_weights() -> None:
    torch.manual_seed(0)
    network = UNet(3, 1, 2, (4, 8), (2,), norm=("instance", {"affine": True}))
    x = last(volume(1, 1, 8, 8, 8))
    for parameter in network.parameters():
        nn.init.normal_(parameter, 0.5)
    expected, state = network(x), copy.deepcopy(network.state_dict())
    swapped = channels_last_norms(network).to(memory_format=torch.channels_last_3d)
    assert {type(m) for m in swapped.modules() if isinstance(m, nn.InstanceNorm3d)} == {ChannelsLastInstanceNorm3d}
    assert all(torch.equal(state[key], value) for key, value in swapped.state_dict().items())
    torch.testing.assert_close(swapped(x), expected, rtol=1e-4, atol=1e-4)
