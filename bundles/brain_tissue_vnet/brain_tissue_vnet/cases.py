"""Find and check the cases of a T1 data set: `dataset_dir` is all a user has to give.

A case is a plain dict, so that it can be hashed, cached and written as JSON:

    case          name of the scan, e.g. "sub-01_ses-1"; unique within the data set
    patient       name that all scans of one patient share, e.g. "sub-01"
    image         list with the T1 file; [] where a label map alone is the case
    label         file of the segmentation, "" where there is none
    label_parts   where the segmentation is three probability maps: CSF, GM and WM in this order; `label` is the first
    numbering     what the label's numbers mean, a name in `numberings.NUMBERINGS`; "" where that is found out when the
                  label is decoded, for probability maps, and where there is no label
    label_values  the numbers that results are written with: 0 background, 1 CSF, 2 GM, 3 WM
    subset        "training" or "validation" where a datalist says so, else ""

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
    plain          <case>_T1, <case>_t1 or <case>-t1n with <case>_seg or <case>_label (found out when it is decoded)
    SynthSeg       <case> with <case>_synthseg (freesurfer), also for a T1 of another layout that has no other label
    any            without label, and only in folders without any of the T1s above: every 3-D file whose name is not
                   that of a label or mask
"""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bundlekit.cases.case import Case, doubled_cases
from bundlekit.cases.datalist import read_datalist
from bundlekit.cases.headers import check_headers
from bundlekit.errors import BundleError, Finding
from bundlekit.images.nifti import open_nifti
from bundlekit.label_maps.numberings import CSF, GM, NUMBERINGS, WM, check_numbering

_VOLUME = re.compile(r"\.(nii(\.gz)?|mgz)$", re.IGNORECASE)
_LIKE_A_LABEL = re.compile(
    r"(^|[_.-])(dseg|probseg|segm?|glm|synthseg|labels?|probabilities|(brain_?)?mask|aseg.*|aparc.*|wmparc.*|segTRI.*|"
    r"LabelsFor.*)$",
    re.IGNORECASE,
)
_BIDS = re.compile(r"^(?P<entities>sub-[A-Za-z0-9]+(_[A-Za-z0-9]+-[A-Za-z0-9+]+)*)_(?P<suffix>T1w|dseg|probseg)$")
_IBSR = re.compile(r"^(IBSR_\d+)(?:_(.+))?$")
_PLAIN = re.compile(r"^(.+?)(?:_(T1|t1|seg|label)|-t1n)$")
_MICCAI = re.compile(r"^(.+)_(SS|glm)$")
_SYNTHSEG = re.compile(r"^(.+)_synthseg$")
_PATIENT = re.compile(r"^(sub-[A-Za-z0-9]+)(?:[_.].*)?$|^.+\.long\.(.+)$|^(\d{4})_\d$")

# what follows the case in a name -> preference, and the numbering of a label
_IBSR_IMAGES = {"ana_strip": 0, "ana": 1, None: 2}
_IBSR_LABELS = {
    "segTRI_fill_ana": (0, "tissue"),
    "segTRI_ana": (1, "tissue"),
    "seg": (2, "tissue"),
    "seg_ana": (3, "freesurfer"),
}
_MRBRAINS_LABELS = {"LabelsForTraining": (0, "mrbrains"), "LabelsForTesting": (1, "tissue")}
_FREESURFER_IMAGES = {"norm": 0, "brain": 1, "T1": 2}
_FREESURFER_LABELS = {"aseg": 0, "aparc+aseg": 1, "wmparc": 2, "aseg.presurf": 3}

_TISSUE_NAMES = {
    **dict.fromkeys(("csf", "cerebrospinal fluid", "cerebro-spinal fluid"), CSF),
    **dict.fromkeys(("gm", "gray matter", "grey matter"), GM),
    **dict.fromkeys(("wm", "white matter"), WM),
}
_PARTS = ("CSF", "GM", "WM")  # of a label in probability maps, in this order
_NOT_PAIRED_BY = {"desc", "label", "seg", "atlas", "space"}  # BIDS entities in which a label may differ from its T1

