"""Between NIfTI folders and HDF5 files of BraTS cases, with nothing lost on the way."""

from __future__ import annotations

import contextlib
import glob
import gzip
import inspect
import logging
import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import h5py
import nibabel as nib
import numpy as np
from isal import igzip
from tqdm import tqdm

from bundlekit.brats import scan_cases
from bundlekit.brats.naming import DECATHLON_IMAGES
from bundlekit.configs import refuse_settings
from bundlekit.errors import BundleError, Finding
from bundlekit.files import write_whole
from bundlekit.images.hdf5 import open_h5
from bundlekit.images.nifti import form_of, require_numbers
from bundlekit.images.writing import left_as_segmented
from tools.bundles import module_of, reader_of, scan_cases_of

_log = logging.getLogger(__name__)
_READS_H5 = "brats_unet_h5"  # the bundle that knows what an HDF5 file of a case may look like
_CHUNK = 32  # voxels along each axis: a patch of 96 voxels touches 27 to 64 chunks of a modality
_MODALITIES = ("T1", "T1ce", "T2", "FLAIR")
_ROLES = ("t1", "t1ce", "t2", "flair", "seg")
# of a search for cases, what a conversion has no use for
_NOT_SETTINGS = ("dataset_dir", "labelled", "patch_size", "trained_order")


def to_h5(to: str | None = None, **options: Any) -> list[str]:
    """Write one HDF5 file for each case of a folder of BraTS NIfTI files, and return their names.

    `<case>.h5` holds `image` (4xHWD, in the intensities and the type of the files), `mask` (HWD, the data set's own
    label values) and as attributes `modalities`, `affine`, `spacing_mm`, `qform`, `qform_code`, `sform`, `sform_code`,
    `label_values` (background, NCR, ED, ET). Under `nifti/` lies what else a NIfTI file has, so that `convert nifti`
    gives back every file byte for byte (compressed anew). Chunks of 32 voxels, gzip with shuffle and checksums. With
    `--fill_missing True` a case may lack one or two modalities: `image` has as many channels as there are files.

    Example: python -m tools convert h5 --from NIFTI_DIR --to DIR

    Args:
        to: folder for the files; a file that is there already is never replaced.
        options: `--from`, the folder of cases; further settings of the data, e.g. --et_label 4.

    Raises:
        ValueError: if a case is not sound, a file exists already, or a file cannot be kept without loss.
    """
    if options.get("help"):
        print(inspect.getdoc(to_h5))
        return []
    source, target, settings = _folders("h5", to, options)
    cases = _all_sound(*scan_cases(source, labelled=False, **_known(scan_cases, settings)))
    left = [str(file) for case in cases if not case["label"] for file in _labels_beside(case)]
    scans = {file for case in cases for file in case["image"]}
    _, found = scan_cases(source, **_known(scan_cases, settings))
    labels = [one for one in found if one.file not in scans and os.path.isfile(one.file)]
    if labels:
        _all_sound([], [one for one in labels if not left_as_segmented(one.file)])
    if left:
        text = (
            "%d mask(s) are left out, as inference wrote them and nobody changed them: %s; no HDF5 file will hold them"
        )
        _log.warning(text, len(left), ", ".join(left[:3]) + (", ..." if len(left) > 3 else ""))
    _refuse_existing([target / f"{case['case']}.h5" for case in cases])
    written: list[str] = []
    for case in tqdm(cases, desc="to HDF5", unit="case"):
        path = target / f"{case['case']}.h5"
        with _telling(written, target):
            write_whole(path, partial(_write_h5, case, Path(source)))
        written.append(str(path))
    return written


