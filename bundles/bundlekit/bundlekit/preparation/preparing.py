"""From scans as they leave the scanner to a case as BraTS has it."""

from __future__ import annotations

import logging
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import cc3d
import nibabel as nib
import numpy as np
import torch
from monai.data import MetaTensor
from scipy import ndimage
from tqdm import tqdm

from bundlekit.brats.naming import MODALITIES, SCHEMES, role_of
from bundlekit.cases.case import check_names
from bundlekit.errors import BundleError, Finding
from bundlekit.files import sha256_of, write_content, write_result
from bundlekit.images.bias import without_bias_field
from bundlekit.images.nifti import open_nifti
from bundlekit.images.stripping import LARGEST_BRAIN_ML
from bundlekit.images.writing import to_gzip
from bundlekit.preparation.grids import Grid, cubes, resample
from bundlekit.preparation.record import RECORD, read_record, source_file, write_record
from bundlekit.preparation.registration import LEAST_OVERLAP, Registration, register, searched
from bundlekit.preparation.scans import Scan, are_prepared, read_scan, refuse_missing
from bundlekit.version import __version__

if TYPE_CHECKING:
    from bundlekit.preparation.dicom_series import Stack  # at run time of those who have DICOM

Mask = Callable[[MetaTensor], torch.Tensor]

_LEAST_SCANNED = 0.95  # share of the brain in a scan's field of view
_BRAIN_ML = (600.0, LARGEST_BRAIN_ML)  # of an adult or a child of some years
_log = logging.getLogger(__name__)


def prepare_case(
    files: Mapping[str, str | os.PathLike | Stack],
    out: str | os.PathLike,
    mask: Mask,
    case: str | None = None,
    reference: str | None = None,
    fill_missing: bool = False,
    accept_doubtful: bool = False,
    n4: bool = False,
    seed: int = 0,
    spacing_mm: float = 1.0,
) -> dict[str, Any]:
    """Write `<case>_{t1,t1ce,t2,flair}.nii.gz`, co-registered, at 1 mm and stripped, and `prepared.json`.

    Every scan gets a brain mask on its own grid; every modality is brought onto the reference by a rigid move, and
    interpolated once, linearly, to cubes of 1 mm along the reference's own axes in the order of BraTS (LPS). The brain
    is what half of the masks or more have there; all else is exactly 0. Scans that are so already are copied, or only
    lose their bias field (`n4`).

    Args:
        files: by modality (T1, T1ce, T2, FLAIR): NIfTI files, or stacks of DICOM slices, of which
            `source/<modality>.nii.gz` is written, too.
        out: folder, made if missing.
        mask: the brain (1HWD bool) of a scan with its skull, e.g. `StripSkulld(...).mask`.
        case: name; None: that of the files, else "case".
        reference: modality that stays where it is; None: T1ce, else T1, T2 or FLAIR.
        fill_missing: go on where one or two modalities are missing.
        accept_doubtful: go on where a registration or a mask is doubtful, and record it.
        n4: take the bias field away (N4), each modality in its own brain.
        seed: of the registration.
        spacing_mm: edge of the cubes; 1 mm is what the bundles were trained on.

    Returns:
        What `prepared.json` holds.

    Raises:
        BundleError: for what is missing, damaged or doubtful; nothing is written then.
    """
    stacks = {modality: file for modality, file in files.items() if not isinstance(file, (str, os.PathLike))}
    given = {modality: str(files[modality]) for modality in MODALITIES if files.get(modality)}
    missing = refuse_missing(given, fill_missing, str(out))
    reference = _reference(reference, given)
    name = _name(case, given)
    folder = Path(out).expanduser()
    _refuse_own_folder(given, stacks, folder)
    _earlier_files(folder)  # which refuses a folder with files of others
    _require_writable(folder)
    step = _Steps(4 * len(given) + 1)
    scans = {}
    with step("read"):
        for modality, file in given.items():
            scans[modality] = _read(modality, stacks.get(modality, file))
        _refuse_one_scan_twice(scans)
        _refuse_names(case, {modality: file for modality, file in given.items() if modality not in stacks})
        _refuse_another_patient(folder, name, scans)
    prepared = are_prepared(list(scans.values()), spacing_mm)
    if prepared:
        aligned = _as_they_are(scans, reference)
    else:
        aligned = _registered(scans, reference, mask, seed, spacing_mm, step)
    _refuse_doubts(scans, aligned, accept_doubtful)
    images = _images(scans, aligned, prepared, n4, step)
    step.close()
    record: dict[str, Any] = {
        "case": name,
        "reference": reference,
        "missing": missing,
        "already_prepared": prepared,
        "parameters": {
            "n4": n4,
            "fill_missing": fill_missing,
            "accept_doubtful": accept_doubtful,
            "seed": seed,
            "spacing_mm": spacing_mm,
            "interpolation": "linear",
        },
        "versions": {"bundlekit": __version__} | {part: version(part) for part in ("simpleitk", "monai", "torch")},
        "grid": aligned.grid.as_dict(),
        "brain_ml": round(float(aligned.brain.sum()) * aligned.grid.voxel_ml, 1),
        "modalities": {modality: _entry(name, scan, aligned) for modality, scan in scans.items()},
        "seconds": step.seconds,
    }
    _refuse_another_patient(folder, name, scans)  # who may have come in the minutes since
    _replace(folder, _earlier_files(folder), record, scans, aligned.grid, images)
    copied = "was prepared already, " + ("its bias field taken away" if n4 else "copied")
    _log.info("wrote %s: %s, %s", folder, name, copied if prepared else f"brain {record['brain_ml']:.0f} ml")
    return record


