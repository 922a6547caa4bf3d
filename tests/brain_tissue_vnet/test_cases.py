"""Tests of finding and checking cases: every layout that users have, then everything that can be wrong with it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from brain_tissue_vnet.cases import find_cases, scan_cases
from bundlekit.cases.case import Case
from bundlekit.cases.datalist import write_datalist
from bundlekit.cases.split import split_cases
from bundlekit.errors import BundleError
from bundlekit.images.writing import on_grid_of, signed
from tests.brain_tissue_vnet.conftest import GRID, SHAPE, labels, t1, write, write_all, write_probabilities
from tests.bundlekit.conftest import findings_by, names

findings_of = partial(findings_by, scan_cases, find_cases)


def pairs(root: Path, cases: Sequence[Case]) -> dict[str, tuple[str, str, str]]:
    """T1, label and numbering of each case, files relative to `root`."""
    return {
        case["case"]: (
            os.path.relpath(case["image"][0], root),
            os.path.relpath(case["label"], root) if case["label"] else "",
            case["numbering"],
        )
        for case in cases
    }


def test_nothing_given() -> None:
    assert find_cases(None) == []
    assert find_cases("") == []


def test_a_mask_of_inference_is_no_reference(tmp_path: Path) -> None:
    """Neither as `<case>_seg` in a folder below, nor for those who need no label."""
    write(tmp_path / "a_T1.nii.gz", t1())
    image = on_grid_of(tmp_path / "a_T1.nii.gz", labels())
    image.header["descrip"] = signed("segmented by brain_tissue_vnet", labels())
    (tmp_path / "masks").mkdir()
    nib.save(image, tmp_path / "masks" / "a_seg.nii.gz")
    (finding,) = findings_of(tmp_path)
    assert finding.file == str(tmp_path / "masks" / "a_seg.nii.gz")
    assert "segmented by brain_tissue_vnet and left as it was" in finding.found
    (case,) = find_cases(tmp_path, labelled=False)
    assert case["label"] == case["numbering"] == ""


# --- layouts ----------------------------------------------------------------------------------------------------------

# case, numbering, T1s, labels; the first of each is what must be found
LAYOUTS: dict[str, tuple[str, str, list[str], list[str]]] = {
    "bids": ("sub-01", "bids", ["sub-01/anat/sub-01_T1w.nii.gz"], ["sub-01/anat/sub-01_dseg.nii.gz"]),
    "ibsr": ("IBSR_01", "tissue", ["IBSR_01/IBSR_01_ana.nii.gz"], ["IBSR_01/IBSR_01_segTRI_ana.nii.gz"]),
    "ibsr of the course": ("IBSR_07", "tissue", ["IBSR_07/IBSR_07.nii.gz"], ["IBSR_07/IBSR_07_seg.nii.gz"]),
    "ibsr structures": ("IBSR_02", "freesurfer", ["IBSR_02_ana.nii"], ["IBSR_02_seg_ana.nii"]),
    "mrbrains13": ("4", "tissue", ["TrainingData/4/T1.nii", "TrainingData/4/T1_1mm.nii", "TrainingData/4/T2_FLAIR.nii"],
        ["TrainingData/4/LabelsForTesting.nii"]),
    "mrbrains18": ("14", "mrbrains",
        ["14/pre/T1.nii.gz", "14/pre/FLAIR.nii.gz", "14/orig/T1.nii.gz", "14/orig/3DT1.nii.gz"], ["14/segm.nii.gz"]),
    "miccai": ("1000", "neuromorphometrics", ["1000_SS.nii.gz"], ["1000_glm.nii.gz"]),
    "miccai in two folders": ("1001_3", "neuromorphometrics", ["training-images/1001_3.nii.gz"],
        ["training-labels/1001_3_glm.nii.gz"]),
    "freesurfer": ("bert", "freesurfer", ["bert/mri/T1.mgz", "bert/mri/nu.mgz", "bert/mri/orig/001.mgz"],
        ["bert/mri/aseg.mgz", "bert/mri/ribbon.mgz"]),
    "synthseg": ("scan 1", "freesurfer", ["scan 1.nii.gz"], ["scan 1_synthseg.nii.gz"]),
    "plain": ("a", "", ["a_T1.nii.gz"], ["a_seg.nii.gz"]),
    "plain, small letters": ("a", "", ["x/a_t1.nii"], ["x/a_label.nii"]),
    "mgz": ("a", "", ["a_T1.mgz"], ["a_seg.mgz"]),
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layout(tmp_path: Path, layout: str) -> None:
    name, numbering, images, label_maps = LAYOUTS[layout]
    write_all(tmp_path, images, label_maps)
    (tmp_path / "._a_T1.nii.gz").write_bytes(b"macOS")
    write_all(tmp_path / ".Trash", images, label_maps)
    (case,) = find_cases(tmp_path)
    assert pairs(tmp_path, [case]) == {name: (images[0], label_maps[0], numbering)}
    assert set(case) == {"case", "patient", "image", "label", "numbering", "label_values", "subset"}
    assert (case["label_values"], case["subset"]) == ([0, 1, 2, 3], "")
    assert find_cases(str(tmp_path), labelled=False) == [case]  # the label is taken, not needed


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layout_without_labels(tmp_path: Path, layout: str) -> None:
    name, _, images, _ = LAYOUTS[layout]
    write_all(tmp_path, images)
    assert pairs(tmp_path, find_cases(tmp_path, labelled=False)) == {name: (images[0], "", "")}
    (finding,) = findings_of(tmp_path)
    assert finding.file == str(tmp_path / images[0])
    assert finding.found == "a T1 without a segmentation"


@pytest.mark.parametrize(
    "names_of_brats", [["b-t1n", "b-t1c", "b-t2w", "b-t2f"], ["b_t1", "b_t1ce", "b_t2", "b_flair"]]
)
def test_of_a_brats_case_the_t1_alone(tmp_path: Path, names_of_brats: list[str]) -> None:
    write_all(tmp_path, [f"b/{name}.nii" for name in names_of_brats])
    found = find_cases(tmp_path, labelled=False)
    assert pairs(tmp_path, found) == {"b": (f"b/{names_of_brats[0]}.nii", "", "")}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layout_without_t1(tmp_path: Path, layout: str) -> None:
    *_, label_maps = LAYOUTS[layout]
    write_all(tmp_path, [], label_maps)
    (finding,) = findings_of(tmp_path)
    assert finding.file == str(tmp_path / label_maps[0])
    assert finding.found == "a segmentation without its T1"
    with pytest.raises(BundleError, match="no case"):
        find_cases(tmp_path, labelled=False)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("part", [0, 1])
def test_one_file_of_a_case(tmp_path: Path, layout: str, part: int) -> None:
    name, _, images, label_maps = LAYOUTS[layout]
    write_all(tmp_path, images, label_maps)
    files = (images[0], label_maps[0])
    file = tmp_path / files[part]
    write_all(file.parent, ["other_T1.nii.gz"], ["other_seg.nii.gz"])
    if layout == "miccai in two folders":  # one file's own folder is all that is looked at
        write_all(file.parent, [Path(files[0]).name], [Path(files[1]).name])
    for labelled in (True, False):
        (case,) = find_cases(file, labelled=labelled)
        assert case["case"] == name
        assert Path(case["image"][0]).name == Path(files[0]).name
        assert Path(case["label"]).name == Path(files[1]).name


def test_many_cases_are_sorted(tmp_path: Path) -> None:
    for name in ("b", "a_10", "a", "Case"):
        write_all(tmp_path / name, [f"{name}_T1.nii.gz"], [f"{name}_seg.nii.gz"])
    assert names(find_cases(tmp_path)) == ["Case", "a", "a_10", "b"]


def test_folder_below_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    write_all(tmp_path / "data", ["a_T1.nii.gz"], ["a_seg.nii.gz"])
    assert names(find_cases("~/data")) == ["a"]


# --- of several files -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("images", "label_maps", "image", "label", "numbering"),
    [
        (
            ["IBSR_01_ana.nii.gz", "IBSR_01_ana_strip.nii.gz"],
            ["IBSR_01_ana_brainmask.nii.gz", "IBSR_01_segTRI_ana.nii.gz", "IBSR_01_segTRI_fill_ana.nii.gz",
             "IBSR_01_seg_ana.nii.gz", "IBSR_01_seg.nii.gz"],
            "IBSR_01_ana_strip.nii.gz",
            "IBSR_01_segTRI_fill_ana.nii.gz",
            "tissue",
        ),
        (
            ["IBSR_01.nii.gz", "IBSR_01_ana.nii.gz"],
            ["IBSR_01_seg_ana.nii.gz", "IBSR_01_seg.nii.gz", "IBSR_01_segTRI_ana.nii.gz"],
            "IBSR_01_ana.nii.gz",
            "IBSR_01_segTRI_ana.nii.gz",
            "tissue",
        ),
        (
            ["IBSR_01.nii.gz"],
            ["IBSR_01_seg_ana.nii.gz", "IBSR_01_seg.nii.gz"],
            "IBSR_01.nii.gz",
            "IBSR_01_seg.nii.gz",
            "tissue",
        ),
        (["1/T1.nii"], ["1/LabelsForTesting.nii", "1/LabelsForTraining.nii"], "1/T1.nii", "1/LabelsForTraining.nii",
         "mrbrains"),
        (["1/pre/T1.nii.gz", "1/pre/reg_T1.nii.gz"], ["1/segm.nii.gz"], "1/pre/reg_T1.nii.gz", "1/segm.nii.gz",
         "mrbrains"),
        (["1000.nii", "1000_SS.nii"], ["1000_glm.nii"], "1000_SS.nii", "1000_glm.nii", "neuromorphometrics"),
        (
            ["a/mri/T1.mgz", "a/mri/brain.mgz", "a/mri/norm.mgz"],
            ["a/mri/wmparc.mgz", "a/mri/aparc+aseg.mgz", "a/mri/aseg.mgz", "a/mri/aseg.presurf.mgz"],
            "a/mri/norm.mgz",
            "a/mri/aseg.mgz",
            "freesurfer",
        ),
        (
            ["a/mri/T1.mgz", "a/mri/brain.mgz"],
            ["a/mri/wmparc.mgz", "a/mri/aseg.presurf.mgz", "a/mri/aparc+aseg.mgz"],
            "a/mri/brain.mgz",
            "a/mri/aparc+aseg.mgz",
            "freesurfer",
        ),
        (["a_T1.nii"], ["a_label.nii", "a_seg.nii"], "a_T1.nii", "a_seg.nii", ""),
        (["a_T1.nii"], ["a_T1_synthseg.nii", "a_seg.nii"], "a_T1.nii", "a_seg.nii", ""),
        (["a_T1.nii"], ["a_T1_synthseg.nii"], "a_T1.nii", "a_T1_synthseg.nii", "freesurfer"),
        (["sub-1_T1w.nii.gz"], ["sub-1_T1w_synthseg.nii.gz"], "sub-1_T1w.nii.gz", "sub-1_T1w_synthseg.nii.gz",
         "freesurfer"),
        (["1000_SS.nii"], ["1000_SS_synthseg.nii"], "1000_SS.nii", "1000_SS_synthseg.nii", "freesurfer"),
    ],
)  # fmt: skip
def test_preference(
    tmp_path: Path, images: list[str], label_maps: list[str], image: str, label: str, numbering: str
) -> None:
    write_all(tmp_path, images, label_maps)
    assert list(pairs(tmp_path, find_cases(tmp_path)).values()) == [(image, label, numbering)]


def test_labelled_and_unlabelled_side_by_side(tmp_path: Path) -> None:
    write_all(tmp_path, ["a.nii.gz", "b.nii.gz", "c_SS.nii.gz"], ["a_synthseg.nii.gz", "c_glm.nii.gz"])
    assert pairs(tmp_path, find_cases(tmp_path, labelled=False)).keys() == {"a", "c"}
    (tmp_path / "c_SS.nii.gz").unlink()
    (tmp_path / "c_glm.nii.gz").unlink()
    found = pairs(tmp_path, find_cases(tmp_path, labelled=False))
    assert found == {"a": ("a.nii.gz", "a_synthseg.nii.gz", "freesurfer"), "b": ("b.nii.gz", "", "")}
    assert [finding.file for finding in findings_of(tmp_path)] == [str(tmp_path / "b.nii.gz")]


def test_any_file_without_label(tmp_path: Path) -> None:
    write_all(
        tmp_path,
        ["x/scan.nii.gz", "y.mgz", "z-1.nii"],
        [
            "brain_mask.nii.gz", "x_mask.nii", "y_label.nii", "y_seg.nii", "x_dseg.nii", "x_glm.nii", "aseg.mgz",
            "x_synthseg.nii", "x_probseg.nii", "mask.nii",
        ],
    )  # fmt: skip
    write(tmp_path / "one_frame.nii.gz", t1()[..., None])
    write(tmp_path / "bold.nii.gz", np.stack([t1(), t1(1)], -1))
    assert names(find_cases(tmp_path, labelled=False)) == ["one_frame", "scan", "y", "z-1"]
    assert names(find_cases(tmp_path / "x" / "scan.nii.gz", labelled=False)) == ["scan"]
    files = {Path(finding.file).name for finding in findings_of(tmp_path / "x")}
    assert files == {"scan.nii.gz"}


def test_one_file_that_has_no_label(tmp_path: Path) -> None:
    write_all(tmp_path, ["sub-1_T1w.nii.gz", "scan.nii.gz"], ["brain_mask.nii.gz"])
    for name in ("sub-1_T1w.nii.gz", "scan.nii.gz"):
        (case,) = find_cases(tmp_path / name, labelled=False)
        assert (case["image"], case["label"]) == ([str(tmp_path / name)], "")
        (finding,) = findings_of(tmp_path / name)
        assert finding.file == str(tmp_path / name)
    (finding,) = findings_of(tmp_path / "brain_mask.nii.gz", labelled=False)
    assert "without its T1" in finding.found


def test_the_file_given_is_the_one_used(tmp_path: Path) -> None:
    """Not the one of the same case that a search would prefer."""
    write_all(tmp_path, ["IBSR_01_ana.nii.gz", "IBSR_01_ana_strip.nii.gz"], ["IBSR_01_segTRI_ana.nii.gz"])
    (case,) = find_cases(tmp_path / "IBSR_01_ana.nii.gz")
    assert case["image"] == [str(tmp_path / "IBSR_01_ana.nii.gz")]
    assert case["label"] == str(tmp_path / "IBSR_01_segTRI_ana.nii.gz")
    write_all(tmp_path, ["bert/mri/norm.mgz", "bert/mri/nu.mgz"], ["bert/mri/aseg.mgz"])
    (case,) = find_cases(tmp_path / "bert" / "mri" / "nu.mgz", labelled=False)
    assert case["image"] == [str(tmp_path / "bert" / "mri" / "nu.mgz")]


# --- BIDS -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("label", "numbering"),
    [
        ("dseg", "bids"),
        ("desc-manual_dseg", "bids"),
        ("seg-braintissues_dseg", "bids"),
        ("desc-aseg_dseg", "freesurfer"),
        ("desc-aparcaseg_dseg", "freesurfer"),
        ("seg-aparc+aseg_dseg", "freesurfer"),
        ("atlas-Destrieux2009_seg-aseg_dseg", "freesurfer"),
    ],
)
def test_numbering_of_a_dseg(tmp_path: Path, label: str, numbering: str) -> None:
    write_all(tmp_path, ["sub-01_T1w.nii.gz"], [f"sub-01_{label}.nii.gz"])
    found = pairs(tmp_path, find_cases(tmp_path))
    assert found == {"sub-01": ("sub-01_T1w.nii.gz", f"sub-01_{label}.nii.gz", numbering)}


@pytest.mark.parametrize("label", ["seg-eyes_dseg", "atlas-AAL_dseg", "label-thalamus_dseg"])
def test_dseg_of_something_else_is_no_tissue_label(tmp_path: Path, label: str) -> None:
    write_all(tmp_path, ["sub-01_T1w.nii.gz"], [f"sub-01_{label}.nii.gz"])
    (finding,) = findings_of(tmp_path)
    assert finding.file == str(tmp_path / "sub-01_T1w.nii.gz")
    write_all(tmp_path, [], ["sub-01_dseg.nii.gz"])
    assert names(find_cases(tmp_path)) == ["sub-01"]


def test_preferred_of_several_dsegs(tmp_path: Path) -> None:
    write_all(
        tmp_path,
        ["sub-01_T1w.nii.gz"],
        ["sub-01_desc-aparcaseg_dseg.nii.gz", "sub-01_desc-aseg_dseg.nii.gz", "sub-01_dseg.nii.gz"],
    )
    write_probabilities(tmp_path, "sub-01", [t1() * 0, t1() * 0, t1() * 0])
    labels_in_order = ["sub-01_dseg", "sub-01_label-CSF_probseg", "sub-01_desc-aseg_dseg", "sub-01_desc-aparcaseg_dseg"]
    for label in labels_in_order:
        (case,) = find_cases(tmp_path)
        assert case["label"] == str(tmp_path / f"{label}.nii.gz")
        for file in case.get("label_parts", [case["label"]]):
            Path(file).unlink()


def fmriprep(root: Path) -> None:
    """Raw data, and derivatives in the subject's and in standard space; each grid its own."""
    other, standard = GRID.copy(), GRID.copy()
    other[0, 3] += 5
    standard[0, 3] += 9
    write(root / "sub-01/ses-1/anat/sub-01_ses-1_T1w.nii.gz", t1())
    write(root / "sub-01/ses-1/anat/sub-01_ses-1_T2w.nii.gz", t1())
    write(root / "sub-01/ses-1/func/sub-01_ses-1_task-rest_bold.nii.gz", np.stack([t1(), t1()], -1))
    anat = root / "derivatives/fmriprep/sub-01/ses-1/anat"
    write(anat / "sub-01_ses-1_desc-preproc_T1w.nii.gz", t1(), other)
    write(anat / "sub-01_ses-1_desc-brain_mask.nii.gz", labels((0, 1)), other)
    write(anat / "sub-01_ses-1_dseg.nii.gz", labels(), other)
    start = "sub-01_ses-1_space-MNI152NLin2009cAsym_res-2"
    write(anat / f"{start}_desc-preproc_T1w.nii.gz", t1(), standard)
    write(anat / f"{start}_dseg.nii.gz", labels(), standard)


