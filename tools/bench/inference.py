"""Time, memory and agreement of the ways to run the network over a whole case."""

from __future__ import annotations

import multiprocessing
import resource
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from monai.inferers import SlidingWindowInferer

from bundlekit import ForegroundInferer, argmax_labels
from bundlekit.brats import LoadCased
from bundlekit.weights.loading import load_network, read_checkpoint
from tools.bundles import parse

_WAYS = ("whole volume, windows", "cropped to the brain, windows", "cropped to the brain, one pass")


def inference(
    dataset_dir: str,
    checkpoint: str | None = None,
    channels: Sequence[int] = (32, 64, 128, 256, 512),
    patch_size: Sequence[int] = (96, 96, 96),
    overlap: float = 0.5,
    case: int = 0,
    threads: int = 1,
) -> None:
    """Seconds, peak memory and agreement of the ways over one case: windows over all, windows on the brain, one pass.

    Each way runs in a process of its own; the seconds are without decoding, the peak is of the whole process. Agreement
    is the share of brain voxels (any modality not 0) with the same class as the first way; give a trained checkpoint,
    or it says nothing.

    Args:
        dataset_dir: folder of cases.
        checkpoint: of a trained network; None: random weights, for the time alone.
        channels: widths of the network.
        patch_size: of a window, voxels.
        overlap: of neighbouring windows.
        case: which case of the folder, from 0.
        threads: of PyTorch.
    """
    reference: np.ndarray | None = None
    for way in _WAYS:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            job = (way, dataset_dir, checkpoint, tuple(channels), tuple(patch_size), overlap, case, threads)
            labels, brain, seconds, gib = pool.apply(_run, job)
        reference = labels if reference is None else reference
        tumour = (reference > 0) & brain
        both = (labels > 0) & brain
        dice = 2 * (tumour & both).sum() / max(int(tumour.sum() + both.sum()), 1)
        same = (labels == reference)[brain].mean()
        print(
            f"{way:<34}{seconds:8.1f} s{gib:7.2f} GiB peak   agreement in the brain {100 * same:.3f} %, "
            f"whole tumour Dice {dice:.4f}"
        )


def _run(
    way: str,
    dataset_dir: str,
    checkpoint: str | None,
    channels: Sequence[int],
    patch_size: Sequence[int],
    overlap: float,
    index: int,
    threads: int,
) -> tuple[np.ndarray, np.ndarray, float, float]:
    torch.set_num_threads(threads)
    parser = parse("brats_resunet", "inference.yaml", dataset_dir=dataset_dir, channels=list(channels))
    network = parser.get_parsed_content("network_def").eval()
    if checkpoint is not None:
        saved = read_checkpoint(checkpoint)
        load_network(network, saved.get("model", saved), checkpoint)
    steps = parser.get_parsed_content("preprocessing").transforms
    if way == _WAYS[0]:
        steps = [step for step in steps if type(step).__name__ != "CropForegroundd"]
    whole: Any = LoadCased(with_label=False)(parser.get_parsed_content("cases")[index])
    brain = np.any(np.asarray(whole["image"]), axis=0)
    data = whole
    for step in steps[1:]:
        data = step(data)
    if way == _WAYS[0]:
        inferer: Any = SlidingWindowInferer(patch_size, 1, overlap, mode="gaussian")
    else:
        inferer = ForegroundInferer(patch_size, overlap, whole_brain=way == _WAYS[2])
    start = time.perf_counter()
    with torch.no_grad():
        labels = argmax_labels(inferer(data["image"][None], network)[0])[0].numpy()
    seconds = time.perf_counter() - start
    full: np.ndarray = np.zeros(brain.shape, np.uint8)
    origin = [int(i) for i in data.get("foreground_start_coord", (0, 0, 0))]
    full[tuple(slice(o, o + n) for o, n in zip(origin, labels.shape, strict=True))] = labels
    return full, brain, seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
