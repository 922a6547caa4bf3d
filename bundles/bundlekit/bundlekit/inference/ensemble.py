"""The networks of a cross-validation as one: the mean of their probabilities."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from monai.inferers import Inferer
from torch import nn

from bundlekit.errors import BundleError, Finding
from bundlekit.weights.loading import load_network, read_weights
from bundlekit.weights.settings import SETTINGS, trained_settings

_NETWORKS = {"best": "model.pt", "last": "last.pt"}
_log = logging.getLogger(__name__)


def fold_checkpoints(cv_dir: str, num_folds: int, which: str = "best") -> list[str]:
    """`fold_0/model.pt` to the last fold's, as cross-validation leaves them in `cv_dir`.

    Args:
        cv_dir: of the cross-validation.
        num_folds: of it.
        which: "best", `model.pt`, or "last", `last.pt`.

    Raises:
        ValueError: for another network.
        BundleError: if one is missing, or was trained with other settings than the first. Settings that are chosen
            after training may differ: the first fold's are used unless others are given.
    """
    if which not in _NETWORKS:
        raise ValueError(f"which is {which!r}; expected {' or '.join(_NETWORKS)}.")
    files = [Path(cv_dir, f"fold_{fold}", _NETWORKS[which]) for fold in range(num_folds)]
    missing = [file for file in files if not file.is_file()]
    if missing:
        raise BundleError(
            [
                Finding(
                    str(file),
                    "no such file",
                    f"the network of this fold, since num_folds is {num_folds}",
                    "train this fold, or set --cv_dir and --num_folds as in training",
                )
                for file in missing
            ]
        )
    settings = [settings_text(file) for file in files]
    for file, own in zip(files, settings, strict=True):
        if own != settings[0]:
            raise BundleError(
                Finding(
                    str(file.parent / SETTINGS),
                    f"a network trained with {own}",
                    f"the settings of {files[0].parent.name}: {settings[0]}",
                    "train all folds with the same settings",
                )
            )
    return [str(file) for file in files]


class EnsembleInferer(Inferer):
    """Run an inferer once for each of several checkpoints of one network, and average the probabilities.

    The networks take turns in the one that is on the device: memory is that of a single network, and their weights
    wait in main memory. What comes out are logits again, so that everything after it is as for one network.

    Args:
        inferer: for a single network; its test-time flips are averaged before the probabilities are.
        network: the network that the evaluator calls, without any wrapper.
        checkpoints: of that network.
        activation: "softmax" for exclusive classes, "sigmoid" for channels of their own.

    Raises:
        ValueError: for another activation, or no checkpoint.
        BundleError: when first called, if a checkpoint cannot be read or belongs to another network.
    """

    def __init__(
        self, inferer: Inferer, network: nn.Module, checkpoints: Sequence[str], activation: str = "softmax"
    ) -> None:
        super().__init__()
        if activation not in ("softmax", "sigmoid"):
            raise ValueError(f'activation must be "softmax" or "sigmoid", got {activation!r}.')
        if not checkpoints:
            raise ValueError("checkpoints must name at least one file, got none.")
        self.inferer = inferer
        self.network = network
        self.checkpoints = list(checkpoints)
        self.activation = activation
        if (runtime := getattr(inferer, "runtime", None)) is not None:
            runtime.networks = len(self.checkpoints)
        self._states: list[dict[str, torch.Tensor]] = []

    @property
    def computed_by(self) -> str:
        """As `ForegroundInferer.computed_by`."""
        return getattr(self.inferer, "computed_by", "")

    def __call__(  # type: ignore[override]
        self, inputs: torch.Tensor, network: Callable[..., torch.Tensor], *args: object, **kwargs: object
    ) -> torch.Tensor:
        """Logits BNHWD of `inputs` (BCHWD) whose softmax, or sigmoid, is the mean of the networks' probabilities."""
        if not self._states:
            _log.info("ensemble of %d networks: %s", len(self.checkpoints), ", ".join(self.checkpoints))
            self._states = [read_weights(path) for path in self.checkpoints]
        total: torch.Tensor | None = None
        for state, path in zip(self._states, self.checkpoints, strict=True):
            load_network(self.network, state, path)
            torch.clear_autocast_cache()  # of the half-precision weights of the network before
            logits = self.inferer(inputs, network, *args, **kwargs).float()
            part = logits.softmax(1) if self.activation == "softmax" else logits.sigmoid()
            total = part if total is None else total.add_(part)
        assert total is not None
        mean = total.div_(len(self._states))
        tiny = 1e-6 if self.activation == "sigmoid" else 1e-30  # 1 - 1e-6 is a float32, 1 - 1e-30 is 1
        return mean.clamp_(min=tiny).log_() if self.activation == "softmax" else mean.logit(eps=tiny)


def settings_text(checkpoint: Path) -> str:
    """The settings recorded beside a checkpoint, as text: the order of a mapping counts too.

    What is off is left out: an earlier version did not record what it did not have.
    """
    return json.dumps({name: value for name, value in trained_settings(checkpoint).items() if value not in (None, 0)})