class _Steps:
    """The seconds that each step takes, and a bar that shows them."""

    def __init__(self, total: int) -> None:
        self.seconds: dict[str, float] = {}
        self._bar = tqdm(total=total, desc="prepare", unit="step", disable=None)

    @contextmanager
    def __call__(self, what: str) -> Iterator[None]:
        self._bar.set_description(what)
        start = time.perf_counter()
        yield
        self.seconds[what] = round(time.perf_counter() - start, 2)
        self._bar.update()

    def close(self) -> None:
        self._bar.close()


@dataclass(frozen=True)
class _Aligned:
    """Scans of a case in one place.

    `grid`, `brain` (bool): of the prepared images; by modality `brains` on the scans' own grids, `moves` onto the
    reference, `overlaps`, the Dice of a scan's brain with that of all, and `scanned`, the share of the brain that lies
    in a scan's field of view.
    """

    grid: Grid
    brain: np.ndarray
    brains: dict[str, np.ndarray]
    moves: dict[str, Registration]
    overlaps: dict[str, float]
    scanned: dict[str, float]


def _as_they_are(scans: Mapping[str, Scan], reference: str) -> _Aligned:
    brains = {modality: scan.voxels != 0 for modality, scan in scans.items()}
    brain = np.any(list(brains.values()), axis=0)
    moves = {modality: Registration(np.eye(4)) for modality in scans}
    most = np.sum(list(brains.values()), axis=0) >= len(brains) / 2  # one may have been stripped more loosely
    scanned = {modality: float(own[most].mean()) if most.any() else 1.0 for modality, own in brains.items()}
    return _Aligned(scans[reference].grid, brain, brains, moves, dict.fromkeys(scans, 1.0), scanned)


