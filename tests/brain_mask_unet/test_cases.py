"""Which files of a folder are scans, and which of them masks."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from brain_mask_unet import find_cases
from brain_mask_unet.reading import read_mask
from bundlekit.errors import BundleError


def volume(file: Path, shape: tuple[int, ...] = (4, 5, 6)) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(np.ones(shape, np.uint8), np.eye(4)), file)
    return file


def found(folder: Path, labelled: bool = True) -> dict[str, str]:
    """Name of each scan and of its mask."""
    return {case["case"]: Path(case["label"]).name for case in find_cases(folder, labelled=labelled)}


@pytest.mark.parametrize(
    ("scan", "mask"),
    [
        ("a", "a_mask"), ("a_T1", "a_T1_brain_mask"), ("a", "a_brainmask"), ("a", "a_bet_mask"), ("a", "a_seg"),
        ("a", "a_label"), ("a_T1", "a_T1_DLMUSE"), ("a", "a_synthseg"), ("sub-1_T1w", "sub-1_desc-brain_mask"),
        ("sub-1_ses-2_FLAIR", "sub-1_ses-2_desc-brain_mask"), ("sub-1_desc-preproc_T1w", "sub-1_desc-brain_mask"),
        ("sub-1_T2w", "sub-1_T2w_mask"), ("sub-01_T1w", "sub-01_T1w_brain_mask"), ("sub-1_T1w", "sub-1_T1w_bet_mask"),
        ("sub-1_space-MNI_res-2_desc-preproc_T1w", "sub-1_space-MNI_res-2_desc-brain_mask"),
    ],
)  # fmt: skip
def test_a_mask_belongs_to_the_scan_that_it_is_named_after(scan: str, mask: str, tmp_path: Path) -> None:
    for name in (scan, mask):
        volume(tmp_path / f"{name}.nii.gz")
    assert found(tmp_path) == {scan: f"{mask}.nii.gz"}
    assert found(tmp_path, labelled=False) == {scan: ""}


def test_in_bids_it_may_lie_in_another_folder(tmp_path: Path) -> None:
    for number in (1, 2):
        volume(tmp_path / f"sub-{number}" / "anat" / f"sub-{number}_T1w.nii.gz")
        volume(tmp_path / "derivatives" / "x" / f"sub-{number}" / "anat" / f"sub-{number}_desc-brain_mask.nii.gz")
        volume(tmp_path / "derivatives" / "x" / f"sub-{number}" / "anat" / f"sub-{number}_desc-aseg_dseg.nii.gz")
    assert found(tmp_path) == {f"sub-{number}_T1w": f"sub-{number}_desc-brain_mask.nii.gz" for number in (1, 2)}


def test_in_bids_other_masks_and_other_spaces_are_not_the_brain(tmp_path: Path) -> None:
    for name in ("sub-1_T1w", "sub-1_desc-lesion_mask", "sub-1_space-MNI_desc-brain_mask", "sub-1_desc-brain_mask"):
        volume(tmp_path / f"{name}.nii.gz")
    assert found(tmp_path) == {"sub-1_T1w": "sub-1_desc-brain_mask.nii.gz"}


def test_a_freesurfer_subject_is_one_scan(tmp_path: Path) -> None:
    for subject in ("a", "b"):
        for name in ("T1", "orig", "norm", "brainmask", "aseg", "ribbon"):
            file = tmp_path / subject / "mri" / f"{name}.mgz"
            file.parent.mkdir(parents=True, exist_ok=True)
            nib.save(nib.MGHImage(np.ones((4, 5, 6), np.uint8), np.eye(4)), file)
    assert found(tmp_path) == {"a": "brainmask.mgz", "b": "brainmask.mgz"}
    assert {Path(case["image"][0]).name for case in find_cases(tmp_path)} == {"T1.mgz"}


def test_voxels_that_somebody_erased_from_freesurfers_brainmask_are_no_brain(tmp_path: Path) -> None:
    values = np.array([0, 1, 2, 90], np.uint8).reshape(4, 1, 1)
    for name in ("brainmask", "a_mask"):
        nib.save(nib.MGHImage(values, np.eye(4)), tmp_path / f"{name}.mgz")
    assert read_mask(str(tmp_path / "brainmask.mgz"))[0].ravel().tolist() == [False, False, True, True]
    assert read_mask(str(tmp_path / "a_mask.mgz"))[0].ravel().tolist() == [False, True, True, True]
    for name, kind in (("brainmask.mgz", nib.MGHImage), ("brainmask.nii.gz", nib.Nifti1Image)):  # masks of 0 and 1
        nib.save(kind(np.minimum(values, 1), np.eye(4)), tmp_path / name)
        assert read_mask(str(tmp_path / name))[0].ravel().tolist() == [False, True, True, True]


def test_files_of_several_volumes_are_left_out(tmp_path: Path) -> None:
    volume(tmp_path / "sub-1_T1w.nii.gz")
    volume(tmp_path / "sub-1_bold.nii.gz", (4, 5, 6, 7))
    places = nib.cifti2.BrainModelAxis.from_mask(np.ones((2, 2, 2)), "thalamus_left", np.eye(4))
    surfaces = nib.Cifti2Image(np.ones((3, 8), np.float32), (nib.cifti2.SeriesAxis(0, 1, 3), places))
    nib.save(surfaces, tmp_path / "sub-1_bold.dtseries.nii")
    assert found(tmp_path, labelled=False) == {"sub-1_T1w": ""}


def test_results_are_no_scans(tmp_path: Path) -> None:
    for name in ("a", "a_seg", "a_brain", "a_probabilities"):
        volume(tmp_path / f"{name}.nii.gz")
    assert found(tmp_path, labelled=False) == {"a": ""}


def test_one_scan_is_enough(tmp_path: Path) -> None:
    for name in ("a", "a_mask", "b", "b_mask"):
        volume(tmp_path / f"{name}.nii.gz")
    assert [case["case"] for case in find_cases(tmp_path / "a.nii.gz")] == ["a"]


def test_everything_that_is_wrong_is_told_at_once(tmp_path: Path) -> None:
    volume(tmp_path / "alone.nii.gz")
    for name in ("two", "two_mask", "two_seg"):
        volume(tmp_path / f"{name}.nii.gz")
    volume(tmp_path / "other.nii.gz")
    volume(tmp_path / "other_mask.nii.gz", (3, 3, 3))
    with pytest.raises(BundleError) as caught:
        find_cases(tmp_path)
    for text in ("alone.nii.gz", "a scan without a mask", "2 masks", "other", "3x3x3"):
        assert text in str(caught.value)


def test_a_datalist_names_any_files(tmp_path: Path) -> None:
    volume(tmp_path / "x.nii.gz")
    volume(tmp_path / "brain of x.nii.gz")
    entries = [{"image": "x.nii.gz", "label": "brain of x.nii.gz", "case": "head", "patient": "p"}]
    (tmp_path / "list.json").write_text(json.dumps({"validation": entries}))
    (case,) = find_cases(None, tmp_path / "list.json")
    assert (case["case"], case["patient"], case["subset"]) == ("head", "p", "validation")
    (tmp_path / "list.json").write_text(json.dumps({"validation": [{"image": "x.nii.gz"}, {"image": []}]}))
    with pytest.raises(BundleError, match=r"validation\[0\][\s\S]*no label[\s\S]*validation\[1\][\s\S]*one scan"):
        find_cases(None, tmp_path / "list.json")


def test_a_folder_without_scans_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("")
    with pytest.raises(BundleError, match=r"no case[\s\S]*one 3-D volume each"):
        find_cases(tmp_path)


def test_the_patient_is_that_of_the_map_that_may_have_trained(tmp_path: Path) -> None:
    for name in ("P01_T1", "P01_FLAIR", "sub-02_T1w"):
        volume(tmp_path / f"{name}.nii.gz")
    cases = find_cases(tmp_path, labelled=False)
    assert {case["case"]: case["patient"] for case in cases} == {
        "P01_FLAIR": "P01",
        "P01_T1": "P01",
        "sub-02_T1w": "sub-02",
    }