_EXPECTED = {
    "bids": "<entities>_dseg.nii.gz or <entities>_label-{CSF,GM,WM}_probseg.nii.gz of the same entities",
    "ibsr": "<case>_segTRI_fill_ana, <case>_segTRI_ana, <case>_seg or <case>_seg_ana",
    "mrbrains13": "LabelsForTraining.nii or LabelsForTesting.nii beside it",
    "mrbrains18": "segm.nii.gz in the folder above",
    "miccai": "<case>_glm.nii.gz",
    "freesurfer": "aseg.mgz, aparc+aseg.mgz or wmparc.mgz beside it",
    "plain": "<case>_seg.nii.gz or <case>_label.nii.gz",
}
_LAYOUTS = (
    "BIDS (sub-*_T1w, sub-*_dseg), IBSR18 (IBSR_*_ana, IBSR_*_segTRI_ana), MRBrainS (T1, LabelsForTraining; "
    "pre/reg_T1, segm), MICCAI 2012 (<case>_SS, <case>_glm), FreeSurfer (<case>/mri/norm.mgz, aseg.mgz), SynthSeg "
    "(<case>, <case>_synthseg) or <case>_T1, <case>_seg; .nii, .nii.gz or .mgz"
)


def find_cases(
    dataset_dir: str | os.PathLike | None,
    datalist: str | os.PathLike | None = None,
    labelled: bool = True,
    numbering: str | None = None,
    label_maps: bool = False,
) -> list[Case]:
    """Cases of a data set in sorted order, after a check of all their headers (seconds for a thousand cases).

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
        label_maps: every file is a label map in FreeSurfer's numbering and a case without image.

    Raises:
        BundleError: all that is wrong with all cases at once: no cases, missing or doubled files, unreadable headers,
            images that are not 3-D, grids that differ within a case.
    """
    cases, findings = scan_cases(dataset_dir, datalist, labelled, numbering, label_maps)
    if findings:
        raise BundleError(
            f"{len(findings)} problem(s) in the data set; nothing was started.\n" + "\n".join(str(f) for f in findings)
        )
    return cases


def scan_cases(
    dataset_dir: str | os.PathLike | None,
    datalist: str | os.PathLike | None = None,
    labelled: bool = True,
    numbering: str | None = None,
    label_maps: bool = False,
) -> tuple[list[Case], list[Finding]]:
    """As `find_cases`, but with what is wrong beside the complete cases instead of an error.

    Raises:
        BundleError: if the folder holds no case at all, or an argument is wrong.
    """
    if not dataset_dir and not datalist:
        return [], []
    if numbering is not None:
        check_numbering(numbering, "--numbering")
        if label_maps and numbering != "freesurfer":
            raise BundleError(f"numbering is {numbering!r}; label maps without images are read as 'freesurfer' alone.")
    where = str(datalist or dataset_dir)
    if datalist:
        cases, findings = _from_datalist(Path(datalist).expanduser(), dataset_dir, labelled, label_maps)
    else:
        cases, findings = _from_folder(Path(str(dataset_dir)).expanduser(), labelled, label_maps, numbering)
    if not cases and not findings:
        expected = "label maps, .nii, .nii.gz or .mgz" if label_maps else _LAYOUTS
        raise BundleError(Finding(where, "no case", expected, "check the folder given as --dataset_dir"))
    for case in cases:
        if numbering and case["label"] and "label_parts" not in case:
            case["numbering"] = numbering
    cases.sort(key=lambda case: case["case"])
    findings += doubled_cases(cases, where)
    wrong = check_headers(cases)
    if not labelled and not label_maps:
        wrong = _without_bad_labels(cases, wrong)
    findings += [finding for found in wrong for finding in found]
    return [case for case, found in zip(cases, wrong, strict=True) if not found], findings


def _without_bad_labels(cases: list[Case], wrong: Sequence[list[Finding]]) -> list[list[Finding]]:
    """Take labels that cannot be used from cases that need none, in place; what is still wrong then."""
    for position, found in enumerate(wrong):
        if found:
            case = {key: value for key, value in cases[position].items() if key != "label_parts"}
            cases[position] = {**case, "label": "", "numbering": ""}
    return [found and check_headers([case])[0] for case, found in zip(cases, wrong, strict=True)]


