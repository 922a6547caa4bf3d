"""The case of an entry of a MONAI datalist."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bundlekit.cases.case import Case
from bundlekit.cases.datalist import image_in, numbers_in
from bundlekit.cases.patients import patient_of
from bundlekit.errors import BundleError, Finding
from bundlekit.label_maps.file_names import stem_of
from bundlekit.label_maps.numberings import check_numbering

from .bids import bids_name, bids_numbering, is_bids
from .case import PARTS, make_case
from .layouts import file_of


def listed_case(entry: Mapping[str, Any], base: Path, where: str, labelled: bool) -> Case:
    """The case of an entry at `where`, with paths relative to `base`; BundleError if anything is wrong with it."""
    image = base / image_in(entry, where, "one T1 file")
    label_parts = entry.get("label_parts") or []
    label = entry.get("label") or (label_parts[0] if label_parts else "")
    if labelled and not label:
        raise BundleError(Finding(where, "no label", "a segmentation file", "add it to the entry"))
    if label_parts and len(label_parts) != len(PARTS):
        found = f"label_parts: {len(label_parts)} file(s)"
        raise BundleError(Finding(where, found, "the probability maps of CSF, GM and WM", "mend the entry"))
    case = make_case(_case_of(image), image)
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
