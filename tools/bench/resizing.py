"""What resizing to a uniform shape costs before any network is involved."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from monai.transforms import CropForeground

from bundlekit.brats import LoadCased, find_cases
from bundlekit.brats.lesions import SIZES, lesion_scores


def resizing(dataset_dir: str, uniform_shape: Sequence[int] = (128, 128, 128)) -> None:
    """Lesion-wise scores of the references themselves, resized to a uniform shape and back: no network can do better.

    Args:
        dataset_dir: folder of labelled cases of metastases.
        uniform_shape: voxels, of the volume cropped to the brain.
    """
    load = LoadCased()
    totals: dict[str, list[float]] = {size: [] for size in SIZES}
    spurious = 0
    cases: list[Any] = find_cases(dataset_dir)
    for case in cases:
        data = load(case)
        spacing = np.linalg.norm(np.asarray(data["image"].affine)[:3, :3], axis=0)
        low, high = CropForeground(allow_smaller=True).compute_bounding_box(data["image"])
        box = tuple(slice(int(a), int(b)) for a, b in zip(low, high, strict=True))
        truth = np.asarray(data["label"])[0][box]
        there = _resize(truth, [int(n) for n in uniform_shape])
        back = _resize(there, list(truth.shape))
        found = lesion_scores(back > 0, truth > 0, spacing.tolist())
        spurious += found.n_false_positives
        for lesion in found.lesions:
            totals[lesion.size].append(lesion.dice)
    print(f"{len(cases)} cases, whole tumour, resized to {'x'.join(map(str, uniform_shape))} and back")
    for size, dice in totals.items():
        if dice:
            lost, missed = sum(value < 0.7 for value in dice), dice.count(0)
            print(
                f"{size:<14}{len(dice):4d} lesions  mean Dice {np.mean(dice):.3f}  below 0.7: {lost}  missed: {missed}"
            )
    print(f"false positives: {spurious}")


def _resize(label: np.ndarray, shape: list[int]) -> np.ndarray:
    volume = torch.from_numpy(label.astype(np.float32))[None, None]
    return torch.nn.functional.interpolate(volume, shape, mode="nearest-exact")[0, 0].numpy().astype(np.uint8)
