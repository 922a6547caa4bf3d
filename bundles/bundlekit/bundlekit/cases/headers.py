"""What the headers of a case's files show to be wrong, before anything is decoded."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np

from bundlekit.cases.case import Case
from bundlekit.errors import FIND_MOVED, Finding
from bundlekit.images.nifti import is_dicom, open_nifti, same_places
from bundlekit.images.writing import left_as_segmented

_log = logging.getLogger(__name__)

_EDGES_MM = (0.1, 20.0)  # of a voxel: what no scan of a patient lies outside of


def check_headers(cases: Sequence[Case], patch_size: Sequence[int] | None = None) -> list[list[Finding]]:
    """What the headers of the cases' files show to be wrong, for each case; reads no voxel but of masks of inference.

    A label that a bundle wrote as a result, by its remark and the checksum in it, is no reference: it lies below the
    data set by chance. One that somebody has corrected is. Where a datalist names it, it was chosen: the log tells.

    MONAI's `DataAnalyzer` decodes all volumes for its statistics, and TorchIO's `Subject` raises on the first grid that
    differs: neither names all that is wrong before a run.

    Args:
        cases: see `case`. Where a case has `channels` (which channel of the file holds each modality), its only image
            file is 4-D; `label_parts` are the files of a label that is spread over several.
        patch_size: voxels; a finding for each case that is smaller along an axis. None: not checked.
    """
    with ThreadPoolExecutor(8) as pool:  # on network drives the latency of opening a file dominates
        findings = list(pool.map(lambda case: _named(_check_case(case, patch_size) or _check_label(case), case), cases))
        listed = [case["label"] for case in cases if case.get("subset") and case["label"]]
        results = [file for file, found in zip(listed, pool.map(left_as_segmented, listed), strict=True) if found]
    if results:
        text = "%d label(s) of the datalist are masks as inference wrote them, no references: %s"
        _log.warning(text, len(results), ", ".join(results[:3]) + (", ..." if len(results) > 3 else ""))
    return findings


def without_results(cases: Sequence[Case]) -> list[Case]:
    """The cases, without labels that are masks as inference wrote them; for those who need no label."""
    with ThreadPoolExecutor(8) as pool:
        results = pool.map(lambda case: bool(case["label"] and left_as_segmented(case["label"])), cases)
        return [{**case, "label": ""} if found else case for case, found in zip(cases, results, strict=True)]


def _named(findings: list[Finding], case: Case) -> list[Finding]:
    """The findings of a case with its name: of several files, they keep one case from being computed."""
    return [replace(finding, case=finding.case or str(case.get("case") or "")) for finding in findings]


def _check_label(case: Case) -> list[Finding]:
    """That the label is a result of inference, where nobody chose it."""
    signature = "" if case.get("subset") or not case["label"] else left_as_segmented(case["label"])
    if not signature:
        return []
    found = f"a mask {signature} and left as it was, which is no reference"
    fix = "move it out of the data set folder, where results do not belong; where it is wanted, name it in a datalist"
    return [Finding(case["label"], found, "a segmentation that somebody drew or corrected", fix)]


def _check_case(case: Case, patch_size: Sequence[int] | None) -> list[Finding]:
    findings: list[Finding] = []
    reference: tuple[str, tuple[int, ...], np.ndarray] | None = None
    for file in filter(None, [*case["image"], *(case.get("label_parts") or [case["label"]])]):
        try:
            header = open_nifti(file)
            shape, affine = tuple(int(n) for n in header.shape), np.asarray(header.affine)
        except Exception as error:  # nibabel raises a dozen types for what is one thing to the user
            found, fix = f"cannot be read ({error})", "copy or download the file again"
            if not os.path.exists(file):
                found, fix = "no such file", FIND_MOVED
            elif is_dicom(file):
                found, fix = "cannot be read (it is DICOM)", "convert the series to NIfTI first, e.g. with dcm2niix"
            findings.append(Finding(file, found, "a NIfTI file", fix))
            continue
        volume = "channels" in case and [file] == case["image"]
        dimensions = 4 if volume else 3
        if not volume and len(shape) == 4 and shape[3] == 1:
            shape = shape[:3]
        if len(shape) != dimensions or min(shape[:3]) < 2:
            findings.append(
                Finding(
                    file,
                    f"a {sum(n > 1 for n in shape)}-D image of shape {_by(shape)}",
                    "one 4-D image with a channel for each modality" if volume else "a 3-D volume",
                    "give the whole volume; slices cannot be segmented",
                )
            )
            continue
        if volume and shape[3] <= max(case["channels"]):
            findings.append(
                Finding(
                    file,
                    f"{shape[3]} channels",
                    f"at least {max(case['channels']) + 1} channels, one for each modality",
                    "add the missing modalities",
                )
            )
            continue
        if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-6:
            findings.append(
                Finding(file, "an affine that is not invertible", "a spatial grid in mm", "mend the header")
            )
            continue
        edges = np.linalg.norm(affine[:3, :3], axis=0)
        if edges.min() < _EDGES_MM[0] or edges.max() > _EDGES_MM[1]:
            expected = f"edges of {_EDGES_MM[0]:g} to {_EDGES_MM[1]:g} mm"
            fix = "mend the affine in the header: it is in mm, not in metres, micrometres or voxels"
            findings.append(Finding(file, f"voxels of {'x'.join(f'{edge:.3g}' for edge in edges)} mm", expected, fix))
            continue
        if reference is None:
            reference = (file, shape[:3], affine)
            if patch_size is not None and any(p > n for p, n in zip(patch_size, shape, strict=False)):
                findings.append(
                    Finding(
                        file,
                        f"a volume of {_by(shape[:3])} voxels",
                        f"at least patch_size {_by(patch_size)}",
                        'give a smaller patch, e.g. --patch_size "[64,64,64]"',
                    )
                )
        elif shape[:3] != reference[1] or not same_places(affine, reference[2], shape):
            what = f"grid {_by(shape[:3])}, affine {_rows(affine)}"
            findings.append(
                Finding(
                    file,
                    what,
                    f"the grid of {reference[0]}: {_by(reference[1])}, affine {_rows(reference[2])}",
                    "co-register and resample the files of a case to one grid",
                )
            )
    return findings


def _by(shape: Iterable[int]) -> str:
    return "x".join(str(int(n)) for n in shape)


def _rows(affine: np.ndarray) -> str:
    return str(np.round(affine[:3], 3).tolist())