def patient_of(case: str) -> str:
    """Name that all scans of one patient share, e.g. "sub-01" for "sub-01_ses-1"."""
    match = _PATIENT.match(case)
    return next(filter(None, match.groups())) if match else case


# --- files and what their names say -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _File:
    """A file of a known layout other than BIDS.

    Args:
        path: the file.
        layout: key of `_EXPECTED`, or "synthseg".
        key: what the files of one case share.
        case: its name.
        is_label: segmentation or T1.
        rank: of several, the lowest is taken.
        numbering: of a label; "" if the layout does not tell.
    """

    path: Path
    layout: str
    key: str
    case: str
    is_label: bool
    rank: int = 0
    numbering: str = ""


def _stem(path: Path) -> str:
    return _VOLUME.sub("", path.name)


def _file_of(path: Path) -> _File | None:
    """The role of a file by its name and folder, None if no layout but BIDS may have it."""
    stem, folder = _stem(path), path.parent
    if _in_freesurfer(path):
        case = folder.parent.name
        if stem in _FREESURFER_IMAGES:
            return _File(path, "freesurfer", str(folder), case, False, _FREESURFER_IMAGES[stem])
        if stem in _FREESURFER_LABELS:
            return _File(path, "freesurfer", str(folder), case, True, _FREESURFER_LABELS[stem], "freesurfer")
        return None
    if folder.name == "pre" and stem in ("reg_T1", "T1"):
        return _File(path, "mrbrains18", str(folder.parent), folder.parent.name, False, ("reg_T1", "T1").index(stem))
    if stem == "segm":
        return _File(path, "mrbrains18", str(folder), folder.name, True, 0, "mrbrains")
    if stem == "T1" and folder.name != "orig":  # MRBrainS18 has one there, before bias correction
        return _File(path, "mrbrains13", str(folder), folder.name, False)
    if stem in _MRBRAINS_LABELS:
        return _File(path, "mrbrains13", str(folder), folder.name, True, *_MRBRAINS_LABELS[stem])
    if match := _IBSR.match(stem):
        case, role = match.groups()
        if role in _IBSR_IMAGES:
            return _File(path, "ibsr", case, case, False, _IBSR_IMAGES[role])
        if role in _IBSR_LABELS:
            return _File(path, "ibsr", case, case, True, *_IBSR_LABELS[role])
        return None
    if match := _SYNTHSEG.match(stem):
        return _File(path, "synthseg", match[1], match[1], True, 0, "freesurfer")
    if match := _MICCAI.match(stem):
        is_label = match[2] == "glm"
        return _File(path, "miccai", match[1], match[1], is_label, 0, "neuromorphometrics" if is_label else "")
    if match := _PLAIN.match(stem):
        return _File(path, "plain", match[1], match[1], match[2] in ("seg", "label"), int(match[2] == "label"))
    return None


def _is_label(path: Path) -> bool:
    file = _file_of(path)
    return file.is_label if file else bool(_LIKE_A_LABEL.search(_stem(path)))


def _in_freesurfer(path: Path) -> bool:
    return path.parent.name == "mri" and path.name.endswith(".mgz")


def _walk(root: Path) -> list[Path]:
    files: list[Path] = []
    for folder, folders, names in os.walk(root, followlinks=True):
        below = Path(folder).name == "mri" and any(n in names for n in ("T1.mgz", "norm.mgz", "brain.mgz", "aseg.mgz"))
        # below a FreeSurfer subject's mri lie only what its own steps read
        folders[:] = [] if below else sorted(f for f in folders if not f.startswith("."))
        files += [Path(folder, n) for n in sorted(names) if not n.startswith(".") and _VOLUME.search(n)]
    return files


# --- search of a folder -----------------------------------------------------------------------------------------------


