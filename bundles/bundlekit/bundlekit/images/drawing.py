"""Pictures of masks over their scans, and of scores over cases. Needs matplotlib, which nothing else here does.

nilearn's `plot_roi` brings scikit-learn, pandas and lxml for the same picture, and resamples; MONAI's `blend_images`
colours an array, without planes, outlines or legend.
"""

from __future__ import annotations

import importlib.util
import itertools
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, BinaryIO

import numpy as np
from nibabel.orientations import apply_orientation, axcodes2ornt, io_orientation, ornt_transform

from bundlekit.errors import BundleError, Finding
from bundlekit.files import write_result
from bundlekit.images.nifti import read_affine, read_array, read_volume

COLOURS = (
    "#e63946", "#2a9d8f", "#ffd166", "#8338ec", "#3a86ff", "#fb8500", "#80ed99", "#06d6a0", "#bc6c25", "#c77dff",
    "#f15bb5", "#90e0ef", "#e76f51",
)  # fmt: skip
_MARGIN = 3  # voxels around what is shown
_PLANES = (("axial", 2), ("coronal", 1), ("sagittal", 0))  # and the axis that it cuts, in LAS+


def require_matplotlib(setting: str) -> None:
    """Refuse to draw without matplotlib.

    Args:
        setting: what asked for pictures, for the message, e.g. "--overlays".

    Raises:
        BundleError: if it is not installed.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise BundleError(
            Finding(
                setting,
                "pictures, but matplotlib is not installed",
                "matplotlib, which draws them",
                f"pip install matplotlib, or leave {setting} out",
            )
        )


def draw(
    scan: str | os.PathLike | tuple[np.ndarray, np.ndarray],
    mask: np.ndarray | str | os.PathLike,
    path: str | os.PathLike,
    reference: np.ndarray | str | os.PathLike | None = None,
    names: Mapping[int, str] | None = None,
    window: Sequence[float] | None = None,
    title: str = "",
    sides: bool = True,
) -> None:
    """Write a PNG of a mask's outlines over its scan: axial, coronal and sagittal, each where the mask is largest.

    A row for the scan as it is, one for the reference if there is one, one for the mask. Drawn as radiologists look at
    it: the patient's right is on the left. What is air all around is cut off.

    Args:
        scan: NIfTI or MGH file, of whose channels the first is shown; or its voxels HWD and affine (4x4, mm).
        mask: whole numbers HWD, 0 outside, on the scan's grid; an array or a file.
        path: PNG, written whole or not at all; its folder is made if missing.
        reference: as `mask`; where it is not empty it chooses the planes.
        names: value -> name, for the legend; other values are not drawn. None: every value, by its number.
        window: intensities shown as black and as white; None: a little below the 1st to the 99.5th percentile of the
            voxels that are not 0.
        title: in the picture's upper left corner.
        sides: whether to mark the patient's right; False where the affine does not tell it.

    Raises:
        BundleError: if matplotlib is not installed, a file cannot be read or written, or the grids differ.
    """
    require_matplotlib("the picture")
    from matplotlib.figure import Figure

    voxels, affine, called = _read(scan)
    masks = {"reference": reference, "prediction": mask} if reference is not None else {"mask": mask}
    maps = {name: _labels(given, voxels.shape, called) for name, given in masks.items()}
    named, colours = _named(names, maps.values())
    image, turned, sizes, (low, high) = _turned(voxels, affine, maps.values(), window)
    cuts = _largest(image.shape, next((labels for labels in turned if labels.any()), None))

    rows: list[tuple[str, np.ndarray | None]] = [("scan", None), *zip(maps, turned, strict=True)]
    height_mm = [image.shape[axis] * sizes[axis] for axis in (1, 2, 2)]  # of the three panels
    width_mm = [image.shape[axis] * sizes[axis] for axis in (0, 0, 1)]
    scale = 2.6 / max(height_mm)  # inches a mm
    legend = 0.3 + 0.2 * ((len(named) - 1) // 6)
    size = (scale * sum(width_mm) + 0.2, scale * max(height_mm) * len(rows) + legend + 0.25)
    figure = Figure(figsize=size, facecolor="black")
    panels = figure.subplots(len(rows), 3, squeeze=False, width_ratios=width_mm)
    for line, (name, labels) in zip(panels, rows, strict=True):
        for panel, (plane, axis) in zip(line, _PLANES, strict=True):
            across, up = (a for a in range(3) if a != axis)
            flat = image.take(cuts[axis], axis).T
            panel.imshow(flat, cmap="gray", vmin=low, vmax=high, origin="lower", aspect=sizes[up] / sizes[across])
            if labels is not None:
                _outline(panel, labels.take(cuts[axis], axis).T, colours)
            panel.set_axis_off()
            if labels is None:
                panel.text(
                    0.5, 0.99, plane, color="white", fontsize=8, ha="center", va="top", transform=panel.transAxes
                )
            if sides and plane != "sagittal":
                panel.text(0.01, 0.5, "R", color="white", fontsize=7, va="center", transform=panel.transAxes)
        line[0].text(0.01, 0.01, name, color="white", fontsize=8, va="bottom", transform=line[0].transAxes)
    figure.text(0.01, 0.995, title, color="white", fontsize=9, ha="left", va="top")
    _legend(figure, named, colours)
    top, bottom = 1 - 0.25 / size[1], legend / size[1]
    figure.subplots_adjust(left=0.01, right=0.99, top=top, bottom=bottom, wspace=0.03, hspace=0.03)
    write_result(path, partial(figure.savefig, dpi=130, facecolor="black", format="png"), "output_dir")


def draw_slices(
    scan: str | os.PathLike | tuple[np.ndarray, np.ndarray],
    mask: np.ndarray,
    path: str | os.PathLike,
    names: Mapping[int, str] | None = None,
    window: Sequence[float] | None = None,
) -> None:
    """Write a PNG of at most 12 axial slices with a mask's outlines, from the lowest to the highest that the mask has.

    Args:
        scan: as of `draw`.
        mask: whole numbers HWD on the scan's grid, not all 0.
        path: PNG, written whole or not at all; its folder is made if missing.
        names: value -> name, for the legend; other values are not drawn. None: every value, by its number.
        window: as of `draw`.

    Raises:
        BundleError: if matplotlib is not installed, or the file cannot be written.
    """
    require_matplotlib("the picture")
    from matplotlib.figure import Figure

    voxels, affine, _ = _read(scan)
    named, colours = _named(names, [mask])
    image, (labels,), sizes, (low, high) = _turned(voxels, affine, [mask], window)
    where = np.flatnonzero(labels.any(axis=(0, 1)))
    cuts = np.unique(np.linspace(where[0], where[-1], min(12, len(where))).round().astype(int))
    columns = min(6, len(cuts))
    lines = -(-len(cuts) // columns)
    ratio = image.shape[1] * sizes[1] / (image.shape[0] * sizes[0])
    legend = 0.3
    size = (1.7 * columns, 1.7 * ratio * lines + legend)
    figure = Figure(figsize=size, facecolor="black")
    panels = figure.subplots(lines, columns, squeeze=False).ravel()
    for panel, cut in zip(panels, cuts, strict=False):
        panel.imshow(
            image[..., cut].T, cmap="gray", vmin=low, vmax=high, origin="lower", aspect=float(sizes[1] / sizes[0])
        )
        _outline(panel, labels[..., cut].T, colours)
    for panel in panels:
        panel.set_axis_off()
    _legend(figure, named, colours)
    figure.subplots_adjust(left=0.005, right=0.995, top=0.995, bottom=legend / size[1], wspace=0.02, hspace=0.02)
    write_result(path, partial(figure.savefig, dpi=110, facecolor="black", format="png"), "output_dir")


def box_plot(
    values: Mapping[str, Sequence[float]],
    title: str = "",
    label: str = "Dice",
    limits: tuple[float, float] | None = (-0.03, 1.03),
) -> Callable[[BinaryIO], None]:
    """A picture of scores over cases: for each name a box of quartiles and median, a triangle at the mean, all cases.

    Whiskers reach to the outermost case. A name whose values are undefined for some cases says for how many it has any.

    Args:
        values: name -> scores of the cases; NaN is undefined.
        title: above the picture.
        label: of the values' axis.
        limits: of that axis; None: as the values are.

    Returns:
        What writes the PNG into an open binary file.

    Raises:
        BundleError: if matplotlib is not installed.
    """
    require_matplotlib("the picture")
    from matplotlib.figure import Figure

    finite = {name: np.asarray([v for v in column if np.isfinite(v)]) for name, column in values.items()}
    labels = [
        name if len(finite[name]) == len(column) else f"{name}\n(n = {len(finite[name])})"
        for name, column in values.items()
    ]
    many = len(finite) > 6  # the names stand upright then
    size = (0.45 * len(finite) + 0.9, 4.6) if many else (max(3.2, 0.9 * len(finite) + 0.9), 3.6)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots()
    places = range(1, len(finite) + 1)
    axes.boxplot(
        list(finite.values()),
        positions=places,
        widths=0.5,
        whis=(0, 100),
        showmeans=True,
        medianprops={"color": "black"},
        meanprops={"markerfacecolor": "black", "markeredgecolor": "black"},
    )
    for place, column, colour in zip(places, finite.values(), itertools.cycle(COLOURS)):
        # side by side, in a fixed order, so that cases of one score do not hide each other
        aside = (np.arange(len(column)) % 5 - 2) * 0.06
        axes.scatter(place + aside, column, s=14, color=colour, alpha=0.7, zorder=3, linewidths=0)
    axes.set_xticks(places, labels, rotation=90 if many else 0)
    axes.set_ylim(limits)
    axes.set_ylabel(label)
    axes.set_title(title, fontsize=10)
    axes.grid(axis="y", alpha=0.3)
    return lambda file: figure.savefig(file, dpi=130, format="png")


def _read(scan: str | os.PathLike | tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray, str]:
    """Voxels HWD, affine and name of a scan."""
    if isinstance(scan, tuple):
        return np.asarray(scan[0]), np.asarray(scan[1], float), "the scan"
    voxels = read_array(str(scan))
    return voxels[..., 0] if voxels.ndim == 4 else voxels, read_affine(str(scan)), str(scan)


def _named(names: Mapping[int, str] | None, masks: Iterable[np.ndarray]) -> tuple[dict[int, str], dict[int, str]]:
    """Names and colours of the values that are drawn."""
    named = dict(names) if names else {v: str(v) for v in sorted({int(v) for m in masks for v in np.unique(m) if v})}
    return named, {value: COLOURS[i % len(COLOURS)] for i, value in enumerate(named)}


def _turned(
    voxels: np.ndarray, affine: np.ndarray, masks: Iterable[np.ndarray], window: Sequence[float] | None
) -> tuple[np.ndarray, list[np.ndarray], np.ndarray, tuple[float, float]]:
    """Scan and masks in LAS+ without the air around them, the voxel sizes (mm) of these axes, and the window."""
    turn = ornt_transform(io_orientation(affine), axcodes2ornt("LAS"))
    sizes = np.linalg.norm(affine[:3, :3], axis=0)[np.argsort(turn[:, 0])]
    image, *turned = (apply_orientation(array, turn) for array in (voxels, *masks))
    low, high = window_of(image) if window is None else (float(window[0]), float(window[1]))
    box = box_around(np.logical_or.reduce([image > low, *(labels != 0 for labels in turned)]))
    return image[box], [labels[box] for labels in turned], sizes, (low, high)


def _legend(figure: Any, named: Mapping[int, str], colours: Mapping[int, str]) -> None:
    """Names and colours of the classes, at the lower edge."""
    from matplotlib.patches import Patch

    handles = [Patch(color=colours[value], label=name) for value, name in named.items()]
    if handles:
        figure.legend(
            handles=handles,
            loc="lower center",
            ncols=min(len(handles), 6),
            fontsize=8,
            labelcolor="white",
            frameon=False,
        )


def _labels(given: np.ndarray | str | os.PathLike, shape: tuple[int, ...], scan: str) -> np.ndarray:
    labels = given if isinstance(given, np.ndarray) else read_volume(str(given))
    if labels.shape != shape:
        where = "a mask" if isinstance(given, np.ndarray) else str(given)
        raise BundleError(Finding(where, f"shape {labels.shape}", f"the grid of {scan}: {shape}", "give its own mask"))
    return labels


def window_of(image: np.ndarray) -> tuple[float, float]:
    """Intensities shown as black and as white: a little below the 1st to the 99.5th percentile of what is not 0."""
    inside = image[image != 0]
    low, high = (float(v) for v in np.percentile(inside, [1, 99.5])) if inside.size else (0.0, 1.0)
    return min(0.6 * low, low), high


def box_around(inside: np.ndarray) -> tuple[slice, ...]:
    """The smallest box around what is inside, with a margin; everything where nothing is."""
    found = [np.flatnonzero(inside.any(axis=tuple({0, 1, 2} - {axis}))) for axis in range(3)]
    if not all(len(f) for f in found):
        return (slice(None),) * 3
    return tuple(slice(max(int(f[0]) - _MARGIN, 0), int(f[-1]) + 1 + _MARGIN) for f in found)


def _largest(shape: Sequence[int], labels: np.ndarray | None) -> list[int]:
    """For each axis the slice with most labelled voxels; the middle one where there is none."""
    if labels is None or not labels.any():
        return [n // 2 for n in shape]
    return [int((labels > 0).sum(axis=tuple({0, 1, 2} - {axis})).argmax()) for axis in range(3)]


def _outline(panel: Any, labels: np.ndarray, colours: Mapping[int, str]) -> None:
    """Lines along the borders of each value's voxels, over a faint fill."""
    for value, colour in colours.items():
        inside = np.pad(labels == value, 1).astype(float)  # so that a border at the edge is closed
        if inside.any():
            rows, columns = (np.arange(n) - 1 for n in inside.shape)
            panel.contourf(columns, rows, inside, levels=[0.5, 1.5], colors=[colour], alpha=0.2)
            panel.contour(columns, rows, inside, levels=[0.5], colors=[colour], linewidths=0.9)
    panel.set_xlim(-0.5, labels.shape[1] - 0.5)
    panel.set_ylim(-0.5, labels.shape[0] - 0.5)
