"""3-D Res-UNet with deep supervision."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch
from torch import nn

from bundlekit.bfloat16 import ChannelsLastInstanceNorm3d
from bundlekit.errors import BundleError


class ResUNet(nn.Module):
    """3-D U-Net of residual blocks (two 3x3x3 convolutions, instance norm) with deep supervision.

    The encoder halves the resolution by the stride of a block's first convolution; the decoder doubles it by a
    transposed convolution, concatenates the encoder's features and passes them through a residual block. With the
    default widths this is the network of the upstream write-up: encoder 32-64-128-256, bottleneck 512, and 1x1x1 heads
    at 1/2 and 1/4 resolution beside the one at full resolution. Any spatial size of at least two voxels at the
    bottleneck works; one that does not divide by 2^(levels - 1) is rounded up on the way down and cut back on the way
    up.

    Residual learning: He et al., 2016, https://arxiv.org/abs/1512.03385. 3-D U-Net: Cicek et al., 2016,
    https://arxiv.org/abs/1606.06650. Deep supervision: Lee et al., 2015, https://arxiv.org/abs/1409.5185.

    Args:
        in_channels: image channels; the bundle's order is T1, T1ce, T2, FLAIR.
        out_channels: classes, background among them.
        channels: features at each resolution from the finest to the bottleneck; their number is the depth.
        supervised_levels: how many coarser resolutions (1/2, 1/4, ...) get a head while training; 0 for none.

    Raises:
        ValueError: if `channels` has fewer than two entries or one below 1, or if `supervised_levels` does not leave
            the bottleneck without a head.
    """

    def __init__(
        self,
        in_channels: int = 4,
        out_channels: int = 4,
        channels: Sequence[int] = (32, 64, 128, 256, 512),
        supervised_levels: int = 2,
    ) -> None:
        super().__init__()
        channels = [int(c) for c in channels]
        if len(channels) < 2 or min(channels) < 1:
            raise ValueError(f"channels must be two or more positive widths, got {channels}.")
        if not 0 <= supervised_levels <= len(channels) - 2:
            raise ValueError(
                f"supervised_levels must be from 0 to {len(channels) - 2} for {len(channels)} resolutions, "
                f"got {supervised_levels}."
            )
        self.in_channels = in_channels
        self.channels = channels
        widths = [in_channels, *channels]
        self.encoder = nn.ModuleList(
            ResidualBlock(before, after, stride=1 if level == 0 else 2)
            for level, (before, after) in enumerate(pairwise(widths))
        )
        # from here on index 0 is the finest resolution, as in the encoder
        self.upsample = nn.ModuleList(
            nn.ConvTranspose3d(coarse, fine, kernel_size=2, stride=2, bias=False) for fine, coarse in pairwise(channels)
        )
        self.decoder = nn.ModuleList(ResidualBlock(2 * width, width) for width in channels[:-1])
        self.heads = nn.ModuleList(
            nn.Conv3d(width, out_channels, kernel_size=1) for width in channels[: supervised_levels + 1]
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor | list[torch.Tensor]:
        """Logits of `x`.

        Args:
            x: image, B x in_channels x HWD.

        Returns:
            B x out_channels x HWD in evaluation mode (and with `supervised_levels=0`); while training a list of
            `supervised_levels + 1` such tensors at full, 1/2, 1/4, ... resolution.

        Raises:
            ValueError: if `x` has another number of axes or channels, or is too small for the depth.
        """
        tracing = torch.jit.is_tracing()  # sizes are tensors then, and nothing may depend on them in Python
        if not torch.jit.is_scripting() and not tracing:
            self._check(x)
        skips = []
        for block in self.encoder:
            x = block(x)
            skips.append(x)
        skips.pop()
        outputs: list[torch.Tensor] = []
        for level in range(len(self.decoder) - 1, -1, -1):
            skip = skips.pop()  # popped, so that its memory can go as soon as the block is done with it
            for own, (upsample, decode) in enumerate(zip(self.upsample, self.decoder)):  # noqa: B905 - as below
                if own == level:  # TorchScript takes modules from a list in their order alone, and has no `strict`
                    x = upsample(x)
                    if tracing or x.shape[2:] != skip.shape[2:]:
                        x = x[:, :, : skip.shape[2], : skip.shape[3], : skip.shape[4]]
                    x = decode(torch.cat((x, skip), dim=1))
            for own, head in enumerate(self.heads):
                if own == level and (level == 0 or self.training):
                    outputs.insert(0, head(x))
        if self.training and len(self.heads) > 1:
            return outputs
        return outputs[0]

    def inference_bytes(self, shape: Sequence[int]) -> int:
        """Estimate of the memory that one forward pass without gradients takes, in bytes, in single precision.

        The peak is at the finest decoder block. In units of a full-resolution feature map of the first width: skip
        and upsampled features (2) and their concatenation (2), the block's input and residual path (1) and two
        convolution outputs (2), and the working copies of the convolution (2, measured on CPU).

        Args:
            shape: HWD of the input, in voxels.
        """
        voxels = 1
        for n in shape:
            voxels *= int(n)
        return 4 * voxels * (9 * self.channels[0] + 2 * self.in_channels)

    @staticmethod
    def identify(state: Mapping[str, torch.Tensor]) -> tuple[str, str]:
        """What a state dict belongs to and the setting that gives it; ("", "") for another network."""
        widths: list[int] = []
        while f"encoder.{len(widths)}.conv1.weight" in state:
            widths.append(int(state[f"encoder.{len(widths)}.conv1.weight"].shape[0]))
        if not widths:
            return "", ""
        return f"a Res-UNet of channels {widths}", f'--channels "{widths}"'.replace(", ", ",")

    def _check(self, x: torch.Tensor) -> None:
        smallest = 2 ** (len(self.channels) - 1)
        if x.ndim != 5 or x.shape[1] != self.in_channels or min(x.shape[2:]) <= smallest:
            raise ValueError(
                f"the network takes volumes in a batch, of {self.in_channels} channels and more than {smallest} voxels "
                f"along each axis for its {len(self.channels)} resolutions, got an input of shape {tuple(x.shape)}."
            )


class ResidualBlock(nn.Module):
    """Two 3x3x3 convolutions with instance norm beside a shortcut: norm(conv(act(norm(conv(x))))) + x, activated.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output; the shortcut is a 1x1x1 convolution where they or the size differ.
        stride: of the first convolution and the shortcut.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        # no biases before a norm that subtracts the mean
        self.conv1 = nn.Conv3d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.norm1 = ChannelsLastInstanceNorm3d(out_channels, affine=True)
        self.conv2 = nn.Conv3d(out_channels, out_channels, 3, padding=1, bias=False)
        self.norm2 = ChannelsLastInstanceNorm3d(out_channels, affine=True)
        self.act = nn.LeakyReLU(0.01, inplace=True)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Conv3d(in_channels, out_channels, 1, stride, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map B x in_channels x HWD to B x out_channels x H'W'D', H' = ceil(H / stride)."""
        y = self.act(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        y += self.shortcut(x)
        return self.act(y)


def require_weights(loss: nn.Module, network: nn.Module) -> None:
    """Refuse weights of deep supervision of which MONAI would silently take others.

    Its `DeepSupervisionLoss` halves the weight from one resolution to the next where it is given fewer than there are.

    Args:
        loss: with `weights` from full resolution down; one without them passes.
        network: whose `heads` they are for.

    Raises:
        BundleError: if they are not as many as heads.
    """
    weights, heads = getattr(loss, "weights", None), getattr(network, "heads", None)
    if isinstance(weights, (list, tuple)) and heads is not None and len(weights) != len(heads):
        raise BundleError(
            f"--loss::weights has {len(weights)} weights, and the network {len(heads)} heads; expected one for each, 0 "
            "for a resolution that is not to count."
        )
