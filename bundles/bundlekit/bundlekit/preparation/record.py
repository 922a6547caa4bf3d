"""`prepared.json`: what was done to the scans of a case, and the way back."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from bundlekit.errors import BundleError, Finding
from bundlekit.files import write_result

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
    write_result(path, lambda file: file.write(text.encode()), "out")
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
    return record
