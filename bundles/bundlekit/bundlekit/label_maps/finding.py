"""Find and check label maps in FreeSurfer's numbering, each a case of its own: no image is needed beside them.

A case is a plain dict, so that it can be hashed, cached and written as JSON:

    case       name of the label map, e.g. "training_seg_01"; of a FreeSurfer subject, the subject's
    patient    name that all scans of one patient share, so that evaluation knows who has trained
    image      []
    label      the file
    numbering  "freesurfer"
    subset     "training" or "validation" where a datalist says so, else ""

Files end on .nii, .nii.gz or .mgz, and every one counts. In the `mri` folder of a FreeSurfer subject, which holds
images too, one is taken: aseg.mgz, else aparc+aseg.mgz, wmparc.mgz or aseg.presurf.mgz.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from bundlekit.cases.case import Case, check_names, refusing
from bundlekit.cases.datalist import listed_cases
from bundlekit.cases.folders import absolute, data_set, nothing_found
from bundlekit.cases.headers import check_headers
from bundlekit.cases.patients import join_longitudinal, patient_of, without_contrast
from bundlekit.errors import BundleError, Finding
from bundlekit.label_maps.file_names import FREESURFER_LABELS, in_freesurfer, stem_of, volumes_below

_NUMBERING = "freesurfer"
_OF_A_SCAN = re.compile(r"^(.+?)_(?:synthseg|seg_ana|seg|label)$")  # SynthSeg, IBSR18's structures, plain names


def scan_label_maps(
    dataset_dir: str | os.PathLike | None, datalist: str | os.PathLike | None = None, numbering: str | None = None
) -> tuple[list[Case], list[Finding]]:
    """Label maps of a folder in sorted order, after a check of all their headers; no number in them is read.

    `find_label_maps` gives the cases alone, and refuses where anything is wrong.

    Args:
        dataset_dir: folder searched to any depth, or one file. None (and no `datalist`): no case, so that a pipeline
            can be built and inspected without data.
        datalist: JSON in MONAI's form, used instead of a search: `{"training": [{"label": file}], "validation":
            [...]}`, paths relative to `dataset_dir` (to the JSON's own folder if that is not given). An entry may have
            `case` and `patient`.
        numbering: None or "freesurfer"; here for configs that have that setting, so that another is not ignored.

    Returns:
        The sound cases, and what is wrong with the others: files, headers, grids, names.

    Raises:
        BundleError: if there is no label map at all, or an argument is wrong.
    """
    if numbering not in (None, _NUMBERING):
        raise BundleError(f"numbering is {numbering!r}; label maps without images are read as {_NUMBERING!r} alone.")
    if not dataset_dir and not datalist:
        return [], []
    where = str(datalist or absolute(dataset_dir))
    if datalist:
        cases, findings = listed_cases(datalist, dataset_dir, True, _listed_case)
    else:
        cases, findings = _from_folder(data_set(dataset_dir)), []
    if not cases and not findings:
        expected = "label maps, .nii, .nii.gz or .mgz"
        raise BundleError(nothing_found(where, expected))
    cases.sort(key=lambda case: case["case"])
    join_longitudinal(cases)
    findings += check_names(cases, where)
    wrong = check_headers(cases)
    findings += [finding for found in wrong for finding in found]
    return [case for case, found in zip(cases, wrong, strict=True) if not found], findings


find_label_maps = refusing(scan_label_maps)


def _from_folder(root: Path) -> list[Case]:
    return [_case(path) for path in _preferred([root] if root.is_file() else volumes_below(root))]


def _preferred(paths: Iterable[Path]) -> list[Path]:
    """All files, but of a FreeSurfer subject's folder the label map of the lowest rank."""
    others: list[Path] = []
    subjects: dict[Path, Path] = {}
    for path in paths:
        if not in_freesurfer(path):
            others.append(path)
        elif stem_of(path) in FREESURFER_LABELS:
            best = subjects.setdefault(path.parent, path)
            if FREESURFER_LABELS[stem_of(path)] < FREESURFER_LABELS[stem_of(best)]:
                subjects[path.parent] = path
    return others + list(subjects.values())


def _listed_case(entry: Mapping[str, Any], base: Path, where: str) -> Case:
    if entry.get("image"):
        expected = "no image, since the label maps alone are wanted"
        raise BundleError(Finding(where, f"image: {entry['image']!r}", expected, "mend the entry"))
    if not entry.get("label"):
        raise BundleError(Finding(where, "no label", "a label map", "add it to the entry"))
    if entry.get("numbering") not in (None, "", _NUMBERING):
        raise BundleError(Finding(where, f"numbering {entry['numbering']!r}", repr(_NUMBERING), "mend the entry"))
    case = _case(base / entry["label"])
    name = str(entry.get("case") or case["case"])
    patient = str(entry.get("patient") or (patient_of(name) if entry.get("case") else case["patient"]))
    return {**case, "case": name, "patient": patient}


def _case(path: Path) -> Case:
    name = path.parent.parent.name if in_freesurfer(path) else stem_of(path)
    match = None if in_freesurfer(path) else _OF_A_SCAN.match(name)
    return {
        "case": name,
        "patient": patient_of(without_contrast(match[1]) if match else name),
        "image": [],
        "label": str(path),
        "numbering": _NUMBERING,
        "subset": "",
    }