def _registered(
    scans: Mapping[str, Scan], reference: str, mask: Mask, seed: int, spacing_mm: float, step: _Steps
) -> _Aligned:
    brains = {}
    for modality, scan in scans.items():
        with step(f"brain mask of {modality}"):
            brains[modality] = _brain(scan, mask)
    volumes = {}
    for modality, scan in scans.items():
        with step(f"bias field of {modality}"):
            volumes[modality] = searched(scan.voxels, scan.grid.affine, brains[modality])
    moves = {reference: Registration(np.eye(4))}
    for modality in scans:
        with step(f"registration of {modality}"):
            if modality != reference:
                moves[modality] = register(volumes[reference], volumes[modality], seed)
    grid = cubes(scans[reference].grid, spacing_mm)
    brain, overlaps, scanned = _vote(grid, scans, brains, moves)
    if len(scans) > 1:  # the grid is the reference's own field of view: what lies outside of it only the others show
        shares = [_within(grid, scans[m].grid, brains[m], moves[m].matrix) for m in scans if m != reference]
        scanned[reference] = min(scanned[reference], float(np.median(shares)))  # one mask may be wrong
    return _Aligned(grid, brain, brains, moves, overlaps, scanned)


def _images(
    scans: Mapping[str, Scan], aligned: _Aligned, prepared: bool, n4: bool, step: _Steps
) -> dict[str, np.ndarray]:
    """Images on the prepared grid by modality; none of scans that are copied as they are."""
    images = {}
    for modality, scan in scans.items() if n4 or not prepared else ():
        with step(f"{'bias field' if prepared else 'resampling'} of {modality}"):
            if prepared:
                images[modality] = _stripped(scan.voxels, aligned.brains[modality], n4)
            else:
                voxels = resample(scan.voxels, scan.grid.affine, aligned.grid, aligned.moves[modality].matrix)
                images[modality] = _stripped(voxels, aligned.brain, n4)
    return images


def _entry(case: str, scan: Scan, aligned: _Aligned) -> dict[str, Any]:
    """What the record tells of a modality."""
    move = aligned.moves[scan.modality]
    entry = {
        # by its own name: what a link leads to may have none that ends like a scan's
        "source": os.path.abspath(scan.file) if scan.stack is None else source_file(scan.modality),
        "sha256": scan.sha256,
        "prepared": SCHEMES[0].file_of(case, scan.modality),
        "grid": scan.grid.as_dict(),
        "stripped_before": not scan.skull,
        "brain_ml": round(float(aligned.brains[scan.modality].sum()) * scan.grid.voxel_ml, 1),
        "brain_overlap": round(aligned.overlaps[scan.modality], 4),
        "brain_scanned": round(aligned.scanned[scan.modality], 4),
        "to_prepared_ras": np.linalg.inv(move.matrix).tolist(),
        "registration": _told(move),
    }
    if scan.stack is not None:
        entry["dicom"] = {
            "folder": scan.stack.root,
            "series": scan.stack.number,
            "slices": len(scan.stack.slices),
            "digest": scan.stack.digest,
            "sequence": scan.stack.parameters.times,
        }
    return entry


def _replace(
    folder: Path,
    earlier: Sequence[Path],
    record: dict[str, Any],
    scans: Mapping[str, Scan],
    grid: Grid,
    images: Mapping[str, np.ndarray],
) -> None:
    """Write record and images beside those of an earlier run, then in their place."""
    new = folder / f".{uuid4().hex[:8]}.new"  # where the disk gets full, what was there stays
    try:
        for modality, scan in scans.items():
            entry = record["modalities"][modality]
            _write(new / entry["prepared"], scan, grid, images.get(modality))
            if scan.stack is not None:
                path = new / entry["source"]
                _write(path, scan, scan.grid, scan.voxels)
                entry["sha256"] = sha256_of(path)
        written = [path for path in new.rglob("*") if path.is_file()]
        written.append(write_record(new, record))
        for path in earlier:  # the record first: none of an earlier run stands beside new images
            path.unlink(missing_ok=True)
        for path in written:
            (folder / path.relative_to(new)).parent.mkdir(exist_ok=True)
            path.replace(folder / path.relative_to(new))
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _reference(asked: str | None, given: Mapping[str, str]) -> str:
    if asked is None:
        return next(modality for modality in ("T1ce", "T1", "T2", "FLAIR") if modality in given)
    found = next((modality for modality in MODALITIES if modality.lower() == str(asked).lower()), None)
    if found not in given:
        raise BundleError(f"--reference is {asked!r}; expected one of the scans that are given: {', '.join(given)}.")
    return str(found)