def test_raw_and_derivatives(tmp_path: Path) -> None:
    fmriprep(tmp_path)
    for labelled in (True, False):
        cases = find_cases(tmp_path, labelled=labelled)
        assert names(cases) == [
            "sub-01_ses-1_desc-preproc",
            "sub-01_ses-1_space-MNI152NLin2009cAsym_res-2_desc-preproc",
        ]
        assert {case["patient"] for case in cases} == {"sub-01"}
        assert all("derivatives" in case["image"][0] for case in cases)


def test_derivative_of_the_raw_t1(tmp_path: Path) -> None:
    """A manual segmentation in a derivative of its own, on the grid of the raw T1 and not of another derivative's."""
    fmriprep(tmp_path)
    shutil.rmtree(tmp_path / "derivatives/fmriprep/sub-01")
    shifted = GRID.copy()
    shifted[0, 3] += 5
    write(tmp_path / "derivatives/fmriprep/sub-01/ses-1/anat/sub-01_ses-1_desc-preproc_T1w.nii.gz", t1(), shifted)
    write(tmp_path / "derivatives/manual/sub-01/ses-1/anat/sub-01_ses-1_dseg.nii.gz", labels())
    (case,) = find_cases(tmp_path)
    assert case["image"] == [str(tmp_path / "sub-01/ses-1/anat/sub-01_ses-1_T1w.nii.gz")]
    write(tmp_path / "derivatives/fmriprep/sub-01/ses-1/anat/sub-01_ses-1_desc-preproc_T1w.nii.gz", t1())
    (case,) = find_cases(tmp_path)
    assert case["case"] == "sub-01_ses-1_desc-preproc"  # on the grid now, and preferred