def to_nifti(to: str | None = None, **options: Any) -> list[str]:
    """Write the NIfTI files of each case of a folder of HDF5 files, and return the folders they went to.

    What `convert h5` wrote comes back under its own names, byte for byte. Any other file that the h5 bundle reads
    becomes `<case>/<case>_{t1,t1ce,t2,flair,seg}.nii.gz`, with the affine of its attribute or the identity.

    Example: python -m tools convert nifti --from H5_DIR --to DIR

    Args:
        to: folder for the files; a file that is there already is never replaced.
        options: `--from`, the folder of HDF5 files; further settings of the data, e.g. --channel_order
            "[flair,t1,t1ce,t2]" or --mask_channels classes.

    Raises:
        ValueError: if a case is not sound, two cases hold files of one name, or a file exists already.
    """
    if options.get("help"):
        print(inspect.getdoc(to_nifti))
        return []
    source, target, settings = _folders("nifti", to, options)
    scan = scan_cases_of(_READS_H5)
    cases = _all_sound(*scan(source, labelled=False, **_known(scan, settings)))
    # a mask of any name is looked for where one is needed alone
    masked, findings = scan(source, labelled=True, **_known(scan, settings))
    with_mask = {case["image"][0]: case for case in masked}
    cases = [with_mask.get(case["image"][0], case) for case in cases]
    untold = {str(case["label"]) for case in cases if case.get("mask_axis") is not None and not case["mask_channels"]}
    if asking := [finding for finding in findings if finding.file in untold]:  # what their channels are
        raise BundleError(asking)
    unread = {str(case["image"][0]) for case in cases if not case["label"]}
    names_a_mask = module_of(scan_cases_of(_READS_H5)).names_a_mask
    if wrong := [finding for finding in findings if finding.file in unread and names_a_mask(finding.file)]:
        raise BundleError(wrong)  # none is left out with a warning alone
    without = [str(case["case"]) for case in cases if not case["label"]]
    if without:
        why = "; ".join(f"{finding.file}: {finding.found}" for finding in findings[:3])
        some = ", ".join(without[:3]) + (", ..." if without[3:] else "")
        _log.warning("no mask in %d case(s): %s (%s)", len(without), some, why)
    planned = {str(case["case"]): _names_of(case) for case in cases}
    _refuse_shared(target, [(str(case["image"][0]), planned[str(case["case"])]) for case in cases])
    _refuse_existing([target / name for names in planned.values() for name in names.values()])
    written: list[str] = []
    for case in tqdm(cases, desc="to NIfTI", unit="case"):
        names = planned[str(case["case"])]
        with _telling(written, target):
            for role, content in _contents(case):
                path = target / names[role]
                write_whole(path, partial(_write_bytes, content, path.name.lower().endswith(".gz")))
                written.append(str(path.parent))
    return list(dict.fromkeys(written))


@contextlib.contextmanager
def _telling(written: Sequence[str], target: Path) -> Iterator[None]:
    """What ends a conversion says what is there already: the same command would be refused for it."""
    try:
        yield
    except ValueError as error:
        if not (done := len(set(written))):
            raise
        raise ValueError(
            f"{error}\n{done} before it are written to {target}. Mend this one, and give another folder with --to, or "
            "move what is there away, since no file is replaced."
        ) from error


def _labels_beside(case: Mapping[str, Any]) -> list[Path]:
    """Masks of a case by their names, in the folder of its first file."""
    folder = Path(next(file for file in case["image"] if file)).parent
    return sorted(
        file for kind in ("_seg", "-seg") for file in folder.glob(glob.escape(f"{case['case']}{kind}") + ".nii*")
    )


