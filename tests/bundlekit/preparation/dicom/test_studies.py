"""Which series of a study are found and taken; what is broken or unusual is read right or refused by name."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.fileset import FileSet
from pydicom.uid import CTImageStorage, SecondaryCaptureImageStorage, UltrasoundMultiFrameImageStorage

from bundlekit.errors import BundleError
from bundlekit.preparation.dicom_choice import Choice, choose, refuse_open, without
from bundlekit.preparation.dicom_series import read_study
from bundlekit.preparation.dicom_volumes import find_stack, grid_of, read_voxels
from bundlekit.preparation.scans import holds_dicom
from tests.bundlekit.preparation.dicom.conftest import (
    AXIAL,
    ORIGIN,
    SERIES,
    SLICES,
    enhanced,
    put_pixels,
    save,
    slices,
    uid,
    voxels,
)

Write = Callable[..., None]
NUMBERS = {"T1": "2", "T2": "3", "FLAIR": "4", "T1ce": "5"}


def chosen(folder: Path, asked: Mapping[str, str] | None = None, **settings: Any) -> Choice:
    study = read_study(folder, settings.pop("study", None))
    choice = choose(study, asked or {})
    refuse_open(choice, study, **settings)
    return choice


def numbers(choice: Choice) -> dict[str, str]:
    return {modality: one.stack.number for modality, one in choice.taken.items()}


def line(choice: Choice, number: str) -> str:
    """Of a series in the table."""
    return next(row for row in choice.table().splitlines() if row.split()[0] == number)


def test_a_plain_study_is_told_in_a_table(study: Path) -> None:
    choice = chosen(study)
    assert numbers(choice) == NUMBERS
    told = " ".join(line(choice, "5").split())
    assert told == "5 t1_se_tra 8 12.5x12.5x15 500/12/- yes T1ce TR 500, TE 12; contrast agent named"
    assert "TR 9000, TE 110, TI 2500" in line(choice, "4")
    for name, one in choice.taken.items():
        np.testing.assert_array_equal(read_voxels(one.stack), voxels(name).transpose(2, 1, 0))


# ---- what lies in the folder -----------------------------------------------------------------------------------------


def test_names_and_folders_do_not_matter(study: Path) -> None:
    flat = study.parent / "flat"
    flat.mkdir()
    files = sorted(study.rglob("*.dcm"))
    for file, number in zip(files, np.random.default_rng(0).permutation(len(files)), strict=True):
        file.rename(flat / uid(number).rpartition(".")[2][:12])  # as a PACS names them, without an extension
    (flat / "report.pdf").write_bytes(b"%PDF-1.4")
    (flat / "Thumbs.db").write_bytes(b"\x08\x00")
    (flat / "notes.txt").write_text("T1")
    deep = flat / "a" / "b" / "c"
    deep.mkdir(parents=True)
    shutil.copy(next(flat.glob("[0-9]*")), deep / "again")  # a copy of a file counts once
    choice = chosen(flat)
    assert numbers(choice) == NUMBERS
    for name, one in choice.taken.items():
        np.testing.assert_array_equal(read_voxels(one.stack), voxels(name).transpose(2, 1, 0))


def test_a_disc_with_its_directory(study: Path, tmp_path: Path) -> None:
    disc = FileSet()
    for file in study.rglob("*.dcm"):
        image = pydicom.dcmread(file)
        image.PatientID, image.InstanceNumber = "4711", image.InstanceNumber
        disc.add(image)
    disc.write(tmp_path / "disc")
    assert (tmp_path / "disc" / "DICOMDIR").is_file()
    assert numbers(chosen(tmp_path / "disc")) == NUMBERS
    assert numbers(chosen(tmp_path / "disc" / "DICOMDIR")) == NUMBERS
    assert holds_dicom(tmp_path / "disc" / "DICOMDIR")


def test_files_without_the_mark_are_read(study: Path) -> None:
    for file in (study / "T2").iterdir():
        image = pydicom.dcmread(file)
        image.file_meta.TransferSyntaxUID = pydicom.uid.ImplicitVRLittleEndian
        del image.file_meta, image.preamble
        pydicom.dcmwrite(file, image, implicit_vr=True, little_endian=True)
        assert file.read_bytes()[:4] != b"\0" * 4
    assert numbers(chosen(study)) == NUMBERS


@pytest.mark.parametrize("content", [None, b"nothing of DICOM"])
def test_a_folder_without_dicom(content: bytes | None, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    if content:
        (folder / "notes.txt").write_bytes(content)
    assert not holds_dicom(folder)
    with pytest.raises(BundleError, match="no DICOM file"):
        read_study(folder)
    with pytest.raises(BundleError, match="no such folder"):
        read_study(tmp_path / "nowhere")


def _other(study: Path, patient: str, uid_of: str) -> None:
    images = slices("T2", study=uid_of, SeriesNumber=9)
    for k, image in enumerate(images):
        image.PatientID, image.SOPInstanceUID = patient, uid("other", k)
        image.file_meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID
    save(images, study / "other")


def test_two_studies_are_refused_or_one_is_chosen(study: Path) -> None:
    _other(study, "4711", "second")
    with pytest.raises(BundleError, match=rf"2 studies:[\s\S]*{uid('second')} \(1 series, 8 files[\s\S]*--study UID"):
        read_study(study)
    assert numbers(chosen(study, study=uid("study"))) == NUMBERS
    with pytest.raises(BundleError, match=r"no study 1\.2\.3; there are:"):
        read_study(study, "1.2.3")


def test_two_patients_are_refused_and_not_named(study: Path) -> None:
    _other(study, "4712", "second")
    with pytest.raises(BundleError, match="2 studies of 2 patients") as refused:
        read_study(study)
    assert "4712" not in str(refused.value).replace(uid("second"), "").replace(uid("study"), "")
    assert "Mueller" not in str(refused.value)


def test_two_patients_in_one_study_are_refused(study: Path) -> None:
    _other(study, "4712", "study")
    with pytest.raises(BundleError, match=r"one study with 2 patients[\s\S]*other/IM0000\.dcm"):
        read_study(study, uid("study"))


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda data: data[:400], r"IM0003\.dcm[\s\S]*a whole DICOM file"),
        (lambda data: data[:132] + b"\xff" * 300, r"IM0003\.dcm[\s\S]*a whole DICOM file"),
        (lambda data: data[:160], r"IM0003\.dcm[\s\S]*a whole DICOM file"),
        (lambda data: data[:-100], r"IM0003\.dcm[\s\S]*voxels that cannot be decoded to their end"),
    ],
)
def test_damaged_files_are_named(spoil: Callable[[bytes], bytes], told: str, study: Path) -> None:
    file = study / "T2" / "IM0003.dcm"
    file.write_bytes(spoil(file.read_bytes()))
    with pytest.raises(BundleError, match=told) as refused:
        read_voxels(chosen(study).taken["T2"].stack)
    assert str(refused.value).count("found:") == 1


def test_two_files_of_one_instance(study: Path) -> None:
    image = pydicom.dcmread(study / "T2" / "IM0003.dcm")
    put_pixels(image, image.pixel_array // 2)
    image.save_as(study / "T2" / "again.dcm")
    with pytest.raises(
        BundleError,
        match=r"again\.dcm\n\s+found:    the same SOPInstanceUID as|the same SOPInstanceUID as .*again\.dcm",
    ):
        read_study(study)


# ---- geometry --------------------------------------------------------------------------------------------------------


def _missing(study: Path) -> None:
    (study / "T2" / "IM0003.dcm").unlink()


def _doubled(study: Path) -> None:
    image = slices("T2")[3]
    image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID = uid("doubled")
    save([image], study / "T2", "twice.dcm")


def _uneven(study: Path) -> None:
    images = slices("T2")
    images[3].ImagePositionPatient[2] += 3
    save(images, study / "T2")


def _bent(study: Path) -> None:
    images = slices("T2")
    images[3].ImagePositionPatient[0] += 5
    save(images, study / "T2")


def _unplaced(study: Path) -> None:
    images = slices("T2")
    for image in images:
        del image.ImagePositionPatient
    save(images, study / "T2")


def _part(study: Path) -> None:
    for k in range(5, 8):
        (study / "T2" / f"IM{k:04d}.dcm").unlink()


def _frames_without_places(study: Path) -> None:
    """One multi-frame file as vendors wrote them before enhanced MR: one position for all frames."""
    shutil.rmtree(study / "T2")
    image = slices("T2")[0]
    put_pixels(image, voxels("T2"))
    image.NumberOfFrames = SLICES
    save([image], study / "T2")


BROKEN = {
    "missing": (_missing, r"1 slice\(s\) missing: 30\.00 mm between IM0002\.dcm and IM0004\.dcm, else 15\.00 mm"),
    "doubled": (_doubled, r"1 slice\(s\) more than once, e\.g\. IM0003\.dcm and twice\.dcm at -7\.50 mm"),
    "uneven": (_uneven, r"not equally far apart: 18\.00 mm between IM0002\.dcm and IM0003\.dcm, else 15\.00 mm"),
    "bent": (_bent, r"do not lie behind each other: one is 5\.0 mm beside the line"),
    "tilted": (lambda study: save(slices("T2", step=(0, 4, 15)), study / "T2"), r"lean by 14\.9 degrees"),
    "unplaced": (_unplaced, "images whose place is not told"),
    "part of a head": (_part, r"covers 200 x 200 x 75 mm: not the whole head"),
    "frames without places": (_frames_without_places, r"7 slice\(s\) more than once"),
    "skewed": (lambda study: save(slices("T2", orientation=(1, 0, 0, 0.2, 0.98, 0), step=(0, 0, 15)), study / "T2"),
               "rows and columns that are not at right angles"),
    "inverted": (lambda study: save(_grey(slices("T2"), "MONOCHROME1"), study / "T2"), "MONOCHROME1, not grey values"),
}  # fmt: skip


def _grey(images: list[Any], kind: str) -> list[Any]:
    for image in images:
        image.PhotometricInterpretation = kind
    return images


@pytest.mark.parametrize("broken", BROKEN)
def test_slices_that_make_no_volume_are_told(broken: str, study: Path) -> None:
    spoil, told = BROKEN[broken]
    spoil(study)
    with pytest.raises(BundleError, match=rf"no series for the T2\n\s+3: 't2_tse_tra', .*{told}") as refused:
        chosen(study)
    assert str(refused.value).count("found:") == 1
    with pytest.raises(BundleError, match=told):
        chosen(study, {"T2": "3"})
    choice = chosen(study, fill_missing=True)  # the other three are whole
    assert sorted(numbers(choice)) == ["FLAIR", "T1", "T1ce"]
    (line,) = without(choice)
    assert line.startswith("going on WITHOUT the T2, the mask is worse; it may be 3: ")
    assert re.search(told, line)
    assert without(choice, ["T2"]) == []


def test_slices_in_any_order_and_a_negative_spacing(study: Path, rewrite: Write) -> None:
    order = np.random.default_rng(1).permutation(SLICES)
    images = [slices("T2", SpacingBetweenSlices=-15)[k] for k in order]
    for number, image in enumerate(images):
        image.InstanceNumber = number + 1
    save(images, study / "T2")
    stack = chosen(study).taken["T2"].stack
    np.testing.assert_array_equal(read_voxels(stack), voxels("T2").transpose(2, 1, 0))
    np.testing.assert_allclose(np.diag(grid_of(stack).affine), [-12.5, -12.5, 15, 1])


def test_slices_that_go_down_are_turned_with_their_affine(study: Path) -> None:
    """From the top of the head to its base: the last file is the first slice."""
    save(slices("T2", origin=(-93.75, -93.75, 52.5), step=(0, 0, -15)), study / "T2")
    stack = chosen(study).taken["T2"].stack
    np.testing.assert_array_equal(read_voxels(stack), voxels("T2")[::-1].transpose(2, 1, 0))
    np.testing.assert_allclose(grid_of(stack).affine, [[-12.5, 0, 0, 93.75], [0, -12.5, 0, 93.75],
                                                       [0, 0, 15, -52.5], [0, 0, 0, 1]])  # fmt: skip


def test_the_affine_of_an_oblique_series_by_hand(study: Path) -> None:
    """Coronal, rows 3-4-5 to the left and upwards: LPS+ (0.8, 0, 0.6) along a row, (0.6, 0, -0.8) along a column.

    The normal is (0, 1, 0). Right and left, front and back change sign from LPS to RAS.
    """
    oblique = {"orientation": (0.8, 0, 0.6, 0.6, 0, -0.8), "origin": (10, 20, 30), "step": (0, 15, 0)}
    save(slices("T2", **oblique), study / "T2")
    images = [pydicom.dcmread(file) for file in sorted((study / "T2").iterdir())]
    for image in images:
        image.PixelSpacing = [10, 20]  # between rows, between columns
        image.save_as(image.filename)
    stack = chosen(study).taken["T2"].stack
    expected = [[-16, -6, 0, -10], [0, 0, -15, -20], [12, -8, 0, 30], [0, 0, 0, 1]]
    np.testing.assert_allclose(grid_of(stack).affine, expected, atol=1e-6)
    np.testing.assert_array_equal(read_voxels(stack)[3, 5, 2], voxels("T2")[2, 5, 3])


def test_what_was_measured_is_stored_value_times_slope(study: Path) -> None:
    images = slices("T2")
    for k, image in enumerate(images):  # a scale for each slice, as Philips writes
        image.RescaleSlope, image.RescaleIntercept = 0.5 + k, -k
    save(images, study / "T2")
    scale = np.arange(SLICES)[None, None]
    expected = voxels("T2").transpose(2, 1, 0) * (0.5 + scale) - scale
    np.testing.assert_allclose(read_voxels(chosen(study).taken["T2"].stack), expected)


def test_frames_of_an_enhanced_file(study: Path) -> None:
    order = [3, 0, 7, 1, 2, 6, 5, 4]
    for name in SERIES:
        shutil.rmtree(study / name)
        image = enhanced(name, order)
        if name == "T1ce":
            agent = pydicom.Dataset()
            agent.CodeValue, agent.CodingSchemeDesignator, agent.CodeMeaning = "1", "99X", "Gadobutrol"
            image.ContrastBolusAgentSequence = [agent]
        save([image], study / name)
    choice = chosen(study)
    assert numbers(choice) == NUMBERS
    stack = choice.taken["FLAIR"].stack
    assert [one.frame for one in stack.slices] == list(np.argsort(order))
    # the intercept of a frame is the number of its slice
    expected = voxels("FLAIR").transpose(2, 1, 0) * 2.0 + np.arange(SLICES)[None, None]
    np.testing.assert_allclose(read_voxels(stack), expected)
    np.testing.assert_allclose(grid_of(stack).affine[:3, 3], [93.75, 93.75, -52.5])


def test_two_echoes_of_one_series_are_two_volumes(study: Path) -> None:
    for k, image in enumerate(slices("T2", EchoTime=15)):  # proton density and T2, as older protocols have them
        image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID = uid("echo", k)
        save([image], study / "T2", f"echo{k}.dcm")
    choice = chosen(study)
    assert choice.taken["T2"].stack.number == "3:1"
    assert "proton density" in line(choice, "3:2")
    assert numbers(chosen(study, {"T2": "3:2"}))["T2"] == "3:2"
    with pytest.raises(BundleError, match=r"--t2 3: 2 such series[\s\S]*3:1 = [\s\S]*3:2 = "):
        chosen(study, {"T2": "3"})


# ---- series that are none of the four --------------------------------------------------------------------------------


def _report(study: Path) -> None:
    page = slices("T2", kind=SecondaryCaptureImageStorage, SeriesNumber=9, SeriesDescription="Report T2", uid="report")
    for image in page:
        del image.ImagePositionPatient, image.ImageOrientationPatient
    save(page[:1], study / "report")


def _colour(study: Path) -> None:
    images = slices("T2", SeriesNumber=9, uid="colour")
    for image in images:
        image.SamplesPerPixel, image.PhotometricInterpretation, image.PlanarConfiguration = 3, "RGB", 0
        image.BitsAllocated, image.BitsStored, image.HighBit = 8, 8, 7
        image.PixelData = bytes(16 * 16 * 3)
    save(images, study / "colour")


def _more(study: Path, **changed: Any) -> None:
    save(slices("T2", SeriesNumber=9, uid="more", **changed), study / "more")


def _localiser(study: Path) -> None:
    planes = (AXIAL, (1, 0, 0, 0, 0, -1), (0, 1, 0, 0, 0, -1))
    images = [slices("T1", SeriesNumber=1, SeriesDescription="3 plane", uid="loc", orientation=plane)[:3]
              for plane in planes]  # fmt: skip
    for number, image in enumerate(image for plane in images for image in plane):
        image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID = uid("loc", number)
        image.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
        save([image], study / "loc", f"{number}.dcm")


NONE_OF_THEM = {
    "CT": (lambda study: _more(study, kind=CTImageStorage, Modality="CT"), "9", "CT, not MR"),
    "report": (_report, "9", "Secondary Capture Image Storage: no MR image"),
    "burnt in": (lambda study: _more(study, BurnedInAnnotation="YES"), "9", "annotations burnt into the image"),
    "colour": (_colour, "9", "a colour image"),
    "localiser": (_localiser, "1:2", "a localiser"),
    "ADC": (lambda study: _more(study, ImageType=["DERIVED", "PRIMARY", "DIFFUSION", "ADC"]), "9", "diffusion, by its"),
    "DWI": (lambda study: _more(study, DiffusionBValue=1000.0), "9", "diffusion (b 1000)"),
    "subtraction": (lambda study: _more(study, ImageType=["DERIVED", "SECONDARY", "SUB"]), "9", "subtraction, by its"),
    "MIP": (lambda study: _more(study, SeriesDescription="t2 MIP tra"), "9", "projection (MIP), by its description"),
    "T2*": (lambda study: _more(study, ScanningSequence="GR", EchoTime=25, RepetitionTime=700), "9", "T2*"),
    "SWI": (lambda study: _more(study, SeriesDescription="SWI_Images"), "9", "susceptibility"),
    "phase": (lambda study: _more(study, ImageType=["ORIGINAL", "PRIMARY", "P", "ND"]), "9", "phase image"),
    "over time": (lambda study: _more(study, NumberOfTemporalPositions=40, TemporalPositionIdentifier=1), "9",
                  "a series over time"),
    "mosaic": (lambda study: _more(study, ImageType=["ORIGINAL", "PRIMARY", "M", "MOSAIC"]), "9", "a mosaic"),
    "STIR": (lambda study: _more(study, InversionTime=150, SeriesDescription="", EchoTime=60), "9", "STIR"),
    "spine": (lambda study: _more(study, BodyPartExamined="CSPINE"), "9", "of the spine"),
    "angiography": (lambda study: _more(study, AngioFlag="Y"), "9", "angiography"),
    "private": (lambda study: _more(study, kind="1.3.46.670589.11.0.0.12.1"), "9", "no MR image of the scanner"),
    "ultrasound": (lambda study: _more(study, kind=UltrasoundMultiFrameImageStorage, Modality="US"), "9", "US, not MR"),
    "report text": (lambda study: save(_text(), study / "text"), "9", "no image (Basic Text SR Storage)"),
}  # fmt: skip


def _text() -> list[Any]:
    image = slices("T2", kind="1.2.840.10008.5.1.4.1.1.88.11", SeriesNumber=9, uid="text", Modality="SR")[0]
    for keyword in ("Rows", "Columns", "PixelData", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation"):
        delattr(image, keyword)
    return [image]


@pytest.mark.parametrize("kind", NONE_OF_THEM)
def test_what_is_none_of_the_four_is_left_out_and_told(kind: str, study: Path) -> None:
    add, number, told = NONE_OF_THEM[kind]
    add(study)
    choice = chosen(study)
    assert numbers(choice) == NUMBERS
    assert told in line(choice, number)


@pytest.mark.parametrize("kind", ["burnt in", "over time", "spine", "angiography"])
def test_what_only_a_header_says_is_overruled_by_who_asks(kind: str, study: Path) -> None:
    NONE_OF_THEM[kind][0](study)
    assert numbers(chosen(study, {"T2": "9"})) == NUMBERS | {"T2": "9"}


# ---- which one is taken ----------------------------------------------------------------------------------------------


def test_description_and_parameters_that_disagree_are_refused(study: Path, rewrite: Write) -> None:
    rewrite("T2", SeriesDescription="t1_se_tra")
    with pytest.raises(BundleError, match=r"may be the T2:[\s\S]*TE 100: T2, but its description says T1[\s\S]*--t2 3"):
        chosen(study)
    assert numbers(chosen(study, {"T2": "3"})) == NUMBERS


def test_swapped_descriptions_are_refused(study: Path, rewrite: Write) -> None:
    rewrite("T1", SeriesDescription="t2_tse_tra")
    rewrite("T2", SeriesDescription="t1_se_tra")
    with pytest.raises(BundleError, match=r"2 series of which each may be the T1 or the T2:") as refused:
        chosen(study)
    assert "--t1 2 or --t2 2 or --t1 3 or --t2 3" in str(refused.value)


def test_what_is_asked_for_against_the_parameters_is_told(study: Path) -> None:
    choice = chosen(study, {"T1": "3", "T2": "2"})
    assert "asked for by --t2, AGAINST its parameters: T1" in line(choice, "2")
    assert "AGAINST" not in line(chosen(study, {"T1ce": "5", "T1": "2"}), "2")
    assert "AGAINST its header: a contrast agent is named" in line(chosen(study, {"T1ce": "2", "T1": "5"}), "5")


def test_a_description_alone_is_not_enough(study: Path, rewrite: Write) -> None:
    rewrite("T2", RepetitionTime=None)
    with pytest.raises(BundleError, match="T2 by its description alone: TR is not given"):
        chosen(study)


@pytest.mark.parametrize("agent", [None, "", "UNKNOWN"])
def test_without_an_agent_a_t1_may_be_before_or_after(agent: str | None, study: Path, rewrite: Write) -> None:
    shutil.rmtree(study / "T1ce")
    rewrite("T1", ContrastBolusAgent=agent)
    with pytest.raises(BundleError, match="told nowhere") as refused:
        chosen(study, fill_missing=True)
    assert "give --t1 2 or --t1ce 2" in str(refused.value)
    assert str(refused.value).count("found:") == 1
    taken = numbers(chosen(study, {"T1ce": "2"}, fill_missing=True))
    assert taken == {"T1ce": "2", "T2": "3", "FLAIR": "4"}


def test_of_two_t1s_nothing_is_guessed(study: Path, rewrite: Write) -> None:
    rewrite("T1ce", ContrastBolusAgent="")
    with pytest.raises(BundleError, match="2 series of which each may be the T1 or the T1ce:") as refused:
        chosen(study)
    assert "--t1 2 or --t1ce 2 or --t1 5 or --t1ce 5" in str(refused.value)
    assert numbers(chosen(study, {"T1ce": "5"})) == NUMBERS  # the other one came before
    with pytest.raises(BundleError, match="begun after series 2, which had contrast medium"):
        chosen(study, {"T1ce": "2"})
    with pytest.raises(BundleError, match=r"one series that may be the T1ce:[\s\S]*give --t1ce 5"):
        chosen(study, {"T1": "2"})


def test_a_t1_after_the_agent_is_not_taken_for_one_before(study: Path, rewrite: Write) -> None:
    rewrite("T1", AcquisitionTime="110000")
    with pytest.raises(BundleError, match="begun after series 5, which had contrast medium"):
        chosen(study)
    rewrite("T1", AcquisitionTime="110000", ContrastBolusAgent="NONE")
    assert numbers(chosen(study)) == NUMBERS
    rewrite("T1", AcquisitionTime="110000", SeriesDescription="t1 nativ", ContrastBolusAgent="")
    with pytest.raises(BundleError, match="begun after series 5, which had contrast medium"):
        chosen(study)


def test_an_agent_that_is_named_in_every_t1_is_asked_about(study: Path, rewrite: Write) -> None:
    """A site that enters it when the patient comes: the finest of the T1s may be that before contrast medium."""
    rewrite("T1", ContrastBolusAgent="Gadovist")
    _thin(study, ContrastBolusAgent="Gadovist", AcquisitionTime="090000")
    with pytest.raises(
        BundleError, match="contrast medium is named in all T1s, and the first may be before it"
    ) as told:
        chosen(study)
    assert "--t1 8" in str(told.value)
    assert "--t1ce 5" in str(told.value)
    shutil.rmtree(study / "T1")
    shutil.rmtree(study / "thin")
    _thin(study, ContrastBolusAgent="Gadovist", AcquisitionTime="120000")
    assert numbers(chosen(study, fill_missing=True))["T1ce"] == "8", "the last one"


def test_a_reformat_does_not_make_its_original_doubtful(study: Path) -> None:
    shutil.rmtree(study / "T1")
    _thin(study, ContrastBolusAgent="Gadovist", AcquisitionTime="120000", ImageType=["DERIVED", "SECONDARY", "MPR"])
    assert numbers(chosen(study, fill_missing=True))["T1ce"] == "5"


@pytest.mark.parametrize(
    ("time", "told"),
    [
        ("110000", "begun after series 5"),
        (None, "2 series of which each may be the T1:"),
        ("000000", "2 series of which each may be the T1:"),  # as anonymisers write it everywhere
    ],
)
def test_days_may_be_gone_and_without_times_it_is_asked(
    time: str | None, told: str, study: Path, rewrite: Write
) -> None:
    """Of a native T1 and a finer one of later or of unknown time none is taken."""
    bare = {"AcquisitionDate": None, "SeriesDate": None}
    for name in ("T1", "T1ce"):
        rewrite(name, **bare, **({} if time == "110000" else {"AcquisitionTime": time, "SeriesTime": None}))
    _thin(study, **bare, AcquisitionTime=time, SeriesTime=None, ContrastBolusAgent=None, SeriesDescription="t1")
    if time == "110000":
        choice = chosen(study)
        assert numbers(choice) == NUMBERS
        assert told in line(choice, "8")
    else:
        with pytest.raises(BundleError, match=told):
            chosen(study)


def test_agent_and_description_that_disagree_are_refused(study: Path, rewrite: Write) -> None:
    rewrite("T1ce", SeriesDescription="t1_tra_pre")
    with pytest.raises(BundleError, match="a contrast agent is named, but the description says before"):
        chosen(study)


def test_contrast_medium_by_the_description(study: Path, rewrite: Write) -> None:
    rewrite("T1ce", SeriesDescription="T1 axial +C", ContrastBolusAgent="")
    choice = chosen(study)
    assert numbers(choice) == NUMBERS
    assert "after contrast medium by its description" in line(choice, "5")


def test_two_of_a_kind_are_asked_for(study: Path) -> None:
    save(slices("T1ce", SeriesNumber=8, uid="again"), study / "again")
    with pytest.raises(BundleError, match=r"2 series of which each may be the T1ce:") as refused:
        chosen(study)
    assert "--t1ce 5 or --t1ce 8" in str(refused.value)
    assert numbers(chosen(study, {"T1ce": "8"}))["T1ce"] == "8"
    assert numbers(chosen(study, {"T1ce": uid("study", "again")}))["T1ce"] == "8"
    with pytest.raises(BundleError, match=r"--t1ce 77: no such series or file[\s\S]*one of 2, 3, 4, 5, 8"):
        chosen(study, {"T1ce": "77"})


def _thin(study: Path, **changed: Any) -> None:
    """16 slices of 8 mm with voxels of 8 mm."""
    pixels = np.repeat(np.repeat(np.repeat(voxels("T1ce"), 2, 0), 2, 1), 2, 2)
    images = slices("T1ce", SeriesNumber=8, uid="thin", pixels=pixels, step=(0, 0, 8), **changed)
    for image in images:
        image.PixelSpacing = [8, 8]
    save(images, study / "thin")


def test_thin_slices_before_thick_ones(study: Path) -> None:
    _thin(study)
    choice = chosen(study)
    assert numbers(choice)["T1ce"] == "8"
    assert "series 8 preferred: this one is thicker" in line(choice, "5")


def test_originals_before_reformats(study: Path) -> None:
    _thin(study, ImageType=["DERIVED", "SECONDARY", "MPR"])
    choice = chosen(study)
    assert numbers(choice)["T1ce"] == "5"
    assert "series 5 preferred: this one is a reformat" in line(choice, "8")


def test_axial_before_coronal_where_slices_are_thick(study: Path) -> None:
    save(slices("T1ce", SeriesNumber=8, uid="cor", orientation=(1, 0, 0, 0, 0, -1), origin=ORIGIN), study / "cor")
    choice = chosen(study)
    assert numbers(choice)["T1ce"] == "5"
    assert "series 5 preferred: this one is coronal, the other axial" in line(choice, "8")


def test_two_series_of_one_number_are_told_apart_by_uid(study: Path) -> None:
    save(slices("T1ce", uid="again"), study / "again")
    with pytest.raises(BundleError, match=rf"--t1ce 5: 2 such series[\s\S]*{uid('study', 'again')}"):
        chosen(study, {"T1ce": "5"})


def test_a_moved_study_is_known_by_its_slices(study: Path, tmp_path: Path) -> None:
    stack = chosen(study).taken["T2"].stack
    study.rename(tmp_path / "elsewhere")
    found = find_stack(tmp_path / "elsewhere", stack.digest)
    assert found is not None
    assert found.slices[0].uid == stack.slices[0].uid
    (tmp_path / "elsewhere" / "T2" / "IM0007.dcm").unlink()
    assert find_stack(tmp_path / "elsewhere", stack.digest) is None