def test_derivatives_get_their_own_t1(tmp_path: Path) -> None:
    """All on one grid: the folder decides, then desc-preproc."""
    write_all(tmp_path, ["a/sub-01_T1w.nii.gz", "a/sub-02_T1w.nii.gz"])
    write_all(tmp_path, ["z/sub-01_desc-preproc_T1w.nii.gz"], ["z/sub-01_dseg.nii.gz"])
    write_all(tmp_path, ["b/sub-02_desc-n4_T1w.nii.gz", "c/sub-02_desc-preproc_T1w.nii.gz"], ["m/sub-02_dseg.nii.gz"])
    found = [image for image, _, _ in pairs(tmp_path, find_cases(tmp_path)).values()]
    assert found == ["z/sub-01_desc-preproc_T1w.nii.gz", "c/sub-02_desc-preproc_T1w.nii.gz"]
    write_all(tmp_path, ["m/sub-02_T1w.nii.gz"])
    assert find_cases(tmp_path)[1]["image"] == [str(tmp_path / "m/sub-02_T1w.nii.gz")]
    write(tmp_path / "m/sub-02_T1w.nii.gz", t1(shape=(6, 5, 5)))
    assert find_cases(tmp_path)[1]["image"] == [str(tmp_path / "c/sub-02_desc-preproc_T1w.nii.gz")]


