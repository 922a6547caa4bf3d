"""The cases of a folder: which of its files belong together."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from bundlekit.cases.case import Case
from bundlekit.errors import BundleError, Finding
from bundlekit.images.nifti import may_be_3d
from bundlekit.label_maps.file_names import VOLUME, in_freesurfer, stem_of, volumes_below

from .bids import bids_cases, is_bids
from .case import doubled_files, make_case, without_image
from .layouts import EXPECTED, LAYOUTS, LIKE_A_LABEL, ScanFile, after_agent, file_of, is_label, other_contrast

_log = logging.getLogger(__name__)


def from_folder(root: Path, labelled: bool, numbering: str | None) -> tuple[list[Case], list[Finding]]:
    """Cases below a folder, or that of one file, and what is wrong with them.

    Raises:
        BundleError: if a file is no volume.
    """
    if root.is_file():
        return _from_file(root, labelled, numbering)
    return _from_files(volumes_below(root), root, labelled, numbering, tell=not labelled)


def _from_files(
    paths: Sequence[Path],
    root: Path,
    labelled: bool,
    numbering: str | None,
    tell: bool = False,
    asked: Path | None = None,
) -> tuple[list[Case], list[Finding]]:
    """Cases of these files; `asked` is taken whatever its name says of its contrast."""
    bids = [path for path in paths if is_bids(path)]
    files = [file for path in paths if not is_bids(path) and (file := file_of(path))]
    known = {*bids, *(file.path for file in files)}
    plain = {file.path: file.key for file in files if file.layout == "plain" and not file.is_label}
    left_out = [path for path in [*bids, *plain] if asked is None and after_agent(stem_of(path))]
    gone, keys = set(left_out), {plain[path] for path in left_out if path in plain}
    keys |= {stem_of(path) for path in left_out}  # and labels of theirs
    bids = [path for path in bids if path not in gone]
    files = [file for file in files if file.layout not in ("plain", "synthseg") or file.key not in keys]
    other = [p for p in paths if p not in known and not in_freesurfer(p) and not LIKE_A_LABEL.search(stem_of(p))]
    others = {path for path in other if asked is None and other_contrast(stem_of(path))}
    other = [path for path in other if path not in others]
    keys = {stem_of(path) for path in others}
    mapped = [file for file in files if file.layout == "synthseg" and file.key in keys]  # SynthSeg takes any contrast
    files = [file for file in files if file not in mapped]

    paired, unlabelled, findings = bids_cases(bids, root, labelled, numbering)
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
    unknown = [path for path in other if str(path) not in taken]
    if not images_of_a_layout:
        unlabelled += [make_case(stem_of(path), path) for path in unknown if may_be_3d(path)]
    if mapped or not images_of_a_layout:
        left_out += sorted(others)
    if left_out and asked is None:
        first = ", ".join(str(path.relative_to(root)) for path in left_out[:3])
        text = (
            "%d file(s) are no T1s by their names, or of after contrast agent, and left out: %s%s. If one is a T1 "
            "without agent, give it alone, or --datalist"
        )
        _log.warning(text, len(left_out), first, ", ..." if len(left_out) > 3 else "")
    if images_of_a_layout and tell and unknown:
        first = ", ".join(str(path.relative_to(root)) for path in unknown[:3])
        text = (
            "%d file(s) are named otherwise than the %d T1(s) here and left out: %s%s. If they are T1s, too, give a "
            "folder of them, one of them, or --datalist"
        )
        _log.warning(text, len(unknown), len(images_of_a_layout), first, ", ..." if len(unknown) > 3 else "")
    paired += more_paired
    findings += more_findings
    if not labelled:
        return paired + unlabelled, findings
    for case in unlabelled:
        path = Path(case["image"][0])
        file = file_of(path)
        expected = EXPECTED["bids"] if is_bids(path) else EXPECTED.get(file.layout if file else "", "")
        findings.append(
            Finding(
                str(path),
                "a T1 without a segmentation",
                expected or f"one of the layouts {LAYOUTS}",
                "add the label, take the T1 out of the folder, or name both in a datalist: --datalist",
            )
        )
    return paired, findings


def _from_file(path: Path, labelled: bool, numbering: str | None) -> tuple[list[Case], list[Finding]]:
    """The case of one file, which may be its T1 or its label."""
    if not VOLUME.search(path.name):
        raise BundleError(Finding(str(path), "a file of another type", "a .nii, .nii.gz or .mgz file", "give the T1"))
    base = path.parent.parent if path.parent.name in ("pre", "mri") else path.parent
    folders = dict.fromkeys([base, base / "pre", path.parent])
    files = [f for folder in folders if folder.is_dir() for f in sorted(folder.iterdir()) if VOLUME.search(f.name)]
    labels_wanted = not is_label(path)
    files = [f for f in files if f == path or is_label(f) == labels_wanted]
    cases, findings = _from_files(files, base, labelled, numbering, asked=path)
    files_of = [(case, [*case["image"], case["label"], *case.get("label_parts", [])]) for case in cases]
    own = [case for case, used in files_of if str(path) in used]
    if own:
        return own, []
    if not labels_wanted:
        return [], [finding for finding in findings if finding.file == str(path)] or [without_image(path, "a T1")]
    if labelled:
        return [], [finding for finding in findings if str(path) in finding.file + finding.found]
    return [make_case(stem_of(path), path)], []


def _named_cases(
    files: Sequence[ScanFile], other: Sequence[Path], labelled: bool
) -> tuple[list[Case], list[Case], list[Finding], set[Path]]:
    """Cases with label, cases without, findings, and the images that go by the case's bare name."""
    by_stem: dict[str, list[Path]] = {}
    for path in other:
        by_stem.setdefault(stem_of(path), []).append(path)
    groups: dict[tuple[str, str], list[ScanFile]] = {}
    for file in files:
        groups.setdefault((file.layout, file.key), []).append(file)
    paired, unlabelled, findings = [], [], []
    bare: set[Path] = set()
    for (layout, key), group in sorted(groups.items()):
        labels = [file for file in group if file.is_label]
        images = [file for file in group if not file.is_label]
        if layout == "miccai" and labels:
            images += [ScanFile(path, layout, key, key, False, 1) for path in by_stem.get(key, [])]
            bare |= set(by_stem.get(key, []))
        label = _best(labels, None)
        image = _best(images, label[0].path.parent if label else None)
        if len(label) > 1 and not labelled:
            label = []  # no need to know which
        if not images:
            if labelled:
                expected = {"plain": f"{key}_T1.nii.gz", "miccai": f"{key}_SS.nii.gz or {key}.nii.gz"}
                findings.append(without_image(labels[0].path, expected.get(layout, f"the T1 of {labels[0].case}")))
        elif len(label) > 1 or len(image) > 1:
            doubled = (label if len(label) > 1 else []) + (image if len(image) > 1 else [])
            what = " and ".join(word for word, found in (("label", label), ("T1", image)) if len(found) > 1)
            findings.append(doubled_files(group[0].path.parent, group[0].case, what, [file.path for file in doubled]))
        elif label:
            paired.append(make_case(image[0].case, image[0].path, label[0].path, label[0].numbering))
        else:
            unlabelled.append(make_case(image[0].case, image[0].path))
    return paired, unlabelled, findings, bare


