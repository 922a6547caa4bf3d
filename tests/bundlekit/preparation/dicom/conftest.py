"""Tiny MR studies: series of 8 slices of 16 x 16 voxels of 12.5 x 12.5 x 15 mm, of a patient who must not be named."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import EnhancedMRImageStorage, ExplicitVRLittleEndian, MRImageStorage, generate_uid

NAME, PATIENT, DAY = "Mueller^Anna", "4711", "20200131"
SLICES, ROWS, COLUMNS = 8, 16, 16
SPACING, GAP = 12.5, 15.0
AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
ORIGIN = (-93.75, -93.75, -52.5)
SERIES: dict[str, dict[str, Any]] = {
    "T1": {"SeriesNumber": 2, "SeriesDescription": "t1_se_tra", "RepetitionTime": 500, "EchoTime": 12},
    "T2": {"SeriesNumber": 3, "SeriesDescription": "t2_tse_tra", "RepetitionTime": 4000, "EchoTime": 100},
    "FLAIR": {"SeriesNumber": 4, "SeriesDescription": "t2_flair", "RepetitionTime": 9000, "EchoTime": 110,
              "InversionTime": 2500, "ScanningSequence": ["SE", "IR"]},
    "T1ce": {"SeriesNumber": 5, "SeriesDescription": "t1_se_tra", "RepetitionTime": 500, "EchoTime": 12,
             "ContrastBolusAgent": "Gadobutrol"},
}  # fmt: skip


def uid(*names: object) -> str:
    """One and the same for the same names."""
    return str(generate_uid(entropy_srcs=[str(name) for name in names]))


def voxels(name: str) -> np.ndarray:
    """Slices, rows, columns; uint16: a box of 1350 ml of tissue in air, of other values for each name."""
    out = np.zeros((SLICES, ROWS, COLUMNS), np.uint16)
    rng = np.random.default_rng(sum(map(ord, name)))
    out[1:7, 3:11, 4:16] = rng.integers(100, 4000, (6, 8, 12))
    return out


def slices(name: str, **changed: Any) -> list[Dataset]:
    """The images of a series of `SERIES`.

    Args:
        name: of the series.
        changed: attributes; `orientation`, `origin`, `step` (mm, LPS+), `pixels`, `study`, `uid` and
            `kind` (SOP class).
    """
    orientation = changed.pop("orientation", AXIAL)
    origin = np.asarray(changed.pop("origin", ORIGIN))
    step = np.asarray(changed.pop("step", GAP * np.cross(orientation[:3], orientation[3:])))
    pixels, study = changed.pop("pixels", voxels(name)), changed.pop("study", "study")
    own, kind = changed.pop("uid", name), changed.pop("kind", MRImageStorage)
    out = []
    for k, pixel in enumerate(pixels):
        image = _image(kind, uid(study, own, k))
        image.StudyInstanceUID, image.SeriesInstanceUID = uid(study), uid(study, own)
        image.FrameOfReferenceUID = uid(study, "frame")
        image.Modality, image.ImageType = "MR", ["ORIGINAL", "PRIMARY", "M", "ND"]
        image.InstanceNumber = k + 1
        image.AcquisitionDate, image.AcquisitionTime = DAY, f"10{SERIES[name]['SeriesNumber']:02d}00"
        image.ImageOrientationPatient = list(orientation)
        image.ImagePositionPatient = [round(float(mm), 6) for mm in origin + k * step]
        image.PixelSpacing, image.SliceThickness = [SPACING, SPACING], GAP
        image.ScanningSequence, image.SequenceVariant, image.ScanOptions = "SE", "NONE", ""
        image.MRAcquisitionType, image.EchoTrainLength = "2D", 1
        for attribute, value in {**SERIES[name], **changed}.items():
            setattr(image, attribute, value)
        put_pixels(image, pixel)
        out.append(image)
    return out


def _image(kind: str, instance: str) -> Dataset:
    """An image of the patient without voxels."""
    image = Dataset()
    image.file_meta = FileMetaDataset()
    image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    image.file_meta.MediaStorageSOPClassUID = image.SOPClassUID = kind
    image.file_meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID = instance
    image.PatientName, image.PatientID, image.PatientBirthDate, image.PatientSex = NAME, PATIENT, "19500101", "F"
    image.StudyDate = image.SeriesDate = image.ContentDate = DAY
    image.StudyTime = image.SeriesTime = image.ContentTime = "100000"
    image.StudyID, image.AccessionNumber, image.ReferringPhysicianName = "1", "", ""
    image.Manufacturer, image.PositionReferenceIndicator = "none", ""
    return image


def put_pixels(image: Dataset, pixels: np.ndarray) -> None:
    """Grey values, 12 bits of 16."""
    image.Rows, image.Columns = pixels.shape[-2:]
    image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
    image.BitsAllocated, image.BitsStored, image.HighBit, image.PixelRepresentation = 16, 12, 11, 0
    image.PixelData = np.ascontiguousarray(pixels, "<u2").tobytes()
    image["PixelData"].VR = "OW"


def enhanced(name: str, order: Sequence[int] = range(SLICES), **changed: Any) -> Dataset:
    """The series as one file of many frames, in this order of its slices."""
    single = slices(name, **changed)
    first = single[0]
    image = _image(EnhancedMRImageStorage, uid("enhanced", name))
    for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID", "Modality", "InstanceNumber",
                    "SeriesNumber", "SeriesDescription", "ImageType", "AcquisitionContrast"):  # fmt: skip
        if keyword in first:
            setattr(image, keyword, first.get(keyword))
    image.AcquisitionDateTime, image.MRAcquisitionType, image.EchoPulseSequence = f"{DAY}100000", "2D", "SPIN"
    image.NumberOfFrames = len(order)
    put_pixels(image, np.stack([single[k].pixel_array for k in order]))
    timing = _item(RepetitionTime=first.RepetitionTime, FlipAngle=90)
    modifier = _item(InversionRecovery="YES", InversionTimes=first.InversionTime) if "InversionTime" in first else None
    shared = _item(
        PixelMeasuresSequence=[_item(PixelSpacing=[SPACING, SPACING], SliceThickness=GAP)],
        PlaneOrientationSequence=[_item(ImageOrientationPatient=first.ImageOrientationPatient)],
        MRTimingAndRelatedParametersSequence=[timing],
    )
    if modifier:
        shared.MRModifierSequence = [modifier]
    image.SharedFunctionalGroupsSequence = [shared]
    image.PerFrameFunctionalGroupsSequence = [
        _item(
            PlanePositionSequence=[_item(ImagePositionPatient=single[k].ImagePositionPatient)],
            MREchoSequence=[_item(EffectiveEchoTime=first.EchoTime)],
            FrameContentSequence=[_item(DimensionIndexValues=[1, k + 1], StackID="1", InStackPositionNumber=k + 1)],
            PixelValueTransformationSequence=[_item(RescaleSlope=2, RescaleIntercept=k, RescaleType="US")],
        )
        for k in order
    ]
    return image


def _item(**values: Any) -> Dataset:
    item = Dataset()
    for keyword, value in values.items():
        setattr(item, keyword, value)
    return item


def save(images: Iterable[Dataset], folder: Path, name: str = "IM{:04d}.dcm") -> list[Path]:
    """Write the files, numbered."""
    folder.mkdir(parents=True, exist_ok=True)
    out = []
    for index, image in enumerate(images):
        out.append(folder / name.format(index))
        image.save_as(out[-1], enforce_file_format=True)
    return out


@pytest.fixture(scope="session")
def made_study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with one series for each modality, in folders of their names; to be copied."""
    folder = tmp_path_factory.mktemp("dicom")
    for name in SERIES:
        save(slices(name), folder / name)
    return folder


@pytest.fixture
def study(made_study: Path, tmp_path: Path) -> Path:
    """The same, for a test to change."""
    return Path(shutil.copytree(made_study, tmp_path / "dicom"))


@pytest.fixture
def rewrite(study: Path) -> Callable[..., None]:
    """Write a series of the study anew with other attributes, see `slices`."""

    def write(name: str, **changed: Any) -> None:
        save(slices(name, **changed), study / name)

    return write