def test_raw_t1_of_a_derivative_in_another_space(tmp_path: Path) -> None:
    write_all(tmp_path, ["sub-01_T1w.nii.gz"])
    write_all(tmp_path / "z", ["sub-01_space-MNI_desc-preproc_T1w.nii.gz"], ["sub-01_space-MNI_dseg.nii.gz"])
    assert names(find_cases(tmp_path)) == ["sub-01_space-MNI_desc-preproc"]
    assert names(find_cases(tmp_path, labelled=False)) == ["sub-01", "sub-01_space-MNI_desc-preproc"]


def test_entities_pair(tmp_path: Path) -> None:
    write_all(
        tmp_path,
        [
            "sub-01_ses-1_T1w.nii.gz", "sub-01_ses-2_run-1_T1w.nii.gz", "sub-01_ses-2_run-2_T1w.nii.gz",
            "sub-1_T1w.nii.gz", "sub-010_T1w.nii.gz",
        ],
        [
            "sub-01_ses-1_dseg.nii.gz", "sub-01_ses-2_run-1_dseg.nii.gz", "sub-01_ses-2_run-2_dseg.nii.gz",
            "sub-1_dseg.nii.gz", "sub-010_dseg.nii.gz",
        ],
    )  # fmt: skip
    found = pairs(tmp_path, find_cases(tmp_path))
    assert len(found) == 5
    for name, files in found.items():
        assert files == (f"{name}_T1w.nii.gz", f"{name}_dseg.nii.gz", "bids")


