"""How sure a network is of its mask, by its own probabilities."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.transforms import Transform

from bundlekit.inference.windows import argmax_labels

_SLAB = 16  # voxels along H that are looked at together, so that what is computed of them stays in the cache


class AddConfidenced(Transform):
    """Add `confidence`: for each class and region, the soft Dice of the network's mask with its own probabilities.

    It is 2 sum(p m) / (sum(p) + sum(m)) with the mask m and the probabilities p, from 0 to 1: about the Dice that is to
    be expected if the probabilities are right (soft Dice confidence: Borges, Pacheco and Silva 2024, arXiv
    2402.10665). It is that of the network's answer on its own grid, before the mask is brought back and cleaned. A
    class that is nowhere in the mask has none.

    Args:
        classes: names of the channels but the first, which is the background; with "sigmoid" of all channels.
        regions: name -> channels that make it up; with "softmax" alone.
        activation: "softmax" of exclusive classes, or "sigmoid" of channels of their own.
        threshold: of a channel of its own, above which it is in the mask.
        labels: with "softmax", what makes the mask (1HWD class indices) of the logits `pred` (NHWD).

    Raises:
        ValueError: for another activation.
    """

    def __init__(
        self,
        classes: Sequence[str],
        regions: Mapping[str, Sequence[int]] | None = None,
        activation: str = "softmax",
        threshold: float = 0.5,
        labels: Callable[[torch.Tensor], torch.Tensor] = argmax_labels,
    ) -> None:
        if activation not in ("softmax", "sigmoid"):
            raise ValueError(f'activation must be "softmax" or "sigmoid", got {activation!r}.')
        first = 0 if activation == "sigmoid" else 1
        self.parts = {name: [channel] for channel, name in enumerate(classes, first)}
        if activation == "softmax":
            self.parts |= {name: [int(channel) for channel in which] for name, which in (regions or {}).items()}
        self.activation = activation
        self.threshold = threshold
        self.labels = labels

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Add the numbers to a copy of `data`."""
        logits = torch.as_tensor(data["pred"])
        n = len(logits)
        shared = torch.zeros(n, n, dtype=torch.float64)  # sum of channel i's probabilities in channel j's mask
        masses, sizes = torch.zeros(n, dtype=torch.float64), torch.zeros(n, dtype=torch.float64)
        for slab in logits.split(_SLAB, dim=1):
            plain = slab.flatten(1).float()
            if self.activation == "softmax":
                p = plain.softmax(0)
                m = self.labels(plain) == torch.arange(n, device=plain.device)[:, None]
            else:
                p = plain.sigmoid()
                m = p > self.threshold
            mask = m.float()
            shared += (p @ mask.T).cpu()
            masses += p.sum(1).cpu()
            sizes += mask.sum(1).cpu()
        found = {}
        for name, channels in self.parts.items():
            if (size := sizes[channels].sum()) > 0:
                both = shared[channels][:, channels].sum()
                found[name] = float(2 * both / (masses[channels].sum() + size))
        return {**data, "confidence": found}
