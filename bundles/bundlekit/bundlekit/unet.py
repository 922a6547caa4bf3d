"""What checks and messages ask of MONAI's `UNet`: its widths by its weights, and the sizes that it takes."""

from __future__ import annotations

from collections.abc import Mapping

import torch
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


class Divisible:
    """Forward pre-hook that refuses sizes at which the skips would not meet, before a convolution complains of shapes.

    Args:
        factor: by which each size has to divide, 2 to the number of halvings.
        setting: that gives the size, for the message.
    """

    def __init__(self, factor: int, setting: str = "patch_size") -> None:
        self.factor = factor
        self.setting = setting

    def __call__(self, network: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        """Check an input, BCHWD.

        Raises:
            ValueError: for another size.
        """
        if torch.jit.is_tracing() or torch.compiler.is_compiling():  # sizes are tensors then
            return
        size = tuple(inputs[0].shape[2:])
        if any(n % self.factor for n in size):
            raise ValueError(
                f"{self.setting} must divide by {self.factor} along each axis for this many channels, got {list(size)}."
            )
