"""Write segmentations of HDF5 cases as NIfTI, and as HDF5 where that is wished."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import nibabel as nib
import numpy as np

from bundlekit.errors import BundleError, Finding
from bundlekit.files import write_result
from bundlekit.images import writing
from bundlekit.images.hdf5 import open_h5

_log = logging.getLogger(__name__)


class WriteHDF5Segmentations(writing.WriteSegmentations):
    """MONAI handler: write `<case>_seg.nii.gz`, and on demand `<case>_seg.h5` and `<case>_probabilities.nii.gz`.

    The mask is uint8 with the case's own label values, on the grid of its image. The affine is that of the image; where
    its file has none the identity, and a warning says so. In HDF5 the mask is the dataset `mask`, with the
    affine, `label_values` and `remark` as attributes; `remark` holds the bundle's name and the CRC-32 of the voxels, by
    which a file that somebody corrected is known and stays, as the NIfTI file does.

    Args:
        output_dir: folder, made if missing.
        write_h5: whether to write HDF5 too.
        classes: as in `bundlekit.WriteSegmentations`.
        written_by: as in `bundlekit.WriteSegmentations`.
    """

    def __init__(
        self, output_dir: str, write_h5: bool = False, classes: Sequence[str] = (), written_by: str = ""
    ) -> None:
        super().__init__(output_dir, classes=classes, written_by=written_by)
        self.write_h5 = write_h5

    def files_of(self, case: str) -> list[Path]:
        """Files that are or may be written of a case, the mask first."""
        return [*super().files_of(case), _beside(self._path(case))]

    def _refuse_others(self, paths: Iterable[Path]) -> None:
        paths = list(paths)
        super()._refuse_others(paths)
        if self.write_h5 and self.signature:
            expected = f"a new file, or one {self.signature} and left as it was"
            fix = "move the file away, or leave out --write_h5"
            writing.refuse_others(map(_beside, paths), self._unlike, expected, fix)

    def _unlike(self, path: Path) -> str:
        """What tells an HDF5 mask from one that was written here and left as it was; "" if nothing does."""
        with contextlib.suppress(ValueError, KeyError, TypeError), open_h5(str(path)) as file:
            mask = file["mask"]
            if mask.attrs.get("remark") == writing.signed(self.signature, mask[...]).decode():
                return ""
        return "a mask that is not as it was written: somebody corrected it, or an earlier version wrote it"

    def _write(
        self, item: dict[str, Any], suffix: str, array: np.ndarray, remark: bytes
    ) -> tuple[Path, nib.Nifti1Image]:
        source = Path(item["source"])
        path = self._path(item["case"], suffix)
        if path.parent.resolve() == source.parent.resolve():
            found = "the folder of the scan itself, where results would lie among the data"
            raise BundleError(Finding(str(path), found, "a folder of its own", "set --output_dir to another folder"))
        affine = np.asarray(item["native_affine"], np.float64) if item["grid_known"] else None
        if affine is None:
            _log.warning(
                "%s keeps no affine (attribute affine): %s gets the identity, voxels of 1 mm in no known orientation",
                source,
                path.name,
            )
        header_affine = np.eye(4) if affine is None else affine
        image = nib.Nifti1Image(array, header_affine)
        for kind in ("set_qform", "set_sform"):
            getattr(image, kind)(header_affine, code=1)
        image.header.set_xyzt_units("mm")
        image.header["descrip"] = remark
        write_result(path, partial(writing.to_gzip, image), "output_dir")
        if self.write_h5 and suffix == self.suffix:
            values = [int(v) for v in item["label_values"]]
            write_result(_beside(path), partial(_to_h5, array, affine, values, remark.decode()), "output_dir")
        return path, image


def _beside(mask: Path) -> Path:
    """The HDF5 file of a NIfTI mask."""
    return mask.with_name(f"{mask.name.removesuffix('.nii.gz')}.h5")


def _to_h5(array: np.ndarray, affine: np.ndarray | None, label_values: list[int], remark: str, file: Any) -> None:
    with h5py.File(file, "w") as out:
        out.create_dataset("mask", data=array, chunks=True, compression="gzip", shuffle=True, fletcher32=True)
        out["mask"].attrs["label_values"] = label_values
        out["mask"].attrs["remark"] = remark
        if affine is not None:
            out.attrs["affine"] = affine