def _write_h5(case: Mapping[str, Any], root: Path, out: Any) -> None:
    parts = [_Nifti(file, root) for file in case["image"] if file]
    there = [n for n, file in enumerate(case["image"]) if file]
    label = _Nifti(case["label"], root) if case["label"] else None
    if len(case["image"]) == 1:  # 4-D: its channels stay in the order of the file
        image = np.moveaxis(parts[0].intensities, -1, 0)
        modalities = [""] * len(image)
        for name, channel in zip(_MODALITIES, case["channels"], strict=True):
            modalities[channel] = name
        if len(image) != 4:
            raise ValueError(f"{parts[0].path} has {len(image)} channels; expected 4; take the others out of it first.")
    else:
        arrays = [part.intensities for part in parts]
        image = np.stack([a[..., 0] if a.ndim == 4 else a for a in arrays]).astype(np.result_type(*arrays))
        modalities = [_MODALITIES[n] for n in there]
    with h5py.File(out, "w") as file:
        _store(file, "image", image, (1,))
        file.attrs.update(_geometry(parts[0].image), case=str(case["case"]))
        file["image"].attrs["modalities"] = modalities
        file.attrs["label_values"] = [int(v) for v in case["label_values"]]  # of masks that are written for it
        if label is not None:
            mask = label.intensities[..., 0] if label.intensities.ndim == 4 else label.intensities
            _store(file, "mask", mask, ())
            file["mask"].attrs["label_values"] = [int(v) for v in case["label_values"]]
        roles = ["image"] if len(case["image"]) == 1 else [_ROLES[n] for n in there]
        for role, part in [*zip(roles, parts, strict=True), *([("seg", label)] if label else [])]:
            stored = mask if role == "seg" else image if roles == ["image"] else image[roles.index(role)]
            if part.rebuilt(stored) != part.content:
                raise ValueError(
                    f"{part.path}: its voxels cannot be restored exactly (type {part.image.get_data_dtype()}, slope "
                    "and intercept, or bytes after the voxels); expected a plain NIfTI file; save it anew first."
                )
            item = file.create_dataset(f"nifti/{role}", data=np.frombuffer(part.head, np.uint8))
            item.attrs["file"] = part.name


class _Nifti:
    """One NIfTI file: its bytes, its intensities and how to get the one from the other."""

    def __init__(self, path: str, root: Path) -> None:
        self.path = path
        raw = Path(path).read_bytes()
        try:
            self.content = gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw
            self.image = _kind(self.content).from_bytes(self.content)
            self.head = self.content[: int(self.image.dataobj.offset)]
            self.intensities = np.asarray(self.image.dataobj)
        except (OSError, EOFError, ValueError, zlib.error) as error:
            found = f"cannot be decoded to its end ({error})"
            raise BundleError(Finding(path, found, "a complete NIfTI file", "copy or download it again")) from error
        require_numbers(self.intensities, path)
        folder = os.path.abspath(root if root.is_dir() else root.parent)  # not through links: these have other names
        self.name = Path(os.path.relpath(os.path.abspath(path), folder)).as_posix()
        self.name = Path(path).name if self.name.startswith("..") else self.name

    def rebuilt(self, intensities: np.ndarray) -> bytes:
        return _rebuilt(self.head, intensities)


def _rebuilt(head: bytes, intensities: np.ndarray) -> bytes:
    """A whole NIfTI file, of what precedes its voxels and of its intensities."""
    kind = _kind(head)
    header = kind.header_class(head[: kind.header_class.template_dtype.itemsize], check=False)
    slope, inter = header.get_slope_inter()
    values = intensities.reshape(header.get_data_shape(), order="F") if intensities.ndim == 3 else intensities
    if intensities.ndim == 4:
        values = np.moveaxis(intensities, 0, -1)
    dtype = header.get_data_dtype()
    if (slope, inter) not in ((None, None), (1.0, 0.0)):
        values = (np.asarray(values, np.float64) - inter) / slope
        values = np.rint(values) if dtype.kind in "iu" else values
    return head + np.asarray(values).astype(dtype).tobytes(order="F")


def _kind(content: bytes) -> Any:
    """NIfTI-2 where the header says that it has its 540 bytes, else NIfTI-1."""
    return nib.Nifti2Image if b"\x1c\x02" in (content[:2], content[3:1:-1]) else nib.Nifti1Image


