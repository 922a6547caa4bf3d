"""BIDS: which of its labels belongs to which T1, and what the label's numbers mean.

ancpbids and pybids list a data set's files and split their names, which are ten lines here (`_entities`, `_suffix`).
Neither says which derivative's label is of which T1 where `desc`, `space` or the folder differ, which of several to
prefer, or what a _dseg.tsv means, which is the rest of this module; and a folder of BIDS names alone, without a
dataset_description.json, is no data set to pybids.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bundlekit.cases.case import Case
from bundlekit.errors import BundleError, Finding
from bundlekit.images.nifti import open_nifti, same_places
from bundlekit.label_maps.file_names import stem_of
from bundlekit.label_maps.numberings import CSF, GM, NUMBERINGS, WM

from .case import PARTS, doubled_files, make_case, without_image

_BIDS = re.compile(r"^(?P<entities>sub-[A-Za-z0-9]+(_[A-Za-z0-9]+-[A-Za-z0-9+]+)*)_(?P<suffix>T1w|dseg|probseg)$")
_TISSUE_NAMES = {
    **dict.fromkeys(("csf", "cerebrospinal fluid", "cerebro-spinal fluid"), CSF),
    **dict.fromkeys(("gm", "gray matter", "grey matter"), GM),
    **dict.fromkeys(("wm", "white matter"), WM),
}
_NOT_PAIRED_BY = {"desc", "label", "seg", "atlas", "space"}  # BIDS entities in which a label may differ from its T1


def is_bids(path: Path) -> bool:
    """Whether a file is named as BIDS names a T1, a discrete or a probabilistic segmentation."""
    return bool(_BIDS.match(stem_of(path)))


def bids_name(path: Path) -> str:
    """Name of the case that a file of BIDS is the T1 of."""
    return stem_of(path).removesuffix("_T1w")


def bids_cases(
    paths: Sequence[Path], root: Path, labelled: bool, numbering: str | None
) -> tuple[list[Case], list[Case], list[Finding]]:
    """Cases with label, cases without, and findings.

    Args:
        paths: files that `is_bids`.
        root: folder of the data set; lookup tables are searched up to it.
        labelled: whether every case must have a segmentation.
        numbering: of all labels; None: by their names and lookup tables.
    """
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
                findings.append(without_image(label.path, "a T1w of the same entities"))
            continue
        image = _on_grid(sorted(candidates, key=lambda path: _distance(path, label.path)), label.path)
        # a T1 that is only in another space than its label's T1, or of a session or run that the label does not name,
        # is a scan to segment, but none that lacks a label
        covered.add(image)
        covered |= {
            path
            for path in same_subject
            if _compatible(path, label.path, any_grid=labelled) and (labelled or not _distance(path, label.path)[0])
        }
        name = bids_name(image)
        missing = [part for part, path in zip(PARTS, label.paths, strict=False) if not path]
        if not labelled and (missing or len(best) > 1):
            unlabelled.append(make_case(name, image))  # no need to know the label
        elif len(best) > 1:
            findings.append(doubled_files(label.path.parent, name, "label", [other.path for other in best]))
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
            case = make_case(name, image, label.path, "")
            paired.append({**case, "label_parts": [str(path) for path in label.paths]})
        else:
            try:
                meaning = numbering or _dseg_numbering(label.path, label.numbering, root)
                paired.append(make_case(name, image, label.path, meaning))
            except BundleError as error:
                if labelled:
                    findings += error.findings
                else:
                    unlabelled.append(make_case(name, image))
    unlabelled += [make_case(bids_name(p), p) for p in images if p not in covered]
    return paired, unlabelled, findings


def bids_numbering(label: Path) -> str:
    """Numbering of a label by its name and the lookup table beside it, "" if they do not tell.

    Raises:
        BundleError: if the table fits no numbering.
    """
    labels = _bids_labels([label])
    return _dseg_numbering(label, labels[0].numbering, label.parent) if labels else ""


@dataclass(frozen=True)
class _BidsLabel:
    """A segmentation in BIDS: one dseg, or probsegs in the order of `PARTS` ("" for one that is missing)."""

    paths: tuple[Path | None, ...]
    rank: int
    numbering: str

    @property
    def path(self) -> Path:
        return next(path for path in self.paths if path)


def _bids_labels(paths: Iterable[Path]) -> list[_BidsLabel]:
    """The segmentations among label files of equal entities, the preferred first; those of other atlases left out."""
    labels = []
    parts: dict[tuple[str, str], dict[str, Path]] = {}
    for path in paths:
        entities = _entities(path)
        kind = entities.get("seg", entities.get("desc", "")).lower()
        if _suffix(path) == "probseg":
            if entities.get("label") in PARTS:
                end = path.name[len(stem_of(path)) :]
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
        labels.append(_BidsLabel(tuple(found.get(part) for part in PARTS), 2, ""))
    return sorted(labels, key=lambda label: (label.rank, str(label.path)))


def _suffix(path: Path) -> str:
    return stem_of(path).rpartition("_")[2]


def _entities(path: Path) -> dict[str, str]:
    return dict(part.split("-", 1) for part in stem_of(path).split("_")[:-1])


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
            if a.shape[:3] == b.shape[:3] and same_places(a.affine, b.affine, a.shape):
                return image
    return images[0]


def _dseg_numbering(path: Path, usual: str, root: Path) -> str:
    """Numbering of a dseg: its usual one, unless a lookup table beside it or above gives the tissues other numbers.

    Raises:
        BundleError: if the table fits no numbering.
    """
    if usual != "bids":
        return usual
    tables = [path.with_name(f"{stem_of(path)}.tsv")]
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
        numbers = ", ".join(f"{PARTS[tissue - 1]} {number}" for number, tissue in classes.items())
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
        with table.open(newline="", encoding="utf-8-sig") as lines:  # as Excel saves it, too
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
