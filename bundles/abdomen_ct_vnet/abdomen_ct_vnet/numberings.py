"""The published numberings of organs in label files. A further one is a further entry of `NUMBERINGS`.

A *numbering* says which organ a number in a label file is; results are written in a numbering, too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from bundlekit.errors import BundleError, Finding
from bundlekit.images.nifti import whole_numbers

from .organs import FLARE22_ORGANS, Classes

_UNKNOWN = 255  # in the lookup tables: a number that the numbering does not have


@dataclass(frozen=True)
class Numbering:
    """What the numbers of a label file mean.

    Args:
        name: as users give it, `--numbering NAME`.
        source: whose numbering it is.
        organs: number -> organ.
        last: numbers up to this one that are no key of `organs` are structures that no class here can have.
    """

    name: str
    source: str
    organs: Mapping[int, str]
    last: int = 0


def _numbered(*names: str, start: int = 1) -> dict[int, str]:
    return dict(enumerate(names, start))


_PAIRS = ("right kidney", "left kidney", "gallbladder")

NUMBERINGS: dict[str, Numbering] = {
    numbering.name: numbering
    for numbering in (
        Numbering("flare22", "MICCAI FLARE 2022; that of results, too, unless told", _numbered(*FLARE22_ORGANS)),
        Numbering(
            "btcv",
            "Beyond the Cranial Vault, Synapse syn3193805; it has no duodenum",
            _numbered(
                "spleen", *_PAIRS, "esophagus", "liver", "stomach", "aorta", "inferior vena cava",
                "portal and splenic vein", "pancreas", "right adrenal gland", "left adrenal gland",
            ),
        ),
        Numbering(
            "amos",
            "AMOS 2022",
            _numbered(
                "spleen", *_PAIRS, "esophagus", "liver", "stomach", "aorta", "inferior vena cava", "pancreas",
                "right adrenal gland", "left adrenal gland", "duodenum", "bladder", "prostate or uterus",
            ),
        ),
        Numbering(
            "totalsegmentator_v1",
            "TotalSegmentator 1, 104 structures in one file",
            _numbered(
                "spleen", *_PAIRS, "liver", "stomach", "aorta", "inferior vena cava", "portal and splenic vein",
                "pancreas", "right adrenal gland", "left adrenal gland",
            )
            | {42: "esophagus", 55: "small bowel", 56: "duodenum", 57: "colon", 104: "bladder"},
            last=104,
        ),
        Numbering(
            "totalsegmentator_v2",
            "TotalSegmentator 2, 117 structures in one file",
            _numbered("spleen", *_PAIRS, "liver", "stomach", "pancreas", "right adrenal gland", "left adrenal gland")
            | {15: "esophagus", 18: "small bowel", 19: "duodenum", 20: "colon", 21: "bladder", 22: "prostate"}
            | {52: "aorta", 63: "inferior vena cava", 64: "portal and splenic vein"},
            last=117,
        ),
    )
}  # fmt: skip


def numbering_of(numbering: str | Mapping[str, int], where: str) -> Numbering:
    """A numbering by its name, or one that a user spells out as organ -> number.

    Args:
        numbering: name in `NUMBERINGS`, or a mapping.
        where: what gave it, for the message.

    Raises:
        BundleError: for another name, or numbers that are not different whole numbers from 1 to 254.
    """
    if isinstance(numbering, Mapping):
        try:
            table = {int(number): str(organ) for organ, number in numbering.items()}
        except (TypeError, ValueError):
            table = {}
        if len(table) == len(numbering) and table and min(table) > 0 and max(table) < _UNKNOWN:
            return Numbering("your own", "--numbering", table)
    elif numbering in NUMBERINGS:
        return NUMBERINGS[numbering]
    raise BundleError(
        Finding(
            where,
            f"numbering {numbering!r}",
            f"one of {', '.join(NUMBERINGS)}, or organs with their numbers from 1 to 254",
            "give e.g. --numbering amos, or --numbering \"{'liver': 1, 'spleen': 2}\"",
        )
    )


def label_values(classes: Classes, numbering: str | Mapping[str, int]) -> list[int]:
    """The values that results are written with: 0, then for each class the number of its first organ.

    Raises:
        BundleError: if the numbering has no number for it.
    """
    table = numbering_of(numbering, "--output_numbering")
    numbers = {organ: number for number, organ in table.organs.items()}
    missing = [name for name, organs in classes.items() if organs[0] not in numbers]
    if missing:
        raise BundleError(
            Finding(
                "--output_numbering",
                f"{table.name}, which has no number for {', '.join(missing)}",
                "a numbering that has the first organ of each class",
                "give another --output_numbering, a mapping from organ to number, or null for one that has all",
            )
        )
    return [0, *(numbers[organs[0]] for organs in classes.values())]


def output_numbering_of(
    chosen: str | Mapping[str, int] | None, classes: Classes, own: Sequence[str | Mapping[str, int]] = ()
) -> str | Mapping[str, int]:
    """The numbering in which results of a network are written; it has a number for every class.

    Args:
        chosen: what is set: a name in `NUMBERINGS`, organ -> number, or "dataset": as each case's own labels. None:
            FLARE22's; where that lacks a class, the data set's own; where that does, too, or there are several, 1, 2,
            3 in the order of the classes.
        classes: of the network.
        own: the numberings of the data set's labels, one for each case; those that nobody told ("") do not count.

    Raises:
        BundleError: if there is no such numbering, or it has no number for a class.
    """
    if chosen is not None:
        if chosen != "dataset":
            label_values(classes, chosen)
        return chosen
    told: list[str | Mapping[str, int]] = []
    for numbering in own:
        if numbering and numbering not in told:
            told.append(numbering)
    for numbering in ("flare22", *(told if len(told) == 1 else [])):
        known = numbering_of(numbering, "--numbering").organs.values()
        if all(organs[0] in known for organs in classes.values()):
            return numbering
    return {organs[0]: number for number, organs in enumerate(classes.values(), 1)}


def check_organs(classes: Classes, numbering: Numbering, file: str) -> list[Finding]:
    """A finding if a data set's numbering lacks an organ of a class: it would be learnt as background."""
    missing = [organ for organs in classes.values() for organ in organs if organ not in numbering.organs.values()]
    if not missing:
        return []
    return [
        Finding(
            file,
            f"labels in the numbering {numbering.name}, which has no {', '.join(missing)}",
            f"every organ of the classes {', '.join(classes)}",
            "leave that organ out of --organs, or this data set out; if the numbering is wrong, give --numbering",
        )
    ]


