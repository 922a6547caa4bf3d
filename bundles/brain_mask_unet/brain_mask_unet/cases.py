"""Find and check the scans of a folder: `dataset_dir` is all a user has to give.

A case is a plain dict, so that it can be hashed, cached and written as JSON:

    case          name of the scan, its file's without the ending; unique within the data set
    patient       name that all scans of one patient share
    image         list with the file
    label         file of its brain mask, "" where there is none
    label_values  the numbers that results are written with: 0 background, 1 brain
    subset        "training" or "validation" where a datalist says so, else ""

Every 3-D .nii, .nii.gz or .mgz file is a scan, of any contrast, unless its name says that it is a mask, a label or a
result. A mask is of the scan beside it whose name it begins with:

    <scan>_mask, <scan>_brain_mask, <scan>_brainmask, <scan>_bet_mask, <scan>_seg, <scan>_label, <scan>_DLMUSE,
    <scan>_synthseg; and in BIDS, in any folder, sub-X[_...]_desc-brain_mask or _dseg of a scan sub-X[_...]_T1w (T2w,
    FLAIR, PDw) with the same entities, `space` and `res` among them

Of a FreeSurfer subject it is mri/T1.mgz, else orig.mgz or norm.mgz, with brainmask.mgz or aseg.mgz.

Whatever is above 0 in it is brain.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from bundlekit.cases.case import Case, check_names, refusing
from bundlekit.cases.datalist import image_in, listed_cases
from bundlekit.cases.folders import absolute, data_set, nothing_found
from bundlekit.cases.headers import check_headers
from bundlekit.cases.patients import join_longitudinal, patient_of, without_contrast
from bundlekit.errors import BundleError, Finding
from bundlekit.images.nifti import may_be_3d
from bundlekit.label_maps.file_names import VOLUME, in_freesurfer, stem_of, volumes_below

_log = logging.getLogger(__name__)
EXPECTED = "scans, .nii, .nii.gz or .mgz, one 3-D volume each"
_MASK = re.compile(
    r"^(?P<scan>.+?)_(?:(?:brain_?|bet_|hd-?bet_|synthstrip_)?mask|dseg|seg|labels?|DLMUSE|synthseg|glm)$",
    re.IGNORECASE,
)
_BIDS_MASK = re.compile(r"^(?P<scan>sub-[^_]+(?:_[a-zA-Z]+-[^_]+)*?)(?:_desc-brain_mask|(?:_desc-[a-zA-Z0-9]+)?_dseg)$")
_BIDS_SCAN = re.compile(r"^(?P<scan>sub-[^_]+(?:_[a-zA-Z]+-[^_]+)*?)(?:_desc-preproc)?_(?:T1w|T2w|FLAIR|PDw)$")
_FREESURFER = ("T1", "orig", "norm"), ("brainmask", "aseg")  # scans and masks, the first that is there
_RESULT = re.compile(r"_(?:brain|probabilities|probseg)$|(?:^|_)(?:aseg|aparc|wmparc|brainmask)")


def scan_cases(
    dataset_dir: str | os.PathLike | None, datalist: str | os.PathLike | None = None, labelled: bool = True
) -> tuple[list[Case], list[Finding]]:
    """Scans of a folder in sorted order, after a check of all their headers (seconds for a thousand).

    `find_cases` gives the cases alone, and refuses where anything is wrong.

    Args:
        dataset_dir: folder searched to any depth, or one scan. None (and no `datalist`): no case, so that a pipeline
            can be built and inspected without data.
        datalist: JSON in MONAI's form, used instead of a search: `{"validation": [{"image": file, "label": file}]}`,
            paths relative to `dataset_dir` (to the JSON's own folder if that is not given). An entry may have `case`
            and `patient`. What is listed under "test" or "testing" is taken too when `labelled` is False.
        labelled: whether every scan must have a mask.

    Returns:
        The sound cases, and what is wrong with the others: files, headers, grids, names.

    Raises:
        BundleError: if there is no scan at all.
    """
    if not dataset_dir and not datalist:
        return [], []
    where = str(datalist or absolute(dataset_dir))
    if datalist:
        cases, findings = listed_cases(datalist, dataset_dir, labelled, partial(_listed_case, labelled=labelled))
    else:
        cases, findings = _from_folder(data_set(dataset_dir, "scans"), labelled)
    if not cases and not findings:
        raise BundleError(nothing_found(where, EXPECTED))
    cases.sort(key=lambda case: case["case"])
    join_longitudinal(cases)
    findings += check_names(cases, where)
    if not labelled:
        cases = [{**case, "label": ""} for case in cases]
    wrong = check_headers(cases)
    findings += [finding for found in wrong for finding in found]
    return [case for case, found in zip(cases, wrong, strict=True) if not found], findings


find_cases = refusing(scan_cases)


def _from_folder(root: Path, labelled: bool) -> tuple[list[Case], list[Finding]]:
    if root.is_file():
        if not VOLUME.search(root.name):
            raise BundleError(
                Finding(str(root), "a file of another type", "a .nii, .nii.gz or .mgz file", "give a scan")
            )
        beside = sorted(path for path in root.parent.iterdir() if VOLUME.search(path.name))
        masks = _masks([path for path in beside if path != root])
        return _with_masks([root], masks, labelled)
    paths = volumes_below(root)
    subjects = dict.fromkeys(path.parent for path in paths if in_freesurfer(path))
    cases = [case for folder in subjects if (case := _subject(folder))]
    findings = [
        _without_mask(Path(case["image"][0]), "brainmask.mgz") for case in cases if labelled and not case["label"]
    ]
    paths = [path for path in paths if not in_freesurfer(path)]
    scans = [path for path in paths if not is_mask(path) and not _RESULT.search(stem_of(path))]
    results = [path for path in paths if not is_mask(path) and _RESULT.search(stem_of(path))]
    if results:
        text = "%d file(s) named as results of other programs are left out, e.g. %s; --dataset_dir takes one, too"
        _log.warning(text, len(results), results[0])
    whole = [path for path in scans if may_be_3d(path)]
    if len(whole) < len(scans):
        _log.info("%d files of more than one volume are left out", len(scans) - len(whole))
    others, wrong = _with_masks(whole, _masks(paths), labelled)
    return cases + others, findings + wrong


def _subject(folder: Path) -> Case | None:
    """The scan of a FreeSurfer subject by its `mri`; None where it has none."""
    image, mask = (
        [folder / f"{stem}.mgz" for stem in stems if (folder / f"{stem}.mgz").is_file()] for stems in _FREESURFER
    )
    return _case(folder.parent.name, image[0], mask[0] if mask else "") if image else None


def _without_mask(scan: Path, expected: str, found: str = "a scan without a mask") -> Finding:
    fix = "keep one mask of it, take the scan out of the folder, or name both in a datalist: --datalist"
    return Finding(str(scan), found, f"one mask, as {expected}", fix)


def is_mask(path: Path) -> bool:
    """Whether a file is named as a mask or label is."""
    return bool(_MASK.match(stem_of(path)) or _BIDS_MASK.match(stem_of(path)))


def _masks(paths: list[Path]) -> dict[tuple[str, str], list[Path]]:
    """Masks by their folder ("" in BIDS) and the name of their scan; of a scan's own kinds in BIDS, the mask."""
    found: dict[tuple[str, str], list[Path]] = {}
    for path in paths:
        stem = stem_of(path)
        if bids := _BIDS_MASK.match(stem):
            found.setdefault(("", bids["scan"]), []).append(path)
        if match := _MASK.match(stem):
            found.setdefault((str(path.parent), match["scan"]), []).append(path)
    for (folder, scan), several in found.items():
        masks = [path for path in several if stem_of(path).endswith("_mask")]
        if not folder and masks:
            found[folder, scan] = masks
    return found


def _with_masks(
    scans: list[Path], masks: Mapping[tuple[str, str], list[Path]], labelled: bool
) -> tuple[list[Case], list[Finding]]:
    cases, findings = [], []
    for scan in scans:
        stem = stem_of(scan)
        bids = _BIDS_SCAN.match(stem)
        names = [(str(scan.parent), stem), *([("", bids["scan"])] if bids else [])]
        own = next((masks[name] for name in names if name in masks), [])
        if labelled and len(own) != 1:
            found = f"{len(own)} masks: {', '.join(map(str, own))}" if own else "a scan without a mask"
            findings.append(_without_mask(scan, f"{stem}_mask.nii.gz beside it", found))
            continue
        cases.append(_case(stem, scan, own[0] if len(own) == 1 else ""))
    return cases, findings


def _listed_case(entry: Mapping[str, Any], base: Path, where: str, labelled: bool) -> Case:
    image = image_in(entry, where, "one scan")
    label = entry.get("label")
    if labelled and not label:
        raise BundleError(Finding(where, "no label", "a brain mask", "add it to the entry"))
    name = str(entry.get("case") or stem_of(Path(image)))
    case = _case(name, base / image, base / label if label else "")
    return {**case, "patient": str(entry.get("patient") or case["patient"])}


def _case(name: str, image: Path, label: Path | str = "") -> Case:
    return {
        "case": name,
        "patient": patient_of(without_contrast(name)),
        "image": [str(image)],
        "label": str(label),
        "label_values": [0, 1],
        "subset": "",
    }
