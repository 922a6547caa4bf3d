"""A case is prepared, recorded, and refused where it cannot be."""

from __future__ import annotations

import errno
import hashlib
import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from scipy import ndimage

from bundlekit.brats import LoadCased, find_cases
from bundlekit.errors import BundleError
from bundlekit.preparation import preparing
from bundlekit.preparation.grids import Grid, resample
from bundlekit.preparation.record import read_record
from bundlekit.preparation.registration import Registration, Volume
from bundlekit.preparation.scans import find_scans

prepare_case = partial(preparing.prepare_case, spacing_mm=2.5)  # as the scans have it: small files


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch, move: np.ndarray) -> list[str]:
    """In place of a search, the move that is known; put what speaks against it in this list."""
    doubts: list[str] = []

    def register(fixed: Volume, moving: Volume, seed: int) -> Registration:
        apart = moving.voxels.shape != fixed.voxels.shape
        return Registration(np.linalg.inv(move) if apart else np.eye(4), doubts=list(doubts) if apart else [])

    monkeypatch.setattr(preparing, "register", register)
    return doubts


def test_the_case_is_on_one_grid_and_lies_on_the_reference(
    files: dict[str, str], glioma: dict[str, np.ndarray], known: list[str], no_mask: Any, tmp_path: Path
) -> None:
    record = prepare_case(files, tmp_path / "out", no_mask)
    (case,) = find_cases(tmp_path / "out", labelled=False)
    assert case["case"] == record["case"] == "Head_01"
    image = LoadCased(with_label=False)(case)["image"].numpy()  # refuses what is not prepared
    assert image.shape == (4, 96, 96, 62)
    outside = ~image.any(axis=0)
    assert outside.mean() > 0.5
    assert (image[:, outside] == 0).all()
    truth = nib.load(tmp_path / "out" / "Head_01_flair.nii.gz")
    assert nib.aff2axcodes(truth.affine) == ("L", "P", "S")
    own = resample(glioma["flair"].astype(np.float32), glioma["affine"], Grid(truth.shape, truth.affine))
    inside = (own > 0) & (image[3] > 0)
    assert np.corrcoef(own[inside], image[3][inside])[0, 1] > 0.9


def test_the_record_tells_the_way(
    files: dict[str, str], move: np.ndarray, known: list[str], no_mask: Any, tmp_path: Path
) -> None:
    prepare_case(files, tmp_path / "out", no_mask)
    record = read_record(tmp_path / "out")
    flair = record["modalities"]["FLAIR"]
    assert flair["sha256"] == hashlib.sha256(Path(files["FLAIR"]).read_bytes()).hexdigest()
    assert flair["grid"]["axes"] == "LSA"
    np.testing.assert_allclose(flair["to_prepared_ras"], move, atol=1e-9)
    np.testing.assert_allclose(flair["grid"]["affine_ras"], nib.load(files["FLAIR"]).affine)
    assert record["reference"] == "T1ce"
    assert set(record["seconds"]) >= {"read", "registration of T2", "resampling of FLAIR"}
    assert not list((tmp_path / "out").glob(".*")), "nothing half-written is left"


def test_prepared_scans_are_copied_as_they_are(
    files: dict[str, str], known: list[str], no_mask: Any, tmp_path: Path
) -> None:
    prepare_case(files, tmp_path / "first", no_mask)
    case, found = find_scans(tmp_path / "first")
    record = prepare_case(found, tmp_path / "second", no_mask, case)
    assert record["already_prepared"]
    for file in found.values():
        assert (tmp_path / "second" / Path(file).name).read_bytes() == Path(file).read_bytes()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(preparing, "without_bias_field", lambda image, brain: image + brain)
        prepare_case(found, tmp_path / "second", no_mask, case, n4=True)  # is not left out where scans are copied
    for file in found.values():
        before, after = (nib.load(path) for path in (file, tmp_path / "second" / Path(file).name))
        voxels = np.asarray(before.dataobj)
        np.testing.assert_array_equal(np.asarray(after.dataobj), voxels + (voxels != 0))
        np.testing.assert_array_equal(after.affine, before.affine)


