"""A mask as DICOM-SEG: the same voxels, instances and patient; nothing of the patient in other files."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import highdicom
import nibabel as nib
import numpy as np
import pydicom
import pytest
from pydicom.sr.codedict import codes

from bundlekit.errors import BundleError
from bundlekit.files import sha256_of
from bundlekit.images.nifti import read_volume
from bundlekit.preparation import preparing
from bundlekit.preparation.dicom_choice import choose
from bundlekit.preparation.dicom_files import as_it_comes
from bundlekit.preparation.dicom_seg import Maker, source_of, write_seg
from bundlekit.preparation.dicom_series import Stack, read_stacks, read_study
from bundlekit.preparation.dicom_volumes import grid_of, read_voxels
from bundlekit.preparation.preparing import prepare_case
from bundlekit.preparation.record import read_record
from bundlekit.preparation.registration import Registration
from bundlekit.preparation.restoring import restore_case
from tests.bundlekit.preparation.dicom.conftest import DAY, NAME, PATIENT, SERIES, enhanced, save, slices, uid, voxels

MAKER = Maker("brats_resunet", "0.3.2", "ab" * 32)


@pytest.fixture
def labels() -> np.ndarray:
    """Columns, rows, slices: a ring of ET around a necrosis, oedema; slices 0, 1 and 6, 7 are empty."""
    out = np.zeros((16, 16, 8), np.uint8)
    out[5:12, 4:10, 2:6] = 2
    out[6:10, 5:9, 3:5] = 4
    out[7:9, 6:8, 3] = 1
    return out


def stacks(folder: Path) -> dict[str, Stack]:
    return {modality: one.stack for modality, one in choose(read_study(folder), {}).taken.items()}


def mask_of(stack: Stack, labels: np.ndarray, folder: Path) -> Path:
    path = folder / "mask.nii.gz"
    nib.save(nib.Nifti1Image(labels, grid_of(stack).affine), path)
    return path


def test_a_seg_is_the_mask_and_names_its_instances(study: Path, labels: np.ndarray, tmp_path: Path) -> None:
    stack = stacks(study)["T1ce"]
    write_seg(stack, mask_of(stack, labels, tmp_path), tmp_path / "seg.dcm", "case", MAKER)
    assert (tmp_path / "seg.dcm").stat().st_mode & 0o077 == 0, "it holds the patient's name"
    seg = highdicom.seg.segread(tmp_path / "seg.dcm")
    uids = [uid("study", "T1ce", k) for k in range(8)]
    back = seg.get_pixels_by_source_instance(
        uids, assert_missing_frames_are_empty=True
    )  # instances, rows, columns, segments
    for index, values in enumerate(([1], [2], [3, 4])):
        np.testing.assert_array_equal(back[..., index], np.isin(labels, values).transpose(2, 1, 0))
    assert {item[1] for item in seg.get_source_image_uids()} == {uid("study", "T1ce")}
    assert (seg.PatientName, seg.PatientID, seg.StudyInstanceUID) == (NAME, PATIENT, uid("study"))
    assert seg.FrameOfReferenceUID == uid("study", "frame")
    assert seg.SegmentationType == "BINARY"
    assert seg.SeriesInstanceUID not in {uid("study", name) for name in SERIES}


def test_the_core_of_metastases_is_not_called_necrosis(study: Path, labels: np.ndarray, tmp_path: Path) -> None:
    stack = stacks(study)["T1ce"]
    maker = Maker("brain_metastasis_attention_unet", "0.3.0")
    write_seg(stack, mask_of(stack, labels, tmp_path), tmp_path / "seg.dcm", "case", maker)
    core = pydicom.dcmread(tmp_path / "seg.dcm").SegmentSequence[0]
    assert core.SegmentLabel == "Non-enhancing tumour core"
    assert core.SegmentedPropertyTypeCodeSequence[0].CodeValue == codes.cid7168.NonEnhancingLesion.value


def test_segments_are_coded_and_tell_the_algorithm(study: Path, labels: np.ndarray, tmp_path: Path) -> None:
    stack = stacks(study)["T1ce"]
    write_seg(stack, mask_of(stack, labels, tmp_path), tmp_path / "seg.dcm", "case", MAKER)
    segments = pydicom.dcmread(tmp_path / "seg.dcm").SegmentSequence
    types = [one.SegmentedPropertyTypeCodeSequence[0] for one in segments]
    assert [(code.CodeValue, code.CodingSchemeDesignator) for code in types] == [
        ("6574001", "SCT"),
        ("79654002", "SCT"),
        ("C113842", "NCIt"),
    ]
    for segment in segments:
        algorithm = segment.SegmentationAlgorithmIdentificationSequence[0]
        assert (segment.SegmentAlgorithmType, segment.SegmentAlgorithmName) == ("AUTOMATIC", "brats_resunet")
        assert algorithm.AlgorithmVersion == "0.3.2"
        assert "ab" * 32 in str(algorithm.AlgorithmParameters)
        assert segment.TrackingID.startswith("case ")


@pytest.mark.parametrize(
    ("maker", "kind"), [(Maker("x", "1", corrected=True), "SEMIAUTOMATIC"), (Maker(), "MANUAL"), (None, "MANUAL")]
)
def test_who_made_it_is_told(maker: Maker | None, kind: str, study: Path, labels: np.ndarray, tmp_path: Path) -> None:
    stack = stacks(study)["T2"]
    write_seg(stack, mask_of(stack, labels, tmp_path), tmp_path / "seg.dcm", "case", maker)
    assert {one.SegmentAlgorithmType for one in pydicom.dcmread(tmp_path / "seg.dcm").SegmentSequence} == {kind}


def test_a_seg_on_an_oblique_series_lies_where_its_mask_does(study: Path, labels: np.ndarray, tmp_path: Path) -> None:
    oblique = {"orientation": (0.8, 0, 0.6, 0.6, 0, -0.8), "origin": (10, 20, 30), "step": (0, 15, 0)}
    save(slices("T2", **oblique), study / "T2")
    stack = stacks(study)["T2"]
    write_seg(stack, mask_of(stack, labels, tmp_path), tmp_path / "seg.dcm", "case", MAKER)
    volume = highdicom.seg.segread(tmp_path / "seg.dcm").get_volume(combine_segments=True)
    ras = np.diag([-1, -1, 1, 1]) @ volume.affine
    for number, values in ((1, [1]), (2, [2]), (3, [3, 4])):
        own = (ras @ np.c_[np.argwhere(volume.array == number), np.ones((volume.array == number).sum())].T)[:3].T
        places = np.argwhere(np.isin(labels, values))
        expected = (grid_of(stack).affine @ np.c_[places, np.ones(len(places))].T)[:3].T
        np.testing.assert_allclose(
            own[np.lexsort(own.round(3).T)], expected[np.lexsort(expected.round(3).T)], atol=1e-3
        )


def test_a_seg_on_frames_of_an_enhanced_file(labels: np.ndarray, tmp_path: Path) -> None:
    order = [3, 0, 7, 1, 2, 6, 5, 4]
    save([enhanced("T2", order)], tmp_path / "study")
    stack = stacks(tmp_path / "study")["T2"]
    write_seg(stack, mask_of(stack, labels, tmp_path), tmp_path / "seg.dcm", "case", MAKER)
    seg = highdicom.seg.segread(tmp_path / "seg.dcm")
    frames = list(range(1, 9))
    back = seg.get_pixels_by_source_frame(uid("enhanced", "T2"), frames, assert_missing_frames_are_empty=True)
    for index, values in enumerate(([1], [2], [3, 4])):
        np.testing.assert_array_equal(back[..., index], np.isin(labels, values).transpose(2, 1, 0)[order])


def test_a_mask_without_tumour_is_a_seg_too(study: Path, labels: np.ndarray, tmp_path: Path) -> None:
    stack = stacks(study)["T2"]
    write_seg(stack, mask_of(stack, labels * 0, tmp_path), tmp_path / "seg.dcm", "case", MAKER)
    seg = highdicom.seg.segread(tmp_path / "seg.dcm")
    assert len(seg.SegmentSequence) == 3
    assert not seg.pixel_array.any()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda labels: np.where(labels == 2, 7, labels), r"labels 0, 1, 4, 7[\s\S]*--seg_on none"),
        (lambda labels: np.where(labels == 2, 3, labels), r"labels 0, 1, 3, 4"),
        (lambda labels: labels[:, :, :7], r"another grid"),
    ],
)
def test_masks_that_fit_not_are_refused(
    change: Callable[..., np.ndarray], told: str, study: Path, labels: np.ndarray, tmp_path: Path
) -> None:
    stack = stacks(study)["T2"]
    with pytest.raises(BundleError, match=told):
        write_seg(stack, mask_of(stack, change(labels), tmp_path), tmp_path / "seg.dcm", "case", MAKER)
    assert not (tmp_path / "seg.dcm").exists()


def test_headers_that_were_emptied_do_not_stop_it(study: Path, labels: np.ndarray, tmp_path: Path) -> None:
    images = slices("T2", PatientSex="0000")
    for image in images:
        for keyword in ("PatientBirthDate", "StudyID", "AccessionNumber", "StudyDate", "StudyTime"):
            delattr(image, keyword)
    save(images, study / "T2")
    stack = stacks(study)["T2"]
    write_seg(stack, mask_of(stack, labels, tmp_path), tmp_path / "seg.dcm", "case", MAKER)
    assert pydicom.dcmread(tmp_path / "seg.dcm").PatientSex in ("", None)


@pytest.mark.parametrize(
    ("keyword", "value", "kept"),
    [
        ("StudyDate", "31/01/20", ""),
        ("PatientBirthDate", "1950-01-31", ""),
        ("PatientBirthDate", "ANON", ""),
        ("StudyTime", "noon", ""),
        ("SpecificCharacterSet", ["", "ISO 2022 IR 87"], None),
        ("SpecificCharacterSet", ["", "ISO 2022 IR 149"], None),
        ("SpecificCharacterSet", "ISO_IR 6", None),
        ("SpecificCharacterSet", "", None),
    ],
)
def test_headers_that_are_not_as_highdicom_wants_them_are_mended(
    keyword: str, value: Any, kept: str | None, study: Path, labels: np.ndarray, tmp_path: Path
) -> None:
    changed(study / "T2", keyword, value)
    if keyword == "SpecificCharacterSet":  # of plain letters
        for folder in study.iterdir():
            changed(folder, "PatientName", "Doe^Jane")
    stack = stacks(study)["T2"]
    source_of(entry_of(stack), "T2")
    write_seg(stack, mask_of(stack, labels, tmp_path), tmp_path / "seg.dcm", "case", MAKER)
    seg = pydicom.dcmread(tmp_path / "seg.dcm")
    assert str(seg.PatientName) == (NAME if kept is not None else "Doe^Jane")
    if kept is not None:
        assert seg[keyword].value in (kept, None)


def changed(folder: Path, keyword: str, value: Any) -> None:
    """All files of a series with a value as it is, be it one of DICOM or not."""
    for file in folder.iterdir():
        with as_it_comes():
            image = pydicom.dcmread(file)
            setattr(image, keyword, value)
            image.save_as(file)


def entry_of(stack: Stack) -> dict[str, Any]:
    dicom = {"folder": stack.root, "series": stack.key, "slices": len(stack.slices), "digest": stack.digest}
    return {"source": "source/T2.nii.gz", "dicom": dicom}


def test_headers_of_which_none_can_be_made_are_told_before_anything_is_computed(study: Path) -> None:
    changed(study / "T2", "SpecificCharacterSet", "ISO_IR 999")
    with pytest.raises(
        BundleError, match=r"series 3\n\s+found:    headers of which no DICOM-SEG[\s\S]*--seg_on none"
    ) as e:
        source_of(entry_of(stacks(study)["T2"]), "T2")
    assert not [word for word in (NAME, "Mueller", PATIENT, "19500101") if word in str(e.value)]


def test_two_images_of_a_slice_in_one_file_are_told_before_anything_is_computed(tmp_path: Path) -> None:
    image = enhanced("T2", [*range(8), *range(8)])
    for item in image.PerFrameFunctionalGroupsSequence[8:]:
        item.MREchoSequence[0].EffectiveEchoTime = 30
        item.FrameContentSequence[0].StackID = "2"
    save([image], tmp_path / "study")
    (stack,) = [one for one in read_stacks(tmp_path / "study") if not one.unfit][:1]
    with pytest.raises(BundleError, match=r"more than one image of a slice[\s\S]*--seg_on none"):
        source_of(entry_of(stack), "T2")


def test_padding_is_air(study: Path) -> None:
    before = read_voxels(stacks(study)["T2"])
    value = int(voxels("T2").max())
    for file in (study / "T2").iterdir():
        image = pydicom.dcmread(file)
        image.add_new("PixelPaddingValue", "US", value)
        image.save_as(file)
    after = read_voxels(stacks(study)["T2"])
    padded = voxels("T2").transpose(2, 1, 0) == value
    assert before[padded].all()
    np.testing.assert_array_equal(after, np.where(padded, 0, before))


def test_a_seg_on_files_without_the_mark(study: Path, labels: np.ndarray, tmp_path: Path) -> None:
    for file in (study / "T2").iterdir():
        image = pydicom.dcmread(file)
        image.file_meta.TransferSyntaxUID = pydicom.uid.ImplicitVRLittleEndian
        del image.file_meta, image.preamble
        pydicom.dcmwrite(file, image, implicit_vr=True, little_endian=True)
    stack = stacks(study)["T2"]
    np.testing.assert_array_equal(read_voxels(stack), voxels("T2").transpose(2, 1, 0))
    write_seg(stack, mask_of(stack, labels, tmp_path), tmp_path / "seg.dcm", "case", MAKER)
    assert pydicom.dcmread(tmp_path / "seg.dcm").pixel_array.sum() == (labels > 0).sum()


@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="dciodvfy (Debian: dicom3tools) is not installed")
@pytest.mark.parametrize("kind", ["slices", "frames", "empty", "by hand"])
def test_dciodvfy_finds_no_error(kind: str, study: Path, labels: np.ndarray, tmp_path: Path) -> None:
    if kind == "frames":
        shutil.rmtree(study / "T2")
        save([enhanced("T2")], study / "T2")
    stack = stacks(study)["T2"]
    mask = mask_of(stack, labels * (kind != "empty"), tmp_path)
    write_seg(stack, mask, tmp_path / "seg.dcm", "case", None if kind == "by hand" else MAKER)
    done = subprocess.run(["dciodvfy", "-new", tmp_path / "seg.dcm"], capture_output=True, text=True, timeout=60)
    told = done.stdout + done.stderr
    assert "Segmentation" in told
    assert [row for row in told.splitlines() if row.startswith("Error")] == []


# ---- the whole way ---------------------------------------------------------------------------------------------------


@pytest.fixture
def prepared(study: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The study, prepared at 12.5 mm; its scans lie where they are."""
    monkeypatch.setattr(preparing, "register", lambda fixed, moving, seed: Registration(np.eye(4)))
    monkeypatch.chdir(tmp_path)
    read = read_study("dicom")
    files = {modality: one.stack for modality, one in choose(read, {}).taken.items()}
    prepare_case(files, tmp_path / "out" / "prepared", lambda image: pytest.fail("is stripped"), read.pseudonym,
                 spacing_mm=12.5)  # fmt: skip
    return tmp_path / "out" / "prepared"


