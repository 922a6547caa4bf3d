"""V-Net of any width."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from monai.networks.nets import vnet
from torch import nn

from bundlekit.bfloat16 import ChannelsLastInstanceNorm3d
from bundlekit.unet import padded, require_volumes

_STRIDE = 16  # four halvings
_RUNNING = ("running_mean", "running_var", "num_batches_tracked")


class TissueVNet(vnet.VNet):
    """MONAI's V-Net with its first width as an argument, for volumes of any size.

    The parts are MONAI's own: input transition to `init_filters`, four down transitions that double the width, four up
    transitions that concatenate the encoder's features, output transition; 5x5x5 convolutions, batch norm, ELU. At 16
    filters it has the names and shapes of MONAI's `VNet`, so that weights go from one to the other, and the output is
    the same. A volume whose size does not divide by 16 is padded at its far ends by repeating its border, and cut back;
    an exported network (TorchScript, ONNX) takes sizes that divide by 16 alone.

    Milletari et al., V-Net: Fully Convolutional Neural Networks for Volumetric Medical Image Segmentation, 2016,
    https://arxiv.org/abs/1606.04797.

    A batch norm's running statistics average over the scanners it was trained on, and a scan of another one is
    normalised as if it came from all of them; an instance norm takes the statistics of the patch itself.

    Args:
        in_channels: image channels; divides `init_filters`.
        out_channels: classes, background among them.
        init_filters: width at full resolution, even. 16 is the paper's; the cost goes with its square.
        dropout: of the features in the two coarsest resolutions and their skips, while training; 0 to below 1.
        norm: "batch", as in MONAI's V-Net, or "instance"; weights of the first load into the second.

    Raises:
        ValueError: for a width that is not a positive even multiple of `in_channels`, a dropout out of range, or an
            unknown norm.
    """

    def __init__(
        self,
        in_channels: int = 1,
        out_channels: int = 4,
        init_filters: int = 16,
        dropout: float = 0.5,
        norm: str = "batch",
    ) -> None:
        nn.Module.__init__(self)  # MONAI's constructor has the widths built in; names and forward are its own
        if init_filters < 2 or init_filters % 2 or init_filters % in_channels:
            raise ValueError(
                f"init_filters must be even and a multiple of the {in_channels} input channel(s), got {init_filters}."
            )
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must be from 0 to below 1, got {dropout}.")
        if norm not in ("batch", "instance"):
            raise ValueError(f"norm must be 'batch' or 'instance', got {norm!r}.")
        self.in_channels = in_channels
        self.norm = norm
        self.init_filters = init_filters
        n, act = init_filters, ("elu", {"inplace": True})
        self.in_tr = vnet.InputTransition(3, in_channels, n, act)
        self.down_tr32 = vnet.DownTransition(3, n, 1, act)
        self.down_tr64 = vnet.DownTransition(3, 2 * n, 2, act)
        self.down_tr128 = vnet.DownTransition(3, 4 * n, 3, act, dropout_prob=dropout)
        self.down_tr256 = vnet.DownTransition(3, 8 * n, 2, act, dropout_prob=dropout)
        self.up_tr256 = vnet.UpTransition(3, 16 * n, 16 * n, 2, act, dropout_prob=(dropout, dropout))
        self.up_tr128 = vnet.UpTransition(3, 16 * n, 8 * n, 2, act, dropout_prob=(dropout, dropout))
        # MONAI's VNet gives the two finer skips its default dropout of 0.5; here they follow the argument
        self.up_tr64 = vnet.UpTransition(3, 8 * n, 4 * n, 1, act, dropout_prob=(None, dropout))
        self.up_tr32 = vnet.UpTransition(3, 4 * n, 2 * n, 1, act, dropout_prob=(None, dropout))
        self.out_tr = vnet.OutputTransition(3, 2 * n, out_channels, act)
        if norm == "instance":
            _to_instance_norm(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits of `x`: B x out_channels x HWD for B x in_channels x HWD.

        Raises:
            ValueError: if `x` has another number of axes or channels; with instance norm, for at most 16 voxels along
                every axis.
        """
        if not torch.jit.is_scripting() and not torch.jit.is_tracing():  # sizes are tensors then
            return self._any_size(x)
        return self._forward(x)

    def _forward(self, x: torch.Tensor) -> torch.Tensor:  # as MONAI's: TorchScript has no `super()`
        out16 = self.in_tr(x)
        out32 = self.down_tr32(out16)
        out64 = self.down_tr64(out32)
        out128 = self.down_tr128(out64)
        x = self.up_tr256(self.down_tr256(out128), out128)
        x = self.up_tr128(x, out64)
        x = self.up_tr64(x, out32)
        return self.out_tr(self.up_tr32(x, out16))

    def _any_size(self, x: torch.Tensor) -> torch.Tensor:
        require_volumes(x, self.in_channels)
        if self.norm == "instance" and max(x.shape[2:]) <= _STRIDE:
            raise ValueError(
                f"with norm 'instance' the network takes more than {_STRIDE} voxels along one axis at least, got shape "
                f"{tuple(x.shape)}: of a single voxel in the coarsest resolution there are no statistics."
            )
        return padded(self._forward, x, _STRIDE)

    def inference_bytes(self, shape: tuple[int, ...]) -> int:
        """Estimate of the memory that one forward pass without gradients takes, in bytes, in single precision.

        The peak is at the finest up transition: the skip and its concatenation (1 + 2 widths), a convolution's output
        and working copy (2 + 2), the activated sum (2).

        Args:
            shape: HWD of the input, in voxels.
        """
        voxels = math.prod(int(n) + -int(n) % _STRIDE for n in shape)
        return 4 * voxels * (9 * self.init_filters + 2 * self.in_channels)

    def translate(self, state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """A state dict for this network: an instance norm takes a batch norm's scale and shift alone."""
        if self.norm == "batch":
            return dict(state)
        return {name: value for name, value in state.items() if not name.endswith(_RUNNING)}

    @staticmethod
    def identify(state: Mapping[str, torch.Tensor]) -> tuple[str, str]:
        """What a state dict belongs to and the settings that give it; ("", "") for another network."""
        weight = state.get("in_tr.conv_block.conv.weight")
        if weight is None or "down_tr256.down_conv.weight" not in state:
            return "", ""
        norm = "batch" if any(name.endswith(_RUNNING) for name in state) else "instance"
        width = weight.shape[0]
        return f"a V-Net of init_filters {width}, {norm} norm", f"--init_filters {width} --norm {norm}"


def _to_instance_norm(module: nn.Module) -> None:
    """Every batch norm below `module` becomes an instance norm with a scale and shift of its own."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm3d):
            setattr(module, name, ChannelsLastInstanceNorm3d(child.num_features, affine=True))
        else:
            _to_instance_norm(child)
