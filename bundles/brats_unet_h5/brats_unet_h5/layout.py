"""What lies where in an HDF5 file: which dataset is the image, which axis its channels, what the mask's values mean."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import h5py
import numpy as np

from bundlekit.brats.cases import GO_ON
from bundlekit.brats.naming import MODALITIES
from bundlekit.cases.case import MOST_MISSING
from bundlekit.images.hdf5 import attribute, datasets_of, described, names_in, open_h5

from .mask_channels import mask_names

_log = logging.getLogger(__name__)

_MODALITY_NAMES = {
    "t1": "T1", "t1w": "T1", "t1n": "T1",
    "t1ce": "T1ce", "t1gd": "T1ce", "t1c": "T1ce", "t1wce": "T1ce",
    "t2": "T2", "t2w": "T2",
    "flair": "FLAIR", "t2f": "FLAIR", "t2flair": "FLAIR",
}  # fmt: skip
_FEWER = tuple(range(len(MODALITIES) - MOST_MISSING, len(MODALITIES) + 1))  # channels where some may be missing
_IMAGE_NAMES = ("image", "images", "img", "imgs", "data", "scan", "volume", "vol", "x", "raw")
_MASK_NAMES = ("mask", "masks", "label", "labels", "seg", "segmentation", "gt", "target", "y")


@dataclass
class Layout:
    """How to read one file. Axes are those of the dataset; `None` where there is no such thing.

    Args:
        image_key: dataset of the image.
        image_axis: its channel axis.
        count: channels along it.
        channels: which channel holds T1, T1ce, T2 and FLAIR, -1 for one that is missing; None: the file does not say.
        mask_key: dataset of the mask, "" where the file has none.
        mask_axis: its channel axis; None: integer labels without one.
        mask_count: channels along it.
        mask_channels: their names; None: not known yet.
        label_values: values of background, NCR, ED, ET in an integer mask, where the file says so.
        shape: of the grid; two numbers in a slice.
    """

    image_key: str
    image_axis: int
    count: int
    channels: list[int] | None = None
    mask_key: str = ""
    mask_axis: int | None = None
    mask_count: int = 0
    mask_channels: list[str] | None = None
    label_values: list[int] | None = None
    shape: tuple[int, ...] = field(default=())


class LayoutError(ValueError):
    """A file that cannot be understood.

    Args:
        found: what is there.
        expected: what has to be there.
        fix: what to do.
    """

    def __init__(self, found: str, expected: str, fix: str) -> None:
        super().__init__(found)
        self.parts = (found, expected, fix)


def layout_of(
    file: h5py.File,
    dimensions: int,
    image_key: str | None = None,
    mask_key: str | None = None,
    masked: bool = True,
    fill_missing: bool = False,
) -> Layout:
    """Find image and mask in an open file; reads no voxel.

    Args:
        file: to look into.
        dimensions: of the grid: 3 for a volume, 2 for a slice.
        image_key: dataset of the image; None: by its usual names, else the only dataset that can be one.
        mask_key: of the mask, likewise.
        masked: whether there must be a mask.
        fill_missing: whether the image may have two or three channels.

    Raises:
        LayoutError: if a dataset is missing or more than one could be it, or its shape is not that of four modalities
            on one grid, or of a mask on that grid.
    """
    counts = _FEWER if fill_missing else (len(MODALITIES),)
    datasets = {name: item for name, item in datasets_of(file).items() if not name.startswith("nifti/")}
    images = {name: item for name, item in datasets.items() if _channel_axes(item.shape, dimensions, counts)}
    if fill_missing:  # a mask has three channels, too; and where one has all four, it is the image
        images = {key: item for key, item in images.items() if _base(key) not in _MASK_NAMES}
        whole = {key: item for key, item in images.items() if _channel_axes(item.shape, dimensions, (len(MODALITIES),))}
        images = whole or images
    name = _pick("image", datasets, images, image_key, _IMAGE_NAMES, described(datasets))
    number = "2 to 4" if fill_missing else "4"
    expected = f"{dimensions}-D with {number} channels first or last (T1, T1ce, T2, FLAIR)"
    shape = tuple(int(n) for n in datasets[name].shape)
    axes = _channel_axes(shape, dimensions, counts)
    if not axes:
        by = "x".join(map(str, shape))
        what = f"image dataset {name} of shape {by}: rank {len(shape)}, expected rank {dimensions + 1}"
        fix = "give the dataset that holds all four modalities, with --image_key"
        if _channel_axes(shape, dimensions, _FEWER):
            fix += f"; {GO_ON}"
        raise LayoutError(
            what if len(shape) != dimensions + 1 else f"image dataset {name} of shape {by}", expected, fix
        )
    if len(axes) > 1:
        found = f"image dataset {name} of shape {'x'.join(map(str, shape))}, with {shape[0]} first and {shape[-1]} last"
        raise LayoutError(
            found, expected, "pad the volume along an axis: a grid of 4 voxels cannot be told from channels"
        )
    grid = tuple(n for axis, n in enumerate(shape) if axis != axes[0])
    layout = Layout(name, axes[0], shape[axes[0]], _channels_said(file, name, shape[axes[0]]), shape=grid)

    layout.label_values = _label_values(file, name, masked)  # of the file, where it has no mask
    others = {key: item for key, item in datasets.items() if key != name}
    if masked or mask_key is not None:
        return _with_mask(file, layout, others, mask_key, masked)
    if not any(_base(key) in _MASK_NAMES for key in others):
        return layout
    try:
        return _with_mask(file, replace(layout), others, None, masked)
    except ValueError as error:  # nobody asked for it
        _log.warning("%s: what could be a mask is left out (%s)", file.filename, error)
        return layout


def _with_mask(
    file: h5py.File, layout: Layout, others: Mapping[str, h5py.Dataset], mask_key: str | None, masked: bool
) -> Layout:
    """The layout with what the file shows of its mask, which is one of `others`; as `layout_of`."""
    datasets, grid = {**others, layout.image_key: file[layout.image_key]}, layout.shape
    fitting = {key: item for key, item in others.items() if _mask_axis(item.shape, grid) is not False}
    mask = _pick("mask", dict(others), fitting, mask_key, _MASK_NAMES, described(datasets))
    axis = _mask_axis(datasets[mask].shape, grid)
    if axis is False:
        by = "x".join(str(int(n)) for n in datasets[mask].shape)
        same = "x".join(map(str, grid))
        raise LayoutError(
            f"mask dataset {mask} of shape {by} beside an image of {same} voxels",
            f"a mask on the image's grid: {same} integer labels, or with 3 or 4 channels first or last",
            "resample the mask to the image's grid, or name another dataset with --mask_key",
        )
    layout.mask_key, layout.mask_axis = mask, axis
    layout.mask_count = 0 if axis is None else int(datasets[mask].shape[axis])
    said = names_in(file, mask, "mask_channels")
    layout.mask_channels = mask_names(said, layout.mask_count) if said and layout.mask_count > 1 else None
    layout.label_values = _label_values(file, mask, masked) or layout.label_values
    return layout


def _label_values(file: h5py.File, key: str, needed: bool) -> list[int] | None:
    """Values of background, NCR, ED and ET by the attribute of a dataset, or of the file; None without it.

    Raises:
        LayoutError: if they are not four different whole numbers that a mask of 8 bits holds.
    """
    values = attribute(file, key, "label_values")
    if values is None:
        return None
    told = np.ravel(values).tolist()
    numbers = [int(v) for v in told if isinstance(v, (int, float)) and 0 <= v <= 255 and v == int(v)]
    if not len(told) == len(numbers) == len(set(numbers)) == 4:
        expected = "four different whole numbers from 0 to 255: those of background, NCR, ED and ET"
        if needed:
            raise LayoutError(f"the attribute label_values {told}", expected, "mend the attribute")
        _log.warning("%s: the attribute label_values %s is left aside; expected %s", file.filename, told, expected)
        return None
    return numbers


def holds_only_masks(file: h5py.File) -> bool:
    """Whether an open file has masks and nothing that could be an image, as a segmentation has that inference wrote."""
    datasets = datasets_of(file)
    return bool(datasets) and all(_base(name) in _MASK_NAMES for name in datasets)


def names_a_mask(path: str) -> bool:
    """Whether a file has a dataset that is named as masks are and is of some size: a grade in 1x1 is no mask."""
    with open_h5(path) as file:
        named = {name: item for name, item in datasets_of(file).items() if _base(name) in _MASK_NAMES}
        return any(min(item.shape) > 1 for name, item in named.items() if not name.startswith("nifti/"))


def channels_named(order: Sequence[str], fill_missing: bool = False) -> list[int]:
    """Channels that hold T1, T1ce, T2 and FLAIR, from the names of the channels in their order; -1: none does.

    Args:
        order: the names.
        fill_missing: whether one or two of the four may be missing.

    Raises:
        ValueError: if these are not the four modalities, once each.
    """
    names = [_MODALITY_NAMES.get(_plain(str(name)), str(name)) for name in order]
    known = len(set(names)) == len(names) and set(names) <= set(MODALITIES)
    if not known or len(names) not in (_FEWER if fill_missing else (len(MODALITIES),)):
        raise ValueError(
            f"channel_order is {[str(name) for name in order]}; expected the four modalities"
            + (", or two or three of them," if fill_missing else "")
            + ' in the order of the file\'s channels, e.g. "[flair,t1,t1ce,t2]".'
        )
    return [names.index(modality) if modality in names else -1 for modality in MODALITIES]


def _pick(
    role: str,
    datasets: dict[str, h5py.Dataset],
    possible: dict[str, h5py.Dataset],
    key: str | None,
    usual: Sequence[str],
    what_is_there: str,
) -> str:
    """The dataset of a role: the one given, else by name, else the only possible one."""
    fix = f"name it with --{role}_key"
    if key is not None:
        if key.strip("/") not in datasets:
            raise LayoutError(what_is_there, f"a dataset {key!r} ({role}_key)", fix)
        return key.strip("/")
    named = [name for name in datasets if _base(name) in usual]
    for found in (named, list(possible)):
        if len(found) == 1:
            return found[0]
        fitting = [name for name in found if name in possible]
        if len(fitting) == 1:
            return fitting[0]
        if len(found) > 1:
            raise LayoutError(f"{', '.join(found)}, each of which may be the {role}", f"one {role} dataset", fix)
    raise LayoutError(what_is_there, f"a dataset with the {role} ({', '.join(usual[:6])}, ...)", fix)


def _channel_axes(shape: Sequence[int], dimensions: int, counts: Sequence[int]) -> list[int]:
    """First and last axis, where they have as many entries as channels are possible."""
    if len(shape) != dimensions + 1:
        return []
    return [axis for axis in (0, dimensions) if int(shape[axis]) in counts]


def _mask_axis(shape: Sequence[int], grid: Sequence[int]) -> int | bool | None:
    """Channel axis of a mask on `grid`; None: it has none; False: it is not on that grid."""
    shape = tuple(int(n) for n in shape)
    if shape == tuple(grid):
        return None
    for axis in (0, len(shape) - 1):
        if shape[axis] in (1, 3, 4) and shape[:axis] + shape[axis + 1 :] == tuple(grid):
            return axis
    return False


def _channels_said(file: h5py.File, key: str, count: int) -> list[int] | None:
    for name in ("modalities", "channel_names", "channels"):
        said = names_in(file, key, name)
        if said and len(said) == count:
            try:
                return channels_named(said, fill_missing=True)
            except ValueError:
                continue
    return None


def _base(name: str) -> str:
    return name.rsplit("/", 1)[-1].lower()


def _plain(name: str) -> str:
    return "".join(c for c in name.lower() if c.isalnum())
