"""The cases of a MONAI datalist, entry by entry."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bundlekit.cases.case import Case
from bundlekit.cases.datalist import numbers_in, read_datalist
from bundlekit.cases.folders import absolute
from bundlekit.cases.patients import patient_of
from bundlekit.errors import BundleError, Finding
from bundlekit.label_maps.file_names import stem_of
from bundlekit.label_maps.numberings import check_numbering

from .bids import bids_name, bids_numbering, is_bids
from .case import PARTS, make_case
from .layouts import file_of


def from_datalist(path: Path, dataset_dir: Any, labelled: bool) -> tuple[list[Case], list[Finding]]:
    """Cases that a datalist names, and what is wrong with its entries; paths are relative to `dataset_dir`, if given.

    Raises:
        BundleError: if the datalist cannot be read.
    """
    base = absolute(dataset_dir) if dataset_dir else path.parent
    cases, findings = [], []
    for where, subset, entry in read_datalist(path, labelled, dataset_dir):
        try:
            cases.append({**_listed_case(entry, base, where, labelled), "subset": subset})
        except BundleError as error:
            findings += error.findings
    return cases, findings


def _listed_case(entry: Mapping[str, Any], base: Path, where: str, labelled: bool) -> Case:
    image = entry.get("image") or []
    images = image if isinstance(image, list) else [image]
    label_parts = entry.get("label_parts") or []
    label = entry.get("label") or (label_parts[0] if label_parts else "")
    if len(images) != 1 or not all(isinstance(file, str) for file in images):
        raise BundleError(Finding(where, f"image: {entry.get('image')!r}", "one T1 file", "mend the entry"))
    if labelled and not label:
        raise BundleError(Finding(where, "no label", "a segmentation file", "add it to the entry"))
    if label_parts and len(label_parts) != len(PARTS):
        found = f"label_parts: {len(label_parts)} file(s)"
        raise BundleError(Finding(where, found, "the probability maps of CSF, GM and WM", "mend the entry"))
    case = make_case(_case_of(base / images[0]), base / images[0])
    if label:
        case["label"] = str(base / label)
        case["numbering"] = "" if label_parts or entry.get("numbering") else _numbering_of(base / label)
    if label_parts:
        case["label_parts"] = [str(base / file) for file in label_parts]
    if entry.get("numbering"):
        case["numbering"] = check_numbering(str(entry["numbering"]), where)
    case["label_values"] = numbers_in(entry, "label_values", 4, where) or case["label_values"]
    case["case"] = str(entry.get("case") or case["case"])
    case["patient"] = str(entry.get("patient") or patient_of(case["case"]))
    return case


def _case_of(path: Path) -> str:
    if is_bids(path):
        return bids_name(path)
    file = file_of(path)
    return file.case if file else stem_of(path)


def _numbering_of(label: Path) -> str:
    """Numbering of a label file by its name alone, "" if that does not tell."""
    if is_bids(label):
        return bids_numbering(label)
    file = file_of(label)
    return file.numbering if file else ""
