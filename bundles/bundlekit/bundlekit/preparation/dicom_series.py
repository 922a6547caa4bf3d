"""The MR series of a study, as stacks of slices that make one volume each."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.uid import (
    EnhancedMRColorImageStorage,
    EnhancedMRImageStorage,
    LegacyConvertedEnhancedMRImageStorage,
    MRImageStorage,
)

from bundlekit.errors import BundleError, Finding
from bundlekit.files import sha256_of
from bundlekit.preparation.dicom_files import as_it_comes, read_headers
from bundlekit.preparation.sequences import Parameters

_ENHANCED = (EnhancedMRImageStorage, LegacyConvertedEnhancedMRImageStorage)
_SAME_DIRECTION = 0.01  # of cosines: half a degree
_SHOWN = 12  # studies in a message


@dataclass(frozen=True)
class Slice:
    """One slice: a file, or a frame of one.

    Args:
        file: that holds it.
        frame: of the file, from 0 on; None: the file has one.
        uid: SOPInstanceUID of the file.
        position: centre of the first voxel, mm, LPS+; None: not told.
        scale: slope and intercept, from what is stored to what was measured.
    """

    file: Path
    frame: int | None
    uid: str
    position: tuple[float, ...] | None
    scale: tuple[float, float]


@dataclass(eq=False)
class Stack:
    """The slices of one series that belong together: one orientation, one echo, one kind of image.

    Args:
        root: folder that was given, as it was given.
        series: SeriesInstanceUID.
        number: of the series; "" if it has none. "5:2" is the second stack of series 5.
        description: of the series.
        slices: in the order of their places, where these are told.
        rows: of a slice.
        columns: of a slice.
        spacing: mm between rows, between columns.
        orientation: six cosines, LPS+: along a row, along a column.
        parameters: of the sequence.
        unfit: why it is no scan of a head that could be taken; "" if it could be.
        unlikely: what its header says against that, often wrongly: it is taken if it is asked for; "" for nothing.
        begun: day and time, for comparing; "" for what is not told. Leaves this object in no form.
        frame_of_reference: its UID; "" if there is none.
    """

    root: str
    series: str
    number: str
    description: str
    slices: list[Slice]
    rows: int
    columns: int
    spacing: tuple[float, ...]
    orientation: tuple[float, ...]
    parameters: Parameters
    unfit: str = ""
    unlikely: str = ""
    begun: tuple[str, str] = ("", "")
    frame_of_reference: str = ""

    def __str__(self) -> str:
        return f"{self.root}, series {self.key}"

    @property
    def key(self) -> str:
        """What chooses it: its number, else its UID."""
        return self.number or self.series

    @property
    def digest(self) -> str:
        """SHA-256 of the UIDs and frames of its slices in order: it tells the stack and, unlike a UID, no date."""
        told = "\n".join(f"{one.uid}:{'' if one.frame is None else one.frame}" for one in self.slices)
        return sha256(told.encode()).hexdigest()


@dataclass
class Study:
    """Stacks of one study.

    Args:
        root: folder that was given, as it was given.
        uid: StudyInstanceUID.
        stacks: by number of the series.
    """

    root: str
    uid: str
    stacks: list[Stack]

    @property
    def pseudonym(self) -> str:
        """A name that tells nothing: from the hash of the study's UID."""
        return f"study-{sha256(self.uid.encode()).hexdigest()[:10]}"


@dataclass
class _Group:
    """Frames of one series that look alike."""

    key: tuple
    orientation: np.ndarray
    frame: _Frame
    file: Path
    slices: list[Slice] = field(default_factory=list)