def test_best_matching_entities(tmp_path: Path) -> None:
    write_all(tmp_path, ["sub-01_T1w.nii.gz", "sub-01_acq-hires_T1w.nii.gz"], ["sub-01_acq-hires_dseg.nii.gz"])
    (case,) = find_cases(tmp_path)
    assert case["case"] == "sub-01_acq-hires"
    write_all(tmp_path / "b", ["sub-02_run-1_T1w.nii.gz", "sub-02_run-2_T1w.nii.gz"], ["sub-02_run-2_dseg.nii.gz"])
    (finding,) = findings_of(tmp_path / "b")
    assert finding.file.endswith("sub-02_run-1_T1w.nii.gz")


def test_runs_merged_by_the_derivative(tmp_path: Path) -> None:
    """The raw runs went into one T1; they are no scans without label."""
    write_all(tmp_path, ["sub-01_run-1_T1w.nii.gz", "sub-01_run-2_T1w.nii.gz"])
    write_all(tmp_path / "derivatives", ["sub-01_desc-preproc_T1w.nii.gz"], ["sub-01_dseg.nii.gz"])
    assert names(find_cases(tmp_path)) == ["sub-01_desc-preproc"]
    assert names(find_cases(tmp_path, labelled=False)) == ["sub-01_desc-preproc", "sub-01_run-1", "sub-01_run-2"]


def test_label_in_another_space_is_without_t1(tmp_path: Path) -> None:
    write_all(tmp_path, ["sub-01_T1w.nii.gz"], ["sub-01_space-MNI_dseg.nii.gz"])
    assert {Path(finding.file).name for finding in findings_of(tmp_path)} == {
        "sub-01_T1w.nii.gz",
        "sub-01_space-MNI_dseg.nii.gz",
    }
    assert names(find_cases(tmp_path, labelled=False)) == ["sub-01"]
    write_all(tmp_path / "b", ["sub-01_T1w.nii.gz"], ["sub-01_space-T1w_dseg.nii.gz"])
    assert names(find_cases(tmp_path / "b")) == ["sub-01"]


def test_probability_maps(tmp_path: Path) -> None:
    write_all(tmp_path, ["sub-01_T1w.nii.gz"])
    files = write_probabilities(tmp_path, "sub-01", [t1() * 0.0, t1() * 0.0, t1() * 0.0])
    write(tmp_path / "sub-01_label-bone_probseg.nii.gz")
    for labelled in (True, False):
        (case,) = find_cases(tmp_path, labelled=labelled, numbering="tissue")
        assert case["label_parts"] == [str(file) for file in files]
        assert [Path(file).name.split("_")[1] for file in case["label_parts"]] == ["label-CSF", "label-GM", "label-WM"]
        assert (case["label"], case["numbering"]) == (str(files[0]), "")
    files[1].unlink()
    (finding,) = findings_of(tmp_path)
    assert finding.found == "no label-GM_probseg beside it"
    (case,) = find_cases(tmp_path, labelled=False)
    assert case["label"] == ""


@pytest.mark.parametrize(
    "above", ["sub-01/anat/sub-01_dseg.tsv", "sub-01/anat/dseg.tsv", "sub-01/dseg.tsv", "dseg.tsv"]
)
@pytest.mark.parametrize(
    ("table", "expected"),
    [
        ("index\tname\n1\tGM\n2\tWM\n3\tCSF\n", "bids"),
        ("index\tname\n0\tBackground\n1\tCSF\n2\tGM\n3\tWM\n", "tissue"),
        ("\ufeffindex\tname\n1\tCSF\n2\tGM\n3\tWM\n", "tissue"),  # saved by Excel
        ("index\tname\n1\tCerebrospinal Fluid\n2\tGray Matter\n3\twhite matter\n", "tissue"),
        ("index\tname\tabbreviation\n1\tfluid\tCSF\n2\tgrey\tGM\n3\twhite\tWM\n", "tissue"),
        ("index\tname\n17\tLeft-Hippocampus\n", "bids"),  # says nothing of the tissues
    ],
)
def test_lookup_table(tmp_path: Path, table: str, expected: str, above: str) -> None:
    write_all(tmp_path, ["sub-01/anat/sub-01_T1w.nii.gz"], ["sub-01/anat/sub-01_dseg.nii.gz"])
    (tmp_path / above).write_text(table)
    assert find_cases(tmp_path)[0]["numbering"] == expected


@pytest.mark.parametrize(
    ("table", "found"),
    [
        ("index\tname\n100\tGM\n101\tWM\n102\tCSF\n", "the numbers GM 100, WM 101, CSF 102"),
        ("index\tname\none\tGM\n", "cannot be read"),
        ("name\nGM\n", "cannot be read"),
    ],
)
def test_lookup_table_that_fits_no_numbering(tmp_path: Path, table: str, found: str) -> None:
    write_all(tmp_path, ["sub-01_T1w.nii.gz"], ["sub-01_dseg.nii.gz"])
    (tmp_path / "sub-01_dseg.tsv").write_text(table)
    (finding,) = findings_of(tmp_path)
    assert finding.file == str(tmp_path / "sub-01_dseg.tsv")
    assert found in finding.found
    (case,) = find_cases(tmp_path, labelled=False)
    assert (case["case"], case["label"]) == ("sub-01", "")
    assert find_cases(tmp_path, numbering="tissue")[0]["numbering"] == "tissue"


