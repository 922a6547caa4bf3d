"""Pages to look at, of a folder of results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from monai.utils import convert_to_numpy
from tqdm import tqdm

from bundlekit.errors import BundleError
from bundlekit.report.pages import write_report
from bundlekit.report.table import VolumeTable
from tools.bundles import names, parse


def report(folder: str, dataset_dir: str | None = None, datalist: str | None = None, **settings: Any) -> None:
    """Make pages of a folder of results: report/index.html for all cases, and a page with pictures for each.

    Example: python -m tools report OUT --dataset_dir DIR

    Args:
        folder: `--output_dir` of an inference.
        dataset_dir: of that inference, for the scans; None (and no datalist): pages without pictures.
        datalist: of that inference.
        settings: others of the bundle's inference.yaml that its cases need, e.g. --allow_unprepared True.

    Raises:
        ValueError: if there are no results, a file cannot be read, or masks and scans do not belong together.
    """
    table = VolumeTable(folder)
    bundles = {row["bundle"] for row in table.rows()} if table.path.is_file() else set()
    if len(bundles) > 1 and (dataset_dir or datalist):
        raise ValueError(f"{folder} holds results of {', '.join(sorted(bundles))}; expected those of one bundle.")
    bundle = next(iter(bundles), "")
    if bundles and bundle not in names():
        raise ValueError(f"{table.path}: no bundle {bundle!r}; there are {', '.join(names())}.")
    cases: dict[str, Mapping[str, Any]] = {}
    load: Any = None
    classes: Sequence[str] = ()
    if bundle:
        parser = parse(bundle, "inference.yaml", dataset_dir=dataset_dir, datalist=datalist, **settings)
        classes = _written_classes(parser)
        if dataset_dir or datalist:
            cases = {str(case["case"]): case for case in parser.get_parsed_content("cases")}
            load = parser.get_parsed_content("preprocessing").transforms[0]
    values = next((case["label_values"] for case in cases.values() if "label_values" in case), range(len(classes) + 1))
    called = {int(value): name for value, name in zip(list(values)[1:], classes, strict=False)}
    path = write_report(
        folder,
        partial(_scan, cases, load),
        called or None,
        title=f"{bundle}: {Path(folder).absolute().name}",
        progress=lambda found: tqdm(found, desc="pages", disable=None),
    )
    print(path)


def _written_classes(parser: Any) -> list[str]:
    """Names of the classes, as the handler that writes the volumes has them."""
    for i, handler in enumerate(parser["handlers"]):
        if str(handler.get("_target_", "")).endswith("WriteVolumes"):
            return list(parser.get_parsed_content(f"handlers::{i}").classes)
    return []


def _scan(
    cases: Mapping[str, Mapping[str, Any]], load: Any, name: str
) -> tuple[np.ndarray, np.ndarray, Sequence[float] | None] | None:
    """Voxels and affine of a case's scan, of four modalities the FLAIR."""
    case = cases.get(name)
    if case is None or load is None:
        return None
    try:
        image = load(case)["image"]
    except BundleError:
        return None  # inference has passed over it, too
    channel = 3 if len(image) == 4 else 0
    voxels = convert_to_numpy(image[channel])
    if not voxels.any() and len(image) == 4:  # a missing FLAIR
        voxels = next((convert_to_numpy(one) for one in image if one.any()), voxels)
    return voxels, np.asarray(image.affine, float), None
