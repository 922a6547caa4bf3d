"""Virtual gliomas made during training: what they cost beside the training step that consumes them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from bundlekit.bfloat16 import BFloat16Inferer
from bundlekit.virtual.anatomy import maps_of
from bundlekit.virtual.patches import Glioma
from tools.bundles import parse


def gliomas(
    patch_size: Sequence[int] = (64, 64, 64),
    channels: Sequence[int] = (16, 32, 64, 128, 256),
    patches_per_case: int = 2,
    label_map: str | None = None,
    repeats: int = 3,
    bf16: bool | None = None,
) -> None:
    """Seconds to make a virtual patient and a patch of it, and of the training step with these patches.

    All on one device: the GPU if there is one. The step is in half precision where training has it: on a GPU, and on a
    CPU that computes bfloat16.

    Args:
        patch_size: voxels of 1 mm.
        channels: widths of the Res-UNet.
        patches_per_case: of a patient; together they are the batch.
        label_map: file in FreeSurfer's numbering; None: the head of ICBM152.
        repeats: the best of them counts, after one that does not; each is another patient.
        bf16: as in `train.yaml`, of the step on a CPU; False: single precision.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    size = tuple(int(n) for n in patch_size)
    maps = maps_of(label_map).to(device)
    parser = parse("brats_resunet", "train.yaml", channels=list(channels), device=str(device))
    network, loss = parser.get_parsed_content("network").train(), parser.get_parsed_content("loss")
    inferer = BFloat16Inferer(bf16)
    seconds = dict.fromkeys(("patient", "patch", "training step"), float("inf"))

    def timed(name: str, parts: int, work: Callable[[], Any]) -> Any:
        start = time.perf_counter()
        result = work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        if number:
            seconds[name] = min(seconds[name], (time.perf_counter() - start) / parts)
        return result

    def step(images: torch.Tensor, labels: torch.Tensor) -> None:
        with torch.autocast(device.type, enabled=device.type == "cuda"):
            loss(inferer(images, network), labels).backward()

    for number in range(repeats + 1):
        glioma = timed("patient", 1, lambda seed=number: Glioma(seed, maps))  # type: ignore[misc]
        made = timed(
            "patch",
            patches_per_case,
            lambda g=glioma: [g.patch(size, 0.7) for _ in range(patches_per_case)],  # type: ignore[misc]
        )
        images, labels = (torch.stack(parts) for parts in zip(*made, strict=True))
        timed("training step", 1, lambda i=images, t=labels: step(i, t))  # type: ignore[misc]
    print(
        f"{patches_per_case} x 4 x {'x'.join(map(str, size))}, channels {list(channels)}, {device.type}, "
        f"{'bf16' if inferer.enabled and device.type == 'cpu' else 'mixed' if device.type == 'cuda' else 'f32'}, "
        f"{torch.get_num_threads()} threads"
    )
    for name, cost in seconds.items():
        print(f"{name:<15}{cost:8.3f} s")
    share = (seconds["patient"] + patches_per_case * seconds["patch"]) / seconds["training step"]
    print(f"a batch takes {100 * share:.0f} % of the time of its training step")
