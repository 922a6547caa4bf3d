"""Elastic deformation and painted images: what they cost beside TorchIO's and beside a training step."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from monai.transforms import RandTorchIOd

from bundlekit import RandDeformedPatchd
from bundlekit.label_maps.numberings import to_structures
from bundlekit.virtual import LabelPainter, StructureCountsd
from bundlekit.virtual.tissue import make_head
from tools.bundles import parse

matplotlib.use("Agg")
from matplotlib import pyplot as plt

_CONTROL_POINTS, _AMPLITUDE = 7, 0.47  # as in train.yaml


def deformation(
    patch_size: Sequence[int] = (96, 96, 96), channels: int = 4, repeats: int = 5, picture: str | None = None
) -> None:
    """Seconds of processor time, on one thread, to deform a patch: the bundle's own way and TorchIO's.

    Both displace by at most 0.47 of the distance between control points.

    Args:
        patch_size: voxels.
        channels: of the image; a label is deformed along.
        repeats: the best of them counts; the rows take turns.
        picture: PNG of both on a virtual head, written if given.
    """
    torch.set_num_threads(1)
    size = tuple(int(n) for n in patch_size)
    own, theirs = _own(size), _torchio(size)
    volume = {
        "image": torch.rand(channels, *(n + 32 for n in size)),
        "label": torch.ones(1, *(n + 32 for n in size), dtype=torch.uint8),
    }
    patch = {key: value[:, : size[0], : size[1], : size[2]].contiguous() for key, value in volume.items()}
    rows: dict[str, tuple[Callable[[Any], Any], Any]] = {
        "TorchIO RandomAffine": (theirs["RandomAffine"], patch),
        "TorchIO RandomElasticDeformation": (theirs["RandomElasticDeformation"], patch),
        "bundle: crop, affine and elastic in one": (own, volume),
    }
    seconds = dict.fromkeys(rows, float("inf"))
    for _ in range(repeats):
        for name, (transform, data) in rows.items():
            start = time.process_time()
            transform(dict(data))
            seconds[name] = min(seconds[name], time.process_time() - start)
    print(f"{channels} x {'x'.join(map(str, size))} and a label, one thread, best of {repeats}")
    both = seconds["TorchIO RandomAffine"] + seconds["TorchIO RandomElasticDeformation"]
    for name, cost in seconds.items():
        print(f"{name:<42}{cost:8.3f} s{both / cost:8.1f} x as fast as TorchIO's two")
    if picture is not None:
        _draw(Path(picture))


def painting(patch_size: Sequence[int] = (96, 96, 96), init_filters: int = 8, repeats: int = 3) -> None:
    """Seconds to make one image from a label map and to take a training step with it, on the same device.

    Args:
        patch_size: voxels.
        init_filters: width of the V-Net.
        repeats: the best of them counts.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    size = tuple(int(n) for n in patch_size)
    structures = to_structures(make_head(0, 0)["labels"], "virtual head")
    item: dict[Any, Any] = {"structures": torch.from_numpy(structures)[None]}
    counts = StructureCountsd()(item)["structure_counts"].numpy()
    crop = RandDeformedPatchd(
        size, images=(), labels=("structures",), centre_key="structures", affine_probability=1, elastic_probability=1
    )
    painter = LabelPainter()
    parser = parse("brain_tissue_vnet", "train.yaml", init_filters=init_filters, device=str(device))
    network, loss = parser.get_parsed_content("network").train(), parser.get_parsed_content("loss")
    seconds = {"deform (loader)": float("inf"), "paint": float("inf"), "training step": float("inf")}

    def timed(name: str, work: Callable[[], Any]) -> Any:
        start = time.perf_counter()
        result = work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds[name] = min(seconds[name], time.perf_counter() - start)
        return result

    for seed in range(repeats):
        patch = timed("deform (loader)", lambda: crop(item))["structures"].to(device)
        image, label = timed("paint", lambda p=patch, s=seed: painter.paint(p, painter.draw(counts, s)))  # type: ignore[misc]
        timed("training step", lambda i=image, t=label: loss(network(i[None]), t[None]).backward())  # type: ignore[misc]
    print(
        f"1 x {'x'.join(map(str, size))}, init_filters {init_filters}, {device.type}, {torch.get_num_threads()} threads"
    )
    for name, cost in seconds.items():
        print(f"{name:<20}{cost:8.3f} s{100 * cost / seconds['training step']:8.1f} % of a step")


def _own(size: tuple[int, ...]) -> Any:
    return RandDeformedPatchd(
        size, affine_probability=1, elastic_probability=1, control_points=_CONTROL_POINTS, amplitude=_AMPLITUDE
    )


def _torchio(size: tuple[int, ...]) -> dict[str, Any]:
    keys: dict[str, Any] = {"keys": ["image", "label"], "label_keys": ["label"]}
    spread = tuple(_AMPLITUDE * n / (_CONTROL_POINTS - 1) for n in size)
    return {
        "RandomAffine": RandTorchIOd(name="RandomAffine", scales=0.15, degrees=15, **keys),
        "RandomElasticDeformation": RandTorchIOd(
            name="RandomElasticDeformation", num_control_points=_CONTROL_POINTS, max_displacement=spread, **keys
        ),
    }


def _draw(path: Path) -> None:
    """Rows: a T1 and a grid. Columns: as it is, two draws of the bundle's elastic deformation, two of TorchIO's."""
    head = make_head(0, 1)["t1"].astype(np.float32)
    image = torch.from_numpy(head[40:200, 50:210, 30:126] / head.max())[None]
    lines = torch.zeros_like(image)
    lines[:, ::10], lines[:, :, ::10] = 1, 1
    size = tuple(int(n) for n in image.shape[1:])
    data = {"image": torch.cat([image, lines]), "label": torch.ones(1, *size, dtype=torch.uint8)}
    elastic: Any = RandDeformedPatchd(size, affine_probability=0, elastic_probability=1)
    torch.manual_seed(1)
    shown = {"as it is": data["image"]}
    shown |= {f"bundle, draw {k}": elastic.set_random_state(k)(dict(data))["image"] for k in (1, 2)}
    shown |= {f"TorchIO, draw {k}": _torchio(size)["RandomElasticDeformation"](dict(data))["image"] for k in (1, 2)}
    figure, axes = plt.subplots(2, len(shown), figsize=(2.4 * len(shown), 4.9), facecolor="black")
    for column, (title, volume) in enumerate(shown.items()):
        for row in (0, 1):
            axes[row, column].imshow(volume[row, :, :, size[2] // 2].T.flip(0), cmap="gray", vmin=0, vmax=1)
            axes[row, column].set_axis_off()
        axes[0, column].set_title(title, color="white", fontsize=9)
    figure.subplots_adjust(left=0.01, right=0.99, top=0.94, bottom=0.01, wspace=0.03, hspace=0.03)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=90, facecolor="black")
    plt.close(figure)