class _Frame:
    """Header of one frame, wherever it stands: in the file, or in its functional groups.

    Args:
        header: of the file.
        number: of the frame, from 0 on; None for a file of one slice.
    """

    def __init__(self, header: pydicom.Dataset, number: int | None) -> None:
        self.header = header
        groups = []
        if number is not None:
            frames = header.get("PerFrameFunctionalGroupsSequence") or []
            groups += [frames[number]] if number < len(frames) else []
            groups += list(header.get("SharedFunctionalGroupsSequence") or [])[:1]
        self.macros = [one.value[0] for group in groups for one in group if one.VR == "SQ" and one.value]

    def get(self, keyword: str) -> Any:
        """Value of an attribute; None if it is not there, empty or not to be understood."""
        try:
            for part in [*self.macros, self.header]:
                if keyword in part:
                    value = part.get(keyword)
                    return None if value is None or (isinstance(value, str) and not value.strip()) else value
        except (ValueError, TypeError, OverflowError):  # "1,5" where a number has to be
            pass
        return None

    def numbers(self, keyword: str, count: int) -> tuple[float, ...] | None:
        """So many finite numbers, or None."""
        value = self.get(keyword)
        values = value if isinstance(value, (list, tuple, pydicom.multival.MultiValue)) else [value]
        try:
            numbers = tuple(float(one) for one in values)
        except (ValueError, TypeError):
            return None
        return numbers[:count] if len(numbers) >= count and np.isfinite(numbers).all() else None

    def number(self, *keywords: str) -> float | None:
        """The first of the attributes that is there."""
        found = (self.numbers(keyword, 1) for keyword in keywords)
        return next((numbers[0] for numbers in found if numbers), None)

    def words(self, keyword: str) -> tuple[str, ...]:
        """Values of a text attribute."""
        value = self.get(keyword)
        values = value if isinstance(value, (list, tuple, pydicom.multival.MultiValue)) else [value]
        return tuple(str(one).strip() for one in values if one is not None)


def read_study(root: str | os.PathLike, study: str | None = None) -> Study:
    """The MR stacks of the one study of a folder.

    Args:
        root: folder, however deep the files lie in it, or its DICOMDIR.
        study: StudyInstanceUID, where there are several.

    Raises:
        BundleError: for files that cannot be read, for several studies or patients, or if there is no DICOM file.
    """
    with as_it_comes():
        headers = _one_study(str(root), read_headers(root), study)
        stacks = _all_stacks(str(root), headers)
    stacks.sort(key=lambda stack: (_as_number(stack.number), stack.series))
    return Study(str(root), str(headers[0][1].StudyInstanceUID), stacks)


def read_stacks(root: str | os.PathLike) -> list[Stack]:
    """All MR stacks of a folder, of whatever studies, as `read_study` has them."""
    with as_it_comes():
        return _all_stacks(str(root), read_headers(root))


def _all_stacks(root: str, headers: list[tuple[Path, pydicom.Dataset]]) -> list[Stack]:
    by_series: dict[str, list[tuple[Path, pydicom.Dataset]]] = {}
    for file, header in _without_copies(headers):
        by_series.setdefault(str(header.SeriesInstanceUID), []).append((file, header))
    return [stack for members in by_series.values() for stack in _stacks(root, members)]


def _as_number(number: str) -> tuple[float, float]:
    series, _, part = number.partition(":")
    return float(series) if series.lstrip("-").isdigit() else np.inf, float(part or 0)


def _one_study(
    root: str, headers: list[tuple[Path, pydicom.Dataset]], asked: str | None
) -> list[tuple[Path, pydicom.Dataset]]:
    if not headers:
        expected = "DICOM files of one study"
        raise BundleError(Finding(root, "no DICOM file", expected, "give the folder of the study"))
    studies: dict[str, list[tuple[Path, pydicom.Dataset]]] = {}
    for file, header in headers:
        studies.setdefault(str(header.StudyInstanceUID), []).append((file, header))
    told = []
    for uid, members in list(studies.items())[:_SHOWN]:
        series = len({str(header.SeriesInstanceUID) for _, header in members})
        told.append(f"{uid} ({series} series, {len(members)} files, e.g. {members[0][0]})")
    listed = "".join(f"\n              {one}" for one in told)
    patients = {_patient(header) for _, header in headers}
    if asked is not None and str(asked) not in studies:
        raise BundleError(Finding(root, f"no study {asked}; there are:{listed}", "one of these", "give --study UID"))
    if asked is None and len(studies) > 1:
        of = f" of {len(patients)} patients" if len(patients) > 1 else ""
        fix = "give the folder of one study, or choose one: --study UID"
        raise BundleError(Finding(root, f"{len(studies)} studies{of}:{listed}", "one study", fix))
    chosen = studies[str(asked)] if asked is not None else headers
    first: dict[tuple[str, str], Path] = {}
    for file, header in chosen:
        first.setdefault(_patient(header), file)
    if len(first) > 1:
        found = f"one study with {len(first)} patients (name or ID differ), e.g. in " + ", ".join(
            map(str, first.values())
        )
        raise BundleError(Finding(root, found, "one patient", "take the files of the other patients out of the folder"))
    return chosen


