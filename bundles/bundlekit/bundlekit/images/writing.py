"""Write segmentations on the grid, with the affine and the label values of the input."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from zlib import crc32

import nibabel as nib
import numpy as np
from ignite.engine import Engine, Events
from isal import igzip
from monai.utils import convert_to_numpy

from bundlekit.errors import BundleError, Finding
from bundlekit.files import write_result
from bundlekit.images.nifti import form_of, open_nifti, read_array, voxel_ml

_log = logging.getLogger(__name__)
_SIGNATURE, _CHECKSUM = "segmented by ", ", CRC-32 "


class WriteSegmentations:
    """MONAI handler: write `<case>_seg.nii.gz`, and `<case>_probabilities.nii.gz` where the output holds them.

    The mask is uint8 with the data set's own label values (`label_values` of the case, by class index); header (sform,
    qform and their codes, units) and grid are those of the case's first image. Probabilities are a 4-D float32 file, a
    channel last. Each file is written whole or not at all; a run that was stopped keeps the masks of the cases it
    finished.

    Args:
        output_dir: folder, made if missing.
        classes: names of the classes but the background, for the log, which tells the volume of each.
        written_by: the bundle, at most 50 characters. Its name goes into the headers (`descrip`) with the CRC-32 of the
            mask's voxels, by which probabilities are known as those of the mask (`are_of`). A mask that is there
            already is replaced only if it has that name and its voxels still have that checksum: what another bundle
            wrote or somebody corrected stays. The mask decides for the other files of its case. "": no name, and every
            mask is replaced.
    """

    def __init__(self, output_dir: str, classes: Sequence[str] = (), written_by: str = "") -> None:
        self.output_dir = Path(output_dir)
        self.suffix, self.probabilities = "seg", "probabilities"  # in BIDS others, see `cohort.pipeline`
        self.classes = list(classes)
        self.signature = f"{_SIGNATURE}{written_by}" if written_by else ""

    def attach(self, engine: Engine) -> None:
        """Register with an evaluator whose batch and output are decollated."""
        engine.add_event_handler(Events.STARTED, self.keep_others)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def keep_others(self, engine: Engine) -> None:
        """Before anything is computed, look for masks of the evaluator's cases that are not as this bundle wrote them.

        Every mask that would be replaced is decoded. Nor may a result replace an input, or lie beside its scan.

        Raises:
            BundleError: naming them.
        """
        for case in _cases_in(engine):
            image = case.get("image") or ""
            source = image if isinstance(image, str) else next((str(file) for file in image if file), "")
            self._refuse_inputs(self._path(case["case"]), source, str(case.get("label") or ""))
        self._refuse_others([self._path(case) for case in cases_of(engine)])

    def _refuse_inputs(self, path: Path, source: str, label: str) -> None:
        if any(path.exists() and Path(file).exists() and Path(file).samefile(path) for file in (source, label) if file):
            raise BundleError(
                Finding(str(path), "an input of the data set", "a new file", "set --output_dir to another folder")
            )
        if source and path.parent.resolve() == Path(source).parent.resolve():
            found = "the folder of the scan itself, where a result is taken for a reference the next time"
            raise BundleError(Finding(str(path), found, "a folder of its own", "set --output_dir to another folder"))

    def _refuse_others(self, paths: Iterable[Path]) -> None:
        if self.signature:
            expected = f"a new file, or one {self.signature} and left as it was"
            refuse_others(paths, partial(unlike, signature=self.signature), expected, "or move the file away")

    def _path(self, case: str, suffix: str = "") -> Path:
        return self.output_dir / f"{case}_{suffix or self.suffix}.nii.gz"

    def files_of(self, case: str) -> list[Path]:
        """Files that are or may be written of a case, the mask first."""
        return [self._path(case), self._path(case, self.probabilities)]

    def __call__(self, engine: Engine) -> None:
        """Write the cases of this iteration.

        Raises:
            BundleError: if a file cannot be written, or would replace an input or a mask that is not as inference left
                it.
        """
        batch: Any = engine.state.batch  # ignite's annotations know nothing of MONAI's lists of dicts
        outputs: Any = engine.state.output
        for item, output in zip(batch, outputs, strict=True):
            values = np.asarray([int(v) for v in item["label_values"]], np.uint8)
            classes = convert_to_numpy(output["pred"])[0].astype(np.uint8)
            self._refuse_others([self._path(item["case"])])  # it may have been corrected since the run began
            mask = values[classes]
            remark = signed(self.signature, mask) if self.signature else b""
            path, image = self._write(item, self.suffix, mask, remark)
            _log.info("wrote %s: %s", path, self._volumes(classes, values, image.affine))
            if "probabilities" in output:
                probabilities = np.moveaxis(convert_to_numpy(output["probabilities"]), 0, -1).astype(np.float32)
                path, _ = self._write(item, self.probabilities, probabilities, remark)
                _log.info("wrote %s", path)

    def _volumes(self, classes: np.ndarray, values: np.ndarray, affine: np.ndarray) -> str:
        """Millilitres of each class but the background."""
        volumes = np.bincount(classes.ravel(), minlength=len(values))[1:] * voxel_ml(affine)
        names = self.classes if len(self.classes) == len(volumes) else [f"label {value}" for value in values[1:]]
        return ", ".join(f"{name} {ml:.{1 if ml >= 1 else 2}f} ml" for name, ml in zip(names, volumes, strict=True))

    def _write(
        self, item: dict[str, Any], suffix: str, array: np.ndarray, remark: bytes
    ) -> tuple[Path, nib.Nifti1Image]:
        """Write one file of a case, with a remark in its header (`descrip`); its path and what it holds."""
        path = self._path(item["case"], suffix)
        self._refuse_inputs(path, item["source"], item["label_file"])
        image = on_grid_of(Path(item["source"]), array)
        image.header["descrip"] = remark
        write_result(path, lambda file: to_gzip(image, file), "output_dir")
        return path, image


def cases_of(engine: Engine) -> list[str]:
    """Names of the cases of an evaluator, those of its loader's data set."""
    return [case["case"] for case in _cases_in(engine)]


