"""Cost of the Res-UNet beside MONAI's DynUNet of the same widths."""

from __future__ import annotations

import multiprocessing
import resource
import time
from collections.abc import Sequence

import torch
from monai.losses import DeepSupervisionLoss, DiceLoss
from monai.networks.nets import DynUNet
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from tools.bundles import component


def network(
    patch_size: Sequence[int] = (96, 96, 96),
    channels: Sequence[int] = (32, 64, 128, 256, 512),
    batch_size: int = 1,
    step: bool = True,
) -> None:
    """FLOPs of a plain forward pass, and time and peak memory of a training step: the Res-UNet and MONAI's DynUNet.

    DynUNet has the same widths, residual blocks, instance norm and supervision at 1/2 and 1/4 resolution. On a GPU
    the peak is PyTorch's, in mixed precision; on a CPU it is the process's, each step in a process of its own.

    Args:
        patch_size: voxels.
        channels: widths from full resolution to the bottleneck.
        batch_size: patches.
        step: whether to run the training step too (half a minute on two cores at full width).
    """
    print(f"batch {batch_size} x 4 x {'x'.join(map(str, patch_size))}, channels {list(channels)}")
    for name in ("ResUNet", "DynUNet"):
        with torch.device("meta"):
            model = _build(name, channels).eval()
            x = torch.empty(1, 4, *patch_size)
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            model(x)
        parameters = sum(p.numel() for p in model.parameters()) / 1e6
        line = f"{name:<9}{counter.get_total_flops() / 1e9:8.1f} GFLOP forward{parameters:8.2f} M parameters"
        if step:
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                seconds, gib = pool.apply(_step, (name, tuple(patch_size), tuple(channels), batch_size))
            line += f"{seconds:8.2f} s a step{gib:8.2f} GiB peak"
        print(line)


def _build(name: str, channels: Sequence[int]) -> nn.Module:
    if name == "ResUNet":
        return component("brats_resunet", "inference.yaml", "network_def")(channels=channels)
    n = len(channels)
    return DynUNet(
        3, 4, 4, [3] * n, [1] + [2] * (n - 1), [2] * (n - 1), filters=list(channels), res_block=True,
        norm_name="instance", deep_supervision=True, deep_supr_num=2,
    )  # fmt: skip


def _step(name: str, patch_size: Sequence[int], channels: Sequence[int], batch_size: int) -> tuple[float, float]:
    """Seconds and GiB of the second of two training steps."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = _build(name, channels).to(device).train()
    optimizer = torch.optim.AdamW(model.parameters())
    criterion = DeepSupervisionLoss(DiceLoss(softmax=True, to_onehot_y=True), weights=[1.0, 0.5, 0.25])
    x = torch.rand(batch_size, 4, *patch_size, device=device)
    y = torch.randint(0, 4, (batch_size, 1, *patch_size), device=device).float()
    seconds = 0.0
    for _ in range(2):
        start = time.perf_counter()
        optimizer.zero_grad()
        with torch.autocast(device.type, enabled=device.type == "cuda"):
            out = model(x)
            out = list(torch.unbind(out, dim=1)) if isinstance(out, torch.Tensor) else out  # DynUNet stacks its heads
            loss = criterion(out, y)
        loss.backward()
        optimizer.step()
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds = time.perf_counter() - start
    if device.type == "cuda":
        return seconds, torch.cuda.max_memory_allocated() / 2**30
    return seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