def test_a_prepared_brain_that_is_none_is_refused(
    files: dict[str, str], known: list[str], no_mask: Any, tmp_path: Path
) -> None:
    prepare_case(files, tmp_path / "first", no_mask)
    case, found = find_scans(tmp_path / "first")
    for file in found.values():
        image = nib.load(file)
        voxels = np.array(image.dataobj)
        voxels[voxels.shape[0] // 4 :] = 0
        nib.save(nib.Nifti1Image(voxels, image.affine, image.header), file)
    with pytest.raises(BundleError, match=r"found: +\d+ ml[\s\S]*600 to 2100 ml: a whole brain"):
        prepare_case(found, tmp_path / "second", no_mask, case)
    assert not (tmp_path / "second").exists()
    assert prepare_case(found, tmp_path / "second", no_mask, case, accept_doubtful=True)["already_prepared"]


def test_a_head_is_stripped_by_the_majority(
    files: dict[str, str], glioma: dict[str, np.ndarray], known: list[str], tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    for modality in ("T1", "T1ce", "T2"):
        voxels = glioma[modality.lower()].astype(np.float32)
        voxels = np.where(voxels > 0, voxels, rng.uniform(5, 60, voxels.shape)).astype(np.float32)
        nib.save(nib.Nifti1Image(voxels, glioma["affine"]), files[modality])
    brain = glioma["t1"] > 0
    masks = iter([brain, brain, np.zeros_like(brain) | (np.arange(96) < 50)[:, None, None]])  # the T2's is wrong
    with pytest.raises(BundleError, match=r"_t2\.nii\.gz \(T2\)[\s\S]*its brain mask[\s\S]*--accept_doubtful"):
        prepare_case(files, tmp_path / "out", lambda image: torch.from_numpy(next(masks))[None])
    assert not (tmp_path / "out").exists()
    masks = iter([brain, brain, brain])
    record = prepare_case(files, tmp_path / "out", lambda image: torch.from_numpy(next(masks))[None])
    assert not record["modalities"]["T1"]["stripped_before"]
    image = nib.load(tmp_path / "out" / "Head_01_t1.nii.gz").get_fdata()
    assert (image > 0).sum() * 2.5 == pytest.approx(brain.sum() * 155 / 72, rel=0.1)


def test_results_in_the_folder_of_the_scans_are_no_scans(scanner: Path, tmp_path: Path) -> None:
    name, files = find_scans(scanner)
    for file in files.values():
        copy = scanner / "out" / "prepared" / Path(file).name
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, copy)
    assert find_scans(scanner, scanner / "out" / "prepared") == (name, files)
    with pytest.raises(BundleError, match="more than one"):
        find_scans(scanner)


def test_without_any_t1_the_t2_stays_where_it_is(
    files: dict[str, str], known: list[str], no_mask: Any, tmp_path: Path
) -> None:
    del files["T1"], files["T1ce"]
    assert prepare_case(files, tmp_path / "out", no_mask, fill_missing=True)["reference"] == "T2"


def test_what_is_missing_is_named(files: dict[str, str], known: list[str], no_mask: Any, tmp_path: Path) -> None:
    del files["T2"]
    with pytest.raises(BundleError, match=r"no T2[\s\S]*--t2 FILE, or go on without: --fill_missing True"):
        prepare_case(files, tmp_path / "out", no_mask)
    record = prepare_case(files, tmp_path / "out", no_mask, fill_missing=True)
    assert record["missing"] == ["T2"]
    assert find_cases(tmp_path / "out", labelled=False, fill_missing=True)[0]["image"][2] == ""
    del files["T1"], files["FLAIR"]
    with pytest.raises(BundleError, match=r"no T1 and no T2 and no FLAIR[\s\S]*at most 2 may be missing"):
        prepare_case(files, tmp_path / "out", no_mask, fill_missing=True)


def test_a_doubtful_registration_is_refused_or_recorded(
    files: dict[str, str], known: list[str], no_mask: Any, tmp_path: Path
) -> None:
    known.append("1 of 8 starts end there")
    with pytest.raises(BundleError, match=r"_flair\.nii\.gz \(FLAIR\)[\s\S]*1 of 8 starts end there"):
        prepare_case(files, tmp_path / "out", no_mask)
    assert not (tmp_path / "out").exists()
    record = prepare_case(files, tmp_path / "out", no_mask, accept_doubtful=True)
    assert record["modalities"]["FLAIR"]["registration"]["doubts"] == ["1 of 8 starts end there"]


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda files: files.update(T2=files["T2"] + "x"), r"no such file"),
        (lambda files: Path(files["T2"]).write_bytes(Path(files["T2"]).read_bytes()[:5000]), "cannot be decoded"),
        (lambda files: _shear(files["T2"]), "a sheared affine"),
        (lambda files: files.update(T1ce=files["T1"]), r"_t1\.nii\.gz, which is the T1[\s\S]*--t1ce FILE"),
    ],
)
def test_bad_files_are_refused(
    spoil: Callable[..., Any], told: str, files: dict[str, str], no_mask: Any, tmp_path: Path
) -> None:
    spoil(files)
    with pytest.raises(BundleError, match=told):
        prepare_case(files, tmp_path / "out", no_mask)
    assert not (tmp_path / "out").exists()


def _shear(file: str) -> None:
    image = nib.load(file)
    affine = image.affine.copy()
    affine[0, 1] = 0.4
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj), affine), file)