def _cases_in(engine: Engine) -> list[dict[str, Any]]:
    return getattr(getattr(engine.state.dataloader, "dataset", None), "data", [])


def refuse_others(paths: Iterable[Path], unlike_ours: Callable[[Path], str], expected: str, otherwise: str) -> None:
    """Look for files that would be replaced and must not be.

    Args:
        paths: of what will be written.
        unlike_ours: what tells a file from one that may be replaced, for the message; "" if nothing does.
        expected: in place of such a file.
        otherwise: what can be done if not with another folder: "or ...".

    Raises:
        BundleError: naming them.
    """
    there = [path for path in paths if path.is_file()]
    fix = f"set --output_dir to a folder for this bundle alone, {otherwise}"
    findings = [Finding(str(path), found, expected, fix) for path in there if (found := unlike_ours(path))]
    if findings:
        raise BundleError(findings)


def on_grid_of(source: str | os.PathLike, array: np.ndarray) -> nib.Nifti1Image:
    """`array` as a NIfTI image with the grid of another: sform, qform and their codes, units.

    Args:
        source: NIfTI or MGH file.
        array: HWD or HWDC on the file's grid.

    Raises:
        RuntimeError: if it is not on that grid.
    """
    original = open_nifti(source)
    if tuple(array.shape[:3]) != tuple(original.shape[:3]):
        raise RuntimeError(f"{source}: output {array.shape} is not on the input's grid {original.shape}")
    if isinstance(original, nib.MGHImage):  # its header has none of these fields
        image = nib.Nifti1Image(array, original.affine)
        image.header.set_xyzt_units("mm")
        return image
    header = original.header.copy()
    header.set_data_dtype(array.dtype)
    header.set_data_shape(array.shape)
    header.set_slope_inter(1, 0)
    header["cal_min"] = header["cal_max"] = 0  # the image's display window is not the mask's
    header["descrip"] = b""
    # a converter may have put a patient's name or the whole DICOM header there
    header.extensions.clear()
    for field in {"db_name", "aux_file", "intent_name"} & set(header):  # NIfTI-2 has no db_name
        header[field] = b""
    header["intent_code"] = 0
    image = nib.Nifti1Image(array, original.affine, header)
    for kind in ("sform", "qform"):
        getattr(image, f"set_{kind}")(*form_of(original, kind))
    return image


def signed(signature: str, array: np.ndarray) -> bytes:
    """A remark for the header (`descrip`) that says who wrote a file, and by a checksum which voxels.

    Args:
        signature: e.g. "segmented by brats_resunet".
        array: the voxels, of whatever type they are stored in.
    """
    return f"{signature}{_CHECKSUM}{_checksum(array)}".encode()


def unlike(path: Path, signature: str, what: str = "mask") -> str:
    """What tells a file from one that was `signed` and left as it was, for a message; "" if nothing does.

    Args:
        path: NIfTI file; decoded if the signature is there.
        signature: as of `signed`.
        what: the file is.
    """
    remark = remark_in(path)
    name, _, checksum = remark.partition(_CHECKSUM)
    if not remark:
        return "a file that no bundle has put its name to"
    if name != signature:
        return f"a {what} with the remark {remark!r}"
    if not checksum:
        return f"a {what} of an earlier version, without a checksum: somebody may have corrected it"
    if _holds(path, checksum):
        return ""
    return f"a {what} whose voxels are not those that were written: somebody corrected it"


def left_as_segmented(path: str | os.PathLike) -> str:
    """The signature of a mask that inference wrote and nobody has changed; "" for any other file.

    Only a file with a signature is decoded.
    """
    name, untouched = written_by(Path(path))
    return f"{_SIGNATURE}{name}" if untouched else ""


def are_of(probabilities: Path, mask: Path) -> bool:
    """Whether probabilities were written with a mask, be it corrected since; True where a header has no checksum."""
    theirs, its = (remark_in(path).partition(_CHECKSUM)[2] for path in (probabilities, mask))
    return theirs == its or not (theirs and its)


def _holds(path: str | os.PathLike, checksum: str) -> bool:
    try:
        return _checksum(read_array(str(path))) == checksum
    except BundleError:
        return False


def _checksum(voxels: np.ndarray) -> str:
    """CRC-32 of voxels, whatever type they are stored in."""
    return f"{crc32(voxels.astype(np.float32).tobytes(order='F')):08x}"


def remark_in(path: Path) -> str:
    """`descrip` of a mask's header; "" for a file that cannot be read."""
    try:
        return bytes(open_nifti(path).header["descrip"].item()).decode(errors="replace").strip("\0 ")
    except Exception:  # nibabel raises a dozen types
        return ""


def written_by(path: Path) -> tuple[str, bool]:
    """The bundle that wrote a mask, "" if its header has no name; and whether the voxels are as it wrote them."""
    name, _, checksum = remark_in(path).partition(_CHECKSUM)
    if not name.startswith(_SIGNATURE):
        return "", False
    return name.removeprefix(_SIGNATURE), bool(checksum) and _holds(path, checksum)


def to_gzip(image: nib.Nifti1Image, file: Any) -> None:
    """Write an image to an open file as .nii.gz, packed by ISA-L; without a time: equal images are equal files."""
    with igzip.IGzipFile("", "wb", compresslevel=2, fileobj=file, mtime=0) as packed:
        packed.write(image.to_bytes())
