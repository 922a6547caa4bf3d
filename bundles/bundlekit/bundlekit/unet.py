"""What networks that halve the resolution share: their widths by their weights, and the sizes that they take."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import nn


def levels_of(state: Mapping[str, torch.Tensor]) -> tuple[list[int], int]:
    """Widths of the levels of a MONAI `UNet`, and convolutions in the residual unit of each.

    Args:
        state: its state dict; ([], 0) for that of another network.
    """
    levels, units, prefix = [], 0, "model."
    if not any(key.startswith("model.0.conv.") for key in state):
        return [], 0
    while True:  # each level but the last holds the next one as its submodule
        first = [key for key in state if key.startswith(f"{prefix}0.conv.") and key.endswith("weight")]
        deepest = [key for key in state if key.startswith(f"{prefix}conv.") and key.endswith("weight")]
        keys = first or deepest
        if not keys:
            return [], 0
        levels.append(int(state[keys[0]].shape[0]))
        units = sum(".unit" in key and ".conv.weight" in key for key in keys)
        if not first:
            return levels, units
        prefix += "1.submodule."


def require_divisible(network: nn.Module, factor: int, setting: str = "patch_size") -> None:
    """Have `network` refuse sizes at which the skips would not meet, before a convolution complains of shapes.

    An input, BCHWD, of another size is a ValueError from then on, but not where the network is traced or scripted.

    Args:
        network: with one input.
        factor: by which each size has to divide, 2 to the number of halvings.
        setting: that gives the size, for the message.
    """
    network.divides_by = (factor, setting)  # type: ignore[assignment]
    network.register_forward_pre_hook(_check_size)


def require_volumes(x: torch.Tensor, channels: int) -> None:
    """ValueError unless `x` is BCHWD, with so many channels."""
    if x.ndim != 5 or x.shape[1] != channels:
        raise ValueError(f"the network takes volumes in a batch, of {channels} channel(s), got shape {tuple(x.shape)}.")


def padded(forward: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor, factor: int) -> torch.Tensor:
    """`forward` of `x` (BCHWD), its border repeated at the far ends so that each size divides by `factor`; cut back."""
    size = x.shape[2:]
    lacking = [-int(n) % factor for n in size]
    if not any(lacking):
        return forward(x)
    x = F.pad(x, [side for n in reversed(lacking) for side in (0, n)], mode="replicate")
    return forward(x)[:, :, : size[0], : size[1], : size[2]]


def _check_size(self: Any, inputs: tuple[torch.Tensor]) -> None:
    if not torch.jit.is_scripting():
        _refuse_indivisible(self, inputs[0])


def _refuse_indivisible(network: nn.Module, x: torch.Tensor) -> None:
    if torch.jit.is_tracing() or torch.compiler.is_compiling():  # sizes are tensors then
        return
    factor, setting = cast("tuple[int, str]", network.divides_by)
    size = list(x.shape[2:])
    if any(n % factor for n in size):
        raise ValueError(f"{setting} must divide by {factor} along each axis for this many channels, got {size}.")
