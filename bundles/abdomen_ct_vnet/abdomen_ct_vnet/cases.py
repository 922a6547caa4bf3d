"""Find and check the cases of an abdominal CT data set: `dataset_dir` is all a user has to give.

A case is a plain dict, so that it can be hashed, cached and written as JSON:

    case          name of the scan, unique within the data set
    patient       name that all scans of one patient share, by the case's name, unless a datalist says otherwise
    image         list with the CT file
    label         file of the segmentation, "" where there is none
    label_parts   where the segmentation is a file for each organ (TotalSegmentator): those that the classes need;
                  `label` is the first; `part_organs` names their organs
    numbering     what the label's numbers mean: a name in `numberings.NUMBERINGS`, or organ -> number
    classes       class name -> organs, see `organs.organ_classes`
    label_values  the numbers that results are written with, background first
    subset        "training" or "validation" where a datalist says so, else ""

The layouts of data sets that are known are told in `layouts`.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from bundlekit.cases.case import Case, check_names, refusing
from bundlekit.cases.datalist import image_in, listed_cases
from bundlekit.cases.folders import absolute, data_set, nothing_found
from bundlekit.cases.headers import check_headers
from bundlekit.cases.patients import patient_of
from bundlekit.errors import BundleError, Finding
from bundlekit.images.nifti import may_be_3d

from .layouts import IMAGES, LABEL_EXPECTED, LAYOUTS, VOLUME, LayoutFile, file_of, stem_of, volumes_below
from .numberings import check_organs, label_values, numbering_of, output_numbering_of
from .organs import UPSTREAM_ORGANS, Classes, organ_classes, segmentation_file
from .shear import check_shear

_log = logging.getLogger(__name__)


def scan_cases(
    dataset_dir: str | os.PathLike | None,
    datalist: str | os.PathLike | None = None,
    labelled: bool = True,
    numbering: str | Mapping[str, int] | None = None,
    organs: Mapping[str, Sequence[str]] | Sequence[str] | str | None = None,
    output_numbering: str | Mapping[str, int] | None = None,
) -> tuple[list[Case], list[Finding]]:
    """Cases of a data set in sorted order, after a check of all their headers (seconds for a thousand cases).

    `find_cases` gives the cases alone, and refuses where anything is wrong.

    Args:
        dataset_dir: folder searched to any depth for the layouts in `layouts`; or one CT file. None (and no
            `datalist`): no case, so that a pipeline can be built and inspected without data.
        datalist: JSON in MONAI's form, used instead of a search: `{"training": [{"image": file, "label": file}],
            "validation": [...]}`, paths relative to `dataset_dir` (to the JSON's own folder if that is not given). An
            entry may have `case`, `patient`, `numbering`, `label_parts` and `part_organs`. What is listed under "test"
            or "testing" is taken too when `labelled` is False.
        labelled: whether every case must have a segmentation.
        numbering: what the numbers of all label files mean: a name in `numberings.NUMBERINGS`, or organ -> number.
            None: by layout; labels of no known layout are refused then.
        organs: the classes, see `organs.organ_classes`; None: liver, kidneys and spleen.
        output_numbering: the numbering in which results are written; "dataset": that of the case's own layout; None:
            one that has all classes, see `numberings.output_numbering_of`.

    Returns:
        The sound cases, and what is wrong with the others: files, headers, grids, names.

    Raises:
        BundleError: if the folder holds no case at all, or an argument is wrong.
    """
    classes = organ_classes(UPSTREAM_ORGANS if organs is None else organs)
    output_numbering_of(output_numbering, classes)
    if numbering is not None:
        numbering_of(numbering, "--numbering")
    if not dataset_dir and not datalist:
        return [], []
    where = str(datalist or absolute(dataset_dir))
    if datalist:
        case_of = partial(_listed, labelled=labelled, classes=classes)
        cases, findings = listed_cases(datalist, dataset_dir, labelled, case_of)
    else:
        cases, findings = _from_folder(data_set(dataset_dir), labelled, classes)
    if not cases and not findings:
        raise BundleError(nothing_found(where, LAYOUTS))
    for case in cases:
        if numbering is not None and not case.get("label_parts"):
            case["numbering"] = dict(numbering) if isinstance(numbering, Mapping) else numbering
    written = output_numbering_of(output_numbering, classes, [case["numbering"] for case in cases])
    untold = [case for case in cases if not case["numbering"]] if written == "dataset" and not labelled else []
    if untold:
        default = output_numbering_of(None, classes)
        name = default if isinstance(default, str) else "the order of the classes"
        text = "no file name tells the numbering of %d case(s), e.g. %s: masks get that of %s (--output_numbering NAME)"
        _log.warning(text, len(untold), untold[0]["case"], name)
    for case in cases:
        case["classes"] = classes
        own = case["numbering"] or output_numbering_of(None, classes)
        case["label_values"] = label_values(classes, own if written == "dataset" else written)
    cases.sort(key=lambda case: case["case"])
    findings += check_names(cases, where) + (_numbering_findings(cases, where) if labelled else [])
    if not labelled:
        cases = [{**case, "label": "", "label_parts": []} for case in cases]
    wrong = [found or check_shear(case) for case, found in zip(cases, check_headers(cases), strict=True)]
    findings += [finding for found in wrong for finding in found]
    return [case for case, found in zip(cases, wrong, strict=True) if not found], findings


find_cases = refusing(scan_cases)


def _numbering_findings(cases: Sequence[Case], where: str) -> list[Finding]:
    """Labels whose numbers nobody explained, and numberings without a wanted organ: one finding for each kind."""
    untold = [case for case in cases if case["label"] and not case["numbering"] and not case.get("label_parts")]
    findings = []
    if untold:
        findings.append(
            Finding(
                where,
                f"{len(untold)} label(s) whose numbering the file names do not tell, e.g. {untold[0]['label']}",
                "to be told which organ each number is",
                "give --numbering flare22, btcv, amos, totalsegmentator_v1 or totalsegmentator_v2, or organs with "
                "their numbers: --numbering \"{'liver': 1, 'spleen': 2}\"",
            )
        )
    seen: list[Any] = []
    for case in cases:
        if case["label"] and case["numbering"] and not case.get("label_parts") and case["numbering"] not in seen:
            seen.append(case["numbering"])
            findings += check_organs(case["classes"], numbering_of(case["numbering"], where), case["label"])
    return findings


def _from_folder(root: Path, labelled: bool, classes: Classes) -> tuple[list[Case], list[Finding]]:
    if root.is_file():
        if not VOLUME.search(root.name):
            raise BundleError(Finding(str(root), "a file of another type", "a .nii or .nii.gz file", "give the CT"))
        return _from_file(root, labelled, classes)
    paths = volumes_below(root)
    files = [file for path in paths if (file := file_of(path))]
    if not labelled and not any(not file.is_label for file in files):
        paths = [path for path in paths if may_be_3d(path)] or paths
        scans = [path for path in paths if not file_of(path)] or paths  # some name a CT as others name its label
        return [_case(stem_of(path), path) for path in scans], []
    others = [path for path in paths if not file_of(path)]
    if not labelled and others:
        named = ", ".join(str(path.relative_to(root)) for path in others[:3])
        text = "%d file(s) are named otherwise than the cases here and left out: %s%s; --dataset_dir takes one, too"
        _log.warning(text, len(others), named, ", ..." if len(others) > 3 else "")
    return _pair(files, labelled, classes)


def _from_file(path: Path, labelled: bool, classes: Classes) -> tuple[list[Case], list[Finding]]:
    """The case of one CT; its label is sought where the layout has it."""
    file = file_of(path)
    if not labelled:
        return [_case(file.case if file else stem_of(path), path)], []
    root = path.parent.parent if IMAGES.match(path.parent.name) else path.parent
    near = [found for other in volumes_below(root) if (found := file_of(other))]
    mine = [other for other in near if file and (other.layout, other.key) == (file.layout, file.key)]
    if not mine:
        return [], [_without_label(path, f"one of the layouts {LAYOUTS}")]
    return _pair(mine, labelled, classes)


def _pair(files: Sequence[LayoutFile], labelled: bool, classes: Classes) -> tuple[list[Case], list[Finding]]:
    groups: dict[tuple[str, str], list[LayoutFile]] = {}
    for file in files:
        groups.setdefault((file.layout, file.key), []).append(file)
    cases, findings = [], []
    for (layout, _), group in sorted(groups.items()):
        images = [file.path for file in group if not file.is_label]
        labels = [file.path for file in group if file.is_label]
        name = group[0].case
        if not images:
            if labelled:
                findings.append(_without_image(labels[0], name))
            else:
                _log.warning("%s is named as the label of a CT that is not there, and left out", labels[0])
        elif len(images) > 1 or (len(labels) > 1 and layout != "totalsegmentator" and labelled):
            several = images if len(images) > 1 else labels
            findings.append(
                Finding(
                    str(several[0].parent),
                    f"case {name} more than once: {', '.join(map(str, several))}",
                    "one CT and one label for each case",
                    "keep one of them, or name the files in a datalist: --datalist",
                )
            )
        elif layout == "totalsegmentator":
            parts = _parts(images[0].parent, labels, classes)
            missing = [organ for organ, file in parts.items() if file is None]
            if labelled and missing:
                findings.append(_without_label(images[0], f"segmentations/{segmentation_file(missing[0])}.nii.gz"))
            else:
                found = {} if missing else parts
                cases.append({**_case(name, images[0]), **_spread(found), "numbering": "totalsegmentator_v2"})
        elif labels or not labelled:
            known = "" if layout == "plain" else layout
            cases.append(_case(name, images[0], labels[0] if labels else "", known))
        else:
            findings.append(_without_label(images[0], LABEL_EXPECTED[layout]))
    return cases, findings


def _parts(folder: Path, files: Sequence[Path], classes: Classes) -> dict[str, Path | None]:
    """The file of each organ that the classes need."""
    by_stem = {stem_of(file): file for file in files if file.parent.parent == folder}
    return {organ: by_stem.get(segmentation_file(organ)) for organs in classes.values() for organ in organs}


def _spread(parts: Mapping[str, Path | None]) -> dict[str, Any]:
    files = [str(file) for file in parts.values()]
    return {"label": files[0] if files else "", "label_parts": files, "part_organs": list(parts) if files else []}


# --- datalist ---------------------------------------------------------------------------------------------------------


def _listed(entry: Mapping[str, Any], base: Path, where: str, labelled: bool, classes: Classes) -> Case:
    image = image_in(entry, where, "one CT file")
    parts, organs = entry.get("label_parts") or [], entry.get("part_organs") or []
    label = entry.get("label") or (parts[0] if parts else "")
    if labelled and not label:
        raise BundleError(Finding(where, "no label", "a segmentation file", "add it to the entry"))
    file = file_of(base / image)
    name = str(entry.get("case") or (file.case if file else stem_of(Path(image))))
    case = _case(name, base / image, base / label if label else "")
    case["patient"] = str(entry.get("patient") or case["patient"])
    of_label = file_of(base / label) if label else None
    told = of_label.layout if of_label and of_label.layout not in ("plain", "totalsegmentator") else ""
    case["numbering"] = entry.get("numbering") or told
    if case["numbering"]:
        numbering_of(case["numbering"], where)
    if parts:
        wanted = {organ: None for organs_ in classes.values() for organ in organs_}
        files = dict(zip(organs, (base / part for part in parts), strict=False))
        missing = [organ for organ in wanted if organ not in files]
        if missing or len(organs) != len(parts):
            found = (
                f"no part for {', '.join(missing)}" if missing else "label_parts and part_organs of different length"
            )
            raise BundleError(Finding(where, found, "a file for each organ of the classes", "mend the entry"))
        case |= _spread({organ: files[organ] for organ in wanted})
    return case


# --- cases and findings -----------------------------------------------------------------------------------------------


def _case(name: str, image: Path, label: Path | str = "", numbering: str = "") -> Case:
    return {
        "case": name,
        "patient": patient_of(name),
        "image": [str(image)],
        "label": str(label),
        "numbering": numbering,
        "subset": "",
    }


def _without_label(image: Path, expected: str) -> Finding:
    fix = "add the label, take the CT out of the folder, or name both in a datalist: --datalist"
    return Finding(str(image), "a CT without a segmentation", expected, fix)


def _without_image(label: Path, case: str) -> Finding:
    return Finding(
        str(label),
        "a segmentation without its CT",
        f"the CT of {case}",
        "add the CT; results of an earlier run belong outside the data set folder",
    )
