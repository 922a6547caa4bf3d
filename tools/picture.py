"""Pictures of segmentations."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import nibabel as nib
import numpy as np

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.colors import ListedColormap
from matplotlib.patches import Patch

from bundlekit.images.drawing import COLOURS, draw
from bundlekit.images.nifti import read_affine, read_array, same_places, without_rounding


def picture(
    scan: str, mask: str, out: str, reference: str | None = None, names: str | Sequence[str] | None = None
) -> None:
    """Draw a mask over its scan, in three planes through the mask; the patient's right is on the left.

    Example: python -m tools picture --scan T1.nii.gz --mask T1_seg.nii.gz --out T1.png --names CSF,GM,WM

    Args:
        scan: NIfTI file, e.g. the FLAIR of a glioma; of a 4-D file its first channel.
        mask: label map on the scan's grid.
        out: PNG to write; its folder is made.
        reference: another label map on that grid, drawn above the mask; it then chooses the planes.
        names: of the labels, in the order of their values, with commas between them; None: the values.

    Raises:
        ValueError: if a file cannot be read, a label map is on another grid or not of whole numbers, or `names` are not
            as many as there are labels.
        OSError: if a file is missing or cannot be written.
    """
    labels: set[int] = set()
    for file in (scan, mask, *([] if reference is None else [reference])):
        if not Path(file).is_file():
            raise FileNotFoundError(f"{file}: no such file")
        if Path(out).exists() and Path(out).samefile(file):
            raise ValueError(f"--out is {out}, one of the files to be drawn; expected another one, a PNG.")
    if Path(out).suffix.lower() != ".png":
        raise ValueError(f"--out is {out}; expected the name of a PNG, such as mask.png.")
    shape = read_array(scan).shape  # or it is told what is wrong with it
    affine = read_affine(scan)
    for file in [mask] if reference is None else [mask, reference]:
        values = np.unique(without_rounding(read_array(file)))
        if not same_places(read_affine(file), affine, shape):
            raise ValueError(f"{file}: lies elsewhere than {scan} by its affine; expected a label map on that grid.")
        if len(values) > 256 or not np.equal(values, np.round(values)).all():
            raise ValueError(f"{file}: holds {len(values)} different values; expected whole numbers of a label map.")
        labels |= {int(value) for value in values if value}
    given = [name.strip() for name in names.split(",")] if isinstance(names, str) else names
    called = [str(label) for label in sorted(labels)] if given is None else [str(name) for name in given]
    if len(called) != len(labels):
        raise ValueError(f"--names has {len(called)} name(s); the labels are {sorted(labels)}.")
    draw(scan, mask, out, reference, dict(zip(sorted(labels), called, strict=True)), title=Path(scan).name)
    print(out)


def overlay(
    path: str | os.PathLike,
    rows: Sequence[tuple[str, Mapping[str, str], str | None, str]],
    labels: Mapping[int, str],
) -> None:
    """Write a PNG with a row per case: its images; over the last the reference, if any has one, and the prediction.

    The slice is the axial one with most labelled voxels (of the reference; of the prediction if there is none).
    Drawn in radiological orientation: the patient's right is on the left.

    Args:
        path: PNG.
        rows: for each case its title, {name: NIfTI file} of the images, reference file or None, prediction file.
        labels: label value -> name, for colours and legend.
    """
    referenced = any(truth for _, _, truth, _ in rows)
    columns = max(len(images) for _, images, _, _ in rows) + 1 + referenced
    height = 2.4 * len(rows) + 0.5  # inches, with the titles above and the legend below
    figure, axes = plt.subplots(len(rows), columns, figsize=(2.1 * columns, height), squeeze=False)
    figure.patch.set_facecolor("black")
    for line, (title, images, truth_file, pred_file) in zip(axes, rows, strict=True):
        pred = _axial(pred_file)
        truth = _axial(truth_file) if truth_file else None
        slice_ = int((pred if truth is None else truth).astype(bool).sum((0, 1)).argmax())
        volumes = {name: _axial(file) for name, file in images.items()}
        brain = np.any([v[..., slice_] != 0 for v in volumes.values()], axis=0)
        box = _box(brain)
        panels: list[tuple[str, np.ndarray, np.ndarray | None]] = [
            (name, volume, None) for name, volume in volumes.items()
        ]
        last = list(volumes.values())[-1]
        if referenced:
            panels.append(("reference" if truth is not None else "no reference", last, truth))
        panels.append(("prediction", last, pred))
        for axis, (name, volume, mask) in zip(line, panels, strict=False):
            _panel(axis, volume[..., slice_][box], None if mask is None else mask[..., slice_][box], list(labels))
            axis.set_title(name, color="white", fontsize=8)
        line[0].text(0.02, 0.03, title, color="white", fontsize=6, transform=line[0].transAxes)
        for axis in line:  # the patient's right
            axis.text(0.01, 0.5, "R", color="white", fontsize=7, transform=axis.transAxes)
    for axis in axes.flat:
        axis.set_axis_off()
    patches = [Patch(color=COLOURS[i], label=name) for i, name in enumerate(labels.values())]
    figure.legend(
        handles=patches, loc="lower center", ncols=len(patches), fontsize=8, labelcolor="white", frameon=False
    )
    figure.subplots_adjust(left=0.01, right=0.99, top=1 - 0.2 / height, bottom=0.3 / height, wspace=0.02, hspace=0.12)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120, facecolor="black")
    plt.close(figure)


def _axial(file: str) -> np.ndarray:
    """Volume in LAS+ axis order, so that plotting its transpose from the bottom up is radiological."""
    image = nib.Nifti1Image.from_filename(file)
    orientation = nib.orientations.ornt_transform(
        nib.orientations.io_orientation(image.affine), nib.orientations.axcodes2ornt("LAS")
    )
    return np.asarray(image.as_reoriented(orientation).dataobj)


def _box(mask: np.ndarray) -> tuple[slice, ...]:
    found = [np.flatnonzero(mask.any(axis=1 - axis)) for axis in (0, 1)]
    return tuple(slice(max(int(f[0]) - 2, 0), int(f[-1]) + 3) if len(f) else slice(None) for f in found)


def _panel(axis: plt.Axes, image: np.ndarray, mask: np.ndarray | None, values: list[int]) -> None:
    inside = image[image != 0]
    low, high = np.percentile(inside, [1, 99.5]) if inside.size else (0, 1)
    axis.imshow(image.T, cmap="gray", vmin=min(low * 0.6, low), vmax=high, origin="lower", interpolation="bilinear")
    if mask is not None:
        classes = np.ma.array(np.zeros(mask.shape), mask=True)
        for index, value in enumerate(values):
            classes[mask == value] = index
        axis.imshow(
            classes.T,
            cmap=ListedColormap(COLOURS[: len(values)]),
            vmin=-0.5,
            vmax=len(values) - 0.5,
            origin="lower",
            alpha=0.55,
            interpolation="nearest",
        )
