"""MONAI's datalists: the split of a data set as JSON, written and read back."""

from __future__ import annotations

import json
import logging
import math
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bundlekit.cases.case import Case
from bundlekit.cases.folders import absolute
from bundlekit.cases.patients import patient_of
from bundlekit.errors import BundleError, Finding
from bundlekit.files import write_content

_log = logging.getLogger(__name__)
TRAINED_ON = "trained_on.json"


def write_datalist(split: Mapping[str, Sequence[Case]], path: str) -> None:
    """Write a split as a datalist that `find_cases` reads back; none of a split without cases.

    Args:
        split: as `split_cases` returns it.
        path: JSON file, replaced as a whole.
    """
    if any(split.values()):
        text = json.dumps({part: [_entry(case) for case in cases] for part, cases in split.items()}, indent=2)
        write_content(path, text, "ckpt_dir")


def listed_cases(
    datalist: str | os.PathLike,
    dataset_dir: str | os.PathLike | None,
    labelled: bool,
    case_of: Callable[[Mapping[str, Any], Path, str], Case],
) -> tuple[list[Case], list[Finding]]:
    """Cases that a datalist names, and what is wrong with its other entries.

    Args:
        datalist: JSON, see `read_datalist`.
        dataset_dir: folder that paths in it are relative to; None: its own.
        labelled: as for `read_datalist`.
        case_of: called with an entry, that folder and where the entry stands; its `subset` is set here. It raises a
            `BundleError` with what is wrong.

    Raises:
        BundleError: if the datalist cannot be read.
    """
    path = absolute(datalist)
    base = absolute(dataset_dir) if dataset_dir else path.parent
    cases, findings = [], []
    for where, subset, entry in read_datalist(path, labelled, dataset_dir):
        try:
            cases.append({**case_of(entry, base, where), "subset": subset})
        except BundleError as error:
            findings += error.findings
    return cases, findings


def read_datalist(
    path: Path, labelled: bool, dataset_dir: str | os.PathLike | None = None
) -> list[tuple[str, str, dict[str, Any]]]:
    """The entries of a MONAI datalist, with where they stand (for messages) and their subset.

    Args:
        path: JSON, `{"training": [{"image": ..., "label": ...}], "validation": [...]}`; an entry may be a bare image.
        labelled: False also takes what is listed under "test" or "testing", with the subset "".
        dataset_dir: where the data lie now: files with a whole path that is gone, as a training records it, are looked
            for there, by as much of their path as there is.

    Raises:
        BundleError: if it cannot be read, or a label in it is no name of a file.
    """
    try:
        content = json.loads(path.read_text())
        if not isinstance(content, dict):
            raise ValueError(f'a {type(content).__name__} instead of {{"training": [...], "validation": [...]}}')
    except (OSError, ValueError, RecursionError) as error:
        raise BundleError(
            Finding(str(path), f"cannot be read as JSON ({error})", "a MONAI datalist", "check --datalist")
        ) from error
    parts = {"training": "training", "validation": "validation"}
    tests = [key for key in content if key.startswith("test")]
    if not labelled:
        parts.update(dict.fromkeys(tests, ""))
    elif any(content[key] for key in tests):
        _log.warning("%s: its %s is for scans without labels, and not used here", path, " and ".join(tests))
    for part, listed in content.items():
        if part not in (*parts, *tests) and isinstance(listed, list) and any(_is_entry(item) for item in listed):
            fix = "call it training, validation or testing; or take it out"
            raise BundleError(Finding(str(path), f"entries under {part!r}", "training, validation and testing", fix))
    for part in parts:
        if not isinstance(content.get(part) or [], list):
            found, expected = (
                f"{content[part]!r} under {part!r}",
                'a list of entries such as {"image": ..., "label": ...}',
            )
            raise BundleError(Finding(str(path), found, expected, "check --datalist"))
    entries = [
        (f"{path} ({part}[{position}])", subset, item if isinstance(item, dict) else {"image": item})
        for part, subset in parts.items()
        for position, item in enumerate(content.get(part) or [])
    ]
    wrong = [finding for where, _, entry in entries for finding in _wrong_labels(entry, where)]
    if wrong:
        raise BundleError(wrong)
    return _where_they_lie(entries, Path(dataset_dir).expanduser(), path) if dataset_dir else entries


