"""MONAI's 3-D U-Net with residual units, from half resolution downwards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from monai.networks.nets import UNet

from bundlekit.bfloat16 import channels_last_norms
from bundlekit.unet import levels_of, require_divisible

_UNITS = 2  # convolutions in the residual unit of each level


class MaskUNet(UNet):
    """MONAI's `UNet` whose first convolution halves the resolution: a third of the time of one that keeps it.

    Cicek et al., 3D U-Net, MICCAI 2016, https://arxiv.org/abs/1606.06650.

    Args:
        in_channels: image channels.
        out_channels: classes, background among them.
        channels: widths from half resolution to the bottleneck, two or more; a patch must divide by 2 to the power of
            one less than their number along each axis.

    Raises:
        ValueError: for fewer than two widths, or one below 1.
    """

    def __init__(
        self, in_channels: int = 1, out_channels: int = 2, channels: Sequence[int] = (32, 64, 96, 128)
    ) -> None:
        widths = [int(width) for width in channels]
        if len(widths) < 2 or min(widths) < 1:
            raise ValueError(f"channels must be two or more positive widths, got {widths}.")
        strides = [2] * (len(widths) - 1)
        norm = ("instance", {"affine": True})
        super().__init__(3, in_channels, out_channels, widths, strides, num_res_units=_UNITS, norm=norm)
        channels_last_norms(self)
        require_divisible(self, 2 ** len(strides))

    @staticmethod
    def identify(state: Mapping[str, torch.Tensor]) -> tuple[str, str]:
        """What a state dict belongs to and the settings that give it; ("", "") for another network."""
        levels, units = levels_of(state)
        if not levels or units != _UNITS:
            return "", ""
        widths = ",".join(map(str, levels))
        return f"a U-Net of widths {widths}", f'--channels "[{widths}]"'
