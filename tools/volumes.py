"""Volumes of masks as they are now, those that somebody corrected among them."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from tqdm import tqdm

from bundlekit.images.nifti import on_axes_of, read_affine, read_volume, without_rounding
from bundlekit.images.writing import left_as_segmented
from bundlekit.preparation.grids import Grid
from bundlekit.report.brain import MeasureBraind
from bundlekit.report.flags import Result
from bundlekit.report.handler import WriteVolumes
from bundlekit.report.table import NOW, TABLE, VolumeTable
from tools.bundles import plain_errors
from tools.report import results_in

_log = logging.getLogger(__name__)


def volumes(folder: str, dataset_dir: str | None = None, datalist: str | None = None, **settings: Any) -> str:
    """Write volumes_now.csv: the table of a folder of results, with corrected masks measured as they are now.

    volumes.csv stays as it is, with what the network found. Of a corrected mask the rows have no confidence and no
    flags, and `computed_by` says that it was corrected by hand. All other rows are those of volumes.csv.

    Example: python -m tools volumes OUT --dataset_dir DIR

    Args:
        folder: `--output_dir` of an inference.
        dataset_dir: of that inference: its cases say what the numbers in a mask are, and where the brain is.
        datalist: of that inference.
        settings: others of the bundle's inference.yaml that its cases need, e.g. --allow_unprepared True.

    Returns:
        The table.

    Raises:
        ValueError: if there are no results, a mask is gone or holds a number that its data set does not have.
    """
    table = VolumeTable(folder)
    if not table.path.is_file() or not (dataset_dir or datalist):
        found = f"no {TABLE} in {folder}" if not table.path.is_file() else "no data set"
        raise ValueError(f"{found}; expected the --output_dir of an inference, and its --dataset_dir or --datalist.")
    _, parser = results_in(folder, dataset_dir, datalist, settings)
    if parser is None:
        raise ValueError(f"{table.path} has no rows; run the inference first.")
    places = [place for place, part in enumerate(parser["handlers"]) if part["_target_"] == "bundlekit.WriteVolumes"]
    measure: WriteVolumes = parser.get_parsed_content(f"handlers::{places[0]}")
    measure.checks = {}  # they are about what a network found
    load: Any = parser.get_parsed_content("preprocessing").transforms[0]
    with plain_errors():
        cases = {str(case["case"]): case for case in parser.get_parsed_content("cases")}
    before: dict[str, list[dict[str, str]]] = {}
    for row in table.rows():
        before.setdefault(row["case"], []).append(row)
    now: list[dict[str, Any]] = []
    corrected = []
    for name, rows in tqdm(before.items(), desc="volumes", disable=None):
        mask = Path(folder, f"{name}_seg.nii.gz")
        if not mask.is_file():
            raise ValueError(f"{mask}: no such file; expected the mask of a case of {TABLE}; put it back.")
        if left_as_segmented(mask):
            now += rows
            continue
        if name not in cases:
            raise ValueError(f"{name}: a corrected mask, and no such case in the data set; give that of the inference.")
        corrected.append(name)
        item = dict(load(cases[name]))
        _require_grid(mask, item["image"])
        grid_known = bool(item.get("grid_known", True))
        item = MeasureBraind()(item) if measure.brain == "image" else {}
        result = Result(_classes(mask, cases[name], measure.classes), {}, None, 0.0, grid_known=grid_known)
        made_by = {key: rows[0][key] for key in ("bundle", "version", "settings", "weights_sha256")}
        made_by["computed_by"] = "corrected by hand"
        now += [{**row, **made_by} for row in measure.rows_of(name, result, read_affine(str(mask)), item)]
    out = VolumeTable(folder, name=NOW)
    out.rewrite(lambda _: now)
    _log.info("%d corrected: %s", len(corrected), ", ".join(corrected))
    return str(out.path)


def _require_grid(mask: Path, scan: Any) -> None:
    """Refuse a mask that is not on the grid of its scan, in whatever order its axes are: its volumes mean nothing."""
    image = nib.load(mask)
    there = Grid(tuple(scan.shape[1:]), np.asarray(scan.affine, np.float64))  # type: ignore[arg-type]
    turned, affine = on_axes_of(np.broadcast_to(np.uint8(0), image.shape[:3]), image.affine, there.affine)  # type: ignore[attr-defined]
    here = Grid(turned.shape, affine)  # type: ignore[arg-type]
    if not here.same_as(there):
        found = f"{mask} is on another grid than its scan ({_told(here)}; {_told(there)})"
        raise ValueError(f"{found}; save the corrected mask on the grid of the scan.")


def _told(grid: Grid) -> str:
    spacing = "x".join(f"{mm:.3g}" for mm in grid.spacing)
    return f"{'x'.join(map(str, grid.shape))} voxels of {spacing} mm, origin {grid.affine[:3, 3].round(2).tolist()}"


def _classes(mask: Path, case: Any, names: list[str]) -> np.ndarray:
    """Class indices HWD of a mask file."""
    labels = without_rounding(read_volume(str(mask)))
    values = [int(value) for value in case.get("label_values") or range(len(names) + 1)]
    unknown = sorted(set(np.unique(labels).tolist()) - set(values))
    if unknown:
        expected = ", ".join(f"{value} {name}" for value, name in zip(values[1:], names, strict=True))
        raise ValueError(f"{mask} holds {unknown[0]:g}; expected 0, {expected}; mend the mask.")
    classes = np.zeros(labels.shape, np.uint8)
    for index, value in enumerate(values):
        classes[labels == value] = index
    return classes