def _is_entry(item: Any) -> bool:
    if isinstance(item, str):
        return item.lower().endswith((".nii", ".nii.gz", ".h5"))
    return isinstance(item, dict) and bool({"image", "label", "label_parts"} & set(item))


def _where_they_lie(
    entries: list[tuple[str, str, dict[str, Any]]], folder: Path, path: Path
) -> list[tuple[str, str, dict[str, Any]]]:
    """Entries with the files that were moved into `folder`.

    One that is found for two scans, as where folders alone told patients apart, is taken for neither: whose it is is
    unknown.
    """
    moved: dict[str, dict[str, str]] = {}
    for kind in ("image", "label", "label_parts"):
        recorded = {file for _, _, entry in entries for file in _files_of(entry.get(kind))}
        gone = sorted(file for file in recorded if os.path.isabs(file) and not os.path.exists(file))
        found = {file: there for file in gone if (there := _there(file, folder))}
        times = Counter(found.values())
        moved[kind] = {file: there for file, there in found.items() if times[there] == 1}
        for file in sorted(set(found) - set(moved[kind])):
            _log.warning("%s is gone, and %s is found for another one, too: it is not taken", file, found[file])
    scans = set(moved["image"].values())
    for kind in ("label", "label_parts"):  # of the same name as the scan, in a folder of scans alone
        moved[kind] = {file: there for file, there in moved[kind].items() if there not in scans}

    def now(file: Any, kind: str) -> Any:
        if isinstance(file, list):
            return [now(one, kind) for one in file]
        return moved[kind].get(file, file) if isinstance(file, str) else file

    if taken := sum(map(len, moved.values())):
        _log.info("%d files of %s are gone from there, and taken from %s", taken, path, folder)
    return [
        (where, part, {**entry, **{kind: now(entry[kind], kind) for kind in moved if kind in entry}})
        for where, part, entry in entries
    ]


def _files_of(value: Any) -> list[str]:
    """The names of files in a value of an entry."""
    return [file for file in (value if isinstance(value, list) else [value]) if isinstance(file, str)]


def _there(file: str, folder: Path) -> str | None:
    """Where a file lies in `folder`, by as much of its path as there is."""
    parts = Path(file).parts
    places = (folder.joinpath(*parts[first:]) for first in range(1, len(parts)))
    return next((str(place) for place in places if place.exists()), None)


def _wrong_labels(entry: Mapping[str, Any], where: str) -> list[Finding]:
    """That labels of an entry are no names of files."""
    findings = []
    label, parts = entry.get("label") or "", entry.get("label_parts") or []
    if not isinstance(label, str):
        findings.append(Finding(where, f"label: {label!r}", "one segmentation file", "mend the entry"))
    if not isinstance(parts, list) or not all(isinstance(part, str) and part for part in parts):
        findings.append(Finding(where, f"label_parts: {parts!r}", "a list of files", "mend the entry"))
    return findings


def image_in(entry: Mapping[str, Any], where: str, expected: str) -> str:
    """The file of an entry that has one image, by itself or in a list; else BundleError, with what was `expected`."""
    image = entry.get("image") or []
    images = image if isinstance(image, list) else [image]
    if len(images) != 1 or not isinstance(images[0], str):
        raise BundleError(Finding(where, f"image: {entry.get('image')!r}", expected, "mend the entry"))
    return images[0]


