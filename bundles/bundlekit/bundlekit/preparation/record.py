"""`prepared.json`: what was done to the scans of a case, and the way back."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from bundlekit.brats.naming import MODALITIES
from bundlekit.errors import BundleError, Finding
from bundlekit.files import write_content

RECORD = "prepared.json"
_FORMAT = 1
COORDINATES = (
    "mm, RAS+ as in NIfTI; to_prepared_ras is a 4x4 matrix that brings a point of the modality's own scan to the "
    "prepared grid, affine_ras one from voxels (i, j, k) to mm"
)


def write_record(folder: str | os.PathLike, record: dict[str, Any]) -> Path:
    """Write the record into the folder of a prepared case, whole or not at all."""
    path = Path(folder) / RECORD
    text = json.dumps({"format": _FORMAT, "coordinates": COORDINATES, **record}, indent=2) + "\n"
    write_content(path, text, "out")
    return path


def read_record(folder: str | os.PathLike) -> dict[str, Any]:
    """The record of a prepared case.

    Raises:
        BundleError: if there is none, or it is not of this version.
    """
    path = Path(folder).expanduser() / RECORD
    fix = "give the folder that `python -m tools prepare` wrote (--out)"
    try:
        record = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        found = "no such file" if isinstance(error, FileNotFoundError) else f"cannot be read ({error})"
        raise BundleError(Finding(str(path), found, "the record of a prepared case", fix)) from error
    if not isinstance(record, dict) or record.get("format") != _FORMAT:
        raise BundleError(Finding(str(path), "no record of this version", f'"format": {_FORMAT}', fix))
    wrong = _wrong_names(record)
    if wrong:  # files of these names are written, and removed by the next run
        raise BundleError(
            Finding(str(path), f"names that lead elsewhere: {wrong}", "names of files in its folder", fix)
        )
    return record


def _wrong_names(record: dict[str, Any]) -> str:
    """What in a record is not the name of a file in its folder; "" if all is."""
    entries = record.get("modalities")
    if not isinstance(entries, dict) or not all(isinstance(entry, dict) for entry in entries.values()):
        return "no modalities"
    names = [record.get("case"), *(entry["prepared"] for entry in entries.values() if "prepared" in entry)]
    wrong = [name for name in names if not isinstance(name, str) or Path(name).name != name or name in ("", ".", "..")]
    wrong += [modality for modality in entries if modality not in MODALITIES]
    for modality, entry in entries.items():
        if "dicom" in entry and entry.get("source") != source_file(modality):
            wrong.append(entry.get("source"))
    return ", ".join(repr(name) for name in wrong)


def source_file(modality: str) -> str:
    """Where the NIfTI file of a DICOM series lies in the folder of a prepared case."""
    return f"source/{modality}.nii.gz"
