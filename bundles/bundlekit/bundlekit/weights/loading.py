"""Weights into a network: the right ones, whole, or an error that says what is wrong."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.networks import copy_model_state
from torch import nn

from bundlekit.errors import BundleError, Finding
from bundlekit.weights.shipped import check_shipped

_log = logging.getLogger(__name__)


class LoadWeights:
    """MONAI handler: load the network before an evaluator (or a trainer that fine-tunes) starts.

    Args:
        path: `model.pt` or `last.pt`.
        network: to load into, without its distributed wrapper.
    """

    def __init__(self, path: str, network: nn.Module) -> None:
        self.path = path
        self.network = network

    def attach(self, engine: Engine) -> None:
        """Register with an evaluator or a trainer."""
        engine.add_event_handler(Events.STARTED, self)

    def __call__(self, engine: Engine) -> None:
        """Load the weights.

        Raises:
            BundleError: as `load_weights` does, or if the engine is a trainer that goes on with a run already.
        """
        if engine.state.iteration:
            raise BundleError(
                "finetune.yaml comes after resume.yaml in --config_file, and would put the weights it starts from in "
                "place of those of the run. Put resume.yaml last."
            )
        load_weights(self.network, self.path)
        _log.info("loaded %s", self.path)


def read_checkpoint(path: str) -> dict[str, Any]:
    """Content of a checkpoint, read without running any code from it.

    Raises:
        BundleError: if it is missing or damaged.
    """
    if not Path(path).is_file():
        raise BundleError(
            Finding(
                path,
                "no such file",
                "a checkpoint",
                "train first, or name the file (inference: --checkpoint, --lowres; fine-tuning: --pretrained; "
                "--warm_start; --resume_from)",
            )
        )
    check_shipped(path)
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(saved, dict):
            raise TypeError(f"holds a {type(saved).__name__}")
        return saved
    except Exception as error:  # a dozen types for what is one thing to the user
        raise BundleError(
            Finding(path, f"cannot be read ({type(error).__name__})", "a whole PyTorch checkpoint", "copy it again")
        ) from error


def read_weights(path: str) -> dict[str, torch.Tensor]:
    """The network's state dict: all of `model.pt`, a part of `last.pt`; raises `BundleError` as `read_checkpoint`."""
    saved = read_checkpoint(path)
    return saved.get("model", saved)


def load_weights(network: nn.Module, path: str) -> None:
    """Load a checkpoint strictly; raises `BundleError` as `read_checkpoint` and `load_network` do."""
    load_network(network, read_weights(path), path)


def load_matching(network: nn.Module, path: str | None) -> None:
    """Begin with what another network has learned: every layer that it has in common is copied, the others stay.

    MONAI's `CheckpointLoader` with `strict_shape=False` does so for checkpoints of several objects; of a plain state
    dict, as bundles ship, it copies nothing (MONAI 1.6.1).

    Args:
        network: changed in place.
        path: of the other network's checkpoint; None: the network stays as it is.

    Raises:
        BundleError: as `read_checkpoint`; if no layer has a name and shape in common, or values are not finite.
    """
    if path is None:
        return
    state = read_weights(path)
    _refuse_no_weights(state, path)
    _, copied, left = copy_model_state(network, state)
    if not copied:
        found = f"another network ({', '.join(list(state)[:3])}, ...)"
        raise BundleError(
            Finding(path, found, "one with layers of this network's names and shapes", "give another file, or none")
        )
    level = logging.INFO if len(copied) > len(left) else logging.WARNING  # the network may be meant to be another
    _log.log(level, "%s: %d tensors are taken over, %d begin anew", path, len(copied), len(left))


def load_network(network: nn.Module, state: Mapping[str, torch.Tensor], path: str) -> None:
    """Load a state dict strictly.

    Args:
        network: to load into; unchanged if the state does not fit. Its `identify(state)`, if it has one, says what a
            state dict belongs to: a description and the settings that give that network, ("", "") if it does not know;
            its `translate(state)` gives the state dict that is loaded, for a network that takes those of a kin.
        state: of the same network.
        path: of the file, for the message.

    Raises:
        BundleError: if the state belongs to another network or other widths, holds anything but tensors, or values
            that are not finite.
    """
    _refuse_no_weights(state, path)
    translate: Any = getattr(network, "translate", dict)
    given, state = state, translate(state)
    expected: Mapping[str, torch.Tensor] = network.state_dict()
    wrong = [k for k in expected if k not in state or state[k].shape != expected[k].shape]
    extra = [k for k in state if k not in expected]
    if not wrong and not extra:
        network.load_state_dict(state)
        if len(state) < len(given):
            left = len(given) - len(state)
            _log.warning(
                "%s: %d values of another normalisation are left out; train the network before use", path, left
            )
        return
    identify: Any = getattr(network, "identify", lambda state: ("", ""))
    (found, setting), (wanted, own_setting) = identify(given), identify(expected)
    fix = "use a checkpoint of this bundle"
    if not found:
        found = f"another network ({', '.join(list(state)[:3])}, ...)"
    elif setting != own_setting:
        fix = f"give what it was trained with: {setting}"
    elif found == wanted:
        found += f" that differs in {(wrong + extra)[0]}"
    raise BundleError(Finding(path, found, wanted or type(network).__name__, fix))


def _refuse_no_weights(state: Any, path: str) -> None:
    if not isinstance(state, Mapping) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        found = "values that are no tensors"
        raise BundleError(Finding(path, found, "the weights of a network", "use a checkpoint of this bundle"))
    broken = broken_weights(state)
    if broken:
        raise BundleError(
            Finding(
                path,
                f"NaN or infinite values in {len(broken)} of {len(state)} tensors, {broken[0]} the first",
                "finite weights",
                "its training diverged: use an earlier checkpoint, or train again with a lower --learning_rate",
            )
        )


def broken_weights(state: Mapping[str, torch.Tensor]) -> list[str]:
    """Names of the tensors of a state dict that hold NaN or infinite values."""
    return [name for name, value in state.items() if value.is_floating_point() and not bool(value.isfinite().all())]
