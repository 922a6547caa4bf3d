"""Find and check the cases of a BraTS data set: `dataset_dir` is all a user has to give.

How files are named is told in `naming`.
A case is a plain dict, so that it can be hashed, cached and written as JSON:

    case          name of the scan, e.g. "BraTS2021_00006"; unique within the data set
    patient       name that all scans of one patient share
    image         files of the modalities in the network's order (T1, T1ce, T2, FLAIR; "" for one that is missing and
                  filled with zeros), or one 4-D file
    channels      which channel of a 4-D file holds each modality, in the same order; [0, 1, 2, 3] otherwise
    label         file of the manual segmentation, "" where there is none
    label_values  the data set's own values of background, necrotic core (NCR), oedema (ED), enhancing tumour (ET)
    subset        "training" or "validation" where a datalist says so, else ""
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from bundlekit.brats.enhancing_label import set_et_label
from bundlekit.brats.naming import (
    DECATHLON_CHANNELS,
    DECATHLON_IMAGES,
    DECATHLON_LABELS,
    EXPECTED,
    MODALITIES,
    NIFTI,
    label_values_of,
    may_be_4d,
    newest_scheme,
    role_of,
)
from bundlekit.cases.case import MOST_MISSING, Case, check_names, refusing
from bundlekit.cases.datalist import listed_cases, numbers_in
from bundlekit.cases.folders import absolute, data_set, nothing_found, walk
from bundlekit.cases.headers import check_headers, without_results
from bundlekit.cases.patients import patient_of
from bundlekit.errors import BundleError, Finding
from bundlekit.images.nifti import open_nifti

_log = logging.getLogger(__name__)
_RESULT = re.compile(r"seg|mask|label|prob", re.IGNORECASE)  # in names of what is no scan
GO_ON = "or go on without it, for a worse mask: --fill_missing True"


def scan_cases(
    dataset_dir: str | os.PathLike | None,
    datalist: str | os.PathLike | None = None,
    labelled: bool = True,
    et_label: int | None = None,
    channel_order: Sequence[int] | None = None,
    patch_size: Sequence[int] | None = None,
    fill_missing: bool = False,
) -> tuple[list[Case], list[Finding]]:
    """Cases of a data set in sorted order, after a check of all their headers (seconds for a thousand cases).

    `find_cases` gives the cases alone, and refuses where anything is wrong.

    Args:
        dataset_dir: folder searched to any depth; or one case folder; or one file of a case; or one 4-D NIfTI. None
            (and no `datalist`): no case, so that a pipeline can be built and inspected without data.
        datalist: JSON in MONAI's form, used instead of a search: `{"training": [{"image": [T1, T1ce, T2, FLAIR] or one
            4-D file, "label": file}], "validation": [...]}`, paths relative to `dataset_dir` (to the JSON's own folder
            if that is not given). What is listed under "test" or "testing" is taken too when `labelled` is False.
        labelled: whether every case must have a segmentation.
        et_label: value of enhancing tumour in the label files, 3 or 4. None looks into the label files; without labels
            the file names decide (2018-2021: 4, 2023: 3). Labels named as in 2023 and later that hold a 4 and no 3 need
            it said.
        channel_order: for 4-D files, the channels that hold T1, T1ce, T2 and FLAIR. None: as in Decathlon Task01 for
            its folders, [0, 1, 2, 3] for any other file.
        patch_size: voxels; refused if it is larger than a volume.
        fill_missing: accept cases that lack one or two modalities: they are all zeros then, which is what air is.
            False: such a case is refused by name.

    Returns:
        The sound cases, and what is wrong with the others: files, headers, grids, names.

    Raises:
        BundleError: if the folder holds no case at all, or an argument is wrong.
    """
    if not dataset_dir and not datalist:
        return [], []
    if et_label not in (None, 3, 4):
        raise BundleError(f"et_label is {et_label!r}; expected 3, 4 or null (detect it).")
    if channel_order is not None:
        order = [int(channel) for channel in channel_order]
        if len(order) != len(MODALITIES) or len(set(order)) != len(order) or min(order) < 0:
            raise BundleError(
                f"channel_order is {order}; expected the channels of T1, T1ce, T2 and FLAIR, e.g. [1,2,3,0]."
            )
    if datalist:
        case_of = partial(_listed_case, labelled=labelled, fill_missing=fill_missing)
        cases, findings = listed_cases(datalist, dataset_dir, labelled, case_of)
    else:
        cases, findings = _from_folder(data_set(dataset_dir), labelled, fill_missing)
    if not cases and not findings:
        raise BundleError(nothing_found(str(datalist or absolute(dataset_dir)), EXPECTED))
    for case in cases:
        if channel_order is not None and len(case["image"]) == 1:
            case["channels"] = [int(c) for c in channel_order]
    assumed = [case for case in cases if case.pop("assumed", False)] if channel_order is None else []
    for case in cases:
        case.pop("assumed", None)
    unknown = _too_many_channels(assumed)
    findings += unknown
    cases = [case for case in cases if case["image"][0] not in {finding.file for finding in unknown}]
    assumed = [case for case in assumed if case in cases]
    if assumed:
        text = (
            "%d 4-D file(s), first %s: nothing says which channel is which; they are taken as T1, T1ce, T2, FLAIR. If "
            "they differ, give --channel_order, or channels in the datalist"
        )
        _log.warning(text, len(assumed), assumed[0]["image"][0])
    cases.sort(key=lambda case: case["case"])
    findings += check_names(cases, str(datalist or dataset_dir))
    cases = cases if labelled else without_results(cases)
    wrong = check_headers(cases, patch_size)
    for position in [] if labelled else [n for n, found in enumerate(wrong) if found]:
        case = cases[position]
        (without,) = check_headers([{**case, "label": ""}], patch_size)
        if not without:  # a label that cannot be used is none
            _log.warning("%s: its label is left aside: %s", case["case"], "; ".join(map(str, wrong[position])))
            case["label"], wrong[position] = "", []
    findings += [finding for found in wrong for finding in found]
    cases = [case for case, found in zip(cases, wrong, strict=True) if not found]
    unclear = set_et_label(cases, et_label)
    return cases, findings + (unclear if labelled else [])


find_cases = refusing(scan_cases)


def _from_folder(root: Path, labelled: bool, fill_missing: bool) -> tuple[list[Case], list[Finding]]:
    only = None
    if root.is_file():
        named = role_of(root.name)
        if named is None:
            return _volume_cases([root], labelled)
        only, root = named[0], root.parent
    named_files: dict[str, dict[str, list[Path]]] = {}
    other: list[Path] = []
    # the other files of a case lie beside the one that was named, not in folders below
    for folder, files in walk(root, prune=None if only is None else lambda *_: True):
        for name in filter(NIFTI.search, files):
            named = role_of(name)
            if named is None:
                other.append(folder / name)
            elif only in (None, named[0]):
                named_files.setdefault(named[0], {}).setdefault(named[1], []).append(folder / name)
    lone = not labelled and only is None and all(set(roles) == {"label"} for roles in named_files.values())
    if named_files and not lone:
        _tell_unknown(named_files, other)
        return _named_cases(named_files, other, labelled, fill_missing)
    return _volume_cases([file for file in other if may_be_4d(file)], labelled)


def _tell_unknown(files: dict[str, dict[str, list[Path]]], other: Sequence[Path]) -> None:
    """Log NIfTI files that are not taken because of their names, in folders without any file that is."""
    known = {file.parent for roles in files.values() for found in roles.values() for file in found}
    left = [file for file in other if file.parent not in known and not _RESULT.search(file.name)]
    if left:
        text = "%d NIfTI file(s) in folders without a known case are not taken, first %s; expected names: %s"
        _log.warning(text, len(left), left[0], EXPECTED)


def _beside(file: Path, other: Sequence[Path], but: re.Pattern[str] | None) -> list[str]:
    """Some of the files in a file's folder whose names say nothing, but for those that match a pattern."""
    return [one.name for one in other if one.parent == file.parent and not (but and but.search(one.name))][:6]


def _named_cases(
    files: dict[str, dict[str, list[Path]]], other: Sequence[Path], labelled: bool, fill_missing: bool
) -> tuple[list[Case], list[Finding]]:
    cases, findings = [], []
    for name in sorted(files):
        roles = files[name]
        any_file = next(iter(roles.values()))[0]
        names = [file.name for found in roles.values() for file in found]
        scheme = newest_scheme(names)
        wanted = MODALITIES + (("label",) if labelled else ())
        missing = [role for role in wanted if role not in roles]
        absent = [role for role in missing if role != "label"]
        if fill_missing and len(absent) <= MOST_MISSING:
            missing = [role for role in missing if role == "label"]
            if absent and (beside := _beside(any_file, other, _RESULT)):
                text = "%s: case %s is taken without %s, though these lie beside it, whose names say nothing: %s"
                _log.warning(text, any_file.parent, name, " and ".join(absent), ", ".join(beside))
        if set(roles) == {"label"} and not labelled:
            _log.warning("%s: a segmentation without a scan, which is left aside", any_file)
            continue
        if set(roles) == {"label"}:
            findings.append(
                Finding(
                    str(any_file),
                    "a segmentation without a scan",
                    "the four modalities beside it",
                    "add them; results of an earlier run belong outside the data set folder",
                )
            )
            continue
        doubled = [role for role, found in roles.items() if len(found) > 1]
        if missing:
            beside = _beside(any_file, other, _RESULT if "label" not in missing else None)
            rename = f"rename the file if it is one of {', '.join(beside)}; " if beside else ""
            findings.append(
                Finding(
                    str(any_file.parent),
                    f"case {name} has " + (", ".join(f.name for role in roles.values() for f in role)),
                    "also " + ", ".join(f"{scheme.file_of(name, role)} ({role})" for role in missing),
                    f"{rename}add the missing file, or take the case out of the folder"
                    + (f"; {GO_ON}" if 0 < len(absent) <= MOST_MISSING else ""),
                    name,
                )
            )
        if doubled:
            findings.append(
                Finding(
                    str(any_file.parent),
                    f"case {name} has more than one {' and '.join(doubled)}: "
                    + ", ".join(str(f) for role in doubled for f in roles[role]),
                    "one file for each modality",
                    "keep one of them; results of an earlier run belong outside the data set folder",
                    name,
                )
            )
        if not missing and not doubled:
            label = roles["label"][0] if "label" in roles else ""
            images = [roles[m][0] if m in roles else "" for m in MODALITIES]
            cases.append(_case(name, images, label, [0, 1, 2, 3], label_values_of(*names)))
    return cases, findings


def _volume_cases(files: Iterable[Path], labelled: bool) -> tuple[list[Case], list[Finding]]:
    """4-D files: Decathlon's imagesTr / labelsTr, or any folder of 4-D volumes."""
    cases, findings = [], []
    for file in files:
        decathlon = file.parent.name in DECATHLON_IMAGES
        label = file.parent.with_name(file.parent.name.replace("images", "labels")) / file.name
        if decathlon and label.is_file():
            cases.append(_volume_case(file, label, DECATHLON_CHANNELS, DECATHLON_LABELS))
        elif not labelled:
            channels, values = (
                (DECATHLON_CHANNELS, DECATHLON_LABELS) if decathlon else ([0, 1, 2, 3], label_values_of(file.name))
            )
            cases.append({**_volume_case(file, "", channels, values), "assumed": not decathlon})
        elif not decathlon:
            findings.append(
                Finding(str(file), "a 4-D file without a label", "a segmentation", "name it in a datalist: --datalist")
            )
        elif file.parent.name == "imagesTr":
            findings.append(
                Finding(str(file), f"no {label}", "a segmentation of the same name in labelsTr", "add the label file")
            )
    return cases, findings


def _listed_case(entry: Mapping[str, Any], base: Path, where: str, labelled: bool, fill_missing: bool) -> Case:
    images = entry.get("image")
    images = images if isinstance(images, list) else [images]
    files = [base / image for image in images if isinstance(image, str) and image]
    least = 4 - MOST_MISSING if fill_missing and len(images) == 4 else 4  # "" is a modality that is filled
    allowed = (1,) if len(images) == 1 else range(least, 5)
    if len(files) not in allowed or len(files) != len(images) - images.count("") * fill_missing:
        found = f"image: {entry.get('image')!r}"
        raise BundleError(Finding(where, found, "4 files (T1, T1ce, T2, FLAIR) or one 4-D file", "mend it"))
    given: list[Path | str] = [base / image if image else "" for image in images]
    roles = [role_of(file.name) if isinstance(file, Path) else None for file in given]
    roles = roles if len(given) == len(MODALITIES) else []
    if any(role is not None and role[1] != wanted for role, wanted in zip(roles, MODALITIES, strict=False)):
        order = ", ".join(role[1] if role else "?" for role in roles)
        found = f"images in the order {order}"
        raise BundleError(Finding(where, found, "T1, T1ce, T2, FLAIR", "put them in order"))
    label = entry.get("label") or ""
    if labelled and not label:
        raise BundleError(Finding(where, "no label", "a segmentation file", "add it to the entry"))
    named = role_of(files[0].name)
    name = str(entry.get("case") or (named[0] if named else NIFTI.sub("", files[0].name)))
    values = label_values_of(*(file.name for file in files))
    case = _case(name, given, base / label if label else "", [0, 1, 2, 3], values)
    if files[0].parent.name in DECATHLON_IMAGES:
        case.update(channels=DECATHLON_CHANNELS, label_values=DECATHLON_LABELS)
    own = {key: numbers_in(entry, key, 4, where) for key in ("label_values", "channels")}
    case.update({key: numbers for key, numbers in own.items() if numbers})
    case["assumed"] = len(files) == 1 and not own["channels"] and files[0].parent.name not in DECATHLON_IMAGES
    return {**case, "patient": str(entry.get("patient") or case["patient"])}


def _too_many_channels(cases: Sequence[Case]) -> list[Finding]:
    """4-D files of more channels than modalities, of which nobody has said which they are."""
    findings = []
    for case in cases:
        (file,) = case["image"]
        try:
            shape = open_nifti(file).shape
        except Exception:  # named with all headers
            continue
        if len(shape) == 4 and shape[3] > len(MODALITIES):
            expected = "four channels, T1, T1ce, T2 and FLAIR, or to be told which they are"
            fix = "give --channel_order, or channels in the datalist; take other images out of the folder"
            findings.append(Finding(file, f"{shape[3]} channels", expected, fix))
    return findings


def _case(name: str, image: Sequence[Path | str], label: Path | str, channels: list[int], values: list[int]) -> Case:
    return {
        "case": name,
        "patient": patient_of(name),
        "image": [str(file) for file in image],
        "channels": list(channels),
        "label": str(label),
        "label_values": list(values),
        "subset": "",
    }


def _volume_case(file: Path, label: Path | str, channels: list[int], values: list[int]) -> Case:
    return _case(NIFTI.sub("", file.name), [file], label, channels, values)
