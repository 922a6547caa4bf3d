"""Half precision on a CPU that has instructions for it, and nowhere else."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from monai.inferers import SimpleInferer
from torch import nn
from torch.overrides import TorchFunctionMode

_log = logging.getLogger(__name__)
_CPUINFO = Path("/proc/cpuinfo")
_FLAGS = {"amx_bf16", "avx512_bf16"}  # as Linux names the instructions


def computes_bfloat16(device: Any = "cpu") -> bool:
    """Whether `device` is a CPU with bfloat16 instructions: AMX or AVX512-BF16, Intel's since 2020, AMD's since Zen 4.

    Without them PyTorch emulates the type and is a hundred times slower. False for other devices (a GPU has MONAI's
    `amp`) and, as there is no `/proc/cpuinfo` to tell, for other systems than Linux.

    Args:
        device: that computes.
    """
    if torch.device(device).type != "cpu" or not _CPUINFO.is_file():
        return False
    flags = (line for line in _CPUINFO.read_text().splitlines() if line.startswith("flags"))
    return bool(_FLAGS & set(next(flags, "").split())) and torch.backends.mkldnn.is_available()


class BFloat16Inferer(SimpleInferer):
    """One pass in bfloat16 on a CPU, for training: MONAI's own `amp` is for CUDA alone.

    Convolutions compute in bfloat16, from weights and with sums in single precision; the logits are handed on in single
    precision, so that the loss, the gradients of the weights and the optimizer are too. There is nothing to scale:
    bfloat16 has the range of single precision. Channels come last in memory, the order that these convolutions are
    computed in: give the network norms that keep it, as `ChannelsLastInstanceNorm3d` does.

    Args:
        enabled: False: the pass of `SimpleInferer`. None: where the processor computes bfloat16, see
            `computes_bfloat16`, for an input that lies on the CPU.
    """

    def __init__(self, enabled: bool | None = None) -> None:
        super().__init__()
        self.enabled = computes_bfloat16() if enabled is None else bool(enabled)
        if self.enabled and not computes_bfloat16():
            _log.warning("bf16: this processor has no instructions for it, so a step takes a hundred times as long")

    def __call__(self, inputs: torch.Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Logits of `inputs` (BCHWD) in single precision; a list of them from a network that returns one."""
        if not self.enabled or inputs.device.type != "cpu":
            return super().__call__(inputs, network, *args, **kwargs)
        # leaving autocast empties its cache of weights in bfloat16, so that the next pass sees what the step changed
        with torch.autocast("cpu", torch.bfloat16), _SmallInSingle():
            out = network(inputs.contiguous(memory_format=torch.channels_last_3d), *args, **kwargs)
        return _single(out)


class _SmallInSingle(TorchFunctionMode):
    """Convolutions of what is smaller than their kernel, in single precision.

    oneDNN (of PyTorch 2.13, on AVX512-BF16) leaves parts of their weights' gradient as they were in memory where it
    computes in bfloat16: any number, or none. 5x5x5 kernels meet it at 4 voxels, as in a V-Net of 64^3 patches.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """`func`, as PyTorch calls it; convolutions alone are looked at."""
        if func is F.conv3d and any(n < k for n, k in zip(args[0].shape[2:], args[1].shape[2:], strict=True)):
            with torch.autocast("cpu", enabled=False):
                return func(args[0].float(), *args[1:], **(kwargs or {}))
        return func(*args, **(kwargs or {}))


class ChannelsLastInstanceNorm3d(nn.InstanceNorm3d):
    """PyTorch's instance norm, without the detour through another order of the channels on a CPU.

    PyTorch's own puts the channels first, so that the convolutions before and after it have to put them last again:
    half of the time of a bfloat16 step. Where they come last, one sample after the other goes through a batch norm of
    one sample, which is the same. Sums are in single precision either way. Weights are those of PyTorch's norm.
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Normalise each channel of each sample of `input`, BCHWD."""
        if not torch.jit.is_scripting():
            return self._in_its_order(input)
        return self._apply_instance_norm(input)  # PyTorch's: TorchScript has no `super()`

    def _in_its_order(self, input: torch.Tensor) -> torch.Tensor:
        last = input.is_contiguous(memory_format=torch.channels_last_3d) and not input.is_contiguous()
        if not last or input.device.type != "cpu" or self.track_running_stats:
            return super().forward(input)
        samples = [
            F.batch_norm(sample, None, None, self.weight, self.bias, training=True, eps=self.eps)
            for sample in input.split(1)
        ]
        return samples[0] if len(samples) == 1 else torch.cat(samples)


def channels_last_norms(network: nn.Module) -> nn.Module:
    """`network` with every instance norm in it replaced by `ChannelsLastInstanceNorm3d`, in place; weights are kept."""
    for parent in network.modules():
        for name, norm in parent.named_children():
            if type(norm) is nn.InstanceNorm3d and not norm.track_running_stats:
                swapped = ChannelsLastInstanceNorm3d(norm.num_features, norm.eps, affine=norm.affine)
                swapped.load_state_dict(norm.state_dict())
                setattr(parent, name, swapped)
    return network


def _single(out: Any) -> Any:
    """`out` with its tensors in single precision."""
    if isinstance(out, torch.Tensor):
        return out.float()
    if isinstance(out, Sequence):
        return [_single(part) for part in out]
    return out