def test_a_study_is_prepared_restored_and_tells_no_patient(prepared: Path, study: Path, tmp_path: Path) -> None:
    record = read_record(prepared)
    entry = record["modalities"]["FLAIR"]
    assert entry["dicom"]["folder"] == "dicom"  # as it was given
    assert (entry["source"], entry["dicom"]["series"], entry["dicom"]["slices"]) == ("source/FLAIR.nii.gz", "4", 8)
    assert record["case"].startswith("study-")
    np.testing.assert_array_equal(read_volume(str(prepared / entry["source"])), voxels("FLAIR").transpose(2, 1, 0))
    first = nib.load(prepared / record["modalities"]["T1ce"]["prepared"])
    labels = np.zeros(first.shape, np.uint8)
    labels[4:10, 4:9, 3:6] = 2
    nib.save(nib.Nifti1Image(labels, first.affine), tmp_path / "mask.nii.gz")
    restore_case(prepared, tmp_path / "mask.nii.gz", tmp_path / "out")
    told = [uid("study"), uid("study", "T1ce"), uid("study", "T1ce", 0), NAME, "Mueller", PATIENT, DAY, "19500101"]
    for file in [*(tmp_path / "out").rglob("*.json"), *(tmp_path / "out").rglob("*.nii.gz")]:
        content = nib.load(file).header.binaryblock if file.suffix == ".gz" else file.read_bytes()
        assert not [word for word in told if word.encode() in content or word in file.name], file
    source = source_of(record["modalities"]["T1ce"], "T1ce")
    back = tmp_path / "out" / f"{record['case']}_seg_on_t1ce.nii.gz"
    write_seg(source, back, back.with_suffix("").with_suffix(".dcm"), record["case"], MAKER)
    seg = highdicom.seg.segread(back.with_suffix("").with_suffix(".dcm"))
    uids = [uid("study", "T1ce", k) for k in range(8)]
    pixels = seg.get_pixels_by_source_instance(uids, assert_missing_frames_are_empty=True)
    assert pixels[..., 1].any()
    np.testing.assert_array_equal(pixels[..., 1], read_volume(str(back)).transpose(2, 1, 0) == 2)