def numbers_in(entry: Mapping[str, Any], key: str, count: int, where: str) -> list[int]:
    """Whole numbers, all different, that an entry of a datalist has under `key`; [] if it has none.

    Those of labels are 255 at most: masks are written in 8 bits.

    Args:
        entry: as `read_datalist` gives it.
        key: e.g. "label_values".
        count: how many there must be.
        where: the entry stands, as `read_datalist` gives it.

    Raises:
        BundleError: for anything else.
    """
    given = entry.get(key)
    if given is None or given == []:
        return []
    most = 255 if key == "label_values" else math.inf
    plain = isinstance(given, list) and all(type(number) is int and 0 <= number <= most for number in given)
    if not plain or len(set(given)) != len(given) or len(given) != count:
        expected = f"{count} different whole numbers, 0 {'to 255' if key == 'label_values' else 'or more'}"
        raise BundleError(Finding(where, f"{key}: {given!r}", expected, "mend the entry"))
    return list(given)


def datalists_beside(weights: str | Sequence[str]) -> list[str]:
    """Where a training writes its datalist: beside its weights. Of several networks, for each.

    Args:
        weights: file, or several.
    """
    return [str(Path(file).with_name("datalist.json")) for file in ([weights] if isinstance(weights, str) else weights)]


def trained_cases(folder: str | os.PathLike) -> dict[str, str]:
    """The cases that trained the weights in a folder, sorted, each with its patient; none where nothing is recorded.

    Those of its `datalist.json`, which a training writes, and of its `trained_on.json`, which lists the cases of
    weights that came without a datalist, or that a fine-tuning began with. "" where no patient is recorded.

    Raises:
        BundleError: if a record cannot be read.
    """
    patients: dict[str, str] = {}
    for path in (Path(folder, TRAINED_ON), Path(folder, "datalist.json")):
        if path.is_file():
            listed = read_record(path)["training"]
            if any("case" not in entry for entry in listed):
                fix = "copy it again, or remove it"
                raise BundleError(Finding(str(path), "an entry without a case", "the case of each entry", fix))
            for entry in listed:
                name = str(entry["case"])
                patients[name] = str(entry.get("patient") or "") or patients.get(name, "")
    return dict(sorted(patients.items()))


def read_record(path: Path) -> dict[str, list[dict[str, Any]]]:
    """A `trained_on.json`, a list of names or entries, or a `datalist.json`; in both cases as the latter.

    Raises:
        BundleError: if it cannot be read, or is neither.
    """
    try:
        content = json.loads(path.read_text())
        if isinstance(content, list):
            listed = [entry if isinstance(entry, dict) else {"case": str(entry)} for entry in content]
            return {"training": [{**entry, "case": str(entry["case"])} for entry in listed]}
        if not all(isinstance(entry, dict) for part in ("training", "validation") for entry in content.get(part, [])):
            raise TypeError("an entry that is no object")
        return {"training": [], **content}
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        found = f"cannot be read ({type(error).__name__}: {error})"
        expected = "the cases that trained the weights"
        raise BundleError(Finding(str(path), found, expected, "copy it again, or remove it")) from error


def write_trained_cases(cases: Mapping[str, str], folder: str | os.PathLike) -> None:
    """Write `trained_on.json`, see `trained_cases`; an earlier one is replaced."""
    text = trained_text(cases)
    write_content(Path(folder, TRAINED_ON), text, "ckpt_dir")


def trained_text(cases: Mapping[str, str]) -> str:
    """Content of a `trained_on.json`: names of cases, with the patient where the name does not tell it.

    Args:
        cases: as `trained_cases` gives them.
    """
    listed = [
        {"case": name, "patient": patient} if patient and patient != patient_of(name) else name
        for name, patient in sorted(cases.items())
    ]
    return json.dumps(listed, indent=2) + "\n"


def _entry(case: Case) -> dict[str, Any]:
    entry = {key: value for key, value in case.items() if key != "subset"}
    # absolute, but not through links: what they lead to may have another name
    entry["image"] = [os.path.abspath(file) if file else "" for file in case["image"]]
    entry["label"] = os.path.abspath(case["label"]) if case["label"] else ""
    if case.get("label_parts"):
        entry["label_parts"] = [os.path.abspath(file) for file in case["label_parts"]]
    return entry