def _from_folder(
    root: Path, labelled: bool, label_maps: bool, numbering: str | None
) -> tuple[list[Case], list[Finding]]:
    if not root.exists():
        raise BundleError(Finding(str(root), "no such file or folder", "the data set", "check --dataset_dir"))
    if label_maps:
        return _label_map_cases([root] if root.is_file() else _walk(root)), []
    if root.is_file():
        return _from_file(root, labelled, numbering)
    return _from_files(_walk(root), root, labelled, numbering)


def _from_files(
    paths: Sequence[Path], root: Path, labelled: bool, numbering: str | None
) -> tuple[list[Case], list[Finding]]:
    bids = [path for path in paths if _BIDS.match(_stem(path))]
    files = [file for path in paths if not _BIDS.match(_stem(path)) and (file := _file_of(path))]
    known = {*bids, *(file.path for file in files)}
    other = [p for p in paths if p not in known and not _in_freesurfer(p) and not _LIKE_A_LABEL.search(_stem(p))]

    paired, unlabelled, findings = _bids_cases(bids, root, labelled, numbering)
    named = [file for file in files if file.layout != "synthseg"]
    more_paired, more_unlabelled, more_findings, bare = _named_cases(named, other, labelled)
    paired += more_paired
    unlabelled += more_unlabelled
    findings += more_findings
    images_of_a_layout = [case for case in paired + unlabelled if Path(case["image"][0]) not in bare]

    other = [path for path in other if path not in bare]
    synthseg = [file for file in files if file.layout == "synthseg"]
    more_paired, more_findings = _add_synthseg(synthseg, paired, unlabelled, other, labelled)
    taken = {case["image"][0] for case in more_paired}
    if not images_of_a_layout:
        rest = [path for path in other if str(path) not in taken and _may_be_3d(path)]
        unlabelled += [_case(_stem(path), path) for path in rest]
    paired += more_paired
    findings += more_findings
    if not labelled:
        return paired + unlabelled, findings
    for case in unlabelled:
        path = Path(case["image"][0])
        file = _file_of(path)
        expected = _EXPECTED["bids"] if _BIDS.match(_stem(path)) else _EXPECTED.get(file.layout if file else "", "")
        findings.append(
            Finding(
                str(path),
                "a T1 without a segmentation",
                expected or f"one of the layouts {_LAYOUTS}",
                "add the label, take the T1 out of the folder, or name both in a datalist: --datalist",
            )
        )
    return paired, findings


def _from_file(path: Path, labelled: bool, numbering: str | None) -> tuple[list[Case], list[Finding]]:
    """The case of one file, which may be its T1 or its label."""
    if not _VOLUME.search(path.name):
        raise BundleError(Finding(str(path), "a file of another type", "a .nii, .nii.gz or .mgz file", "give the T1"))
    base = path.parent.parent if path.parent.name in ("pre", "mri") else path.parent
    folders = dict.fromkeys([base, base / "pre", path.parent])
    files = [f for folder in folders if folder.is_dir() for f in sorted(folder.iterdir()) if _VOLUME.search(f.name)]
    is_label = _is_label(path)
    files = [f for f in files if f == path or _is_label(f) != is_label]
    cases, findings = _from_files(files, base, labelled, numbering)
    files_of = [(case, [*case["image"], case["label"], *case.get("label_parts", [])]) for case in cases]
    own = [case for case, used in files_of if str(path) in used]
    if own:
        return own, []
    if is_label:
        return [], [finding for finding in findings if finding.file == str(path)] or [_without_image(path, "a T1")]
    if labelled:
        return [], [finding for finding in findings if str(path) in finding.file + finding.found]
    return [_case(_stem(path), path)], []


def _label_map_cases(paths: Iterable[Path]) -> list[Case]:
    """Each file a case; of a FreeSurfer subject's folder, which holds images too, its preferred label map."""
    cases: list[Case] = []
    subjects: dict[str, _File] = {}
    for path in paths:
        if not _in_freesurfer(path):
            file, synthseg = _file_of(path), _SYNTHSEG.match(_stem(path))
            scan = file.case if file and file.is_label else synthseg[1] if synthseg else _stem(path)
            # the patient is the scan's, so that evaluation knows who has trained
            cases.append({**_label_map_case(_stem(path), path), "patient": patient_of(scan)})
            continue
        file = _file_of(path)
        if file and file.is_label and (file.key not in subjects or file.rank < subjects[file.key].rank):
            subjects[file.key] = file
    return cases + [_label_map_case(file.case, file.path) for file in subjects.values()]


