"""Tiny cases, transforms that note what they see, and what of it makes patches."""

from __future__ import annotations

import os
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.transforms import (
    CastToTyped,
    Compose,
    CropForegroundd,
    NormalizeIntensityd,
    RandFlipd,
    RandScaleIntensityd,
    Transform,
)

from bundlekit.brats.reading import LoadCased
from bundlekit.brats.sampling import TumourCentredCropd, TumourVoxelsd

torch.set_num_threads(1)


CACHES = ["disk", "memory", "none"]


PATCH = (6, 6, 6)


class Seen(Transform):
    """Passes cases on and notes which; `setting` stands for any argument of a transform."""

    cases: list[str] = []  # noqa: RUF012 (of the class, as transforms are copied)

    def __init__(self, setting: object = 0) -> None:
        self.setting = setting

    def __call__(self, data: Mapping[Hashable, Any]) -> Mapping[Hashable, Any]:
        self.cases.append(data["case"])
        return data


@pytest.fixture(autouse=True)
def seen() -> list[str]:
    Seen.cases.clear()
    return Seen.cases


@pytest.fixture(scope="module")
def shared_cases(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Three cases of 14x12x10 voxels with air around the brain; not to be changed."""
    return [write_case(tmp_path_factory.mktemp("cases"), number) for number in range(3)]


@pytest.fixture
def case(tmp_path: Path) -> dict[str, Any]:
    """One case that a test may change."""
    return write_case(tmp_path, 0)


def write_case(folder: Path, number: int) -> dict[str, Any]:
    rng = np.random.default_rng(number)
    label = np.zeros((14, 12, 10), np.uint8)
    label[4:8, 4:7, 3:6] = rng.choice([1, 2, 4], size=(4, 3, 3))
    files = []
    for name in ("t1", "t1ce", "t2", "flair", "seg"):
        volume = np.zeros(label.shape, np.int16)
        volume[2:13, 1:11, 1:9] = rng.integers(100, 1000, (11, 10, 8))
        volume = label if name == "seg" else volume
        files.append(str(folder / f"case{number}_{name}.nii.gz"))
        nib.save(nib.Nifti1Image(volume, np.eye(4)), files[-1])
    return {
        "case": f"case{number}",
        "patient": f"case{number}",
        "image": files[:4],
        "channels": [0, 1, 2, 3],
        "label": files[4],
        "label_values": [0, 1, 2, 4],
        "subset": "",
    }


def prepare(*further: Transform) -> list[Transform]:
    return [
        LoadCased(),
        CropForegroundd(keys=["image", "label"], source_key="image", allow_smaller=True),
        NormalizeIntensityd(keys="image", nonzero=True, channel_wise=True),
        CastToTyped(keys="image", dtype=torch.float16),
        *further,
    ]


def patches(*further: Transform) -> Compose:
    return Compose(
        [
            *prepare(*further),
            TumourVoxelsd(),
            TumourCentredCropd(PATCH),
            RandFlipd(keys=["image", "label"], prob=0.5, spatial_axis=0),
            RandScaleIntensityd(keys="image", prob=0.5, factors=0.1, channel_wise=True),
        ]
    )


def volumes(*further: Transform) -> Compose:
    return Compose(prepare(*further))


def same(first: Mapping[str, Any], second: Mapping[str, Any]) -> bool:
    assert set(first) == set(second)
    return all(
        torch.equal(torch.as_tensor(value), torch.as_tensor(second[key])) if torch.is_tensor(value) else True
        for key, value in first.items()
    )


def files_in(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))
