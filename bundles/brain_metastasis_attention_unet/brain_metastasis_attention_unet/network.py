"""Three networks behind one name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from monai.networks.nets import AttentionUnet, UNet
from torch import nn

from bundlekit.bfloat16 import channels_last_norms
from bundlekit.unet import require_divisible

_TITLES = {"attention_unet": "an Attention U-Net", "unet": "a 3-D U-Net", "resunet": "a 3-D ResUNet"}
NETWORKS = tuple(_TITLES)

# the first convolution's weight, whose name tells the three apart
_FIRST = {
    "model.0.conv.0.conv.weight": "attention_unet",
    "model.0.conv.weight": "unet",
    "model.0.conv.unit0.conv.weight": "resunet",
}


def build_network(
    name: str = "attention_unet",
    in_channels: int = 4,
    out_channels: int = 4,
    channels: Sequence[int] = (16, 32, 64, 128, 256),
    dropout: float = 0.0,
) -> nn.Module:
    """One of MONAI's networks, which halve the resolution between neighbouring `channels`.

    A patch must divide by 2^(len(channels) - 1) along each axis; anything else is refused by name.

    Args:
        name: "attention_unet": Oktay et al., 2018, https://arxiv.org/abs/1804.03999; "unet": Cicek et al., 2016,
            https://arxiv.org/abs/1606.06650; "resunet": the same with residual units of two convolutions, Kerfoot et
            al., 2019, doi:10.1007/978-3-030-12029-0_40.
        in_channels: image channels.
        out_channels: classes, background among them.
        channels: widths from full resolution to the bottleneck, two or more.
        dropout: probability, 0 to below 1.

    Raises:
        ValueError: for another name, or widths or a dropout that make no network.
    """
    widths = [int(c) for c in channels]
    if name not in NETWORKS:
        raise ValueError(f"network must be one of {', '.join(NETWORKS)}, got {name!r}.")
    if len(widths) < 2 or min(widths) < 1:
        raise ValueError(f"channels must be two or more positive widths, got {widths}.")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout must be from 0 to below 1, got {dropout}.")
    common: dict[str, Any] = {"channels": widths, "strides": [2] * (len(widths) - 1), "dropout": dropout}
    network: Any
    if name == "attention_unet":
        network = AttentionUnet(3, in_channels, out_channels, **common)
    else:
        unet = UNet(3, in_channels, out_channels, num_res_units=2 if name == "resunet" else 0, **common)
        network = channels_last_norms(unet)
    network.identify = identify
    network.inference_bytes = lambda shape: 4 * int(torch.Size(shape).numel()) * (9 * widths[0] + 2 * in_channels)
    require_divisible(network, 2 ** (len(widths) - 1))
    return network


def identify(state: Mapping[str, torch.Tensor]) -> tuple[str, str]:
    """What a state dict belongs to and the setting that gives it; ("", "") for another network."""
    for key, name in _FIRST.items():
        if key in state:
            return f"{_TITLES[name]} of first width {state[key].shape[0]}", f"--network {name}"
    return "", ""
