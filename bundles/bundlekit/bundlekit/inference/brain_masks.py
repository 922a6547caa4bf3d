"""Take the skull from a scan with the network of the bundle `brain_mask_unet`, through its configs."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser
from monai.data import MetaTensor, decollate_batch
from monai.transforms import Compose, Transform

from bundlekit.configs import refuse_hash
from bundlekit.errors import BundleError, Finding, bundle_error_in
from bundlekit.images.nifti import voxel_ml
from bundlekit.images.stripping import LARGEST_BRAIN_ML, whole_head
from bundlekit.weights.loading import load_weights

_log = logging.getLogger(__name__)
_LEAST_ML = 400.0  # a newborn's brain, or one that the field of view cuts in half
_CONFIGS = ("inference.yaml", "inference.json")


class StripSkulld(Transform):
    """Set to 0 what lies outside of the brain, in scans that have their skull; stripped ones stay as they are.

    A scan is `image`: 1HWD `MetaTensor`; air that has one value is 0. It has its skull if more than a brain's volume is
    not air of one value, see `bundlekit.images.stripping`; without the skull it has `skull_stripped` in its `meta`. The
    mask is that of another bundle: its `inference.yaml` says how a scan is prepared, computed and brought back to its
    grid, from the second step of its `preprocessing` on; its weights are loaded with the first scan that needs them.

    Args:
        bundle: folder of `brain_mask_unet`, with its weights.
        margin_mm: by how much its mask grows.
        device: that computes.
        settings: other values of its `inference.yaml`, e.g. `precision`.

    Raises:
        BundleError: while running, if what is found cannot be a brain; if the folder or its weights cannot be used, one
            that ends the run.
    """

    def __init__(
        self,
        bundle: str | os.PathLike[str],
        margin_mm: float = 0.0,
        device: torch.device | str = "cpu",
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        self.bundle = Path(bundle)
        self.settings = {**(settings or {}), "margin_mm": margin_mm, "device": str(device)}
        self._parts: tuple[Compose, Any, Any, Compose, torch.device] | None = None

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Strip the scan of `data`."""
        image = data["image"]
        found = whole_head(image[0].numpy(), voxel_ml(image.affine))
        if not found:
            return dict(data)
        brain = self.mask(image)
        volume_ml = float(brain.sum()) * voxel_ml(image.affine)
        if not _LEAST_ML <= volume_ml <= LARGEST_BRAIN_ML:
            told = f"a brain mask of {volume_ml:.0f} ml" if volume_ml else "no brain"
            expected = f"a head whose brain has {_LEAST_ML:.0f} to {LARGEST_BRAIN_ML:.0f} ml"
            fix = "look at the scan; strip the skull with another program, e.g. SynthStrip"
            raise BundleError(Finding(str(data.get("source", "")), told, expected, fix))
        _log.info("%s: %s; what is left is the brain, %.0f ml", data.get("source", "a scan"), found, volume_ml)
        plain = image.as_tensor()
        plain = plain - plain[brain].min().clamp(max=0)  # air is the smallest value then, as around any stripped brain
        stripped = torch.where(brain, plain, 0)
        meta = {**image.meta, "skull_stripped": True}
        return {**data, "image": MetaTensor(stripped, meta=meta, applied_operations=list(image.applied_operations))}

    def mask(self, image: MetaTensor) -> torch.Tensor:
        """The brain of a scan (1HWD `MetaTensor`) on its own grid: 1HWD bool.

        Raises:
            BundleError: that ends the run, if the folder is not that of the bundle, or its weights cannot be used.
        """
        if self._parts is None:
            try:
                self._parts = self._load()
            except (RuntimeError, ValueError) as error:
                message = bundle_error_in(error)
                if message is None:
                    raise
                raise BundleError(message, ends_run=True) from error
        prepare, inferer, network, finish, device = self._parts
        plain = MetaTensor(image.as_tensor(), affine=image.affine)
        item: Any = prepare({"image": plain})
        with torch.no_grad():
            logits = inferer(item["image"][None].to(device), network)
        item["pred"] = decollate_batch(logits)[0]
        return finish(item)["pred"].as_tensor().cpu() > 0

    def _load(self) -> tuple[Compose, Any, Any, Compose, torch.device]:
        parser, checkpoint = mask_configs(self.bundle, self.settings)
        parser["preprocessing::transforms::0"] = {"_target_": "Identityd", "keys": "image"}  # it is read already
        network = parser.get_parsed_content("network_def")
        load_weights(network, checkpoint)
        device = torch.device(self.settings["device"])
        return (
            parser.get_parsed_content("preprocessing"),
            parser.get_parsed_content("inferer"),
            network.to(device).eval(),
            parser.get_parsed_content("postprocessing"),
            device,
        )


def mask_configs(bundle: Path, settings: Mapping[str, Any]) -> tuple[ConfigParser, str]:
    """The configs and the file of weights that `StripSkulld` takes from the folder of `brain_mask_unet`.

    Args:
        bundle: the folder.
        settings: other values of its `inference.yaml`.

    Raises:
        BundleError: if it is another folder, or has no weights.
    """
    file = next((bundle / "configs" / name for name in _CONFIGS if (bundle / "configs" / name).is_file()), None)
    if file is None:
        expected = "the folder of the bundle brain_mask_unet"
        fix = "unpack its zip there, or name its folder: --mask_bundle DIR"
        raise BundleError(Finding(str(bundle), "no configs/inference.yaml", expected, fix))
    if str(bundle) not in sys.path:
        sys.path.append(str(bundle))  # its package, where it is not installed
    parser = ConfigParser()
    parser.read_config(str(file))
    for name, value in {"bundle_root": str(bundle), **settings}.items():
        refuse_hash(name, value)
        parser[name] = value
    checkpoint = parser.get_parsed_content("checkpoint")
    if not Path(checkpoint).is_file():
        fix = "take the bundle's zip, or name a folder that has them: --mask_bundle DIR"
        raise BundleError(Finding(checkpoint, "no such file", "the weights of the brain masks", fix))
    return parser, checkpoint