def _name(asked: str | None, given: Mapping[str, str]) -> str:
    named = {role[0] for file in given.values() if (role := role_of(Path(file).name))}
    name = str(asked) if asked is not None else named.pop() if len(named) == 1 else "case"
    findings = check_names([{"case": name, "image": list(given.values()), "label": ""}], "--case")
    if findings:
        raise BundleError(findings)
    return name


# beside what a name ends on: P01_Gd_T1.nii.gz is a T1ce, P01_FLAIR_T2.nii.gz a FLAIR
_OWN_WORDS = {
    "T1ce": re.compile(r"(?<![a-z0-9])(ce|gd|gad\w*|post|km|contrast)(?![a-z0-9])", re.IGNORECASE),
    "FLAIR": re.compile("flair", re.IGNORECASE),
}


def _refuse_names(case: str | None, given: Mapping[str, str]) -> None:
    """Refuse files whose own names say another modality, or several patients, unless `case` says whose they are."""
    fix = "give each scan to its option; if this is the one, rename the file"
    roles = {modality: role for modality, file in given.items() if (role := role_of(Path(file).name))}
    findings = [
        Finding(given[modality], f"a file that is named as {named}", f"the {modality}", fix)
        for modality, (_, named) in roles.items()
        if named != modality
        and not (modality in _OWN_WORDS and _OWN_WORDS[modality].search(Path(given[modality]).name))
    ]
    names = {name for name, _ in roles.values()}
    if case is None and len(names) > 1:
        found = f"files of {' and '.join(sorted(names))}"
        fix = "give the files of one patient; if they are, say their name: --case NAME"
        findings.append(Finding(next(iter(given.values())), found, "scans of one patient", fix))
    if findings:
        raise BundleError(findings)


def _read(modality: str, file: str | os.PathLike | Stack) -> Scan:
    if isinstance(file, (str, os.PathLike)):
        return read_scan(modality, file)
    from bundlekit.preparation.dicom_volumes import scan_of  # who has a stack has pydicom

    return scan_of(modality, file)


def _refuse_own_folder(given: Mapping[str, str], stacks: Mapping[str, Stack], folder: Path) -> None:
    own = [
        file
        for modality, file in given.items()
        if modality not in stacks and folder.resolve() in Path(file).expanduser().resolve().parents
    ]
    for stack in stacks.values():
        root = Path(stack.root).expanduser().resolve()
        if (root.parent if root.is_file() else root) in (folder.resolve(), *folder.resolve().parents):
            own.append(stack.root)
    if own:
        found = "lies in the folder for the results, or that in it"
        raise BundleError(Finding(own[0], found, "a folder of its own for them", "set --out to another folder"))


def _refuse_one_scan_twice(scans: Mapping[str, Scan]) -> None:
    first: dict[bytes, str] = {}
    findings = []
    for modality, scan in scans.items():
        known = first.setdefault(scan.voxels.tobytes(), modality)
        if known != modality:
            found = f"the voxels of {scans[known].file}, which is the {known}"
            expected = f"the {modality}: a scan of its own"
            findings.append(Finding(str(scan.file), found, expected, f"give the {modality}: --{modality.lower()} FILE"))
    if findings:
        raise BundleError(findings)


def _refuse_another_patient(folder: Path, case: str, scans: Mapping[str, Scan]) -> None:
    """Refuse to replace what was prepared of other scans, none of which is among these.

    Raises:
        BundleError: naming both cases.
    """
    if not (folder / RECORD).is_file():
        return
    record = read_record(folder)
    before = [entry.get("dicom", {}).get("digest") or entry.get("sha256") for entry in record["modalities"].values()]
    now = {scan.stack.digest if scan.stack is not None else scan.sha256 for scan in scans.values()}
    if now & set(before):
        return
    found, expected = (
        f"the prepared case {record['case']}, of other scans",
        f"none, or an earlier run of {case} with one of these scans",
    )
    fix = "set --out to a folder of its own for each patient, or remove this one"
    raise BundleError(Finding(str(folder), found, expected, fix))


