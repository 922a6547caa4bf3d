"""Data integrity of a data set folder, before a night of training is spent on it."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from tqdm import tqdm

from bundlekit.configs import refuse_settings
from bundlekit.errors import BundleError
from bundlekit.label_maps import LoadStructuresd, scan_label_maps
from tools.bundles import load_case_of, reader_of, scan_cases_of


def check(
    bundle: str,
    dataset_dir: str | None = None,
    datalist: str | None = None,
    labelled: bool = True,
    label_maps: bool = False,
    voxels: bool = True,
    num_workers: int = 2,
    allow_unprepared: bool = False,
    **options: Any,
) -> None:
    """Check a data set for a bundle: files, headers, and every voxel. Each finding names file, found, expected, fix.

    Exit status 0 if the data set is sound, 1 if there is a finding.

    Example: python -m tools check brats_resunet --dataset_dir DIR

    Args:
        bundle: name of a bundle, e.g. brats_resunet.
        dataset_dir: folder of cases.
        datalist: MONAI datalist JSON instead of a search.
        labelled: whether every case must have a segmentation; --nolabelled for data to be segmented.
        label_maps: check label maps in FreeSurfer's numbering, for a training from label maps alone.
        voxels: also decode every file and check every voxel (0.3 s per case and core); --novoxels for headers.
        num_workers: threads that decode.
        allow_unprepared: accept scans with the skull or in thick slices, of the bundles for BraTS data.
        options: further settings of the bundle's data, e.g. --et_label 4.
    """
    if not dataset_dir and not datalist:
        raise ValueError("no data set given: add --dataset_dir DIR with the folder that holds your cases.")
    scan_cases = scan_label_maps if label_maps else scan_cases_of(bundle)
    known = {name: part.default for name, part in inspect.signature(scan_cases).parameters.items()}
    refuse_settings(known, options, f"{bundle}'s data")
    load: Callable[[Any], Any] = LoadStructuresd()
    if not label_maps:
        given = {**options, "with_label": labelled}  # with_label: not of a bundle that reads labels only to score
        also = {name: given[name] for name in inspect.signature(reader_of(bundle)).parameters if name in given}
        load = load_case_of(bundle, allow_unprepared, **also)  # e.g. fill_missing
        options["labelled"] = labelled
    cases, findings = scan_cases(dataset_dir, datalist=datalist, **options)
    checked = len(cases)
    if voxels:
        with ThreadPoolExecutor(num_workers) as pool:
            results = pool.map(lambda case: _findings(load, case), cases)
            bar = tqdm(results, total=checked, desc="check", unit="case", disable=not sys.stderr.isatty())
            findings += [finding for found in bar for finding in found]
    for finding in findings:
        print(finding)
    depth = "files, headers and voxels" if voxels else "files and headers"
    print(f"{checked} complete case(s), {depth} checked: {len(findings)} finding(s).")
    if findings:
        raise SystemExit(1)


def _findings(load: Callable[[Any], Any], case: dict[str, Any]) -> list[Any]:
    try:
        load(case)
    except BundleError as error:
        return list(error.findings)
    return []