def _named_cases(
    files: Sequence[_File], other: Sequence[Path], labelled: bool
) -> tuple[list[Case], list[Case], list[Finding], set[Path]]:
    """Cases with label, cases without, findings, and the images that go by the case's bare name."""
    by_stem: dict[str, list[Path]] = {}
    for path in other:
        by_stem.setdefault(_stem(path), []).append(path)
    groups: dict[tuple[str, str], list[_File]] = {}
    for file in files:
        groups.setdefault((file.layout, file.key), []).append(file)
    paired, unlabelled, findings = [], [], []
    bare: set[Path] = set()
    for (layout, key), group in sorted(groups.items()):
        labels = [file for file in group if file.is_label]
        images = [file for file in group if not file.is_label]
        if layout == "miccai" and labels:
            images += [_File(path, layout, key, key, False, 1) for path in by_stem.get(key, [])]
            bare |= set(by_stem.get(key, []))
        label = _best(labels, None)
        image = _best(images, label[0].path.parent if label else None)
        if len(label) > 1 and not labelled:
            label = []  # no need to know which
        if not images:
            if labelled:
                expected = {"plain": f"{key}_T1.nii.gz", "miccai": f"{key}_SS.nii.gz or {key}.nii.gz"}
                findings.append(_without_image(labels[0].path, expected.get(layout, f"the T1 of {labels[0].case}")))
        elif len(label) > 1 or len(image) > 1:
            doubled = (label if len(label) > 1 else []) + (image if len(image) > 1 else [])
            what = " and ".join(word for word, found in (("label", label), ("T1", image)) if len(found) > 1)
            findings.append(_doubled(group[0].path.parent, group[0].case, what, [file.path for file in doubled]))
        elif label:
            paired.append(_case(image[0].case, image[0].path, label[0].path, label[0].numbering))
        else:
            unlabelled.append(_case(image[0].case, image[0].path))
    return paired, unlabelled, findings, bare


def _best(files: Sequence[_File], folder: Path | None) -> list[_File]:
    """Files of the lowest rank; of several, those in `folder` if there are any."""
    lowest = [file for file in files if file.rank == min(f.rank for f in files)]
    return [file for file in lowest if file.path.parent == folder] or lowest


def _add_synthseg(
    labels: Sequence[_File], paired: Sequence[Case], unlabelled: list[Case], other: Sequence[Path], labelled: bool
) -> tuple[list[Case], list[Finding]]:
    """Cases of SynthSeg's results: of any T1 that has no other label. What gets one leaves `unlabelled`."""
    cases, findings = [], []
    labelled_stems = {_stem(Path(case["image"][0])) for case in paired}
    images: dict[str, list[Case]] = {}
    for case in [*unlabelled, *(_case(_stem(path), path) for path in other)]:
        images.setdefault(_stem(Path(case["image"][0])), []).append(case)
    taken: set[str] = set()
    for label in labels:
        found = images.get(label.key, [])
        if len(found) > 1:
            doubled = [Path(case["image"][0]) for case in found]
            findings.append(_doubled(label.path.parent, label.case, "T1", doubled))
        elif found:
            (image,) = found[0]["image"]
            taken.add(image)
            cases.append(_case(found[0]["case"], Path(image), label.path, label.numbering))
        elif labelled and label.key not in labelled_stems:
            findings.append(_without_image(label.path, f"{label.key}.nii.gz"))
    unlabelled[:] = [case for case in unlabelled if case["image"][0] not in taken]
    return cases, findings


def _may_be_3d(path: Path) -> bool:
    """Whether a file may hold one volume: what cannot be read may, to be named later."""
    try:
        shape = open_nifti(path).shape
    except Exception:  # nibabel raises a dozen types
        return True
    return len(shape) == 3 or (len(shape) == 4 and shape[3] == 1)


