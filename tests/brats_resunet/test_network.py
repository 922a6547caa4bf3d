"""Tests of the network: shapes, refusals, what it costs, what learns, and export."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import pytest
import torch
from monai.losses import DeepSupervisionLoss
from monai.networks.nets import DynUNet
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from brats_resunet import ResUNet, require_weights
from brats_resunet.network import ResidualBlock
from bundlekit.errors import BundleError

torch.set_num_threads(1)

SMALL = (4, 6, 8)


def small(channels: Sequence[int] = SMALL, supervised_levels: int = 1, **kwargs: int) -> ResUNet:
    torch.manual_seed(0)
    return ResUNet(kwargs.get("in_channels", 4), kwargs.get("out_channels", 4), channels, supervised_levels)


def volume(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# --- shapes -------------------------------------------------------------------------------------------------------

SIZES = [(32, 32, 32), (33, 47, 50), (17, 18, 31)]


@pytest.mark.parametrize("size", SIZES)
def test_while_training_one_output_at_each_supervised_resolution(size: tuple[int, ...]) -> None:
    outputs = small((2, 3, 4, 5, 6), 2, in_channels=3, out_channels=5).train()(volume(2, 3, *size))
    assert isinstance(outputs, list)
    halved = [tuple(math.ceil(n / 2**level) for n in size) for level in range(3)]
    assert [tuple(out.shape) for out in outputs] == [(2, 5, *expected) for expected in halved]


@pytest.mark.parametrize("size", SIZES)
def test_in_evaluation_one_tensor_of_the_input_size(size: tuple[int, ...]) -> None:
    with torch.no_grad():
        output = small((2, 3, 4, 5, 6), 2).eval()(volume(1, 4, *size))
    assert torch.is_tensor(output)
    assert output.shape == (1, 4, *size)


@pytest.mark.parametrize("training", [True, False])
def test_without_supervised_levels_one_tensor_in_both_modes(training: bool) -> None:
    network = small(supervised_levels=0).train(training)
    assert torch.is_tensor(network(volume(1, 4, 9, 9, 9)))
    assert len(network.heads) == 1


@pytest.mark.parametrize("size", [(5, 5, 5), (5, 6, 11)])
def test_smallest_sizes_of_three_resolutions(size: tuple[int, ...]) -> None:
    output = small().eval()(volume(1, 4, *size))
    assert output.shape == (1, 4, *size)
    assert output.isfinite().all()


def test_evaluation_gives_the_full_resolution_output_of_training() -> None:
    network, x = small(), volume(2, 4, 9, 10, 11)
    torch.testing.assert_close(network.eval()(x), network.train()(x)[0])


def test_coarse_heads_rest_in_evaluation() -> None:
    network, calls = small(), []
    for level, head in enumerate(network.heads):
        head.register_forward_hook(lambda *_, level=level: calls.append(level))
    network.eval()(volume(1, 4, 9, 9, 9))
    assert calls == [0]


def test_a_case_does_not_depend_on_the_others_of_its_batch() -> None:
    network, x = small().eval(), volume(2, 4, 9, 10, 11)
    torch.testing.assert_close(network(x)[1:], network(x[1:]), rtol=1e-4, atol=1e-5)


def test_the_input_is_left_as_it_was() -> None:
    # as many channels as the first width: the first block's shortcut is the input itself
    network, x = small((4, 6, 8)).train(), volume(1, 4, 9, 9, 9)
    before = x.clone()
    network(x)
    assert isinstance(network.encoder[0].shortcut, nn.Identity)
    assert torch.equal(x, before)


# --- refusals -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "shape",
    [
        (1, 3, 16, 16, 16),  # channels
        (1, 5, 16, 16, 16),
        (1, 4, 4, 16, 16),  # one voxel at the bottleneck
        (1, 4, 16, 4, 16),
        (1, 4, 16, 16, 4),
        (4, 16, 16, 16),  # no batch
        (4, 4, 16, 16),  # a batch of images, or a volume of 4 slices
        (1, 4),
    ],
)
def test_wrong_input_is_refused_with_its_shape(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"4 channels and more than 4 voxels") as error:
        small()(torch.zeros(shape))
    assert str(shape) in str(error.value)


@pytest.mark.parametrize(
    ("channels", "supervised_levels", "named"),
    [
        ([], 0, "channels"),
        ([8], 0, "channels"),
        ([8, 0], 0, "channels"),
        ([8, -1, 16], 0, "channels"),
        ([8, 16], 1, "supervised_levels"),
        ([8, 16, 32], 2, "supervised_levels"),
        ([8, 16, 32], -1, "supervised_levels"),
    ],
)
def test_wrong_constructor_arguments(channels: list[int], supervised_levels: int, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        ResUNet(channels=channels, supervised_levels=supervised_levels)


def test_as_many_heads_as_the_depth_allows() -> None:
    assert len(ResUNet(channels=[2, 3, 4, 5], supervised_levels=2).heads) == 3


# --- parts --------------------------------------------------------------------------------------------------------


def test_residual_block_with_silent_convolutions_passes_its_shortcut() -> None:
    block = ResidualBlock(3, 3)
    nn.init.zeros_(block.norm2.weight)  # the bias is zero already
    x = volume(1, 3, 4, 5, 6)
    expected = torch.where(x > 0, x, 0.01 * x)
    torch.testing.assert_close(block(x.clone()), expected)


@pytest.mark.parametrize(
    ("before", "after", "stride", "shortcut"),
    [(4, 4, 1, nn.Identity), (4, 8, 1, nn.Conv3d), (4, 4, 2, nn.Conv3d), (4, 8, 2, nn.Conv3d)],
)
def test_residual_block_shortcut_and_size(before: int, after: int, stride: int, shortcut: type) -> None:
    block = ResidualBlock(before, after, stride)
    assert type(block.shortcut) is shortcut
    assert block(volume(1, before, 5, 6, 7)).shape == (1, after, *(math.ceil(n / stride) for n in (5, 6, 7)))


# --- gradients ----------------------------------------------------------------------------------------------------


def test_gradient_reaches_every_parameter() -> None:
    network = small((3, 4, 5, 6), 2).train()
    torch.stack([out.square().mean() for out in network(volume(1, 4, 17, 19, 18))]).sum().backward()
    missing = [n for n, p in network.named_parameters() if p.grad is None or not bool(p.grad.abs().sum() > 0)]
    assert missing == []


@pytest.mark.parametrize("level", [0, 1, 2])
def test_each_output_has_its_own_head(level: int) -> None:
    network = small((3, 4, 5, 6), 2).train()
    network(volume(1, 4, 17, 17, 17))[level].square().mean().backward()
    assert [head.weight.grad is not None for head in network.heads] == [n == level for n in range(3)]
    # a coarse output does not see the finer part of the decoder
    assert [block.conv1.weight.grad is not None for block in network.decoder] == [n >= level for n in range(3)]


def test_gradient_of_double_precision_agrees_with_finite_differences() -> None:
    network = small((2, 3), 0, in_channels=1, out_channels=2).double().train()
    x = volume(1, 1, 3, 4, 3).double().requires_grad_()
    assert torch.autograd.gradcheck(network, (x,), eps=1e-6, atol=1e-5)


# --- what it costs ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def default_on_meta() -> ResUNet:
    with torch.device("meta"):
        return ResUNet()


def count_flops(network: nn.Module, x: torch.Tensor) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(x)
    return int(counter.get_total_flops())


def test_flops_are_counted_without_computing() -> None:
    convolution = nn.Conv3d(4, 8, 3, padding=1, device="meta")
    assert count_flops(convolution, torch.empty(1, 4, 5, 6, 7, device="meta")) == 2 * 8 * 4 * 27 * 5 * 6 * 7


def test_flops_of_the_default_network(default_on_meta: ResUNet) -> None:
    flops = count_flops(default_on_meta.eval(), torch.empty(1, 4, 96, 96, 96, device="meta"))
    assert 400e9 < flops <= 420e9


def test_parameters_of_the_default_network(default_on_meta: ResUNet) -> None:
    widths = [4, 32, 64, 128, 256, 512]

    def block(before: int, after: int, shortcut: bool) -> int:
        return 27 * before * after + 27 * after * after + 4 * after + shortcut * before * after

    expected = sum(block(a, b, True) for a, b in pairwise(widths))
    expected += sum(8 * b * a + block(2 * a, a, True) for a, b in pairwise(widths[1:]))
    expected += sum(4 * width + 4 for width in widths[1:4])
    assert sum(p.numel() for p in default_on_meta.parameters()) == expected == 22_929_548


def bytes_of_a_training_step(network: nn.Module, x: torch.Tensor) -> int:
    """Memory of what the backward pass and the loss need, parameters and input left out."""
    held: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        held[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        outputs = network.train()(x)
    for output in outputs if isinstance(outputs, list) else [outputs]:
        keep(output)
    for tensor in (x, *network.parameters()):
        held.pop(tensor.untyped_storage().data_ptr(), None)
    return sum(storage.nbytes() for storage in held.values())


def test_bytes_of_a_training_step_by_hand() -> None:
    # 8 voxels of 2 channels in float32: exp saves its result, square its input, which is the same tensor
    class Squared(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.exp().square()

    assert bytes_of_a_training_step(Squared(), torch.zeros(1, 2, 2, 2, 2, requires_grad=True)) == 2 * 64


def test_a_training_step_takes_no_more_memory_than_the_same_dynunet() -> None:
    widths, x = (8, 16, 32, 64, 128), volume(1, 4, 32, 32, 32)
    reference = DynUNet(
        3,
        4,
        4,
        [3] * 5,
        [1, 2, 2, 2, 2],
        [2] * 4,
        filters=widths,
        res_block=True,
        deep_supervision=True,
        deep_supr_num=2,
    )
    ours = bytes_of_a_training_step(small(widths, 2), x)
    assert ours <= bytes_of_a_training_step(reference, x)
    # at the least the outputs of the four convolutions of the finest level, and the concatenation
    assert ours > 4 * 32**3 * 8 * (4 + 2)


@pytest.mark.parametrize(
    ("channels", "in_channels", "shape", "expected"),
    [
        ((8, 16), 4, (10, 10, 10), 4 * 1000 * (9 * 8 + 2 * 4)),
        ((32, 64, 128), 4, (1, 1, 1), 4 * (9 * 32 + 8)),
        ((8, 16), 1, (2, 3, 5), 4 * 30 * (9 * 8 + 2)),
    ],
)
def test_inference_bytes_by_hand(
    channels: tuple[int, ...], in_channels: int, shape: tuple[int, ...], expected: int
) -> None:
    assert ResUNet(in_channels, channels=channels, supervised_levels=0).inference_bytes(shape) == expected


def test_inference_bytes_grow_with_the_voxels_alone() -> None:
    network = small()
    one = network.inference_bytes((20, 30, 40))
    assert [network.inference_bytes(s) for s in [(40, 30, 20), (40, 30, 40), (60, 60, 120)]] == [one, 2 * one, 18 * one]
    assert network.inference_bytes(torch.Size([20, 30, 40])) == one


# --- state dict, export -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [(2, 3), (2, 3, 4), (5, 4, 3, 2)])
def test_channels_of_a_state_dict_are_those_of_the_constructor(channels: tuple[int, ...]) -> None:
    description, setting = ResUNet.identify(ResUNet(channels=channels, supervised_levels=0).state_dict())
    assert description == f"a Res-UNet of channels {list(channels)}"
    assert setting == '--channels "[' + ",".join(map(str, channels)) + ']"'


@pytest.mark.parametrize("state", [{}, nn.Conv3d(1, 1, 1).state_dict(), {"encoder.1.conv1.weight": torch.zeros(3)}])
def test_channels_of_another_network_are_none(state: dict[str, torch.Tensor]) -> None:
    assert ResUNet.identify(state) == ("", "")


def exported(network: nn.Module, x: torch.Tensor) -> Callable[..., Any]:
    return torch.export.export(network, (x,)).module()


def traced(network: nn.Module, x: torch.Tensor) -> Callable[..., Any]:
    return torch.jit.trace(network, x, check_trace=False)


@pytest.mark.parametrize("convert", [exported, traced])
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
def test_converted_network_gives_equal_outputs(convert: Callable[..., Any]) -> None:
    network = small().eval()
    with torch.no_grad():
        converted = convert(network, volume(1, 4, 9, 10, 11))
        x = volume(1, 4, 9, 10, 11, seed=1)
        torch.testing.assert_close(converted(x), network(x), rtol=0, atol=0)


def test_weights_of_deep_supervision_are_one_for_each_head() -> None:
    """MONAI takes others where there are fewer."""
    network = ResUNet(channels=(2, 4, 8, 16))
    for weights in ([1.0, 0.5, 0.25], [1.0, 0.0, 0.0], None):
        require_weights(DeepSupervisionLoss(nn.MSELoss(), weights=weights), network)
    for weights in ([1.0], [1.0, 0.5, 0.25, 0.125]):
        with pytest.raises(BundleError, match=f"--loss::weights has {len(weights)} weights, and the network 3 heads"):
            require_weights(DeepSupervisionLoss(nn.MSELoss(), weights=weights), network)
    require_weights(nn.MSELoss(), network)
