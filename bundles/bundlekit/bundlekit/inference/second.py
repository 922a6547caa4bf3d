"""A second network beside the one that sees windows at full resolution: one that sees more of the body, coarsely."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bundlekit.errors import BundleError, Finding, other_settings
from bundlekit.inference.windows import ForegroundInferer
from bundlekit.weights.loading import load_weights
from bundlekit.weights.settings import AFTER_TRAINING, read_settings

_log = logging.getLogger(__name__)
_USUAL = "lowres.pt"  # name of a second network beside a first one


class TwoNetworkInferer(ForegroundInferer):
    """`ForegroundInferer`, with a second network that its subclasses ask for their purpose.

    Args:
        roi_size: of a window of the first network, voxels along H, W, D.
        lowres: checkpoint of the second network, read when first needed; None: there is none.
        lowres_network: whose weights they are.
        lowres_window: of the second network, voxels along H, W, D at its resolution.
        lowres_kwargs: of its `ForegroundInferer`.
        kwargs: of `ForegroundInferer`; flips, batch size, runtime and precision are those of both networks, the others
            of the first alone.

    Raises:
        ValueError: for `lowres` without a network.
    """

    lowres_windows_are_several = False  # of most volumes
    lowres_kind = "a network of its own kind"  # what a file has to hold
    lowres_fix = "give one that was trained with these"  # what to do about one that was not

    def __init__(
        self,
        roi_size: Sequence[int],
        lowres: str | None,
        lowres_network: nn.Module | None,
        lowres_window: Sequence[int],
        lowres_kwargs: Mapping[str, Any],
        **kwargs: Any,
    ) -> None:
        super().__init__(roi_size=roi_size, **kwargs)
        if lowres is not None and lowres_network is None:
            raise ValueError("lowres needs lowres_network, the network that its weights are of.")
        self.lowres = lowres
        self.lowres_network = lowres_network
        shared = ("flips", "sw_batch_size", "runtime", "precision", "bf16")
        same = {key: kwargs[key] for key in shared if key in kwargs}
        self.whole = ForegroundInferer(lowres_window, progress=False, **same, **lowres_kwargs)
        if self.whole.runtime is not None:
            self.whole.runtime.whose = "the second network"
        self._loaded = False

    def prepare(self, network: nn.Module, in_channels: int, several: bool = True) -> None:
        """As `ForegroundInferer.prepare`, for both networks, the second one first."""
        if self.lowres is not None:
            self.whole.prepare(
                self.second(next(network.parameters()).device), in_channels, self.lowres_windows_are_several
            )
        super().prepare(network, in_channels, several)

    def trained_for(self) -> Mapping[str, Any]:
        """Settings that the second network has to have been trained with, by their names in `settings.json`."""
        return {}

    def second(self, device: torch.device) -> nn.Module:
        """The second network with its weights, on a device, in evaluation mode.

        Raises:
            BundleError: if the checkpoint cannot be read, belongs to another network, or to one that was trained on
                images prepared in another way, where the settings beside it say so.
        """
        assert self.lowres is not None
        assert self.lowres_network is not None
        if not self._loaded:
            self._require_same_preparation(self.lowres)
            try:
                load_weights(self.lowres_network, self.lowres)
            except BundleError as error:
                message = f"{error}\n    as:       the second network (--lowres): {self.lowres_kind}"
                raise BundleError(message, ends_run=True) from error
            _log.info("loaded %s as the second network", self.lowres)
            self._loaded = True
        return self.lowres_network.to(device).eval()

    def _require_same_preparation(self, lowres: str) -> None:
        recorded, now = read_settings(lowres), self.trained_for()
        chosen = recorded.get(AFTER_TRAINING, {})
        recorded |= chosen
        if Path(lowres).name in (chosen.get("lowres"), _USUAL):  # beside a first network, whose settings the others are
            recorded = {name: value for name, value in recorded.items() if name.startswith("lowres")}
        differing = [name for name, value in now.items() if name in recorded and recorded[name] != value]
        if differing:
            what = "a second network trained"
            raise BundleError(other_settings(lowres, what, differing, recorded, now, self.lowres_fix), ends_run=True)


def lowres_beside(checkpoint: str | os.PathLike, settings: Mapping[str, Any], cost: str) -> str | None:
    """The second network's file, which lies beside a checkpoint whose `settings.json` names it; None for none.

    Args:
        checkpoint: `model.pt` of the first network.
        settings: recorded with it; `lowres` is the name of a file.
        cost: what going without it costs, for the message.

    Raises:
        BundleError: if it is not there, or the name is that of a file elsewhere.
    """
    name = settings.get("lowres")
    if name is None:
        return None
    file = Path(checkpoint).parent / str(name)
    expected = f"the network at low resolution that settings.json names as lowres: {name}"
    if file.name != str(name):
        raise BundleError(Finding(str(file), "a file of another folder", "one beside the checkpoint", "copy it there"))
    if not file.is_file():
        fix = f"copy it, too, or go without: --lowres '$None', with the quotes ({cost})"
        raise BundleError(Finding(str(file), "no such file", expected, fix))
    return str(file)