def _earlier_files(folder: Path) -> list[Path]:
    """What an earlier run left in the folder, its record first.

    Raises:
        BundleError: for scans of a case that no record tells of.
    """
    entries = list(read_record(folder)["modalities"].values()) if (folder / RECORD).is_file() else []
    names = [entry["prepared"] for entry in entries if "prepared" in entry]
    others = [file for file in folder.glob("*") if role_of(file.name) and file.name not in names]
    if others:
        found = "a scan or a mask that was not prepared there"
        raise BundleError(Finding(str(others[0]), found, "an empty folder", "set --out to a folder of its own"))
    sources = [folder / entry["source"] for entry in entries if "dicom" in entry]
    return [folder / RECORD, *(folder / name for name in names), *sources]


def _require_writable(folder: Path) -> None:
    """Tell at once that results cannot be written, not after minutes of computing.

    Raises:
        BundleError: if nothing can be written there.
    """
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    try:
        with TemporaryFile(dir=there):
            pass
    except OSError as error:
        fix = "set --out to a folder that you may write to"
        raise BundleError(Finding(str(there), f"nothing can be written ({error.strerror})", "a folder", fix)) from error


def _brain(scan: Scan, mask: Mask) -> np.ndarray:
    """The brain on the scan's own grid; of a stripped scan, what is not air."""
    if not scan.skull:
        return ndimage.binary_fill_holes(scan.voxels != 0)
    image = MetaTensor(torch.from_numpy(scan.voxels)[None], affine=torch.from_numpy(scan.grid.affine))
    brain = mask(image)[0].numpy()
    volume = float(brain.sum()) * scan.grid.voxel_ml
    if not volume:
        fix = "look at the scan; take it away, or give scans that another program has stripped"
        raise BundleError(Finding(str(scan.file), f"no brain in the {scan.modality}", "a scan of a head", fix))
    return brain


def _within(grid: Grid, own: Grid, brain: np.ndarray, move: np.ndarray) -> float:
    """The share of a scan's brain, on its own grid, that lies in the field of view of another grid."""
    to_grid = np.linalg.inv(grid.affine) @ np.linalg.inv(move) @ own.affine
    voxels = nib.affines.apply_affine(to_grid, np.argwhere(brain))
    inside = (voxels >= -0.5) & (voxels <= np.array(grid.shape) - 0.5)
    return float(inside.all(1).mean())


def _vote(
    grid: Grid, scans: Mapping[str, Scan], brains: Mapping[str, np.ndarray], moves: Mapping[str, Registration]
) -> tuple[np.ndarray, dict[str, float], dict[str, float]]:
    """The brain on the prepared grid, bool, the Dice of each mask with it, and the share of it that each scan reaches.

    At each voxel the mean of the masks of the scans that reach there; 0.5 is brain. Masks that are unlike this (Dice
    below 0.8) have no vote in the end, as long as two others are left.
    """
    votes, seen = {}, {}
    for modality, scan in scans.items():
        votes[modality], seen[modality] = (
            resample(part.astype(np.float32), scan.grid.affine, grid, moves[modality].matrix)
            for part in (brains[modality], np.ones(scan.grid.shape, np.float32))
        )

    def decided(by: list[str]) -> np.ndarray:
        reach = np.sum([seen[modality] for modality in by], axis=0)
        share = np.sum([votes[modality] for modality in by], axis=0) / np.maximum(reach, 1e-3)
        found = (share >= 0.5) & (reach > 0.5)
        return ndimage.binary_fill_holes(cc3d.largest_k(found, k=1, connectivity=6) > 0) if found.any() else found

    def overlaps(brain: np.ndarray) -> dict[str, float]:
        out = {}
        for modality in scans:
            there = seen[modality] > 0.5
            own, other = votes[modality][there] >= 0.5, brain[there]
            out[modality] = float(2 * (own & other).sum() / max(own.sum() + other.sum(), 1))
        return out

    brain = decided(list(scans))
    like = [modality for modality, dice in overlaps(brain).items() if dice >= LEAST_OVERLAP]
    if 2 <= len(like) < len(scans):
        brain = decided(like)
    reached = {modality: float((seen[modality][brain] > 0.5).mean()) if brain.any() else 0.0 for modality in scans}
    return brain, overlaps(brain), reached


