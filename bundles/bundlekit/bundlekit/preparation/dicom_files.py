"""The DICOM files of a folder tree: found by what is in them, not by their names."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pydicom
from pydicom.config import disable_value_validation
from pydicom.errors import InvalidDicomError
from pydicom.tag import Tag
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian, MediaStorageDirectoryStorage

from bundlekit.cases.folders import walk
from bundlekit.errors import BundleError, Finding
from bundlekit.preparation.scans import looks_like_dicom

# what tells a series, its geometry and its contrast; of an enhanced file the functional groups with all in them
_KEYWORDS = """
    AcquisitionContrast AcquisitionDate AcquisitionDateTime AcquisitionTime AngioFlag BodyPartExamined
    BurnedInAnnotation Columns ComplexImageComponent ContrastBolusAgent ContrastBolusAgentSequence DiffusionBValue
    EchoPlanarPulseSequence EchoPulseSequence EchoTime EffectiveEchoTime FlipAngle FrameOfReferenceUID
    ImageOrientationPatient ImagePositionPatient ImageType InstanceNumber InversionRecovery InversionTime
    MRAcquisitionType Modality NumberOfFrames NumberOfTemporalPositions PatientID PatientName
    PerFrameFunctionalGroupsSequence PhotometricInterpretation PixelSpacing ProtocolName RepetitionTime RescaleIntercept
    RescaleSlope Rows SOPClassUID SOPInstanceUID SamplesPerPixel ScanningSequence SequenceName SequenceVariant
    SeriesDate SeriesDescription SeriesInstanceUID SeriesNumber SeriesTime SharedFunctionalGroupsSequence
    SliceThickness SpecificCharacterSet StudyDescription StudyInstanceUID TemporalPositionIdentifier
"""
_TAGS: list = [Tag(keyword) for keyword in _KEYWORDS.split()]


@contextmanager
def as_it_comes() -> Iterator[None]:
    """Values that are not as the standard wants them are read without a word: scanners write many."""
    with disable_value_validation(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def read_headers(root: str | os.PathLike) -> list[tuple[Path, pydicom.Dataset]]:
    """Headers of all DICOM files below a folder, directories (DICOMDIR) left out; other files do no harm.

    Args:
        root: the folder, or the DICOMDIR in it.

    Raises:
        BundleError: naming every file that begins as DICOM and cannot be read.
    """
    given = Path(root).expanduser()
    if not given.exists():
        raise BundleError(Finding(str(root), "no such folder", "a folder with DICOM files", "check its name"))
    if given.is_file():
        given = given.parent
    headers, findings = [], []
    for where, names in walk(given):
        for name in names:
            file = where / name
            if not looks_like_dicom(file):
                continue
            try:
                header = read_header(file, _TAGS)
            except Exception as error:  # pydicom raises a dozen types for what is one thing to the user
                findings.append(_unreadable(file, f"cannot be read ({type(error).__name__}: {error})"))
                continue
            if header.file_meta.get("MediaStorageSOPClassUID") == MediaStorageDirectoryStorage:
                continue
            missing = [
                word for word in ("SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID") if not header.get(word)
            ]
            if missing:
                findings.append(_unreadable(file, f"a header that ends early: it has no {' and no '.join(missing)}"))
            else:
                headers.append((file, header))
    if findings:
        raise BundleError(findings)
    return headers


def read_header(file: str | os.PathLike, tags: list | None = None) -> pydicom.Dataset:
    """The header of a file, without its voxels.

    Args:
        file: DICOM, with the mark DICM or without.
        tags: that are wanted; None: all.
    """
    with as_it_comes():
        try:
            return pydicom.dcmread(file, stop_before_pixels=True, specific_tags=tags)
        except InvalidDicomError:
            return pydicom.dcmread(file, stop_before_pixels=True, specific_tags=tags, force=True)


def read_whole(file: str | os.PathLike) -> pydicom.Dataset:
    """A file with its voxels; one without the mark DICM is little endian and not compressed."""
    image = pydicom.dcmread(file, force=True)
    if "TransferSyntaxUID" not in image.file_meta:
        implicit, _ = image.original_encoding
        image.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian
    return image


def _unreadable(file: Path, found: str) -> Finding:
    fix = "copy it again from the PACS or the disc; if it is not needed, take it out of the folder"
    return Finding(str(file), found, "a whole DICOM file", fix)