def _store(file: h5py.File, name: str, array: np.ndarray, leading: Sequence[int]) -> None:
    native = array.astype(array.dtype.newbyteorder("="), copy=False)
    chunks = (*leading, *(min(_CHUNK, n) for n in array.shape[len(leading) :]))
    file.create_dataset(name, data=native, chunks=chunks, compression="gzip", shuffle=True, fletcher32=True)


def _geometry(image: nib.Nifti1Image) -> dict[str, Any]:
    header = image.header
    found: dict[str, Any] = {"affine": np.asarray(image.affine), "spacing_mm": np.asarray(header.get_zooms()[:3])}
    for kind in ("qform", "sform"):
        matrix, code = form_of(image, kind)
        found |= {kind: np.eye(4) if matrix is None else matrix, f"{kind}_code": code}
    return found


def _names_of(case: Mapping[str, Any]) -> dict[str, str]:
    """Role -> name of the NIfTI file, below the target folder."""
    with open_h5(str(case["image"][0])) as file:
        kept = dict(file["nifti"].items()) if "nifti" in file else {}
        names = {role: _safe(str(item.attrs["file"]), case) for role, item in kept.items()}
    name = case["case"]
    if names:
        if case["label"] and "seg" not in names:  # drawn since
            scan = PurePosixPath(next(iter(names.values())))
            if "image" in names and scan.parent.name in DECATHLON_IMAGES:
                names["seg"] = str(scan.parent.with_name(scan.parent.name.replace("images", "labels")) / scan.name)
            else:
                names["seg"] = str(scan.with_name(f"{name}_seg.nii.gz"))
        return names
    roles = [role for role, channel in zip(_ROLES, case["channels"], strict=False) if channel >= 0]
    return {role: f"{name}/{name}_{role}.nii.gz" for role in [*roles, *(["seg"] if case["label"] else [])]}


def _safe(name: str, case: Mapping[str, Any]) -> str:
    path = PurePosixPath(name)
    unsafe = path.is_absolute() or ".." in path.parts or "\\" in name or not name.isprintable()
    if unsafe or not path.name.lower().endswith((".nii", ".nii.gz")):
        raise ValueError(f"{case['image'][0]} names a file {name!r}; expected a NIfTI file below the folder; mend it.")
    return name


def _contents(case: Mapping[str, Any]) -> list[tuple[str, bytes]]:
    """Role and content of each NIfTI file of a case."""
    with open_h5(str(case["image"][0])) as file:
        if "nifti" in file and len(file["nifti"]):
            image = np.moveaxis(file[case["image_key"]][()], case["image_axis"], 0)
            channels = dict(zip(_ROLES, (int(c) for c in case["channels"]), strict=False))
            found = []
            for role, item in file["nifti"].items():
                if role == "seg":
                    stored = file[case["mask_key"]][()] if case["mask_key"] else None
                elif role == "image":
                    stored = image
                else:
                    stored = image[channels[role]] if channels.get(role, -1) >= 0 else None
                found.append((role, _as_before(item[()].tobytes(), stored, f"{case['image'][0]} ({role})")))
            drawn_since = bool(case["label"]) and "seg" not in file["nifti"]
        else:
            found, drawn_since = [], False
    reading = module_of(reader_of(_READS_H5))
    affine = reading.affine_of(case)
    values = np.asarray(_values_of(case), np.uint8)
    if drawn_since:
        found.append(("seg", _plain_nifti(values[reading.read_classes(case)], affine)))
    if found:
        return found
    images = zip(_ROLES, reading.read_image(case), case["channels"], strict=False)
    arrays = {role: image for role, image, channel in images if channel >= 0}
    if case["label"]:
        arrays["seg"] = values[reading.read_classes(case)]
    return [(role, _plain_nifti(array, affine)) for role, array in arrays.items()]


def _values_of(case: Mapping[str, Any]) -> list[int]:
    """Values of background, NCR, ED, ET in a written mask: Decathlon's in its folders alone, which tell them."""
    values = [int(value) for value in case["label_values"]]
    told = not _names_of(case).get("seg", "_seg.nii").endswith(("_seg.nii", "_seg.nii.gz"))
    return values if told or values[:3] == [0, 1, 2] else [0, 1, 2, 4]


