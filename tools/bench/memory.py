"""Memory of a training step, counted without computing it, and measured where there is a GPU."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks

from tools.bundles import parse

_MIB = 2**20


def memory(
    channels: Sequence[int] = (32, 64, 128, 256, 512),
    patch_size: Sequence[int] = (96, 96, 96),
    batch_size: int = 4,
    half: bool = True,
) -> None:
    """What a training step of the Res-UNet keeps in memory: for backward, and for weights, gradients and AdamW.

    Counted on tensors without content, so that any size fits on any machine: the storages that autograd keeps from
    network and loss, each once. Not counted is what an operation takes while it runs (the workspaces of cuDNN, the
    gradients of activations). On a GPU the peak of a real step is measured too.

    Args:
        channels: widths from full resolution to the bottleneck.
        patch_size: voxels.
        batch_size: patches.
        half: mixed precision.
    """
    for_forward, for_loss, state = counted(channels, patch_size, batch_size, half)
    kind = "half" if half else "single"
    print(f"batch {batch_size} x 4 x {'x'.join(map(str, patch_size))}, channels {list(channels)}, {kind} precision")
    print(f"kept for backward: network {for_forward / _MIB:.0f} MiB, loss {for_loss / _MIB:.0f} MiB")
    print(f"weights, gradients, AdamW: {state / _MIB:.0f} MiB")
    print(f"together {(for_forward + for_loss + state) / _MIB / 1024:.2f} GiB")
    if torch.cuda.is_available():
        peak = measured(channels, patch_size, batch_size, half, "cuda")
        print(f"measured on {torch.cuda.get_device_name()}: peak {peak / _MIB / 1024:.2f} GiB")
    else:
        print("no GPU here: nothing measured")


def counted(channels: Sequence[int], patch_size: Sequence[int], batch_size: int, half: bool) -> tuple[int, int, int]:
    """Bytes that network and loss keep for backward, and those of weights, gradients and two moments."""
    kept: dict[int, torch.UntypedStorage] = {}
    with FakeTensorMode():
        network, loss, image, label = _parts(channels, patch_size, batch_size, "cpu")
        own = {tensor.untyped_storage()._cdata for tensor in (image, *network.parameters())}

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage._cdata not in own:
                kept[storage._cdata] = storage  # alive, so that no other one gets its number
            return tensor

        with saved_tensors_hooks(keep, lambda tensor: tensor):
            with torch.autocast("cpu", torch.bfloat16, enabled=half):
                logits = network(image)
            of_network = sum(storage.nbytes() for storage in kept.values())
            loss([level.float() for level in logits], label)
        state = 4 * sum(parameter.numel() * parameter.element_size() for parameter in network.parameters())
    return of_network, sum(storage.nbytes() for storage in kept.values()) - of_network, state


def measured(channels: Sequence[int], patch_size: Sequence[int], batch_size: int, half: bool, device: str) -> int:
    """Bytes at the peak of a second training step on a GPU, cuDNN's workspaces included."""
    network, loss, image, label = _parts(channels, patch_size, batch_size, device)
    optimizer, scaler = torch.optim.AdamW(network.parameters()), torch.amp.GradScaler(device, enabled=half)
    torch.cuda.reset_peak_memory_stats(device)
    for _ in range(2):
        optimizer.zero_grad()
        with torch.autocast(device, enabled=half):
            value = loss(network(image), label)
        scaler.scale(value).backward()
        scaler.step(optimizer)
        scaler.update()
    return torch.cuda.max_memory_allocated(device)


def _parts(channels: Sequence[int], patch_size: Sequence[int], batch_size: int, device: str) -> tuple[Any, ...]:
    """Network, loss, and a batch of images and labels."""
    parser = parse("brats_resunet", "train.yaml", channels=list(channels), device=device)
    network, loss = parser.get_parsed_content("network_def").train(), parser.get_parsed_content("loss")
    network = network if device == "cpu" else network.to(device)  # tensors without content cannot be moved
    image = torch.randn(batch_size, 4, *patch_size, device=device)
    return network, loss, image, torch.zeros(batch_size, 1, *patch_size, dtype=torch.uint8, device=device)