def test_lookup_table_above_the_data_set_is_none_of_its(tmp_path: Path) -> None:
    write_all(tmp_path / "data", ["sub-01_T1w.nii.gz"], ["sub-01_dseg.nii.gz"])
    (tmp_path / "dseg.tsv").write_text("index\tname\n1\tCSF\n2\tGM\n3\tWM\n")
    assert find_cases(tmp_path / "data")[0]["numbering"] == "bids"


# --- numbering --------------------------------------------------------------------------------------------------------


def test_numbering_is_forced_for_all(tmp_path: Path) -> None:
    write_all(tmp_path, ["sub-01_T1w.nii.gz", "a_T1.nii", "b_T1.nii"], ["sub-01_dseg.nii.gz", "a_seg.nii"])
    cases = find_cases(tmp_path, labelled=False, numbering="mrbrains")
    assert {case["case"]: case["numbering"] for case in cases} == {"a": "mrbrains", "b": "", "sub-01": "mrbrains"}
    with pytest.raises(BundleError, match="tissue, bids, mrbrains, neuromorphometrics, freesurfer"):
        find_cases(tmp_path, numbering="fsl")


# --- datalist ---------------------------------------------------------------------------------------------------------


def everything(root: Path) -> None:
    for *_, images, label_maps in LAYOUTS.values():
        if label_maps[0] != "a_seg.mgz" and not label_maps[0].startswith("x/"):
            write_all(root, images, label_maps)
    write_all(root, ["sub-02_T1w.nii.gz"])
    write_probabilities(root, "sub-02", [t1() * 0.0] * 3)


@pytest.mark.parametrize("labelled", [True, False])
def test_round_trip_through_a_datalist(tmp_path: Path, labelled: bool) -> None:
    everything(tmp_path / "data")
    if not labelled:
        write_all(tmp_path / "data", ["z_T1.nii.gz"])
    cases = find_cases(tmp_path / "data", labelled=labelled)
    assert len(cases) == 12 + (not labelled)
    split = split_cases(cases, train_fraction=0.7)
    write_datalist(split, str(tmp_path / "list.json"))
    again = find_cases(None, datalist=tmp_path / "list.json", labelled=labelled)
    assert [{**case, "subset": ""} for case in again] == cases
    assert split_cases(again) == {part: [{**case, "subset": part} for case in cases] for part, cases in split.items()}


def listed(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content))
    return path


def test_datalist_by_hand(tmp_path: Path) -> None:
    write_all(
        tmp_path,
        ["i/one.nii.gz", "i/sub-02_T1w.nii.gz", "i/1000.nii.gz", "i/three.nii.gz"],
        ["l/one.nii.gz", "l/sub-02_dseg.nii.gz", "l/1000_glm.nii.gz"],
    )
    parts = write_probabilities(tmp_path, "l/three", [t1() * 0.0] * 3)
    content = {
        "training": [
            {"image": "i/one.nii.gz", "label": "l/one.nii.gz", "patient": "p", "numbering": "mrbrains"},
            {"image": ["i/sub-02_T1w.nii.gz"], "label": "l/sub-02_dseg.nii.gz", "label_values": [0, 3, 1, 2]},
        ],
        "validation": [
            {"image": "i/1000.nii.gz", "label": "l/1000_glm.nii.gz", "case": "other"},
            {"image": "i/three.nii.gz", "label_parts": [str(part.relative_to(tmp_path)) for part in parts]},
        ],
        "test": ["i/one.nii.gz"],
    }
    cases = {case["case"]: case for case in find_cases(None, datalist=listed(tmp_path / "list.json", content))}
    assert {name: (c["patient"], c["numbering"], c["subset"]) for name, c in cases.items()} == {
        "one": ("p", "mrbrains", "training"),
        "sub-02": ("sub-02", "bids", "training"),
        "other": ("other", "neuromorphometrics", "validation"),
        "three": ("three", "", "validation"),
    }
    assert cases["sub-02"]["label_values"] == [0, 3, 1, 2]
    assert cases["three"]["label_parts"] == [str(part) for part in parts]
    assert cases["three"]["label"] == str(parts[0])
    (tmp_path / "lists").mkdir()
    shutil.move(tmp_path / "list.json", tmp_path / "lists" / "list.json")
    assert len(find_cases(tmp_path, datalist=tmp_path / "lists" / "list.json")) == 4
    content["training"] = content["validation"] = []
    (case,) = find_cases(None, datalist=listed(tmp_path / "list.json", content), labelled=False)
    assert (case["case"], case["label"], case["numbering"]) == ("one", "", "")
    entry = {"image": "i/sub-02_T1w.nii.gz", "label": "l/sub-02_dseg.nii.gz"}
    for untold in (None, ""):  # is as if it were not there
        content = {"training": [{**entry, "numbering": untold}], "validation": []}
        (case,) = find_cases(None, datalist=listed(tmp_path / "list.json", content))
        assert case["numbering"] == "bids"


@pytest.mark.parametrize(
    ("entry", "found"),
    [
        ({"label": "a_seg.nii"}, "image: None"),
        ({"image": ["a_T1.nii", "a_T1.nii"], "label": "a_seg.nii"}, "image: ['a_T1.nii', 'a_T1.nii']"),
        ({"image": 7, "label": "a_seg.nii"}, "image: 7"),
        ({"image": "a_T1.nii"}, "no label"),
        ("a_T1.nii", "no label"),
        ({"image": "a_T1.nii", "label": "a_seg.nii", "numbering": "fsl"}, "numbering 'fsl'"),
        ({"image": "a_T1.nii", "label_parts": ["a_seg.nii"]}, "label_parts: 1 file(s)"),
        ({"image": "b_T1.nii", "label": "a_seg.nii"}, "no such file"),
    ],
)
def test_wrong_entry_is_named(tmp_path: Path, entry: Any, found: str) -> None:
    write_all(tmp_path, ["a_T1.nii"], ["a_seg.nii"])
    good = {"image": "a_T1.nii", "label": "a_seg.nii"}
    path = listed(tmp_path / "list.json", {"training": [good], "validation": [entry]})
    (finding,) = findings_of(None, datalist=path)
    assert found in finding.found
    assert finding.file in (f"{path} (validation[0])", str(tmp_path / "b_T1.nii"))
    assert ("files have moved also takes --dataset_dir" in finding.fix) == (found == "no such file")