def _refuse_doubts(scans: Mapping[str, Scan], aligned: _Aligned, accept: bool) -> None:
    """Refuse, or tell, what is doubtful; what is wrong with a mask is added to the doubts of its modality."""
    fix = (
        "look at the scan and at its header; leave it out, take another --reference, or go on knowingly with "
        "--accept_doubtful True"
    )
    findings = []
    for modality, scan in scans.items():
        doubts, overlap = aligned.moves[modality].doubts, aligned.overlaps[modality]
        if overlap < LEAST_OVERLAP:
            doubts.append(f"its brain mask and that of all have a Dice of {overlap:.2f}")
        if (scanned := aligned.scanned[modality]) < _LEAST_SCANNED:
            doubts.append(f"{1 - scanned:.0%} of the brain are zeros in it, or outside of its field of view")
        if doubts:
            expected = "a registration and a mask that can be believed"
            findings.append(Finding(f"{scan.file} ({modality})", "; ".join(doubts), expected, fix))
    volume = float(aligned.brain.sum()) * aligned.grid.voxel_ml
    if not _BRAIN_ML[0] <= volume <= _BRAIN_ML[1]:
        expected = f"{_BRAIN_ML[0]:.0f} to {_BRAIN_ML[1]:.0f} ml: a whole brain"
        findings.append(Finding(", ".join(str(s.file) for s in scans.values()), f"{volume:.0f} ml", expected, fix))
    if findings and (not accept or not volume):
        raise BundleError(findings)
    for finding in findings:
        _log.warning("doubtful, accepted: %s", finding)


def _stripped(image: np.ndarray, brain: np.ndarray, n4: bool) -> np.ndarray:
    """The image without what lies outside of the brain, and without its bias field if asked."""
    if n4:
        image = without_bias_field(image, brain)
    return np.where(brain, image, 0).astype(np.float32)


def _told(move: Registration) -> dict[str, Any]:
    """A registration for the record."""
    return {
        "rotation_degrees": round(move.turn_degrees, 3),
        "mutual_information": round(move.information, 4),
        "mutual_information_before": round(move.information_before, 4),
        "brain_overlap": round(move.overlap, 4),
        "starts": move.starts,
        "starts_that_agree": move.agreeing,
        "second_search_mm": round(move.spread_mm, 3),
        "doubts": move.doubts,
    }


def _write(path: Path, scan: Scan, grid: Grid, image: np.ndarray | None) -> None:
    """A prepared image, or a copy of a scan that was prepared already."""
    if image is None and scan.stack is not None:
        image = scan.voxels
    if image is None and scan.file.name.lower().endswith(".gz"):
        write_content(path, scan.file.read_bytes(), "out")
        return
    nifti = open_nifti(scan.file) if image is None else None
    if nifti is None or isinstance(nifti, nib.MGHImage):
        nifti = nib.Nifti1Image(scan.voxels if image is None else image, grid.affine)
        nifti.header.set_xyzt_units("mm")
        nifti.set_sform(grid.affine, 1)
        nifti.set_qform(grid.affine, 1)
    write_result(path, lambda file: to_gzip(nifti, file), "out")
