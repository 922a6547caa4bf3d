"""MONAI's 3-D U-Net, with what the bundle's checks and inferer ask of a network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from monai.networks.nets import UNet
from torch import nn

from bundlekit.bfloat16 import channels_last_norms
from bundlekit.errors import BundleError
from bundlekit.unet import levels_of, require_divisible

TARGETS = {"regions": 3, "classes": 4}
"""What the network's channels are, and how many: WT, TC, ET (sigmoid), or background, NCR, ED, ET (softmax)."""


def build_network(
    target: str = "regions",
    in_channels: int = 4,
    channels: Sequence[int] = (16, 32, 64, 128, 256),
    res_units: int = 0,
) -> nn.Module:
    """MONAI's `UNet` in three dimensions, which halves the resolution between neighbouring `channels`.

    A patch must divide by 2^(len(channels) - 1) along each axis; anything else is refused by name.

    Cicek et al., 3D U-Net, MICCAI 2016, https://arxiv.org/abs/1606.06650.

    Args:
        target: "regions" (3 output channels) or "classes" (4).
        in_channels: image channels.
        channels: widths from full resolution to the bottleneck, two or more.
        res_units: convolutions in the residual unit of each level; 0: one plain convolution.

    Raises:
        ValueError: for another target, or numbers that make no network.
    """
    widths = [int(c) for c in channels]
    if target not in TARGETS:
        raise ValueError(f"target must be one of {', '.join(TARGETS)}, got {target!r}.")
    if len(widths) < 2 or min(widths) < 1 or res_units < 0:
        raise ValueError(
            f"channels must be two or more positive widths and res_units 0 or more, got {widths}, {res_units}."
        )
    strides = [2] * (len(widths) - 1)
    unet = UNet(3, in_channels, TARGETS[target], widths, strides, num_res_units=int(res_units))
    network: Any = channels_last_norms(unet)
    network.identify = identify
    network.inference_bytes = lambda shape: 4 * int(torch.Size(shape).numel()) * (9 * widths[0] + 2 * in_channels)
    require_divisible(network, 2 ** (len(widths) - 1), "uniform_shape and patch_size")
    return network


def identify(state: Mapping[str, torch.Tensor]) -> tuple[str, str]:
    """What a state dict belongs to and the settings that give it; ("", "") for another network."""
    levels, units = levels_of(state)
    if not levels:
        return "", ""
    outputs = int(list(state.values())[-1].shape[0])
    target = next((name for name, count in TARGETS.items() if count == outputs), "")
    if not target:
        return "", ""
    widths = ",".join(map(str, levels))
    setting = f'--target {target} --channels "[{widths}]" --res_units {units}'
    return f"a 3-D U-Net of widths {widths} for {target}, residual units of {units}", setting


def require_square(rotate90_probability: float, shape: Sequence[int]) -> None:
    """Refuse quarter turns of volumes that are not as wide as they are deep, which would have another shape.

    Raises:
        BundleError: naming both.
    """
    if rotate90_probability and shape[0] != shape[1]:
        raise BundleError(
            f"--rotate90_probability is {rotate90_probability:g}, and volumes are {'x'.join(map(str, shape))}; "
            "expected two equal numbers first in uniform_shape (native.yaml: patch_size), or a probability of 0."
        )