@pytest.mark.parametrize("text", ["", "[]", "{"])
def test_no_datalist(tmp_path: Path, text: str) -> None:
    (tmp_path / "list.json").write_text(text)
    with pytest.raises(BundleError, match="cannot be read as JSON"):
        find_cases(tmp_path, datalist=tmp_path / "list.json")


# --- wrong data -------------------------------------------------------------------------------------------------------


def test_no_data(tmp_path: Path) -> None:
    for given, message in [(tmp_path, "no case"), (tmp_path / "none", "no such file or folder")]:
        with pytest.raises(BundleError, match=message):
            find_cases(given)
    (tmp_path / "a.txt").write_text("T1")
    with pytest.raises(BundleError, match="another type"):
        find_cases(tmp_path / "a.txt")


@pytest.mark.parametrize(
    ("files", "what"),
    [
        (["a_T1.nii", "a_T1.nii.gz", "a_seg.nii"], "T1"),
        (["a_T1.nii", "a_seg.nii", "old/a_seg.nii"], "label"),
        (["x/a_T1.nii", "x/a_seg.nii", "y/a_T1.nii", "y/a_seg.nii"], "label"),
        (["x/1000_SS.nii", "y/1000_SS.nii", "1000_glm.nii"], "T1"),
        (["x/s.nii", "y/s.nii", "s_synthseg.nii"], "T1"),
        (["sub-1_T1w.nii", "sub-1_dseg.nii", "sub-1_dseg.nii.gz"], "label"),
    ],
)
def test_doubled_file(tmp_path: Path, files: list[str], what: str) -> None:
    write_all(tmp_path, files)
    findings = [finding for finding in findings_of(tmp_path) if "more than one" in finding.found]
    assert len(findings) == 1
    assert f"has more than one {what}: " in findings[0].found
    doubled = [file for file in files if (("T1" in file or "SS" in file or "s.nii" in file) == (what == "T1"))]
    for file in doubled:
        assert str(tmp_path / file) in findings[0].found


def test_case_in_two_layouts(tmp_path: Path) -> None:
    write_all(tmp_path, ["4/T1.nii", "4_T1.nii"], ["4/LabelsForTraining.nii", "4_seg.nii"])
    (finding,) = findings_of(tmp_path)
    assert "case 4 more than once" in finding.found


def test_headers_are_checked(tmp_path: Path) -> None:
    for name in "abcde":
        write_all(tmp_path, [f"{name}_T1.nii.gz"], [f"{name}_seg.nii.gz"])
    write(tmp_path / "a_T1.nii.gz", t1()[..., None])  # one frame
    write(tmp_path / "b_T1.nii.gz", np.stack([t1(), t1(1)], -1))
    shifted = GRID.copy()
    shifted[0, 3] += 0.1
    write(tmp_path / "c_seg.nii.gz", labels(), shifted)
    write(tmp_path / "d_seg.nii.gz", labels(shape=(6, 5, 5)))
    (tmp_path / "e_T1.nii.gz").write_bytes(b"")
    cases, findings = scan_cases(tmp_path)
    assert names(cases) == ["a"]
    assert [Path(finding.file).name for finding in findings] == [
        "b_T1.nii.gz",
        "c_seg.nii.gz",
        "d_seg.nii.gz",
        "e_T1.nii.gz",
    ]
    assert findings_of(tmp_path) == findings


def test_label_that_cannot_be_used_is_none_where_none_is_needed(tmp_path: Path) -> None:
    """SynthSeg writes 1 mm whatever the T1 has."""
    write_all(tmp_path, ["a.nii.gz", "b.nii.gz"], ["b_synthseg.nii.gz"])
    write(tmp_path / "a_synthseg.nii.gz", labels(shape=(12, 10, 8)))
    assert [Path(finding.file).name for finding in findings_of(tmp_path)] == ["a_synthseg.nii.gz"]
    a, b = find_cases(tmp_path, labelled=False)
    assert (a["case"], a["label"], a["numbering"]) == ("a", "", "")
    assert b["label"] == str(tmp_path / "b_synthseg.nii.gz")
    (tmp_path / "a.nii.gz").write_bytes(b"")
    assert [Path(finding.file).name for finding in findings_of(tmp_path, labelled=False)] == ["a.nii.gz"]


def test_probability_map_on_another_grid(tmp_path: Path) -> None:
    write_all(tmp_path, ["sub-01_T1w.nii.gz"])
    files = write_probabilities(tmp_path, "sub-01", [np.zeros(SHAPE), np.zeros(SHAPE), np.zeros((6, 5, 5))])
    (finding,) = findings_of(tmp_path)
    assert finding.file == str(files[2])


def test_all_that_is_wrong_comes_at_once(tmp_path: Path) -> None:
    write_all(tmp_path, ["a_T1.nii", "sub-01_T1w.nii", "c_T1.nii", "good_T1.nii"], ["b_seg.nii", "good_seg.nii"])
    write(tmp_path / "c_seg.nii", labels(shape=(6, 5, 5)))
    assert {Path(finding.file).name for finding in findings_of(tmp_path)} == {
        "a_T1.nii",
        "b_seg.nii",
        "c_seg.nii",
        "sub-01_T1w.nii",
    }
    cases, _ = scan_cases(tmp_path)
    assert names(cases) == ["good"]