def test_a_second_run_replaces_the_first(prepared: Path, study: Path) -> None:
    files = {modality: one.stack for modality, one in choose(read_study("dicom"), {}).taken.items()}
    del files["T1"]
    prepare_case(files, prepared, lambda image: pytest.fail("is stripped"), "other", fill_missing=True, spacing_mm=12.5)
    assert sorted(file.name for file in (prepared / "source").iterdir()) == ["FLAIR.nii.gz", "T1ce.nii.gz", "T2.nii.gz"]
    record = read_record(prepared)
    assert record["modalities"]["T2"]["sha256"] == sha256_of(prepared / "source" / "T2.nii.gz")
    assert {file.name.partition("_")[0] for file in prepared.glob("*.nii.gz")} == {"other"}


def test_a_study_that_is_gone_is_told(prepared: Path, study: Path, tmp_path: Path) -> None:
    entry = read_record(prepared)["modalities"]["T2"]
    study.rename(tmp_path / "moved")
    with pytest.raises(BundleError, match=r"no such folder[\s\S]*--sources DIR"):
        source_of(entry, "T2")
    assert source_of(entry, "T2", tmp_path / "moved").number == "3"
    (tmp_path / "moved" / "T2" / "IM0000.dcm").unlink()
    with pytest.raises(BundleError, match=r"not the 8 slices of series 3, the T2[\s\S]*--sources DIR"):
        source_of(entry, "T2", tmp_path / "moved")


def test_results_do_not_go_among_the_dicom_files(study: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="set --out to another folder"):
        prepare_case(stacks(study), study / "T1" / "out", lambda image: pytest.fail("is stripped"))


def test_a_mask_is_no_scan(study: Path, tmp_path: Path) -> None:
    save(slices("T2", pixels=(voxels("T2") > 0).astype(np.uint16)), study / "T2")
    with pytest.raises(BundleError, match=r"series 3\n\s+found:    2 values, 0, 1: a mask"):
        prepare_case(stacks(study), tmp_path / "out", lambda image: pytest.fail("is stripped"))
    assert not (tmp_path / "out").exists()
