"""How many training patches per second of processor time the loader gives."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from monai.data import CacheDataset, Dataset, PersistentDataset
from monai.transforms import (
    Compose,
    EnsureChannelFirstd,
    LoadImaged,
    MapLabelValued,
    NormalizeIntensityd,
    RandCropByPosNegLabeld,
)

from bundlekit import PatchDataset
from bundlekit.brats import TumourCentredCropd
from bundlekit.virtual import brats
from tools.bundles import find_cases_of, parse


def loader(
    dataset_dir: str | None = None,
    bundle: str = "brats_resunet",
    patch_size: Sequence[int] = (96, 96, 96),
    patches: int = 40,
    rounds: int = 3,
) -> None:
    """Patches per second of processor time, on one thread, from a warm cache: MONAI's usual pipeline and the bundle's.

    Same cases, normalisation and augmentation in all rows; the rows take turns, the best of the rounds counts.

    Args:
        dataset_dir: folder of cases; four virtual ones of 240x240x155 voxels if not given.
        bundle: whose train.yaml is measured.
        patch_size: voxels.
        patches: per row and round.
        rounds: how often the rows take turns.
    """
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        if dataset_dir is None:
            dataset_dir = str(Path(scratch, "cases"))
            brats(dataset_dir, cases=4)
        cases = find_cases_of(bundle)(dataset_dir)
        steps = parse(bundle, "train.yaml", patch_size=list(patch_size)).get_parsed_content("train::preprocessing")
        first = next(i for i, t in enumerate(steps.transforms) if isinstance(t, TumourCentredCropd))
        augment = list(steps.transforms[first + 1 :])
        usual = Compose(_usual(patch_size) + augment)
        ours = Compose(steps.transforms)
        rows: dict[str, Any] = {
            "MONAI Dataset": Dataset(_plain(cases), usual),
            "MONAI PersistentDataset": PersistentDataset(_plain(cases), usual, cache_dir=Path(scratch, "monai")),
            "MONAI CacheDataset": CacheDataset(_plain(cases), usual, progress=False),
            "PersistentDataset, our transforms": PersistentDataset(cases, ours, cache_dir=Path(scratch, "ours")),
            "CacheDataset, our transforms": CacheDataset(cases, ours, progress=False),
            "bundle, cache: disk": PatchDataset(cases, ours, cache_dir=str(Path(scratch, "disk"))),
            "bundle, cache: memory": PatchDataset(cases, ours, cache="memory"),
        }
        seconds = {name: float("inf") for name in rows}
        for _ in range(rounds):
            for name, dataset in rows.items():
                few = max(patches // 8, len(cases)) if name == "MONAI Dataset" else patches
                for index in range(len(cases)):
                    dataset[index]  # fills the cache
                start = time.process_time()
                for index in range(few):
                    dataset[index % len(cases)]
                seconds[name] = min(seconds[name], (time.process_time() - start) / few)
        print(f"{len(cases)} cases, patches of {'x'.join(map(str, patch_size))}, best of {rounds} rounds")
        for name, cost in seconds.items():
            print(f"{name:<36}{1 / cost:8.1f} patches per CPU second{seconds['MONAI Dataset'] / cost:8.1f} x")


def _plain(cases: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{"image": case["image"], "label": case["label"]} for case in cases]


def _usual(patch_size: Sequence[int]) -> list[Any]:
    """The pipeline most MONAI tutorials for BraTS have."""
    return [
        LoadImaged(["image", "label"]),
        EnsureChannelFirstd(["image", "label"]),
        MapLabelValued("label", [0, 1, 2, 4], [0, 1, 2, 3]),
        NormalizeIntensityd("image", nonzero=True, channel_wise=True),
        RandCropByPosNegLabeld(
            ["image", "label"], "label", patch_size, pos=1, neg=1, num_samples=1
        ),  # a list of one patch
    ]