def _patient(header: pydicom.Dataset) -> tuple[str, str]:
    name = str(header.get("PatientName") or "").upper().rstrip("^ ")
    return str(header.get("PatientID") or "").strip(), name


def _without_copies(headers: list[tuple[Path, pydicom.Dataset]]) -> list[tuple[Path, pydicom.Dataset]]:
    """Each instance once; a copy of a file is left out.

    Raises:
        BundleError: for two files that call themselves the same instance and are not alike.
    """
    first: dict[str, Path] = {}
    kept, findings = [], []
    for file, header in headers:
        known = first.setdefault(str(header.SOPInstanceUID), file)
        if known == file:
            kept.append((file, header))
        elif sha256_of(known) != sha256_of(file):
            found = f"the same SOPInstanceUID as {known}, but other bytes"
            fix = "find out which of both is the right one, and take the other out of the folder"
            findings.append(Finding(str(file), found, "each instance once", fix))
    if findings:
        raise BundleError(findings)
    return kept


def _stacks(root: str, members: Sequence[tuple[Path, pydicom.Dataset]]) -> list[Stack]:
    """The stacks of one series."""
    groups: list[_Group] = []
    for file, header in members:
        for frame, number in _frames(header):
            orientation = np.asarray(frame.numbers("ImageOrientationPatient", 6) or (0.0,) * 6)
            key = _key(frame)
            group = next((g for g in groups if g.key == key and _close(g.orientation, orientation)), None)
            if group is None:
                group = _Group(key, orientation, frame, file)
                groups.append(group)
            slope = frame.number("RescaleSlope")
            scale = (1.0 if slope is None else slope, frame.number("RescaleIntercept") or 0.0)
            position = frame.numbers("ImagePositionPatient", 3)
            group.slices.append(Slice(file, number, str(header.SOPInstanceUID), position, scale))
    out = []
    for index, group in enumerate(groups):
        series = "".join(group.frame.words("SeriesNumber")[:1])
        part = f":{index + 1}" if len(groups) > 1 else ""
        out.append(_stack(root, series + part, group, len({str(g.orientation.round(1)) for g in groups})))
    return out


def _frames(header: pydicom.Dataset) -> list[tuple[_Frame, int | None]]:
    count = int(_Frame(header, None).number("NumberOfFrames") or 0)
    if "PerFrameFunctionalGroupsSequence" in header or count > 1:
        return [(_Frame(header, number), number) for number in range(count)]
    return [(_Frame(header, None), None)]


def _close(one: np.ndarray, other: np.ndarray) -> bool:
    return bool(np.abs(one - other).max() < _SAME_DIRECTION)


def _key(frame: _Frame) -> tuple:
    """What tells images of one series that are no neighbours from each other: size, echo, b-value, kind, time."""
    spacing = frame.numbers("PixelSpacing", 2)
    times = (frame.number("EffectiveEchoTime", "EchoTime"), _inversion(frame), frame.number("DiffusionBValue"))
    return (
        str(frame.get("SOPClassUID")),
        frame.get("Rows"),
        frame.get("Columns"),
        spacing and tuple(round(mm, 3) for mm in spacing),
        tuple(value and round(value, 1) for value in times),
        frame.words("FrameType") or frame.words("ImageType"),
        str(frame.get("TemporalPositionIdentifier")) if (frame.number("NumberOfTemporalPositions") or 1) > 1 else "",
    )


def _inversion(frame: _Frame) -> float | None:
    return frame.number("InversionTimes", "InversionTime")


def _stack(root: str, number: str, group: _Group, directions: int) -> Stack:
    frame = group.frame
    return Stack(
        root=root,
        series=str(frame.header.SeriesInstanceUID),
        number=number,
        description=" ".join(frame.words("SeriesDescription")) or " ".join(frame.words("ProtocolName")),
        slices=group.slices,
        rows=int(frame.number("Rows") or 0),
        columns=int(frame.number("Columns") or 0),
        spacing=frame.numbers("PixelSpacing", 2) or (0.0, 0.0),
        orientation=tuple(group.orientation.tolist()),
        parameters=_parameters(frame),
        unfit=_unfit(frame, directions),
        unlikely=_unlikely(frame),
        begun=_begun(frame),
        frame_of_reference="".join(frame.words("FrameOfReferenceUID")[:1]),
    )