def to_classes(labels: np.ndarray, numbering: Numbering, classes: Classes, file: str) -> np.ndarray:
    """Class indices of a label map; organs of no class become background.

    Args:
        labels: HWD, whole numbers of any type.
        numbering: what they mean.
        classes: of the network.
        file: name for the messages.

    Returns:
        HWD uint8.

    Raises:
        BundleError: for numbers that the numbering does not have, and for fractions.
    """
    whole = whole_numbers(labels, file)
    table: np.ndarray = np.full(max(numbering.last, *numbering.organs) + 1, _UNKNOWN, np.uint8)
    table[: numbering.last + 1] = 0
    table[0] = 0
    table[list(numbering.organs)] = 0
    index = {organ: i for i, organs in enumerate(classes.values(), 1) for organ in organs}
    for number, organ in numbering.organs.items():
        table[number] = index.get(organ, 0)
    known = (whole >= 0) & (whole < len(table))
    out = table[np.where(known, whole, 0)] if not known.all() else table[whole]
    wrong = ~known | (out == _UNKNOWN)
    if wrong.any():
        values, counts = np.unique(whole[wrong], return_counts=True)
        some = ", ".join(f"{v} ({n} voxels)" for v, n in zip(values[:8], counts[:8], strict=True))
        raise BundleError(
            Finding(
                file,
                f"number(s) that {numbering.name} does not have: {some}" + (" ..." if len(values) > 8 else ""),
                f"the numbering {numbering.name} ({numbering.source})",
                f"give the label's own --numbering: one of {', '.join(NUMBERINGS)}, or organs with numbers",
            )
        )
    return out
