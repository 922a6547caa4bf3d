"""Find and check the cases of a folder of HDF5 files: one file per patient, or one file per slice.

A case is a plain dict, so that it can be hashed, cached and written as JSON:

    case          name of the scan: the file's, without its ending, or that of the volume whose slices these are
    patient       name that all scans of one patient share
    layout        "file" or "slices"
    image         the files: one, or all slices in order
    image_key     dataset of the image, and `image_axis`, its channel axis
    channels      which channel holds T1, T1ce, T2, FLAIR; -1 for one that is missing and taken as zeros
    label         file of the mask (of slices: the first), "" where there is none
    mask_key      dataset of the mask; `mask_axis`, its channel axis (None: integers); `mask_channels`, their names
    label_values  values of background, NCR, ED, ET in an integer mask, and in the masks that inference writes
    subset        "training" or "validation" where a datalist says so, else ""
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bundlekit.brats.cases import GO_ON
from bundlekit.brats.naming import MODALITIES
from bundlekit.cases.case import MOST_MISSING, Case, check_names, refusing
from bundlekit.cases.datalist import numbers_in, read_datalist
from bundlekit.cases.folders import absolute, data_set, nothing_found, walk
from bundlekit.cases.patients import patient_of
from bundlekit.errors import BundleError, Finding
from bundlekit.images.hdf5 import affine_in, open_h5

from .layout import Layout, LayoutError, channels_named, holds_only_masks, layout_of
from .layout import names_a_mask as names_a_mask  # for those who convert, beside `scan_cases`
from .mask_channels import mask_names
from .mask_meaning import LABELS, tell_et_label, tell_masks
from .slices import SLICE, missing_slices

_ENDING = re.compile(r"\.(h5|hdf5)$", re.IGNORECASE)
_RESULT = re.compile(r"_seg\.(h5|hdf5)$", re.IGNORECASE)  # as inference names what it writes
_NIFTI = re.compile(r"\.nii(\.gz)?$", re.IGNORECASE)

_SLICE_ORDER = ("t1", "t1ce", "t2", "flair")  # as the slice-wise export of BraTS 2020 is documented by those who use it
_NOTICES = {  # where the order of the channels came from, and what is said about it, once for all cases
    "listed": (
        logging.WARNING,
        'the datalist has another order of the channels than the attribute "modalities", and is followed; if the files '
        "were exported anew since, take the channels out of it",
    ),
    "contradicted": (
        logging.WARNING,
        'the attribute "modalities" says another order of the channels than training was told (settings.json), and is '
        "followed; to read the files otherwise, give --channel_order",
    ),
    "trained": (logging.INFO, "the channels are taken in the order that training was told (settings.json)"),
    "assumed": (
        logging.WARNING,
        "slices name no modalities: their channels are taken as T1, T1Gd, T2, FLAIR, as this export is documented; "
        "if yours differ, give --channel_order",
    ),
}
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Reading:
    """What a user says about the files; None: found out. See `find_cases`."""

    image_key: str | None = None
    mask_key: str | None = None
    channel_order: Sequence[str] | str | None = None
    mask_channels: Sequence[str] | str | None = None
    et_label: int | None = None
    trained_order: Sequence[str] | str | None = None
    fill_missing: bool = False


def scan_cases(
    dataset_dir: str | os.PathLike | None,
    datalist: str | os.PathLike | None = None,
    labelled: bool = True,
    image_key: str | None = None,
    mask_key: str | None = None,
    channel_order: Sequence[str] | str | None = None,
    mask_channels: Sequence[str] | str | None = None,
    et_label: int | None = None,
    patch_size: Sequence[int] | None = None,
    trained_order: Sequence[str] | str | None = None,
    fill_missing: bool = False,
) -> tuple[list[Case], list[Finding]]:
    """Cases of a data set in sorted order, after a check of their files' headers.

    `find_cases` gives the cases alone, and refuses where anything is wrong.

    Args:
        dataset_dir: folder searched to any depth for `.h5` and `.hdf5`; or one file. Files named
            `<volume>_slice_<k>.h5` are the slices of one case; a gap among them is refused. Files named `*_seg.h5`
            with a mask and no image, as inference writes them, are passed over. None (and no `datalist`):
            no case, so that a pipeline can be built and inspected without data.
        datalist: JSON in MONAI's form, used instead of a search: `{"training": [{"image": file}], "validation":
            [...]}`, paths relative to `dataset_dir` (to the JSON's own folder if that is not given). What is listed
            under "test" or "testing" is taken too when `labelled` is False.
        labelled: whether every case must have a mask.
        image_key: dataset of the image; None: found by its usual names, or as the only one of that shape.
        mask_key: dataset of the mask, likewise.
        channel_order: names of the image's channels in their order, e.g. [flair, t1, t1ce, t2]. None: as the attribute
            `modalities` of the file says, else `trained_order`; else of slices T1, T1Gd, T2, FLAIR, with a notice;
            otherwise it is asked for.
        mask_channels: what the channels of a mask are: "classes" (NCR, ED, ET), "regions" (WT, TC, ET), or their names
            in order. None: told from the masks, where classes do not overlap and regions nest.
        et_label: value of enhancing tumour in integer masks and in what inference writes, 3 or 4. None: as the file's
            attribute or its mask says, else 4.
        patch_size: voxels; refused if it is larger than a volume. None: not checked.
        trained_order: `channel_order` that training was told: only for files that do not tell their own.
        fill_missing: accept files that lack one or two modalities, where names say which are there: they are all zeros
            then, which is what air is.

    Returns:
        The sound cases, and what is wrong with the others: files, headers, grids, names.

    Raises:
        BundleError: if the folder holds no HDF5 file at all, or an argument is wrong.
    """
    if not dataset_dir and not datalist:
        return [], []
    if et_label not in (None, 3, 4):
        raise BundleError(f"et_label is {et_label!r}; expected 3, 4 or null (detect it).")
    order = _names(channel_order, fill_missing)
    trained = _names(trained_order, fill_missing=True)  # which may be of files with fewer
    said = Reading(image_key, mask_key, order, mask_channels, et_label, trained, fill_missing)
    if datalist:
        cases, findings = _from_datalist(absolute(datalist), dataset_dir, labelled, fill_missing)
    else:
        cases, findings = _from_folder(data_set(dataset_dir))
    cases.sort(key=lambda case: case["case"])
    findings += check_names(cases, str(datalist or dataset_dir))
    complete = []
    for case in cases:
        found = _inspect(case, said, labelled, patch_size)
        findings += found
        complete += [] if found else [case]
    findings += missing_slices(complete)
    noticed = [(case.pop("notice"), case["image"][0]) for case in complete]
    for notice, (level, text) in _NOTICES.items():
        files = [file for found, file in noticed if found == notice]
        if files:
            _log.log(level, "%d case(s), first %s: %s", len(files), files[0], text)
    incomplete = {finding.file for finding in findings}
    complete = [case for case in complete if case["image"][0] not in incomplete]
    findings += tell_masks(complete, said.mask_channels, labelled)
    tell_et_label(complete, said.et_label)
    return complete, findings


find_cases = refusing(scan_cases)


def _from_folder(root: Path) -> tuple[list[Case], list[Finding]]:
    only = None
    if root.is_file():
        named = SLICE.match(root.name)
        if named is None:
            return [_case(_ENDING.sub("", root.name), [root])], []
        only, root = named["case"], root.parent
    cases, nifti, results = [], 0, 0
    # the other slices of a volume lie beside the one that was named, not in folders below
    for folder, files in walk(root, prune=None if only is None else lambda *_: True):
        slices: dict[str, list[tuple[int, Path]]] = {}
        for name in files:
            nifti += bool(_NIFTI.search(name))
            named = SLICE.match(name)
            if named is not None:
                if only in (None, named["case"]):
                    slices.setdefault(named["case"], []).append((int(named["slice"]), folder / name))
            elif _RESULT.search(name) and only is None and _is_result(folder / name):
                results += 1
            elif _ENDING.search(name) and only is None:
                cases.append(_case(_ENDING.sub("", name), [folder / name]))
        for name, parts in slices.items():
            cases.append({**_case(name, [file for _, file in sorted(parts)]), "layout": "slices"})
    if not cases:
        found = f"no HDF5 file, but {nifti} NIfTI file(s)" if nifti else "no HDF5 file"
        if results:
            found = f"no HDF5 file but {results} segmentation(s), *_seg.h5 without an image"
        if not nifti and not results:
            raise BundleError(nothing_found(root, "files that end on .h5 or .hdf5", "no HDF5 file"))
        fix = "check --dataset_dir"
        if not results:
            fix += ", or convert them: python -m tools convert h5 --from THIS_FOLDER --to ANOTHER"
        raise BundleError(Finding(str(root), found, "files that end on .h5 or .hdf5", fix))
    return cases, []


def _is_result(path: Path) -> bool:
    try:
        with open_h5(str(path)) as file:
            return holds_only_masks(file)
    except BundleError:  # named when the case is inspected
        return False


def _names(order: Sequence[str] | str | None, fill_missing: bool) -> list[str] | None:
    """Names of the channels, also from a string with commas, after a check that they are the modalities."""
    if order is None:
        return None
    names = [str(name).strip() for name in (order.strip("[]() ").split(",") if isinstance(order, str) else order)]
    channels_named(names, fill_missing)
    return names


def _from_datalist(
    path: Path, dataset_dir: Any, labelled: bool, fill_missing: bool
) -> tuple[list[Case], list[Finding]]:
    base = absolute(dataset_dir) if dataset_dir else path.parent
    cases: list[Case] = []
    findings = []
    for where, subset, entry in read_datalist(path, labelled, dataset_dir):
        try:
            numbers_in(entry, "label_values", 4, where)
            listed = entry.get("channels")
            lacking = listed.count(-1) if isinstance(listed, list) else 0
            if 0 < lacking <= MOST_MISSING and not fill_missing:
                expected = "channels of all four modalities"
                raise BundleError(Finding(where, f"channels: {listed!r}, -1 for one that is missing", expected, GO_ON))
            if 0 < lacking <= MOST_MISSING:
                there = {**entry, "channels": [c for c in entry["channels"] if c != -1]}
                numbers_in(there, "channels", 4 - lacking, where)
            else:
                numbers_in(entry, "channels", 4, where)
        except BundleError as error:
            findings += error.findings
            continue
        images = entry.get("image")
        images = images if isinstance(images, list) else [images]
        named_all = all(isinstance(image, str) and image for image in images)
        if not images or not named_all or (len(images) > 1 and not all(SLICE.match(Path(i).name) for i in images)):
            found = f"image: {entry.get('image')!r}"
            findings.append(Finding(where, found, "an HDF5 file, or all slices of a volume", "mend the entry"))
            continue
        files = [base / image for image in images]
        named = SLICE.match(files[0].name)
        if named is not None and len(files) == 1:  # one slice stands for its volume
            found_cases, _ = _from_folder(files[0]) if files[0].exists() else ([_case(named["case"], files)], [])
            files = [Path(file) for file in found_cases[0]["image"]]
        if all(SLICE.match(file.name) for file in files):  # by number, not as their names sort: 0, 1, 10, 11
            files.sort(key=lambda file: int(SLICE.match(file.name)["slice"]))  # type: ignore[index]
        label = entry.get("label") if labelled else None
        if label and os.path.abspath(base / label) not in map(os.path.abspath, files):
            expected = "no label, or the HDF5 file of the image: the mask is read from there alone"
            fix = "write the mask into that file as its dataset `mask`, and take label out of the entry"
            findings.append(Finding(where, f"label: {label!r}", expected, fix))
            continue
        name = str(entry.get("case") or (named["case"] if named else _ENDING.sub("", files[0].name)))
        case = {**_case(name, files), "layout": "slices" if named else "file", "subset": subset}
        case["patient"] = str(entry.get("patient") or case["patient"])
        # what an earlier start found out or was told, unless it is told otherwise now
        case["recorded"] = {key: entry[key] for key in ("channels", "mask_channels", "label_values") if key in entry}
        cases.append(case)
    if not cases and not findings:
        raise BundleError(Finding(str(path), "no case", "entries under training or validation", "check --datalist"))
    return cases, findings


def _case(name: str, files: Sequence[Path]) -> Case:
    return {
        "case": name,
        "patient": patient_of(name),
        "layout": "file",
        "image": [str(file) for file in files],
        "label": "",
        "label_values": list(LABELS),
        "subset": "",
    }


def _inspect(case: Case, said: Reading, labelled: bool, patch_size: Sequence[int] | None) -> list[Finding]:
    """Complete a case by what its first file shows."""
    path, recorded = case["image"][0], case.pop("recorded", {})
    slices = case["layout"] == "slices"
    try:
        with open_h5(path) as file:
            layout = layout_of(file, 2 if slices else 3, said.image_key, said.mask_key, labelled, said.fill_missing)
        affine_in(path, layout.image_key)
    except LayoutError as error:
        return [Finding(path, *error.parts)]
    except BundleError as error:
        return error.findings
    except ValueError as error:  # an attribute that contradicts the mask
        return [Finding(path, str(error), "names that fit the mask", "mend the attribute mask_channels")]
    listed = recorded.get("mask_channels")
    if listed is not None and layout.mask_count > 1 and labelled and said.mask_channels is None:
        try:
            listed = mask_names(listed, layout.mask_count)
        except ValueError as error:  # the files were exported anew since, or a word that nobody knows
            expected, fix = "names that fit the mask", "mend mask_channels of the entry, or take it out"
            return [Finding(path, f"in the datalist, {error}", expected, fix)]
    channels, case["notice"] = _channels_of(layout, said, recorded.get("channels"), slices)
    if channels is not None and sorted(c for c in channels if c >= 0) != list(range(layout.count)):
        found = f"{layout.count} channel(s) in {layout.image_key}, and other ones named: {_told(channels)}"
        fix = "give the names of all its channels with --channel_order, or export the file again"
        return [Finding(path, found, "a name for each channel", fix)]
    if channels is None:
        found = f"{layout.count} channels in {layout.image_key}, and nothing that says which is T1, T1ce, T2 and FLAIR"
        names = ",".join(_SLICE_ORDER[: layout.count])
        fix = f'give their names in the order of the channels, e.g. --channel_order "[{names}]"'
        return [Finding(path, found, "an attribute modalities with a name for each, or --channel_order", fix)]
    grid = (*layout.shape, len(case["image"])) if slices else layout.shape
    if min(grid) < 2:
        return [
            Finding(path, f"a grid of {_by(grid)}", "a volume", "give the whole volume: slices cannot be segmented")
        ]
    if patch_size is not None and any(p > n for p, n in zip(patch_size, grid, strict=True)):
        found, expected = f"a volume of {_by(grid)} voxels", f"at least patch_size {_by(patch_size)}"
        return [Finding(path, found, expected, 'give a smaller patch, e.g. --patch_size "[64,64,64]"')]
    case.update(
        image_key=layout.image_key,
        image_axis=layout.image_axis,
        channels=[int(c) for c in channels],
        mask_key=layout.mask_key,
        mask_axis=layout.mask_axis if layout.mask_count else None,
        mask_channels=layout.mask_channels or listed,
        label=path if layout.mask_key else "",
        told=layout.label_values or recorded.get("label_values"),
        grid=list(layout.shape),
        mask_count=layout.mask_count,
    )
    return []


def _channels_of(
    layout: Layout, said: Reading, listed: Sequence[int] | None, slices: bool
) -> tuple[Sequence[int] | None, str]:
    """Channels of T1, T1ce, T2, FLAIR with the notice that is due: as told now, else as the datalist has them for this
    very case, else as the file says, else as training was told, else as slices are usually exported."""
    if said.channel_order is not None:
        return channels_named(said.channel_order, said.fill_missing), ""
    if listed is not None:
        return listed, "listed" if layout.channels not in (None, list(listed)) else ""
    trained = None if said.trained_order is None else channels_named(said.trained_order, fill_missing=True)
    if layout.channels is not None:
        return layout.channels, "contradicted" if trained and _contradicts(layout.channels, trained) else ""
    if trained is not None:
        return trained, "trained"
    return (channels_named(_SLICE_ORDER), "assumed") if slices and layout.count == len(_SLICE_ORDER) else (None, "")


def _contradicts(channels: Sequence[int], trained: Sequence[int]) -> bool:
    """Whether those that both have are in another order."""
    both = [(own, other) for own, other in zip(channels, trained, strict=True) if own >= 0 and other >= 0]
    return [own for own, _ in sorted(both)] != [own for own, _ in sorted(both, key=lambda pair: pair[1])]


def _told(channels: Sequence[int]) -> str:
    """`T1 is 0, T2 is 1`."""
    return ", ".join(f"{name} is {c}" for name, c in zip(MODALITIES, channels, strict=True) if c >= 0)


def _by(shape: Sequence[int]) -> str:
    return "x".join(str(int(n)) for n in shape)