def test_settings_that_cannot_be_are_refused(
    files: dict[str, str], scanner: Path, no_mask: Any, tmp_path: Path
) -> None:
    with pytest.raises(BundleError, match="--reference is 'PD'; expected one of"):
        prepare_case(files, tmp_path / "out", no_mask, reference="PD")
    with pytest.raises(BundleError, match="leads to another folder"):
        prepare_case(files, tmp_path / "out", no_mask, case="../x")
    with pytest.raises(BundleError, match="lies in the folder for the results"):
        prepare_case(files, scanner, no_mask)
    json_file = tmp_path / "prepared.json"
    json_file.write_text(json.dumps({"format": 99}))
    with pytest.raises(BundleError, match="no record of this version"):
        read_record(tmp_path)


def test_names_that_contradict_are_refused(
    files: dict[str, str], known: list[str], no_mask: Any, tmp_path: Path
) -> None:
    exchanged = files | {"T1": files["T1ce"], "T1ce": files["T1"]}
    with pytest.raises(
        BundleError, match=r"a file that is named as T1ce[\s\S]*the T1[\s\S]*named as T1[\s\S]*the T1ce"
    ):
        prepare_case(exchanged, tmp_path / "out", no_mask)
    both = shutil.copy(files["T2"], tmp_path / "Head_01_T2_FLAIR.nii.gz")
    with pytest.raises(BundleError, match="named as FLAIR"):
        prepare_case(files | {"T2": str(both)}, tmp_path / "out", no_mask, case="Head_01")
    after = shutil.copy(files["T1ce"], tmp_path / "Head_01_Gd_t1.nii.gz")  # which is no T1 by another word
    prepare_case(files | {"T1ce": str(after)}, tmp_path / "other", no_mask, case="Head_01")
    other = shutil.copy(files["T2"], tmp_path / "Head_02_t2.nii.gz")
    with pytest.raises(BundleError, match=r"files of Head_01 and Head_02[\s\S]*--case NAME"):
        prepare_case(files | {"T2": str(other)}, tmp_path / "out", no_mask)
    assert not (tmp_path / "out").exists()


def test_a_link_keeps_its_name(files: dict[str, str], known: list[str], no_mask: Any, tmp_path: Path) -> None:
    """As git-annex and DVC link to files without endings."""
    (tmp_path / "store").mkdir()
    kept = Path(files["T1"]).rename(tmp_path / "store" / "cdef0123")
    Path(files["T1"]).symlink_to(kept)
    assert prepare_case(files, tmp_path / "out", no_mask)["modalities"]["T1"]["source"] == files["T1"]


def test_a_second_run_leaves_nothing_of_the_first(
    files: dict[str, str], known: list[str], no_mask: Any, tmp_path: Path
) -> None:
    prepare_case(files, tmp_path / "out", no_mask)
    del files["T2"]
    prepare_case(files, tmp_path / "out", no_mask, fill_missing=True)
    assert not (tmp_path / "out" / "Head_01_t2.nii.gz").exists()
    (tmp_path / "out" / "Head_02_t1.nii.gz").write_bytes(b"")
    with pytest.raises(BundleError, match=r"Head_02_t1\.nii\.gz[\s\S]*was not prepared there"):
        prepare_case(files, tmp_path / "out", no_mask, fill_missing=True)


def test_another_patient_does_not_replace_a_prepared_one(
    files: dict[str, str], known: list[str], no_mask: Any, tmp_path: Path
) -> None:
    prepare_case(files, tmp_path / "out", no_mask)
    before = {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()}
    others = {modality: str(tmp_path / "b" / f"Head_02_{Path(file).name[8:]}") for modality, file in files.items()}
    (tmp_path / "b").mkdir()
    for modality, file in files.items():
        image = nib.load(file)
        nib.save(nib.Nifti1Image(np.asarray(image.dataobj) * 1.5, image.affine), others[modality])
    for name in ("Head_02", "Head_01"):
        with pytest.raises(BundleError, match=r"prepared case Head_01, of other[\s\S]*a folder of its own"):
            prepare_case(others, tmp_path / "out", no_mask, case=name)
    assert {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()} == before
    prepare_case(files | {"T2": others["T2"]}, tmp_path / "out", no_mask, case="P1")  # one series was a wrong one
    shutil.move(tmp_path / "scanner", tmp_path / "archive")
    moved = {modality: str(tmp_path / "archive" / Path(file).name) for modality, file in files.items()}
    prepare_case(moved, tmp_path / "out", no_mask)


