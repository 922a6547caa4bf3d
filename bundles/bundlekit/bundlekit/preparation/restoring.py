"""A mask of a prepared case, brought back to the scans that it was prepared from."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from tqdm import tqdm

from bundlekit.brats.naming import MODALITIES, RESTORED
from bundlekit.brats.regions import REGIONS, nested_labels
from bundlekit.errors import BundleError, Finding
from bundlekit.files import sha256_of, write_content, write_result
from bundlekit.images.nifti import on_axes_of, read_affine, read_array, read_volume, without_rounding
from bundlekit.images.writing import on_grid_of, signed, to_gzip, unlike
from bundlekit.preparation.grids import Grid, resample, split
from bundlekit.preparation.record import read_record

_log = logging.getLogger(__name__)
_SIGNATURE = "brought back to its scan"  # in the header of what was written, with a checksum
_MOST_VALUES = 64  # of a label map


def restore_case(
    prepared: str | os.PathLike,
    mask: str | os.PathLike,
    out: str | os.PathLike,
    probabilities: str | os.PathLike | None = None,
    sources: str | os.PathLike | None = None,
) -> dict[str, Any]:
    """Write `<case>_seg_on_{t1,t1ce,t2,flair}.nii.gz`, each on the grid of its scan, and `<case>_volumes.json`.

    A voxel of a scan takes the label that fills most of it: the labels, or the probabilities of their classes, are
    interpolated linearly at places inside of the voxel (one for each mm of its edges) and averaged. A mask that was
    made of the probabilities region by region, each above a half, is made so on the scans, too, as far as the mask
    tells the two ways apart. Label values and the scan's header (sform, qform, units) are kept. Where the mask is not
    what the probabilities alone would give, because it was cleaned, the mask counts. A mask that is there already is
    replaced only if it still is as this function wrote it.

    Args:
        prepared: folder with `prepared.json`.
        mask: label map on the prepared grid.
        out: folder, made if missing.
        probabilities: of WT, TC and ET on the prepared grid, as the bundles write them; None: the mask alone.
        sources: folder with the scans, if they are no longer where they were; found by their SHA-256.

    Returns:
        What `<case>_volumes.json` holds: ml of each label on the prepared grid and on each scan.

    Raises:
        BundleError: if a file is missing or not the one of the record, a grid is another, or a mask that somebody
            corrected would be replaced.
    """
    record = read_record(prepared)
    refuse_corrected(record, out)
    _refuse_another_patient(record, Path(out).expanduser())
    grid = Grid.from_dict(record["grid"])
    labels = _labels(Path(mask), grid)
    values = [int(value) for value in np.unique(labels) if value]
    shares = None if probabilities is None else _class_probabilities(Path(probabilities), grid, labels)
    files = {modality: _source(prepared, entry, modality, sources) for modality, entry in record["modalities"].items()}
    folder = Path(out).expanduser()
    volumes: dict[str, Any] = {
        "case": record["case"],
        "unit": "ml",
        "scans": _hashes(record),
        "prepared": _volumes(labels, values, grid),
        "on": {},
    }
    written: dict[Path, nib.Nifti1Image] = {}
    for modality in tqdm(files, desc="restore", unit="scan", disable=None):
        entry = record["modalities"][modality]
        back = _restored(
            labels, values, shares, grid, Grid.from_dict(entry["grid"]), np.asarray(entry["to_prepared_ras"])
        )
        path = path_on(record, modality, out)
        written[path] = on_grid_of(files[modality], back)
        written[path].header["descrip"] = signed(_SIGNATURE, back)
        volumes["on"][modality] = _volumes(back, values, Grid.from_dict(entry["grid"]))
    for path, image in written.items():
        write_result(path, lambda file, image=image: to_gzip(image, file), "out")  # type: ignore[misc]
        _log.info("wrote %s", path)
    for modality in MODALITIES:  # that an earlier run had and this one has not
        path = path_on(record, modality, out)
        if path not in written and path.is_file() and not unlike(path, _SIGNATURE):
            _log.info("%s is of an earlier run, without its scan now, and removed", path)
            path.unlink()
    text = json.dumps(volumes, indent=2) + "\n"
    write_content(folder / f"{record['case']}_volumes.json", text, "out")
    return volumes


def path_on(record: Mapping[str, Any], modality: str, out: str | os.PathLike) -> Path:
    """File of the mask on the scan of a modality, in the folder `out`."""
    return Path(out).expanduser() / f"{record['case']}{RESTORED}{modality.lower()}.nii.gz"


def refuse_corrected(record: Mapping[str, Any], out: str | os.PathLike) -> None:
    """Look for masks on the scans of a case that are not as `restore_case` wrote them.

    Raises:
        BundleError: naming them.
    """
    paths = [path_on(record, modality, out) for modality in record["modalities"]]
    findings = [
        Finding(str(path), found, "a new file, or one left as it was written", "give another --out, or move it away")
        for path in paths
        if path.is_file() and (found := unlike(path, _SIGNATURE))
    ]
    if findings:
        raise BundleError(findings)


def _hashes(record: Mapping[str, Any]) -> list[str]:
    return [str(entry["sha256"]) for entry in record["modalities"].values()]


def _refuse_another_patient(record: Mapping[str, Any], folder: Path) -> None:
    """Refuse a folder with the masks of a case of the same name that shares no scan with this one."""
    file = folder / f"{record['case']}_volumes.json"
    try:
        there = json.loads(file.read_text()).get("scans", [])
    except (OSError, ValueError, AttributeError):  # none, or no record of ours
        return
    if there and not set(there) & set(_hashes(record)):
        found = f"masks of another patient under the name {record['case']}"
        raise BundleError(Finding(str(folder), found, "a folder for each patient", "give another --out"))


def _labels(mask: Path, grid: Grid) -> np.ndarray:
    """Labels of a file on the prepared grid, uint8."""
    if not mask.is_file():
        fix = "segment the prepared case first, or give the mask: --mask FILE"
        raise BundleError(Finding(str(mask), "no such file", "a label map of the prepared case", fix))
    array = without_rounding(read_volume(str(mask)))
    array, affine = on_axes_of(array, read_affine(str(mask)), grid.affine)  # a viewer may save them in another order
    _refuse_other_grid(mask, array.shape, affine, grid)
    values = np.unique(array)
    broken = values[(values != np.round(values)) | ~((values >= 0) & (values <= 255))]
    if len(values) > _MOST_VALUES or broken.size:
        example = f", {broken[0]:g} among them" if broken.size else ""
        found = f"{len(values)} values from {values[0]:g} to {values[-1]:g}{example}"
        raise BundleError(Finding(str(mask), found, "whole numbers from 0 to 255: labels", "give the label map"))
    return array.astype(np.uint8)


def _refuse_other_grid(file: Path, shape: Sequence[int], affine: np.ndarray, grid: Grid) -> None:
    own = Grid(tuple(int(n) for n in shape[:3]), affine)  # type: ignore[arg-type]
    if not own.same_as(grid):
        found = f"{'x'.join(map(str, own.shape))} voxels, {own.axes}, origin {own.affine[:3, 3].round(2).tolist()}"
        expected = f"the prepared grid: {'x'.join(map(str, grid.shape))}, {grid.axes}, origin "
        expected += str(grid.affine[:3, 3].round(2).tolist())
        raise BundleError(Finding(str(file), found, expected, "give the mask of this prepared case"))


@dataclass(frozen=True)
class _Shares:
    """How much of each voxel each label has, HWD float32, background (0) first, then NCR, ED and ET.

    Args:
        of: by label.
        by_regions: whether a mask was made of them region by region, and not of the largest.
    """

    of: dict[int, np.ndarray]
    by_regions: bool


def _by_regions(whole: np.ndarray, core: np.ndarray, enhancing: np.ndarray, labels: Sequence[int]) -> np.ndarray:
    """`labels` (NCR, ED, ET) by the probabilities of WT, TC and ET, from the outside in, uint8."""
    indices = nested_labels(torch.from_numpy(np.stack([whole, core, enhancing])))[0].numpy()
    return np.asarray([0, *labels], np.uint8)[indices]


def _class_probabilities(file: Path, grid: Grid, labels: np.ndarray) -> _Shares:
    """Probability of each label; where the mask is not what they give, 1 or 0.

    Args:
        file: WT, TC, ET in its last axis.
        grid: the prepared one.
        labels: 1 NCR, 2 ED, 3 or 4 ET.
    """
    array = read_array(str(file))
    if array.ndim != 4 or array.shape[3] != len(REGIONS):
        found = f"an image of shape {'x'.join(map(str, array.shape))}"
        expected = f"the probabilities of {', '.join(REGIONS)}, a channel each"
        raise BundleError(Finding(str(file), found, expected, "give the file that --save_probabilities True writes"))
    _refuse_other_grid(file, array.shape, read_affine(str(file)), grid)
    whole, core, enhancing = np.moveaxis(array.astype(np.float32), -1, 0)
    enhancing_value = 3 if (labels == 3).any() and not (labels == 4).any() else 4
    shares = {0: 1 - whole, 1: core - enhancing, 2: whole - core, enhancing_value: enhancing}
    order = list(shares)
    largest = np.asarray(order, np.uint8)[np.argmax([shares[value] for value in order], axis=0)] != labels
    regions = _by_regions(whole, core, enhancing, order[1:]) != labels
    others = not np.isin(labels, order).all()  # which somebody drew
    by_regions = not others and bool(np.count_nonzero(regions) < np.count_nonzero(largest))
    cleaned = regions if by_regions else largest
    for value, share in shares.items():
        share[cleaned] = labels[cleaned] == value
    return _Shares(shares, by_regions)


def _source(
    prepared: str | os.PathLike, entry: dict[str, Any], modality: str, sources: str | os.PathLike | None
) -> Path:
    """The file of the scan, the one of the record; of a DICOM series, what was made of it."""
    path = Path(prepared).expanduser() / entry["source"]  # an absolute path stays what it is
    fix = "give the folder that holds the scan: --sources DIR"
    if sources is not None and "dicom" not in entry:
        near = Path(sources).expanduser()
        for file in [near / path.name, *sorted(near.rglob(f"*{path.suffix}"))]:
            if file.is_file() and sha256_of(file) == entry["sha256"]:
                return file
        found = f"no file with the SHA-256 {entry['sha256']}"
        raise BundleError(Finding(str(near), found, f"the {modality} {path.name}, as it was prepared", fix))
    if not path.is_file():
        raise BundleError(Finding(str(path), "no such file", f"the {modality} that was prepared", fix))
    if sha256_of(path) != entry["sha256"]:
        found = "another file than the one that was prepared (its SHA-256 differs)"
        raise BundleError(Finding(str(path), found, f"SHA-256 {entry['sha256']}", fix + ", or prepare it again"))
    return path


def _restored(
    labels: np.ndarray,
    values: Sequence[int],
    shares: _Shares | None,
    grid: Grid,
    scan: Grid,
    to_prepared: np.ndarray,
) -> np.ndarray:
    """The labels on the grid of a scan, uint8."""
    parts = np.maximum(np.round(scan.spacing / grid.spacing), 1).astype(int)
    fine = split(scan, parts)

    def filled(value: int, share: np.ndarray) -> np.ndarray:
        """How much of each voxel of the scan a label fills."""
        # outside of the prepared grid there is nothing but background
        there = resample(share, grid.affine, fine, to_prepared, outside=float(value == 0))
        return there.reshape([n for pair in zip(scan.shape, parts, strict=True) for n in pair]).mean(axis=(1, 3, 5))

    if shares is not None and shares.by_regions:
        _, necrosis, oedema, et = shares.of
        enhancing = filled(et, shares.of[et])
        core = enhancing + filled(necrosis, shares.of[necrosis])
        whole = core + filled(oedema, shares.of[oedema])
        back = _by_regions(whole, core, enhancing, (necrosis, oedema, et))
        # what the mask has nowhere, as after its cleaning, becomes what lies around it, or else within
        for gone, instead in {et: (necrosis, oedema), necrosis: (oedema, et), oedema: (necrosis, et)}.items():
            if gone not in values:
                back[back == gone] = next((value for value in instead if value in values), 0)
        return back
    best = np.zeros(scan.shape, np.float32)
    out = np.zeros(scan.shape, np.uint8)
    for value, share in _by_label(labels, values, shares):
        part = filled(value, share)
        more = part > best
        out[more], best[more] = value, part[more]
    return out


def _by_label(labels: np.ndarray, values: Sequence[int], shares: _Shares | None) -> Iterator[tuple[int, np.ndarray]]:
    """Each label, background first, and how much of each voxel it has."""
    for value in [0, *values]:
        known = shares.of.get(value) if shares is not None else None
        yield value, (labels == value).astype(np.float32) if known is None else known


def _volumes(labels: np.ndarray, values: Sequence[int], grid: Grid) -> dict[str, float]:
    """Millilitres of each label."""
    return {str(value): round(float((labels == value).sum()) * grid.voxel_ml, 3) for value in values}