# --- BIDS -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _BidsLabel:
    """A segmentation in BIDS: one dseg, or probsegs in the order of `_PARTS` ("" for one that is missing)."""

    paths: tuple[Path | None, ...]
    rank: int
    numbering: str

    @property
    def path(self) -> Path:
        return next(path for path in self.paths if path)


def _bids_cases(
    paths: Sequence[Path], root: Path, labelled: bool, numbering: str | None
) -> tuple[list[Case], list[Case], list[Finding]]:
    """Cases with label, cases without, and findings."""
    images = [path for path in paths if _suffix(path) == "T1w"]
    groups: dict[tuple[Path, tuple[tuple[str, str], ...]], list[Path]] = {}
    for path in paths:
        if _suffix(path) != "T1w":
            shared = tuple(sorted((k, v) for k, v in _entities(path).items() if k not in _NOT_PAIRED_BY | {"hemi"}))
            space = ("space", _space(path))
            groups.setdefault((path.parent, (*shared, space)), []).append(path)
    of_subject: dict[str, list[Path]] = {}
    for path in images:
        of_subject.setdefault(_entities(path)["sub"], []).append(path)
    paired, unlabelled, findings = [], [], []
    covered: set[Path] = set()
    for group in groups.values():
        labels = _bids_labels(group)
        if not labels:
            continue
        best = [label for label in labels if label.rank == labels[0].rank]
        label = best[0]
        same_subject = of_subject.get(_entities(label.path)["sub"], [])
        candidates = [path for path in same_subject if _compatible(path, label.path)]
        if not candidates:
            if labelled:
                findings.append(_without_image(label.path, "a T1w of the same entities"))
            continue
        # a T1 that is only in another space than its label's T1 is a scan to segment, but none that lacks a label
        covered |= {path for path in same_subject if _compatible(path, label.path, any_grid=labelled)}
        image = _on_grid(sorted(candidates, key=lambda path: _distance(path, label.path)), label.path)
        name = _stem(image).removesuffix("_T1w")
        missing = [part for part, path in zip(_PARTS, label.paths, strict=False) if not path]
        if not labelled and (missing or len(best) > 1):
            unlabelled.append(_case(name, image))  # no need to know the label
        elif len(best) > 1:
            findings.append(_doubled(label.path.parent, name, "label", [other.path for other in best]))
        elif missing:
            names = ", ".join(f"label-{part}_probseg" for part in missing)
            findings.append(
                Finding(
                    str(label.path),
                    f"no {names} beside it",
                    "label-CSF_probseg, label-GM_probseg and label-WM_probseg",
                    "add the missing file, or take the others out of the folder",
                )
            )
        elif len(label.paths) > 1:
            case = _case(name, image, label.path, "")
            paired.append({**case, "label_parts": [str(path) for path in label.paths]})
        else:
            try:
                meaning = numbering or _dseg_numbering(label.path, label.numbering, root)
                paired.append(_case(name, image, label.path, meaning))
            except BundleError as error:
                if labelled:
                    findings += error.findings
                else:
                    unlabelled.append(_case(name, image))
    unlabelled += [_case(_stem(p).removesuffix("_T1w"), p) for p in images if p not in covered]
    return paired, unlabelled, findings


def _bids_labels(paths: Iterable[Path]) -> list[_BidsLabel]:
    """The segmentations among label files of equal entities, the preferred first; those of other atlases left out."""
    labels = []
    parts: dict[tuple[str, str], dict[str, Path]] = {}
    for path in paths:
        entities = _entities(path)
        kind = entities.get("seg", entities.get("desc", "")).lower()
        if _suffix(path) == "probseg":
            if entities.get("label") in _PARTS:
                end = path.name[len(_stem(path)) :]
                parts.setdefault((entities.get("desc", ""), end), {})[entities["label"]] = path
        elif "label" in entities:  # of one structure
            continue
        elif "aparc" in kind:
            labels.append(_BidsLabel((path,), 4, "freesurfer"))
        elif "aseg" in kind:
            labels.append(_BidsLabel((path,), 3, "freesurfer"))
        elif "atlas" not in entities and entities.get("seg", "tissue").lower() in ("tissue", "tissues", "braintissues"):
            labels.append(_BidsLabel((path,), 1 if "desc" in entities else 0, "bids"))
    for found in parts.values():
        labels.append(_BidsLabel(tuple(found.get(part) for part in _PARTS), 2, ""))
    return sorted(labels, key=lambda label: (label.rank, str(label.path)))


