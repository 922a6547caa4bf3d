"""Three networks behind one name."""

from __future__ import annotations

import pytest
import torch
from monai.networks.nets import AttentionUnet, UNet

from brain_metastasis_attention_unet.network import NETWORKS, build_network, identify
from bundlekit.errors import BundleError
from bundlekit.weights.loading import load_network

WIDTHS = (2, 4, 8)


@pytest.mark.parametrize("name", NETWORKS)
def test_each_is_monais(name: str) -> None:
    network = build_network(name, channels=WIDTHS)
    kind, units = {"attention_unet": (AttentionUnet, None), "unet": (UNet, 0), "resunet": (UNet, 2)}[name]
    assert isinstance(network, kind)
    if units is not None:
        assert network.num_res_units == units
    with torch.no_grad():
        assert network.eval()(torch.rand(2, 4, 16, 12, 8)).shape == (2, 4, 16, 12, 8)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_checkpoint_says_which_it_is_and_another_is_refused(name: str) -> None:
    state = build_network(name, channels=WIDTHS).state_dict()
    description, setting = identify(state)
    assert "first width 2" in description
    assert setting == f"--network {name}"
    for other in NETWORKS:
        if other != name:
            with pytest.raises(BundleError, match=f"model.pt[\\s\\S]*{description}[\\s\\S]*--network {name}"):
                load_network(build_network(other, channels=WIDTHS), state, "model.pt")
    load_network(build_network(name, channels=WIDTHS), state, "model.pt")
    assert identify({}) == ("", "")


def test_a_patch_that_does_not_divide_is_named() -> None:
    network = build_network("unet", channels=WIDTHS)
    with pytest.raises(ValueError, match=r"patch_size must divide by 4 .* got \[16, 14, 16\]"):
        network(torch.zeros(1, 4, 16, 14, 16))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "vnet"}, "attention_unet, unet, resunet, got 'vnet'"),
        ({"channels": [4]}, "two or more positive widths"),
        ({"channels": [4, 0]}, "two or more positive widths"),
        ({"dropout": 1}, "dropout"),
    ],
)
def test_wrong_arguments(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_network(**arguments)