def _parameters(frame: _Frame) -> Parameters:
    kind = set(frame.words("ScanningSequence"))
    pulses = "".join(frame.words("EchoPulseSequence"))  # of enhanced files
    kind |= {"SPIN": {"SE"}, "GRADIENT": {"GR"}, "BOTH": {"SE", "GR"}}.get(pulses, set())
    kind |= {"IR"} if "YES" in frame.words("InversionRecovery") else set()
    kind |= {"EP"} if "YES" in frame.words("EchoPlanarPulseSequence") else set()
    agent = " ".join(frame.words("ContrastBolusAgent"))
    if not agent and frame.header.get("ContrastBolusAgentSequence"):
        agent = str(frame.header.ContrastBolusAgentSequence[0].get("CodeMeaning", "agent"))
    words = frame.words("SeriesDescription") or frame.words("ProtocolName")
    image_type = frame.words("FrameType") or frame.words("ImageType")
    contrast = "".join(frame.words("AcquisitionContrast"))
    return Parameters(
        tr=frame.number("RepetitionTime"),
        te=frame.number("EffectiveEchoTime", "EchoTime"),
        ti=_inversion(frame) or None,
        flip=frame.number("FlipAngle"),
        kind=frozenset(kind),
        variant=frozenset(frame.words("SequenceVariant")),
        three_d="3D" in frame.words("MRAcquisitionType"),
        agent=agent,
        image_type=image_type,
        b_value=frame.number("DiffusionBValue"),
        words=" ".join([*words, {"FLUID_ATTENUATED": "FLAIR", "DIFFUSION": "DWI", "STIR": "STIR"}.get(contrast, "")]),
    )


def _unfit(frame: _Frame, directions: int) -> str:
    """Why images are no MR slices of a volume; "" if they may be."""
    modality = "".join(frame.words("Modality")) or "no modality"
    kind = frame.get("SOPClassUID")
    name = getattr(kind, "name", "") or "of no known kind"
    photometric = "".join(frame.words("PhotometricInterpretation"))
    if not frame.get("Rows"):
        return f"no image ({name})"
    if (frame.number("SamplesPerPixel") or 1) > 1 or kind == EnhancedMRColorImageStorage:
        return f"a colour image ({photometric or name})"
    if modality != "MR":
        return f"{modality}, not MR"
    if kind not in (MRImageStorage, *_ENHANCED):
        return f"{name}: no MR image of the scanner"
    if photometric not in ("", "MONOCHROME2"):
        return f"{photometric}, not grey values that rise with the signal"
    image_type = frame.words("FrameType") or frame.words("ImageType")
    if "MOSAIC" in image_type:
        return "a mosaic of slices in one image"
    if directions > 1 and any(token.startswith("LOCALI") for token in image_type):
        return "a localiser"
    if frame.numbers("ImagePositionPatient", 3) is None or frame.numbers("ImageOrientationPatient", 6) is None:
        return "images whose place is not told"
    if frame.numbers("PixelSpacing", 2) is None:
        return "images whose voxel size is not told"
    return ""


def _unlikely(frame: _Frame) -> str:
    if "YES" in frame.words("BurnedInAnnotation"):
        return "annotations burnt into the image"
    if "Y" in frame.words("AngioFlag"):
        return "angiography"
    if "SPINE" in "".join(frame.words("BodyPartExamined")).upper():
        return "of the spine"
    if (frame.number("NumberOfTemporalPositions") or 1) > 1:
        return "a series over time"
    return ""


def _begun(frame: _Frame) -> tuple[str, str]:
    whole = frame.words("AcquisitionDateTime")
    if whole:
        return whole[0][:8], whole[0][8:]
    for when in ("Acquisition", "Series"):
        day, time = (frame.words(f"{when}{part}") for part in ("Date", "Time"))
        if time:
            return (day[0] if day else ""), time[0]
    return "", ""
