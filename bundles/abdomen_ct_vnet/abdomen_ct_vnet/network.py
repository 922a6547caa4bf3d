"""Residual V-Net of upstream's table."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from monai.networks.blocks import Convolution, ResidualUnit
from torch import nn

from bundlekit.bfloat16 import channels_last_norms
from bundlekit.unet import padded, require_volumes

ACTIVATIONS = ("relu", "prelu")
NORMS = ("instance", "batch", "none")
DOWNSAMPLINGS = ("max", "stride")


class ResidualVNet(nn.Module):
    """V-Net with 3x3x3 residual blocks of any widths, for volumes of any size.

    Upstream's table: five resolutions of 16, 32, 64, 128 and 128 filters; blocks of two convolutions with ReLU whose
    input is added to their output, batch normalisation being optional; between resolutions a convolution and max
    pooling, from the second on with dropout; a decoder of transposed convolutions whose output is concatenated with the
    encoder's features of that resolution, with dropout after its last block; softmax. No network of MONAI is that: its
    `VNet` has other widths and blocks, and its `UNet` has no features at full resolution and concatenates before it
    upsamples. So the blocks are MONAI's (`ResidualUnit`, `Convolution`), put together here. The softmax is the loss's
    and the postprocessing's. A volume whose size does not divide by 2 for each width but the last is padded at its far
    ends by repeating its border, and cut back; an exported network takes sizes that divide alone.

    Milletari et al., V-Net: Fully Convolutional Neural Networks for Volumetric Medical Image Segmentation, 2016,
    https://arxiv.org/abs/1606.04797.

    Args:
        in_channels: image channels.
        out_channels: classes, background among them.
        channels: widths from full resolution to the bottleneck, two or more.
        dropout: where upstream has it, while training; 0 to below 1.
        activation: "relu", upstream's, or "prelu".
        norm: "instance"; "batch", upstream's option, for large batches; or "none".
        downsampling: "max": a 3x3x3 convolution and max pooling, upstream's; "stride": one 2x2x2 convolution of stride
            2, faster.

    Raises:
        ValueError: for widths, a dropout or names that make no network.
    """

    def __init__(
        self,
        in_channels: int = 1,
        out_channels: int = 4,
        channels: Sequence[int] = (16, 32, 64, 128, 128),
        dropout: float = 0.0,
        activation: str = "relu",
        norm: str = "instance",
        downsampling: str = "max",
    ) -> None:
        super().__init__()
        widths = [int(n) for n in channels]
        if len(widths) < 2 or min(widths) < 1:
            raise ValueError(f"channels must be two or more positive widths, got {widths}.")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must be from 0 to below 1, got {dropout}.")
        named = {
            "activation": (activation, ACTIVATIONS),
            "norm": (norm, NORMS),
            "downsampling": (downsampling, DOWNSAMPLINGS),
        }
        for name, (value, known) in named.items():
            if value not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}.")
        self.in_channels = int(in_channels)
        self.channels = widths
        self.stride = 2 ** (len(widths) - 1)
        style: dict[str, Any] = {"act": activation, "norm": None if norm == "none" else norm}
        self.encoder = nn.ModuleList(
            ResidualUnit(3, into, out, subunits=2, **style)
            for into, out in zip([in_channels, *widths[:-1]], widths, strict=True)
        )
        self.down = nn.ModuleList(
            Convolution(3, width, width, strides=2, kernel_size=2, padding=0, **style)
            if downsampling == "stride"
            else nn.Sequential(Convolution(3, width, width, **style), nn.MaxPool3d(2))
            for width in widths[:-1]
        )
        self.up = nn.ModuleList(
            Convolution(
                3, into, out, strides=2, kernel_size=2, padding=0, is_transposed=True, output_padding=0, **style
            )
            for out, into in reversed(list(pairwise(widths)))
        )
        self.decoder = nn.ModuleList(
            ResidualUnit(3, 2 * out, out, subunits=2, **style) for out in reversed(widths[:-1])
        )
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Conv3d(widths[0], out_channels, kernel_size=1)
        channels_last_norms(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits of `x`: B x out_channels x HWD for B x in_channels x HWD.

        Raises:
            ValueError: if `x` has another number of axes or channels.
        """
        if not torch.jit.is_scripting() and not torch.jit.is_tracing():  # sizes are tensors then
            require_volumes(x, self.in_channels)
            return padded(self._forward, x, self.stride)
        return self._forward(x)

    def inference_bytes(self, shape: tuple[int, ...]) -> int:
        """Estimate of the memory that one forward pass without gradients takes, in bytes, in single precision.

        The peak is at full resolution in the decoder: the concatenation (2 widths), its residual (1), a convolution's
        output, norm and working copy (4), beside input and logits.

        Args:
            shape: HWD of the input, in voxels.
        """
        voxels = math.prod(int(n) + -int(n) % self.stride for n in shape)
        return 4 * voxels * (8 * self.channels[0] + self.head.out_channels + 2 * self.in_channels)

    @staticmethod
    def identify(state: Mapping[str, torch.Tensor]) -> tuple[str, str]:
        """What a state dict belongs to and the settings that give it; ("", "") for another network."""
        if "encoder.0.conv.unit0.conv.weight" not in state or "head.weight" not in state:
            return "", ""
        widths: list[int] = []
        while (key := f"encoder.{len(widths)}.conv.unit0.conv.weight") in state:
            widths.append(int(state[key].shape[0]))
        written = f"[{','.join(map(str, widths))}]"
        classes = int(state["head.weight"].shape[0])
        activation = "prelu" if any(key.endswith(".A.weight") for key in state) else "relu"
        downsampling = "max" if "down.0.0.conv.weight" in state else "stride"
        style = f"--activation {activation} --downsampling {downsampling}"
        if any(key.endswith("running_mean") for key in state):
            style += " --norm batch"
        return (
            f"a V-Net of channels {written} for {classes - 1} organ class(es) ({style.replace('--', '')})",
            f'--channels "{written}" {style} and --organs with {classes - 1} class(es)',
        )

    def _forward(self, x: torch.Tensor) -> torch.Tensor:
        skips = []
        for level, (block, down) in enumerate(zip(self.encoder, self.down)):  # noqa: B905 - the deepest comes after
            x = block(x)
            skips.append(x)
            x = down(x)
            x = self.dropout(x) if level > 0 else x
        x = self.encoder[-1](x)
        for up, block in zip(self.up, self.decoder):  # noqa: B905 - TorchScript has no `strict`
            x = block(torch.cat([skips.pop(), up(x)], dim=1))
        return self.head(self.dropout(x))