def _suffix(path: Path) -> str:
    return _stem(path).rpartition("_")[2]


def _entities(path: Path) -> dict[str, str]:
    return dict(part.split("-", 1) for part in _stem(path).split("_")[:-1])


def _space(path: Path) -> str:
    space = _entities(path).get("space", "")
    return "" if space in ("T1w", "orig", "individual") else space


def _compatible(image: Path, label: Path, any_grid: bool = False) -> bool:
    """Whether the entities of two files let them be of one scan, and, unless `any_grid`, in one space."""
    a, b = _entities(image), _entities(label)
    shared = (a.keys() & b.keys()) - _NOT_PAIRED_BY - ({"res"} if any_grid else set())
    return all(a[key] == b[key] for key in shared) and (any_grid or _space(image) == _space(label))


def _distance(image: Path, label: Path) -> tuple[int, bool, bool, str]:
    """How well a compatible T1 fits a label, the lowest best: entities, then folder, then desc-preproc."""
    a, b = _entities(image), _entities(label)
    unmatched = len((a.keys() ^ b.keys()) - _NOT_PAIRED_BY)
    return unmatched, image.parent != label.parent, a.get("desc") != "preproc", str(image)


def _on_grid(images: Sequence[Path], label: Path) -> Path:
    """The first image that is on the label's grid; the first of all where none is, to be named later."""
    if len(images) > 1:
        for image in images:
            try:
                a, b = open_nifti(image), open_nifti(label)
            except Exception:  # named later, too
                continue
            if a.shape[:3] == b.shape[:3] and np.allclose(a.affine, b.affine, rtol=0, atol=1e-2):
                return image
    return images[0]


def _dseg_numbering(path: Path, usual: str, root: Path) -> str:
    """Numbering of a dseg: its usual one, unless a lookup table beside it or above gives the tissues other numbers.

    Raises:
        BundleError: if the table fits no numbering.
    """
    if usual != "bids":
        return usual
    tables = [path.with_name(f"{_stem(path)}.tsv")]
    for folder in path.parents:
        tables.append(folder / "dseg.tsv")
        if folder == root:
            break
    else:
        del tables[2:]  # `root` is not above: the file's own folder alone
    for table in tables:
        if not table.is_file():
            continue
        classes = _tissues_in(table)
        if set(classes.values()) < {CSF, GM, WM}:
            continue
        for name in ("bids", "tissue", "mrbrains"):
            if all(NUMBERINGS[name].classes.get(number) == tissue for number, tissue in classes.items()):
                return name
        numbers = ", ".join(f"{_PARTS[tissue - 1]} {number}" for number, tissue in classes.items())
        raise BundleError(
            Finding(
                str(table),
                f"the numbers {numbers}",
                "GM 1, WM 2, CSF 3 (bids) or CSF 1, GM 2, WM 3 (tissue)",
                f"renumber {path.name}; or, if the table is wrong, name the numbering with --numbering NAME",
            )
        )
    return usual


def _tissues_in(table: Path) -> dict[int, int]:
    """Number -> class, for the lines of a lookup table that are named CSF, grey or white matter."""
    classes = {}
    try:
        with table.open(newline="") as lines:
            for row in csv.DictReader(lines, delimiter="\t"):
                names = [str(row.get(column) or "").strip().lower() for column in ("name", "abbreviation")]
                tissue = next((_TISSUE_NAMES[name] for name in names if name in _TISSUE_NAMES), None)
                if tissue is not None:
                    classes[int(str(row["index"]))] = tissue
    except (OSError, ValueError, KeyError, csv.Error) as error:
        raise BundleError(
            Finding(
                str(table),
                f"cannot be read ({type(error).__name__}: {error})",
                "a table with the columns index and name, separated by tabs",
                "mend or remove it",
            )
        ) from error
    return classes


