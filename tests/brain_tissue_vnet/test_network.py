"""The V-Net is MONAI's at 16 filters, and takes any width and size."""

from __future__ import annotations

import pytest
import torch
from monai.networks.nets import VNet as MonaiVNet
from torch.utils.flop_counter import FlopCounterMode

from brain_tissue_vnet.network import TissueVNet
from bundlekit.errors import BundleError
from bundlekit.weights.loading import load_network


def test_takes_monais_weights_and_gives_its_output() -> None:
    torch.manual_seed(0)
    theirs = MonaiVNet(in_channels=1, out_channels=4)
    for module in theirs.modules():  # as after a training: running statistics that are not 0 and 1
        if isinstance(module, torch.nn.BatchNorm3d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
    ours = TissueVNet(in_channels=1, out_channels=4)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ours.load_state_dict(theirs.state_dict(), strict=True)
    x = torch.randn(1, 1, 32, 16, 32)
    with torch.no_grad():
        torch.testing.assert_close(ours.eval()(x), theirs.eval()(x), rtol=0, atol=0)
    torch.manual_seed(1)
    one = ours.train()(x)
    torch.manual_seed(1)
    torch.testing.assert_close(one, theirs.train()(x), rtol=0, atol=0)  # dropout in the same places


def test_half_the_width_costs_a_quarter() -> None:
    flops = {}
    for width in (8, 16):
        with torch.device("meta"):
            network, x = TissueVNet(init_filters=width).eval(), torch.empty(1, 1, 96, 96, 96)
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            network(x)
        flops[width] = counter.get_total_flops()
    assert flops[8] / flops[16] == pytest.approx(0.25, abs=0.02)


@pytest.mark.parametrize("size", [(16, 16, 16), (17, 31, 16), (33, 20, 40)])
def test_any_size_gives_logits_of_that_size(size: tuple[int, int, int]) -> None:
    network = TissueVNet(init_filters=2).eval()
    with torch.no_grad():
        assert network(torch.randn(2, 1, *size)).shape == (2, 4, *size)


def test_an_odd_size_is_padded_at_its_far_ends_by_its_border() -> None:
    torch.manual_seed(0)
    network = TissueVNet(init_filters=2).eval()
    x = torch.randn(1, 1, 17, 31, 16)
    padded = torch.nn.functional.pad(x, [0, 0, 0, 1, 0, 15], mode="replicate")
    with torch.no_grad():
        torch.testing.assert_close(network(x), network(padded)[:, :, :17, :31, :16], rtol=0, atol=0)


def test_instance_norm_needs_more_than_one_voxel() -> None:
    network = TissueVNet(init_filters=2, norm="instance").eval()
    with torch.no_grad():
        assert network(torch.randn(1, 1, 16, 17, 16)).shape == (1, 4, 16, 17, 16)
        with pytest.raises(ValueError, match="more than 16 voxels along one axis at least, got shape"):
            network(torch.randn(1, 1, 16, 16, 9))


def test_gradient_reaches_every_weight() -> None:
    torch.manual_seed(0)
    network = TissueVNet(init_filters=2, dropout=0.0).train()
    network(torch.randn(2, 1, 32, 32, 32)).square().mean().backward()
    assert all(p.grad is not None and bool(p.grad.ne(0).any()) for p in network.parameters() if p.ndim > 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"init_filters": 0}, "init_filters must be even"),
        ({"init_filters": 5}, "got 5"),
        ({"init_filters": 4, "in_channels": 3}, "multiple of the 3 input"),
        ({"dropout": 1.0}, "dropout must be"),
        ({"norm": "group"}, "norm must be 'batch' or 'instance', got 'group'"),
    ],
)
def test_wrong_arguments(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TissueVNet(**arguments)


@pytest.mark.parametrize("shape", [(1, 2, 16, 16, 16), (1, 16, 16, 16)])
def test_wrong_input(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"1 channel\(s\), got shape"):
        TissueVNet(init_filters=2)(torch.zeros(shape))


def test_a_state_dict_says_its_width() -> None:
    for norm in ("batch", "instance"):
        found = TissueVNet.identify(TissueVNet(init_filters=6, norm=norm).state_dict())
        assert found == (f"a V-Net of init_filters 6, {norm} norm", f"--init_filters 6 --norm {norm}")
    assert TissueVNet.identify({}) == ("", "")
    assert TissueVNet.identify(torch.nn.Conv3d(1, 1, 1).state_dict()) == ("", "")


def test_instance_norms_take_the_scale_and_shift_of_batch_norms() -> None:
    torch.manual_seed(0)
    batch = TissueVNet(init_filters=2, dropout=0.0)
    for module in batch.modules():
        if isinstance(module, torch.nn.BatchNorm3d):
            torch.nn.init.uniform_(module.weight, 0.5, 2)
            torch.nn.init.normal_(module.bias)
    instance = TissueVNet(init_filters=2, dropout=0.0, norm="instance")
    load_network(instance, batch.state_dict(), "model.pt")
    x = torch.randn(1, 1, 32, 32, 32) * 3 + 1
    with torch.no_grad():  # a batch of one patch has that patch's statistics
        torch.testing.assert_close(instance.eval()(x), batch.train()(x), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(instance(torch.cat([x, -x]))[:1], instance(x), rtol=1e-4, atol=1e-4)
    with pytest.raises(BundleError, match="--init_filters 2 --norm instance"):
        load_network(batch, instance.state_dict(), "model.pt")


def test_memory_estimate_counts_the_padded_voxels() -> None:
    network = TissueVNet(init_filters=4).eval()
    assert network.inference_bytes((32, 32, 32)) == 4 * 32**3 * (9 * 4 + 2)
    assert network.inference_bytes((33, 32, 32)) == 4 * 48 * 32**2 * (9 * 4 + 2)
