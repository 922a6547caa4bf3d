"""The split of a data set into training and validation, by patient, and the datalist that records it.

A case is a plain dict, so that it can be hashed, cached and written as JSON. Of its keys these modules know `case`
(name, unique within the data set), `patient` (name that all scans of one patient share), `image` (list of files),
`label` (file, "" where there is none) and `subset` ("training" or "validation" where a datalist says so, else "").
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from sklearn.model_selection import GroupKFold

from bundlekit.cases.case import Case
from bundlekit.cases.datalist import TRAINED_ON, read_record
from bundlekit.cases.patients import patient_of
from bundlekit.errors import BundleError, Finding

_log = logging.getLogger(__name__)


def split_cases(
    cases: Sequence[Case],
    train_cases: int = 1000,
    train_fraction: float = 0.8,
    trained: str | os.PathLike | Sequence[str] | None = None,
) -> dict[str, list[Case]]:
    """Upstream's split, in a form that also serves smaller folders: the first `train_cases` train, the rest validate.

    scikit-learn's `GroupShuffleSplit` keeps patients together, too, but upstream takes the first cases, not drawn ones.
    Scans of one patient stay on one side: the patient at the boundary trains. Where a datalist names a validation
    part, that is the split.

    Args:
        cases: in sorted order.
        train_cases: number of cases that train, where there are more than that.
        train_fraction: the part of the cases that trains where there are not more than `train_cases`, 0 to 1.
        trained: the datalist that a training wrote beside its checkpoints. Where that file or a `trained_on.json`
            beside it exists, the patients in them are "training" and all others "validation", whatever folder the cases
            come from. Cases that `cases` has as "validation" (a datalist marks them) stay so, with a warning, if only
            weights that a fine-tuning began with knew them. Several of them for an ensemble.

    Returns:
        `{"training": [...], "validation": [...]}`.

    Raises:
        BundleError: if one side is left without a case (with `trained`: if no case is left for validation), or cases of
            two patients are one file, which a link makes.
    """
    _refuse_shared_files(cases)
    if cases and _records(trained):
        known = _known(cases, trained)
        names = {case["case"] for case in known}
        unseen = [case for case in cases if case["case"] not in names]
        seen = _seen(cases, _records(trained))
        flattered = sorted(case["case"] for case in unseen if case["case"] in seen)
        if flattered:
            text = "weights that began the training knew %d of these cases, their scores flatter: %s"
            _log.warning(text, len(flattered), ", ".join(flattered))
        if not unseen:
            raise BundleError(
                f"all {len(cases)} case(s) trained the network, say their names and {_records(trained)[0]}. Give other "
                "cases, or score them knowingly with --subset training; if they are other people of the same names: "
                "--trained '$None' --subset all, with the quotes."
            )
        return {"training": known, "validation": unseen}
    if any(case["subset"] == "validation" for case in cases):
        training = [case for case in cases if case["subset"] == "training"]
        validation = [case for case in cases if case["subset"] == "validation"]
        both = sorted({c["patient"] for c in training} & {c["patient"] for c in validation})
        if both:
            raise BundleError(f"the datalist puts scans of one patient into training and validation: {', '.join(both)}")
    else:
        wanted = train_cases if len(cases) > train_cases else round(train_fraction * len(cases))
        patients: dict[str, list[Case]] = {}
        for case in cases:
            patients.setdefault(case["patient"], []).append(case)
        training, validation = [], []
        for position, scans in enumerate(patients.values()):
            last = position == len(patients) - 1 and bool(training)  # small folders: keep somebody to validate on
            (training if len(training) < max(wanted, 1) and not last else validation).extend(scans)
        # in the order of the cases, as a resumed run, which takes the parts from datalist.json, has them
        trains = {case["case"] for case in training}
        training = [case for case in cases if case["case"] in trains]
        validation = [case for case in cases if case["case"] not in trains]
    if cases and not (training and validation):
        people = sorted({str(case["patient"]) for case in cases})
        some = ", ".join(people[:3]) + (", ..." if people[3:] else "")
        raise BundleError(
            f"{len(cases)} case(s) of {len(people)} patient(s) ({some}) give {len(training)} for training and "
            f"{len(validation)} for validation; expected at least one each, from different patients. Add cases, or "
            'give a datalist with a validation part, or with the "patient" of each case.'
        )
    return {"training": training, "validation": validation}


def fold_cases(cases: Sequence[Case], fold: int, num_folds: int = 5, seed: int = 0) -> dict[str, list[Case]]:
    """One fold of a cross-validation: a `num_folds`-th of the patients validates, all others train.

    By scikit-learn's `GroupKFold`, the groups being the patients, shuffled. The folds depend on the names of the
    patients and on the seed alone, so that every machine and every start finds the same. Scans of one patient stay on
    one side. All cases take part, whatever part a datalist puts them into.

    Args:
        cases: in any order.
        fold: 0 to `num_folds` - 1.
        num_folds: 2 or more.
        seed: of the patients' order.

    Returns:
        As `split_cases`; empty lists for no cases.

    Raises:
        BundleError: if there is no such fold, there are fewer patients than folds, or cases of two patients are one
            file.
    """
    if num_folds < 2 or not 0 <= fold < num_folds:
        raise BundleError(
            f"fold is {fold} of num_folds {num_folds}; expected num_folds 2 or more and fold 0 to num_folds - 1."
        )
    _refuse_shared_files(cases)
    patients = [case["patient"] for case in cases]
    if not patients:
        return {"training": [], "validation": []}
    if len(set(patients)) < num_folds:
        raise BundleError(
            f"{len(cases)} case(s) of {len(set(patients))} patient(s) cannot be divided into {num_folds} folds. Add "
            "cases or set a smaller num_folds."
        )
    folds = list(GroupKFold(num_folds, shuffle=True, random_state=seed).split(cases, groups=patients))
    training, validation = ([cases[int(position)] for position in side] for side in folds[fold])
    return {"training": training, "validation": validation}


def _refuse_shared_files(cases: Sequence[Case]) -> None:
    """Refuse one scan under the names of two patients, which could train and validate."""
    seen: dict[tuple[int, int], Case] = {}
    for case in cases:
        file = next((file for file in case.get("image", ()) if file), case.get("label", ""))
        try:
            status = os.stat(file)
        except OSError:  # named when it is decoded
            continue
        other = seen.setdefault((status.st_dev, status.st_ino), case)
        if other["patient"] != case["patient"]:
            raise BundleError(
                Finding(
                    file,
                    f"one file under two names, of the cases {other['case']} and {case['case']}",
                    "each scan once, so that none trains and validates",
                    'remove the link, or give both the same "patient" in a datalist',
                )
            )


def repeated(split: Mapping[str, Sequence[Case]], repeats: Mapping[str, int] | str | None) -> list[Case]:
    """The cases that train, those of a rare kind as often as they are to be seen in an epoch.

    Args:
        split: as `split_cases` returns it.
        repeats: names of cases, and how often each is seen where others are seen once; or YAML of it. Those that do
            not train are passed over, so that all folds of a cross-validation take the same. None: every case once.

    Returns:
        Every case once, in its order, then those of `repeats` again.

    Raises:
        BundleError: for a name that is in neither part, or a number that is not whole or below 1.
    """
    if isinstance(repeats, str):  # Fire hands on {NAME: 3} as text where a name has a hyphen or begins with a digit
        with contextlib.suppress(yaml.YAMLError):
            repeats = yaml.safe_load(repeats)
    if repeats is not None and not isinstance(repeats, Mapping):
        raise BundleError(f"repeats is {repeats!r}; expected names of cases with numbers, e.g. {{'NAME': 3}}.")
    wanted = {str(name): times for name, times in (repeats or {}).items()}
    for name, times in wanted.items():
        if type(times) is not int or times < 1:
            raise BundleError(f"repeats has {times!r} for {name}; expected a whole number, 1 or more.")
    training = list(split["training"])
    known = {case["case"] for part in split.values() for case in part}
    if known and (unknown := sorted(set(wanted) - known)):
        raise BundleError(
            f"repeats names {', '.join(unknown)}; expected names of the {len(known)} cases, in quotes, such as "
            f"{{'{min(known)}': 3}}."
        )
    return training + [case for case in training for _ in range(wanted.get(case["case"], 1) - 1)]


def select_cases(
    cases: Sequence[Case],
    subset: str = "validation",
    train_cases: int = 1000,
    train_fraction: float = 0.8,
    trained: str | os.PathLike | Sequence[str] | None = None,
) -> list[Case]:
    """The cases to score: a part of the split, or all.

    Args:
        cases: as in `split_cases`.
        subset: "validation", "training" or "all".
        train_cases: as in `split_cases`.
        train_fraction: as in `split_cases`.
        trained: as in `split_cases`.

    Raises:
        BundleError: for another subset, or a part that is empty.
    """
    if subset not in ("validation", "training", "all"):
        raise BundleError(f"subset is {subset!r}; expected validation, training or all.")
    known = _known(cases, trained)
    seen = _seen(cases, _records(trained))
    flattering = known if subset == "training" else [case for case in cases if case["case"] in seen]
    if subset != "validation" and flattering:
        _log.warning("%d of these cases trained the network: their scores flatter it", len(flattering))
    if subset == "all":
        return list(cases)
    if subset == "training" and known:
        return known
    if subset == "training" and cases and _records(trained):
        raise BundleError(
            f"none of the {len(cases)} case(s) trained the network, says {_records(trained)[0]}. Leave out --subset "
            "training, or give the data set of its training."
        )
    part = split_cases(cases, train_cases, train_fraction, trained)[subset] if cases else []
    left = _of_other_files(flattering, _records(trained)) if subset == "validation" else []
    if left:
        some = ", ".join(left[:5]) + (", ..." if left[5:] else "")
        text = (
            "%d cases trained the network by their names, though it trained on other files, and are not scored: %s; "
            "if they are other people of the same names: --trained '$None' --subset all"
        )
        _log.warning(text, len(left), some)
    if len(part) < len(cases):
        _log.info("scoring %d of %d cases (subset %s); --subset all scores all", len(part), len(cases), subset)
    return part


def _records(trained: str | os.PathLike | Sequence[str] | None) -> list[Path]:
    """Those of the datalists that exist, and the lists of cases beside them (see `datalist.trained_cases`)."""
    several = [] if trained is None else [trained] if isinstance(trained, (str, os.PathLike)) else trained
    files = [path for file in several for path in (Path(file), Path(file).with_name(TRAINED_ON))]
    return [path for path in files if path.is_file()]


def _known(cases: Sequence[Case], trained: str | os.PathLike | Sequence[str] | None) -> list[Case]:
    """Those of the cases that trained, but the validation part of a datalist that only earlier weights knew."""
    records = _records(trained)
    fine_tuned = {file.parent for file in records if file.name != TRAINED_ON}
    own = [file for file in records if file.name != TRAINED_ON or file.parent not in fine_tuned]
    seen, seen_here = _seen(cases, records), _seen(cases, own)
    return [c for c in cases if c["case"] in (seen_here if c["subset"] == "validation" else seen)]


def _of_other_files(cases: Sequence[Case], records: Sequence[Path]) -> list[str]:
    """Names of those of the cases whose names trained, but with other files: those of another data set, or moved."""
    files: dict[str, set[str]] = {}
    for record in records:
        for entry in read_record(record)["training"]:
            images = entry.get("image") or []
            own = {str(file) for file in ([images] if isinstance(images, str) else images) if file}
            files.setdefault(str(entry.get("case")), set()).update(own)
    names = []
    for case in cases:
        trained = files.get(str(case["case"]))
        if trained and not trained & {os.path.abspath(file) for file in case["image"] if file}:
            names.append(str(case["case"]))
    return names


def _seen(cases: Sequence[Case], records: Sequence[Path]) -> set[str]:
    """Names of those of the cases whose patient trained, by the records.

    A record and a data set may call one patient by different names: a case is known by its own name, too, by the
    patient that this name tells of, and by another scan of its patient that is known. A case of the validation part of
    a record is known to that record by its patient alone: there somebody has said who is who.
    """
    patients: set[str] = set()
    for file in records:
        record = read_record(file)
        trained = {name for entry in record["training"] for name in names_of(entry)}
        apart = {str(entry.get("case")) for entry in record.get("validation", [])}
        patients |= {
            case["patient"]
            for case in cases
            if ({case["patient"]} if case["case"] in apart else names_of(case)) & trained
        }
    return {case["case"] for case in cases if case["patient"] in patients}


def names_of(entry: Mapping[str, Any]) -> set[str]:
    """What a case, or an entry of a record, and its patient are called."""
    case, patient = str(entry.get("case") or ""), str(entry.get("patient") or "")
    # an earlier version may have told scans apart that are of one patient
    return {case, patient, patient_of(case)} - {""}