# --- datalist ---------------------------------------------------------------------------------------------------------


def _from_datalist(path: Path, dataset_dir: Any, labelled: bool, label_maps: bool) -> tuple[list[Case], list[Finding]]:
    base = Path(str(dataset_dir)).expanduser() if dataset_dir else path.parent
    cases, findings = [], []
    for where, subset, entry in read_datalist(path, labelled):
        try:
            cases.append({**_listed_case(entry, base, where, labelled, label_maps), "subset": subset})
        except BundleError as error:
            findings += error.findings
    return cases, findings


def _listed_case(entry: Mapping[str, Any], base: Path, where: str, labelled: bool, label_maps: bool) -> Case:
    image = entry.get("image") or []
    images = image if isinstance(image, list) else [image]
    label_parts = entry.get("label_parts") or []
    label = entry.get("label") or (label_parts[0] if label_parts else "")
    if len(images) != (0 if label_maps else 1) or not all(isinstance(file, str) for file in images):
        expected = "no image, since the label maps alone are wanted" if label_maps else "one T1 file"
        raise BundleError(Finding(where, f"image: {entry.get('image')!r}", expected, "mend the entry"))
    if (labelled or label_maps) and not label:
        raise BundleError(Finding(where, "no label", "a segmentation file", "add it to the entry"))
    if label_parts and len(label_parts) != len(_PARTS):
        found = f"label_parts: {len(label_parts)} file(s)"
        raise BundleError(Finding(where, found, "the probability maps of CSF, GM and WM", "mend the entry"))
    if label_maps:
        case = _label_map_case(_case_of(base / label), base / label)
    else:
        case = _case(_case_of(base / images[0]), base / images[0])
        if label:
            case["label"] = str(base / label)
            case["numbering"] = "" if label_parts or entry.get("numbering") else _numbering_of(base / label)
    if label_parts:
        case["label_parts"] = [str(base / file) for file in label_parts]
    if "numbering" in entry:
        case["numbering"] = check_numbering(str(entry["numbering"]), where) if entry["numbering"] else ""
    if entry.get("label_values"):
        case["label_values"] = [int(value) for value in entry["label_values"]]
    case["case"] = str(entry.get("case") or case["case"])
    case["patient"] = str(entry.get("patient") or patient_of(case["case"]))
    return case


def _case_of(path: Path) -> str:
    if _BIDS.match(_stem(path)):
        return _stem(path).removesuffix("_T1w")
    file = _file_of(path)
    return file.case if file else _stem(path)


def _numbering_of(label: Path) -> str:
    """Numbering of a label file by its name alone, "" if that does not tell."""
    if _BIDS.match(_stem(label)):
        labels = _bids_labels([label])
        return _dseg_numbering(label, labels[0].numbering, label.parent) if labels else ""
    file = _file_of(label)
    return file.numbering if file else ""


# --- cases and findings -----------------------------------------------------------------------------------------------


def _case(name: str, image: Path, label: Path | str = "", numbering: str = "") -> Case:
    return {
        "case": name,
        "patient": patient_of(name),
        "image": [str(image)],
        "label": str(label),
        "numbering": numbering,
        "label_values": [0, 1, 2, 3],
        "subset": "",
    }


def _label_map_case(name: str, label: Path) -> Case:
    return {**_case(name, label, label, "freesurfer"), "image": []}


def _without_image(label: Path, expected: str) -> Finding:
    return Finding(
        str(label),
        "a segmentation without its T1",
        expected,
        "add the T1; results of an earlier run belong outside the data set folder",
    )


def _doubled(folder: Path, case: str, what: str, paths: Iterable[Path]) -> Finding:
    return Finding(
        str(folder),
        f"case {case} has more than one {what}: {', '.join(str(path) for path in paths)}",
        "one T1 and one segmentation for each case",
        "keep one of them; results of an earlier run belong outside the data set folder",
    )
