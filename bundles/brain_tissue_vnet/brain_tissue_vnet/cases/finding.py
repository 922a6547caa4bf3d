"""Find and check the cases of a T1 data set: `dataset_dir` is all a user has to give.

These layouts are known; files end on .nii, .nii.gz or .mgz, and images of a layout may be without their label where
`labelled` is False. Of several files, the one named first is taken.

    BIDS           sub-X[_ses-Y][_...]_T1w with, of the same entities, _dseg (bids; freesurfer with desc- or seg-aseg,
                   aparcaseg) or label-CSF_probseg, label-GM_probseg, label-WM_probseg. A _dseg.tsv that gives GM, WM
                   and CSF other numbers is followed. `desc` may differ; a T1w in the label's folder or with
                   desc-preproc and on the label's grid is preferred, so that a derivative gets its own.
    IBSR18         IBSR_01_ana_strip, IBSR_01_ana or IBSR_01 with IBSR_01_segTRI_fill_ana, _segTRI_ana, _seg (tissue) or
                   _seg_ana (freesurfer)
    MRBrainS13     <case>/T1 with LabelsForTraining (mrbrains) or LabelsForTesting (tissue)
    MRBrainS18     <case>/pre/reg_T1 or <case>/pre/T1 with <case>/segm (mrbrains)
    MICCAI 2012    <case>_SS or <case> with <case>_glm (neuromorphometrics)
    FreeSurfer     <case>/mri/norm.mgz, brain.mgz or T1.mgz with aseg.mgz, aparc+aseg.mgz, wmparc.mgz or
                   aseg.presurf.mgz (freesurfer)
    plain          <case>_T1, <case>_T1w, <case>_t1, <case>_t1w or <case>-t1n with <case>_seg or <case>_label (found out
                   when it is decoded)
    SynthSeg       <case> with <case>_synthseg (freesurfer), also for a T1 of another layout that has no other label
    any            without label, and only in folders without any of the T1s above: every 3-D file whose name is not
                   that of a label or mask, of another contrast (T2, FLAIR, ...), or of a scan after contrast agent;
                   those are taken where they are given alone, or by a datalist
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial

from bundlekit.cases.case import Case, check_names, refusing
from bundlekit.cases.datalist import listed_cases
from bundlekit.cases.folders import absolute, data_set, nothing_found
from bundlekit.cases.headers import check_headers
from bundlekit.cases.patients import join_longitudinal
from bundlekit.errors import BundleError, Finding
from bundlekit.label_maps.numberings import check_numbering

from .folders import from_folder
from .layouts import LAYOUTS
from .listed import listed_case


def scan_cases(
    dataset_dir: str | os.PathLike | None,
    datalist: str | os.PathLike | None = None,
    labelled: bool = True,
    numbering: str | None = None,
) -> tuple[list[Case], list[Finding]]:
    """Cases of a data set in sorted order, after a check of all their headers (seconds for a thousand cases).

    `find_cases` gives the cases alone, and refuses where anything is wrong.

    Args:
        dataset_dir: folder searched to any depth for the layouts above; or one file of a case. None (and no
            `datalist`): no case, so that a pipeline can be built and inspected without data.
        datalist: JSON in MONAI's form, used instead of a search: `{"training": [{"image": file, "label": file}],
            "validation": [...]}`, paths relative to `dataset_dir` (to the JSON's own folder if that is not given).
            An entry may have `case`, `patient`, `numbering`, `label_parts` and `label_values`. What is listed under
            "test" or "testing" is taken too when `labelled` is False.
        labelled: whether every case must have a segmentation.
        numbering: what the numbers of all label files mean, a name in `numberings.NUMBERINGS`. None: by layout, else
            by the numbers in each file.

    Returns:
        The sound cases, and what is wrong with the others: files, headers, grids, names.

    Raises:
        BundleError: if the folder holds no case at all, or an argument is wrong.
    """
    if not dataset_dir and not datalist:
        return [], []
    if numbering is not None:
        check_numbering(numbering, "--numbering")
    where = str(datalist or absolute(dataset_dir))
    if datalist:
        cases, findings = listed_cases(datalist, dataset_dir, labelled, partial(listed_case, labelled=labelled))
    else:
        cases, findings = from_folder(data_set(dataset_dir), labelled, numbering)
    if not cases and not findings:
        raise BundleError(nothing_found(where, LAYOUTS))
    for case in cases:
        if numbering and case["label"] and "label_parts" not in case:
            case["numbering"] = numbering
    cases.sort(key=lambda case: case["case"])
    join_longitudinal(cases)
    findings += check_names(cases, where)
    wrong = check_headers(cases)
    if not labelled:
        wrong = _without_bad_labels(cases, wrong)
    findings += [finding for found in wrong for finding in found]
    return [case for case, found in zip(cases, wrong, strict=True) if not found], findings


find_cases = refusing(scan_cases)


def _without_bad_labels(cases: list[Case], wrong: Sequence[list[Finding]]) -> list[list[Finding]]:
    """Take labels that cannot be used from cases that need none, in place; what is still wrong then."""
    for position, found in enumerate(wrong):
        if found:
            case = {key: value for key, value in cases[position].items() if key != "label_parts"}
            cases[position] = {**case, "label": "", "numbering": ""}
    return [found and check_headers([case])[0] for case, found in zip(cases, wrong, strict=True)]