def _as_before(head: bytes, stored: np.ndarray | None, where: str) -> bytes:
    """The file that `convert h5` took; ValueError if the voxels have changed since so that its header cannot hold them.

    Args:
        head: what precedes the voxels.
        stored: intensities or labels; None: they are gone.
        where: they are from, for the message.
    """
    try:
        content = b"" if stored is None else _rebuilt(head, stored)
    except ValueError:  # another shape
        content = b""
    if stored is not None and content:
        again = np.asarray(_kind(content).from_bytes(content).dataobj)
        again = np.moveaxis(again, -1, 0) if stored.ndim == 4 else again.reshape(stored.shape)
        if np.array_equal(again.astype(stored.dtype), stored, equal_nan=stored.dtype.kind == "f"):
            return content
    raise ValueError(
        f"{where}: what it holds has changed since it was converted, and the header of then cannot hold it; expected "
        "the voxels of the NIfTI file; remove the group `nifti` from the file, and it is written as any other."
    )


def _plain_nifti(array: np.ndarray, affine: np.ndarray) -> bytes:
    kept = array.astype(np.int32) if array.dtype.kind in "iu" and array.dtype.itemsize > 4 else array
    if kept.dtype == np.bool_ or kept.dtype == np.float16:
        kept = kept.astype(np.uint8 if kept.dtype == np.bool_ else np.float32)
    image = nib.Nifti1Image(np.ascontiguousarray(kept), affine)
    for kind in ("set_qform", "set_sform"):
        getattr(image, kind)(affine, code=1)
    image.header.set_xyzt_units("mm")
    return image.to_bytes()


def _write_bytes(content: bytes, packed: bool, file: Any) -> None:
    file.write(igzip.compress(content, compresslevel=2, mtime=0) if packed else content)


def _folders(command: str, to: str | None, options: Mapping[str, Any]) -> tuple[str, Path, dict[str, Any]]:
    settings = dict(options)
    source = settings.pop("from", None)
    if not source or not to:
        raise ValueError(f"two folders are needed: python -m tools convert {command} --from DIR --to ANOTHER_DIR.")
    target = Path(str(to)).expanduser()
    if target.exists() and not target.is_dir():
        raise ValueError(f"{target} is a file; expected a folder, new or not; give another one with --to.")
    return str(Path(str(source)).expanduser()), target, settings


def _known(scan: Any, settings: dict[str, Any]) -> dict[str, Any]:
    parts = inspect.signature(scan).parameters
    known = {name: part.default for name, part in parts.items() if name not in _NOT_SETTINGS}
    refuse_settings(known, settings, f"a conversion; there are from, to, {', '.join(known)}")
    return settings


def _all_sound(cases: list[dict[str, Any]], findings: list[Any]) -> list[dict[str, Any]]:
    if findings:
        raise ValueError(f"{len(findings)} problem(s); nothing was written.\n" + "\n".join(map(str, findings)))
    return cases


def _refuse_shared(target: Path, planned: Sequence[tuple[str, Mapping[str, str]]]) -> None:
    """Refuse a NIfTI file that would be written twice; `planned` has each source with its names by role."""
    sources: dict[Path, str] = {}
    for source, names in planned:
        for name in names.values():
            path = target / name
            if path in sources:
                raise ValueError(
                    f"{sources[path]} and {source} both hold a file {name}; nothing was written. Expected files of "
                    "different names: convert the two apart, each into a folder of its own."
                )
            sources[path] = source


def _refuse_existing(paths: Sequence[Path]) -> None:
    there = [str(path) for path in paths if path.exists()]
    if there:
        more = f" and {len(there) - 3} more" if len(there) > 3 else ""
        raise ValueError(
            f"{', '.join(there[:3])}{more}: already there, nothing was written. Give another folder with --to."
        )
