"""A mask as DICOM-SEG, on the instances of the series whose grid it is on, for PACS and viewers."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from highdicom import UID, AlgorithmIdentificationSequence
from highdicom.color import CIELabColor
from highdicom.seg import SegmentAlgorithmTypeValues, Segmentation, SegmentationTypeValues, SegmentDescription
from highdicom.sr import CodedConcept
from pydicom.errors import InvalidDicomError
from pydicom.sr.codedict import codes
from pydicom.valuerep import DA, TM

from bundlekit.errors import BundleError, Finding
from bundlekit.files import write_result
from bundlekit.images.nifti import read_affine, read_volume, without_rounding
from bundlekit.preparation.dicom_files import as_it_comes, read_header
from bundlekit.preparation.dicom_series import Stack
from bundlekit.preparation.dicom_volumes import find_stack, grid_of
from bundlekit.preparation.grids import Grid
from bundlekit.version import __version__

logging.getLogger("highdicom").setLevel(logging.WARNING)  # it tells UIDs, which may hold dates

# number of the segment, its name and code (CID 7168 of DICOM PS3.16)
_NECROSIS = (1, "Necrotic tumour core", CodedConcept("6574001", "SCT", "Necrosis"))
_NON_ENHANCING = (1, "Non-enhancing tumour core", CodedConcept("C81175", "NCIt", "Non-Enhancing Lesion"))
_OEDEMA = (2, "Peritumoural oedema", CodedConcept("79654002", "SCT", "Edema"))
_ENHANCING = (3, "Enhancing tumour", CodedConcept("C113842", "NCIt", "Enhancing Lesion"))
_CLASSES = {1: _NECROSIS, 2: _OEDEMA, 3: _ENHANCING, 4: _ENHANCING}
_COLOURS = {1: (220, 60, 60), 2: (70, 170, 70), 3: (250, 210, 60)}
_COPIED = """
    AccessionNumber PatientBirthDate PatientID PatientName PatientSex ReferringPhysicianName StudyDate StudyID StudyTime