def test_a_result_inside_the_data_set_is_named(tmp_path: Path) -> None:
    write_all(tmp_path, ["1000_SS.nii.gz"], ["1000_glm.nii.gz", "eval/1000_seg.nii.gz"])
    with pytest.raises(BundleError, match="results of an earlier run belong outside"):
        find_cases(tmp_path)
    assert names(find_cases(tmp_path, labelled=False)) == ["1000"]


def test_scans_that_are_left_out_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    others = ("sub-03_FLAIR", "sub-03_acq-2_T2w", "extra_t1ce", "IXI002-Guys-0828-PD")  # that nobody takes for T1s
    for name in ("extra_T1", "IXI002-Guys-0828-T1", "sub-03_UNIT1", *others):
        write(tmp_path / f"{name}.nii.gz", t1())
    assert [case["case"] for case in find_cases(tmp_path, labelled=False)] == ["extra"]
    assert "2 file(s) are named otherwise than the 1 T1(s) here and left out: " in caplog.text
    assert "IXI002-Guys-0828-T1.nii.gz" in caplog.text
    caplog.clear()
    for name in ("extra_T1", *others):
        (tmp_path / f"{name}.nii.gz").unlink()
    assert len(find_cases(tmp_path, labelled=False)) == 2
    assert len(find_cases(tmp_path / "sub-03_UNIT1.nii.gz", labelled=False)) == 1
    assert not caplog.text


@pytest.mark.parametrize(
    ("names_of_t1s", "others"),
    [
        (["P01_T1w"], ["P01_T2w", "P01_FLAIR"]),
        (["P01_MPRAGE"], ["P01_FLAIR", "P01_MPRAGE_Gd"]),
        (["P01_T1"], ["P01_Gd_T1", "P02_ce_T1w"]),
        (["PD_001", "CT_01", "T2001", "EPI_1_post"], ["PD_001_T2", "x_pd", "x_t2f", "x_t2tse"]),
        (["P01_pre_contrast_T1", "P02_no-contrast_T1"], ["P01_T1_post", "P02_contrast_T1"]),
        (["a/MPRAGE"], ["b/CT", "c/PD", "d/FA"]),
        (["sub-01_T1w_brain"], ["sub-01_T1ce", "sub-01_ses-post_T1w_Gd", "sub-01_FLAIR"]),
        (["sub-01_ses-post_T1w", "sub-PD_T1w"], ["sub-01_ses-post_ce-gad_T1w"]),
        (["X_T1_brain"], ["X_FLAIR_brain", "X_t2_space_sag"]),
        (["sub-01_T1w"], ["sub-01_ce-gad_T1w"]),
        (["3_t1_mprage_sag_p2_iso"], ["5_t2_tse_tra", "sub-01_ce-gad_T1w"]),
        ([], ["P01_FLAIR"]),
    ],
)
def test_other_contrasts_are_no_t1s(
    names_of_t1s: list[str], others: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in [*names_of_t1s, *others]:
        write(tmp_path / f"{name}.nii.gz", t1())
    if names_of_t1s:
        found = [Path(case["image"][0]).name for case in find_cases(tmp_path, labelled=False)]
        assert sorted(found) == sorted(f"{Path(name).name}.nii.gz" for name in names_of_t1s)
        if any("ce" in name or "Gd" in name for name in others):
            assert "left out" in caplog.text
    else:
        with pytest.raises(BundleError, match="no case"):
            find_cases(tmp_path, labelled=False)
        assert (
            f"1 file(s) are no T1s by their names, or of after contrast agent, and left out: {others[0]}" in caplog.text
        )
    (case,) = find_cases(tmp_path / f"{others[0]}.nii.gz", labelled=False)  # given alone
    assert case["image"] == [str(tmp_path / f"{others[0]}.nii.gz")]


def test_a_label_goes_with_the_t1_that_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_all(
        tmp_path,
        ["P01_T1.nii.gz", "P02_Gd_T1.nii.gz", "P03_ce_T1.nii.gz"],
        ["P01_seg.nii.gz", "P02_Gd_seg.nii.gz", "P03_ce_T1_synthseg.nii.gz"],
    )
    assert [case["case"] for case in find_cases(tmp_path)] == ["P01"]
    assert "left out" in caplog.text
    caplog.clear()
    others = ["P01_FLAIR.nii.gz", "P01_T1ce.nii.gz"]  # which SynthSeg maps as it maps any contrast
    maps = ["P01_T1_synthseg.nii.gz", "P01_FLAIR_synthseg.nii.gz", "P01_T1ce_synthseg.nii.gz"]
    write_all(tmp_path / "mapped", ["P01_T1.nii.gz", *others], maps)
    for labelled in (True, False):
        assert [case["case"] for case in find_cases(tmp_path / "mapped", labelled=labelled)] == ["P01"]
    assert all(other in caplog.text for other in others)
    (case,) = find_cases(tmp_path / "mapped" / others[0])  # given alone
    assert case["label"].endswith(maps[1])
    write_all(tmp_path / "bids", ["sub-1_ce-gad_T1w.nii.gz"], ["sub-1_ce-gad_dseg.nii.gz"])
    for name in ("sub-1_ce-gad_T1w.nii.gz", "sub-1_ce-gad_dseg.nii.gz"):  # given alone
        (case,) = find_cases(tmp_path / "bids" / name)
        assert case["label"].endswith("_dseg.nii.gz")


def test_a_scan_and_its_time_point_are_of_one_patient(tmp_path: Path) -> None:
    for name in ("a", "b", "a.long.base", "b.long.base", "base"):
        write(tmp_path / name / "mri" / "norm.mgz", t1())
    assert {case["patient"] for case in find_cases(tmp_path, labelled=False)} == {"base"}