def _best(files: Sequence[ScanFile], folder: Path | None) -> list[ScanFile]:
    """Files of the lowest rank; of several, those in `folder` if there are any."""
    lowest = [file for file in files if file.rank == min(f.rank for f in files)]
    return [file for file in lowest if file.path.parent == folder] or lowest


def _add_synthseg(
    labels: Sequence[ScanFile], paired: Sequence[Case], unlabelled: list[Case], other: Sequence[Path], labelled: bool
) -> tuple[list[Case], list[Finding]]:
    """Cases of SynthSeg's results: of any T1 that has no other label. What gets one leaves `unlabelled`."""
    cases, findings = [], []
    labelled_stems = {stem_of(Path(case["image"][0])) for case in paired}
    images: dict[str, list[Case]] = {}
    for case in [*unlabelled, *(make_case(stem_of(path), path) for path in other)]:
        images.setdefault(stem_of(Path(case["image"][0])), []).append(case)
    taken: set[str] = set()
    for label in labels:
        found = images.get(label.key, [])
        if len(found) > 1:
            doubled = [Path(case["image"][0]) for case in found]
            findings.append(doubled_files(label.path.parent, label.case, "T1", doubled))
        elif found:
            (image,) = found[0]["image"]
            taken.add(image)
            cases.append(make_case(found[0]["case"], Path(image), label.path, label.numbering))
        elif labelled and label.key not in labelled_stems:
            findings.append(without_image(label.path, f"{label.key}.nii.gz"))
    unlabelled[:] = [case for case in unlabelled if case["image"][0] not in taken]
    return cases, findings