"""
_MANUFACTURER = "Brain Segmentation Bundles contributors"


@dataclass(frozen=True)
class Maker:
    """Who made a mask.

    Args:
        name: of the bundle; "" if it is not told.
        version: of the bundle.
        weights: SHA-256 of the checkpoint; "" if it is not told.
        corrected: whether a person changed the mask.
    """

    name: str = ""
    version: str = ""
    weights: str = ""
    corrected: bool = False

    @property
    def core(self) -> tuple[int, str, CodedConcept]:
        """Number, name and code of the first segment, which in BraTS-METS is not necrosis alone."""
        return _NON_ENHANCING if "metastasis" in self.name else _NECROSIS

    @property
    def kind(self) -> SegmentAlgorithmTypeValues:
        """AUTOMATIC, SEMIAUTOMATIC if a person changed it, MANUAL if no algorithm is told."""
        values = SegmentAlgorithmTypeValues
        return values.MANUAL if not self.name else values.SEMIAUTOMATIC if self.corrected else values.AUTOMATIC


def source_of(entry: Mapping[str, Any], modality: str, sources: str | os.PathLike | None = None) -> Stack:
    """The slices that a prepared scan was made of.

    Args:
        entry: of the scan in `prepared.json`.
        modality: of the scan, for messages.
        sources: folder of the DICOM files, if they were moved.

    Raises:
        BundleError: if the scan is no DICOM, its slices are not there, or no DICOM-SEG can be made on them.
    """
    if "dicom" not in entry:
        found = f"the {modality} was a NIfTI file"
        raise BundleError(Finding(str(entry["source"]), found, "a DICOM series", "give --seg_on another scan, or none"))
    root = str(sources) if sources is not None else entry["dicom"]["folder"]
    there = Path(root).expanduser().exists()
    found_stack = find_stack(root, entry["dicom"]["digest"]) if there else None
    if found_stack is None:
        found = f"not the {entry['dicom']['slices']} slices of series {entry['dicom']['series']}, the {modality}"
        found = found if there else f"no such folder, so {found}"
        fix = "give the folder that holds the study: --sources DIR; or go on without DICOM-SEG: --seg_on none"
        raise BundleError(Finding(root, found, "the DICOM files that were prepared, all of them", fix))
    if not found_stack.frame_of_reference:
        fix = "give --seg_on another scan, or none"
        raise BundleError(Finding(str(found_stack), "no Frame of Reference UID", "one: a DICOM-SEG needs it", fix))
    files = {one.file for one in found_stack.slices}
    if found_stack.slices[0].frame is not None and len(files) > 1:
        found = f"a volume of {len(files)} multi-frame files"
        raise BundleError(Finding(str(found_stack), found, "one file, or one for each slice", "give --seg_on none"))
    one_voxel = np.zeros((len(found_stack.slices), found_stack.rows, found_stack.columns, 3), np.uint8)
    one_voxel[0, 0, 0] = 1, 0, 0
    _segmentation(found_stack, one_voxel, "", Maker())  # whether the headers bear it is told before it is needed
    return found_stack


def check_values(labels: np.ndarray, file: str | os.PathLike) -> None:
    """Refuse labels that have no segment.

    Raises:
        BundleError: for values but 0 to 4, and for 3 and 4 together.
    """
    values = set(np.unique(without_rounding(labels)).tolist())
    if values - {0, *_CLASSES} or {3, 4} <= values:
        found = f"labels {', '.join(f'{value:g}' for value in sorted(values))}"
        expected = "1 (necrosis), 2 (oedema), and 3 or 4 (enhancing tumour)"
        raise BundleError(Finding(str(file), found, expected, "go on without DICOM-SEG: --seg_on none"))


def refuse_other(path: str | os.PathLike) -> None:
    """Before anything is computed, look whether a DICOM-SEG would replace a file of somebody else.

    Raises:
        BundleError: if the file is there and is none that `write_seg` wrote.
    """
    file = Path(path)
    if not file.is_file():
        return
    try:
        maker = str(pydicom.dcmread(file, specific_tags=["Manufacturer"], force=True).get("Manufacturer", ""))
    except (InvalidDicomError, OSError, ValueError) as error:
        maker = f"({error})"
    if maker != _MANUFACTURER:
        found = f"a file of another program {maker}".strip()
        raise BundleError(Finding(str(file), found, "a new file, or one written here", "give another --out"))


def write_seg(
    stack: Stack, mask: str | os.PathLike, path: str | os.PathLike, case: str, maker: Maker | None = None
) -> None:
    """Write a mask as DICOM-SEG of the study and the patient of its slices.

    BINARY, a segment for each of necrosis (of metastases: the core that does not enhance), oedema and enhancing tumour,
    of which empty frames are left out. Each frame refers to the instance that it lies on. The file holds the patient's
    name, so that its owner alone can read it.

    Args:
        stack: slices whose grid the mask is on, see `source_of`.
        mask: NIfTI file, labels 0, 1, 2 and 3 or 4.
        path: of the new file.
        case: pseudonym, for the tracking IDs.
        maker: of the mask.

    Raises:
        BundleError: for a mask on another grid or with other labels, or if the file cannot be written.
    """
    maker = maker or Maker()
    labels = without_rounding(read_volume(str(mask)))
    grid = grid_of(stack)
    if not Grid(labels.shape, read_affine(str(mask))).same_as(grid):  # type: ignore[arg-type]
        expected = f"the grid of {stack}: {'x'.join(map(str, grid.shape))}, {grid.axes}"
        raise BundleError(Finding(str(mask), "another grid", expected, "give the mask that `restore` wrote for it"))
    check_values(labels, mask)
    # (columns, rows, slices) -> (slices, rows, columns, segments)
    frames = np.stack([np.isin(labels, values) for values in ([1], [2], [3, 4])], axis=-1).transpose(2, 1, 0, 3)
    seg = _segmentation(stack, frames.astype(np.uint8), case, maker)
    with as_it_comes():
        write_result(path, lambda file: pydicom.dcmwrite(file, seg, enforce_file_format=True), "out", private=True)


def _segmentation(stack: Stack, frames: np.ndarray, case: str, maker: Maker) -> Segmentation:
    """The DICOM-SEG of frames (slices, rows, columns, segments).

    Raises:
        BundleError: for headers of which none can be made.
    """
    with as_it_comes():
        headers = {one.file: _mended(read_header(one.file)) for one in stack.slices}
        settings: dict[str, Any] = {"pixel_array": frames}
        if stack.slices[0].frame is not None:
            settings = _on_frames(stack, headers[stack.slices[0].file], settings["pixel_array"])
        number = int("".join(c for c in stack.number.partition(":")[0] if c.isdigit()) or 0)
        try:
            return Segmentation(
                source_images=list(headers.values()),
                segmentation_type=SegmentationTypeValues.BINARY,
                segment_descriptions=[_described(*told, case, maker) for told in (maker.core, _OEDEMA, _ENHANCING)],
                series_instance_uid=UID(),
                series_number=number % 10_000_000 * 100 + 1,
                sop_instance_uid=UID(),
                instance_number=1,
                manufacturer=_MANUFACTURER,
                manufacturer_model_name=maker.name or "brain-segmentation-bundles",
                software_versions=maker.version or f"bundlekit {__version__}",
                device_serial_number="0",
                content_label="TUMOUR",
                content_description="Parts of a brain tumour; for research",
                content_creator_name="Bundles^Brain segmentation",
                series_description=f"Tumour, {maker.name or 'by hand'} {maker.version}".strip()[:64],
                **settings,
            )
        except (ValueError, TypeError, AttributeError, KeyError) as error:  # highdicom wants sound headers
            told = str(error) or type(error).__name__
            for keyword in _COPIED.split():  # of the patient nothing is told
                for header in headers.values():
                    if len(value := str(header.get(keyword, ""))) > 3:  # others are in any sentence
                        told = told.replace(value, keyword)
            found = f"headers of which no DICOM-SEG can be made ({told})"
            fix = "mend the header, or go on without it: --seg_on none"
            expected = "headers as DICOM has them"
            if "duplicates" in told:
                found = "a multi-frame file with more than one image of a slice, on which no DICOM-SEG can be made"
                expected, fix = "one image of each slice", "go on without it: --seg_on none"
            raise BundleError(Finding(str(stack), found, expected, fix)) from None


def _mended(header: pydicom.Dataset) -> pydicom.Dataset:
    """A header with all that highdicom copies: what an anonymiser took away or filled with anything is empty."""
    for keyword in _COPIED.split():
        if keyword not in header:
            setattr(header, keyword, "")
    if header.PatientSex not in ("M", "F", "O"):
        header.PatientSex = ""
    for keyword, kind in {"PatientBirthDate": DA, "StudyDate": DA, "StudyTime": TM}.items():
        try:
            kind(str(header[keyword].value or ""))
        except ValueError:
            setattr(header, keyword, "")
    if "SpecificCharacterSet" in header:
        told = header.SpecificCharacterSet
        names = [str(name) for name in ([told] if isinstance(told, str) or told is None else told)]
        if len(names) > 1:  # highdicom knows not all of them
            header.decode()
            header.SpecificCharacterSet = "ISO_IR 192"
        elif names[0] in ("", "None", "ISO_IR 6"):
            del header.SpecificCharacterSet
    return header


def _on_frames(stack: Stack, header: pydicom.Dataset, frames: np.ndarray) -> dict[str, Any]:
    """Masks in the order of the frames of a multi-frame file, zero where it has frames of another stack."""
    out = np.zeros((int(header.NumberOfFrames), *frames.shape[1:]), np.uint8)
    for one, frame in zip(stack.slices, frames, strict=True):
        out[one.frame] = frame
    return {"pixel_array": out}


def _described(number: int, name: str, code: CodedConcept, case: str, maker: Maker) -> SegmentDescription:
    algorithm = None
    if maker.name:
        algorithm = AlgorithmIdentificationSequence(
            name=maker.name,
            family=codes.cid7162.ArtificialIntelligence,
            version=maker.version or "unknown",
            source="Brain Segmentation Bundles contributors",
            parameters={"weights SHA-256": maker.weights} if maker.weights else None,
        )
    return SegmentDescription(
        segment_number=number,
        segment_label=name,
        segmented_property_category=codes.SCT.MorphologicallyAbnormalStructure,
        segmented_property_type=code,
        algorithm_type=maker.kind,
        algorithm_identification=algorithm,
        tracking_uid=UID(),
        tracking_id=f"{case} {name}"[:64],
        anatomic_regions=[codes.SCT.Brain],
        display_color=CIELabColor.from_rgb(*_COLOURS[number]),
    )