def test_a_folder_that_cannot_be_written_is_told_before_anything_is_read(
    files: dict[str, str], no_mask: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(dir: Path) -> Any:
        raise PermissionError(errno.EACCES, "Permission denied", str(dir))

    monkeypatch.setattr(preparing, "TemporaryFile", refused)
    monkeypatch.setattr(preparing, "read_scan", lambda *_: pytest.fail("a scan was read"))
    with pytest.raises(BundleError, match=r"nothing can be written \(Permission denied\)"):
        prepare_case(files, tmp_path / "new" / "out", no_mask)


def test_a_modality_that_misses_a_part_of_the_brain_is_doubtful(
    files: dict[str, str], known: list[str], no_mask: Any, tmp_path: Path
) -> None:
    image = nib.load(files["T2"])
    nib.save(image.slicer[:, :, :44], files["T2"])  # its field of view ends below the vertex
    with pytest.raises(BundleError, match=r"\(T2\)[\s\S]*\d+% of the brain are zeros in it, or outside of its field"):
        prepare_case(files, tmp_path / "out", no_mask)
    record = prepare_case(files, tmp_path / "out", no_mask, accept_doubtful=True)
    shares = {modality: entry["brain_scanned"] for modality, entry in record["modalities"].items()}
    assert shares["T2"] < 0.95
    assert min(shares["T1"], shares["T1ce"], shares["FLAIR"]) > 0.95


def test_a_reference_that_misses_a_part_of_the_brain_is_doubtful(
    files: dict[str, str], known: list[str], no_mask: Any, tmp_path: Path
) -> None:
    """The prepared images end where it ends."""
    image = nib.load(files["T1ce"])
    for modality in ("T1", "T1ce"):  # on one grid in these files
        nib.save(nib.load(files[modality]).slicer[:, :, :44], files[modality])
    assert nib.load(files["T1ce"]).shape[2] < image.shape[2]
    with pytest.raises(BundleError, match=r"\(T1ce\)[\s\S]*\d+% of the brain are zeros in it, or outside of its field"):
        prepare_case(files, tmp_path / "out", no_mask)
    record = prepare_case(files, tmp_path / "out", no_mask, reference="FLAIR", accept_doubtful=True)
    assert record["modalities"]["FLAIR"]["brain_scanned"] > 0.95
    assert record["modalities"]["T1ce"]["brain_scanned"] < 0.95


def test_a_prepared_modality_that_was_stripped_more_loosely_makes_no_doubt(
    files: dict[str, str], known: list[str], no_mask: Any, tmp_path: Path
) -> None:
    prepare_case(files, tmp_path / "first", no_mask)
    case, found = find_scans(tmp_path / "first")
    image = nib.load(found["FLAIR"])
    voxels = np.asarray(image.dataobj)
    loose = np.where(voxels == 0, ndimage.binary_dilation(voxels != 0, iterations=2), voxels).astype(np.float32)
    nib.save(nib.Nifti1Image(loose, image.affine), found["FLAIR"])
    record = prepare_case(found, tmp_path / "second", no_mask, case)
    assert record["already_prepared"]
    assert min(entry["brain_scanned"] for entry in record["modalities"].values()) > 0.99


def test_two_prepared_modalities_that_end_early_are_doubtful(
    files: dict[str, str], known: list[str], no_mask: Any, tmp_path: Path
) -> None:
    prepare_case(files, tmp_path / "first", no_mask)
    case, found = find_scans(tmp_path / "first")
    for modality in ("T2", "FLAIR"):
        image = nib.load(found[modality])
        voxels = np.array(image.dataobj)
        voxels[:, :, 38:] = 0
        nib.save(nib.Nifti1Image(voxels, image.affine), found[modality])
    with pytest.raises(BundleError, match=r"\(T2\)[\s\S]*of the brain are zeros in it[\s\S]*\(FLAIR\)"):
        prepare_case(found, tmp_path / "second", no_mask, case)


def test_where_the_disk_is_full_the_case_from_before_stays(
    files: dict[str, str], known: list[str], no_mask: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare_case(files, tmp_path / "out", no_mask)
    before = {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()}
    write = preparing.to_gzip
    images: list[Any] = []

    def to_gzip(image: Any, file: Any) -> None:
        images.append(image)
        if len(images) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(image, file)

    monkeypatch.setattr(preparing, "to_gzip", to_gzip)
    with pytest.raises(BundleError, match="No space left"):
        prepare_case(files, tmp_path / "out", no_mask, seed=1)
    assert {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()} == before
    assert prepare_case(files, tmp_path / "out", no_mask, seed=1)["parameters"]["seed"] == 1  # with room again


def test_a_folder_holds_one_case(scanner: Path, tmp_path: Path) -> None:
    name, files = find_scans(scanner)
    assert name == "Head_01"
    assert sorted(files) == ["FLAIR", "T1", "T1ce", "T2"]
    (scanner / "Other_t1.nii.gz").write_bytes(b"")
    with pytest.raises(BundleError, match="2 cases: Head_01, Other"):
        find_scans(scanner)
    (tmp_path / "empty").mkdir()
    with pytest.raises(BundleError, match="no scan"):
        find_scans(tmp_path / "empty")
