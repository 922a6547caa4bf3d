"""What the numbers in a label file mean: tables from five published numberings to the bundle's classes.

The classes are 0 background, 1 cerebrospinal fluid (CSF), 2 grey matter (GM), 3 white matter (WM). Two more values mark
voxels whose class the label does not tell:

    CSF_OR_GM  CSF or GM: manual cortex that includes the CSF of its sulci. Left out of the loss and of the scores of
               single classes, counted in the score of the union of CSF and GM.
    IGNORE     left out of everything: brain stem, lesions, what a protocol did not delineate.

`NUMBERINGS` holds the tables. `STRUCTURES` divides FreeSurfer's numbering into the structures that are painted one by
one when images are made from label maps; FreeSurfer's table in `NUMBERINGS` follows from it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from scipy import ndimage

from bundlekit.errors import BundleError, Finding
from bundlekit.images.nifti import whole_numbers

BACKGROUND, CSF, GM, WM = 0, 1, 2, 3
DEEP_GM = 4  # of networks that tell deep grey matter from the other; GM is that alone then
CSF_OR_GM = 254
IGNORE = 255

_UNKNOWN = 253  # in the lookup tables: a number that the numbering does not have


@dataclass(frozen=True)
class Numbering:
    """One published numbering.

    Args:
        name: as users give it, `--numbering NAME`.
        source: whose numbering it is, and where it is documented.
        classes: class of each number.
        unlabelled_rim_mm: voxels numbered 0 within this distance of a labelled one are IGNORE instead of background,
            because the protocol leaves CSF unlabelled there. 0: 0 is background everywhere.
        sulcal_csf: numbers of the CSF around the brain, where some programs label it (SynthSeg) and others do not
            (FreeSurfer's aseg). A label with at least 1 % of its labelled voxels there has no such rim.
        telltale: groups of numbers; a label is taken for this numbering unasked only if it has one of each group.
    """

    name: str
    source: str
    classes: Mapping[int, int]
    unlabelled_rim_mm: float = 0.0
    sulcal_csf: tuple[int, ...] = ()
    telltale: tuple[tuple[int, ...], ...] = ()


@dataclass(frozen=True)
class Structure:
    """Numbers of FreeSurfer's table, left and right, that share one intensity in a painted image.

    Args:
        name: of the structure.
        tissue: its class, IGNORE where it has none.
        ids: its numbers.
        brain: False for what lies outside the brain and its CSF.
    """

    name: str
    tissue: int
    ids: tuple[int, ...]
    brain: bool = True


def ids_of(ranges: str) -> tuple[int, ...]:
    """Numbers of a text such as "4, 11, 49-52"."""
    numbers: list[int] = []
    for part in ranges.split(","):
        first, _, last = part.strip().partition("-")
        numbers += range(int(first), int(last or first) + 1)
    return tuple(numbers)


def _numbering(
    name: str, source: str, ranges: Mapping[int, str], rim_mm: float = 0.0, telltale: Sequence[str] = ()
) -> Numbering:
    classes = {number: tissue for tissue, text in ranges.items() for number in ids_of(text)}
    return Numbering(name, source, classes, rim_mm, telltale=tuple(ids_of(text) for text in telltale))


def _structure(name: str, tissue: int, ranges: str, brain: bool = True) -> Structure:
    return Structure(name, tissue, ids_of(ranges), brain)


# Numbers 0-499 and from 1000: FreeSurferColorLUT.txt and SynthSeg's output. 500-599: the head atlas of SimNIBS `charm`,
# as in SynthSeg's training label maps, whose 136/137/163/164 are choroid plexus and 25/57 periventricular lesions.
# 900-930: the same head structures in FreeSurfer 8. 1, 6, 9, 29, 40, 45, 48, 61, 96, 97: IBSR's `seg_ana` (CMA).
STRUCTURES: tuple[Structure, ...] = (
    _structure("background", BACKGROUND, "0, 501, 517", brain=False),
    _structure("artery", BACKGROUND, "502, 902", brain=False),
    _structure("eye", BACKGROUND, "259, 265-266, 506", brain=False),
    _structure("other soft tissue", BACKGROUND, "258, 507, 907", brain=False),
    _structure("eye muscle", BACKGROUND, "508, 908", brain=False),
    _structure("mucosa", BACKGROUND, "509, 909", brain=False),
    _structure("skin", BACKGROUND, "511, 911", brain=False),
    _structure("spinal cord", BACKGROUND, "126, 512", brain=False),
    _structure("vein", BACKGROUND, "514, 914", brain=False),
    _structure("cortical bone", BACKGROUND, "165, 515, 915", brain=False),
    _structure("cancellous bone", BACKGROUND, "516, 916", brain=False),
    _structure("optic nerve", BACKGROUND, "530, 930", brain=False),
    _structure(
        "other extra-cerebral tissue",
        BACKGROUND,
        "262-264, 500, 503-505, 510, 513, 518-519, 521-529, 531-599",
        brain=False,
    ),
    _structure("sulcal CSF", CSF, "24, 257, 520"),
    _structure("lateral ventricle", CSF, "4-5, 43-44, 75-76"),
    _structure("third to fifth ventricle", CSF, "14-15, 72"),
    _structure("choroid plexus", CSF, "31, 63, 136-137, 163-164"),
    _structure(
        "cerebral white matter",
        WM,
        "2, 34, 41, 66, 86, 192, 250-255, 3000-3035, 3100-3181, 3201-3207, 4000-4035, 4100-4181, 4201-4207, 5001-5002, "
        "13100-13175, 14100-14175",
    ),
    _structure("white matter lesion", WM, "25, 57, 77-79"),
    _structure(
        "cerebral cortex",
        GM,
        "3, 19-20, 42, 55-56, 1000-1035, 1100-1181, 2000-2035, 2100-2181, 11100-11175, 11300, 12100-12175, 12300",
    ),
    _structure("cerebellar white matter", WM, "7, 46"),
    _structure("cerebellar cortex", GM, "8, 47, 183-184"),
    _structure("thalamus", GM, "9-10, 48-49"),
    _structure("caudate", GM, "11, 50"),
    _structure("putamen", GM, "12, 51"),
    _structure("pallidum", GM, "13, 52"),
    _structure("hippocampus", GM, "17, 53"),
    _structure("amygdala", GM, "18, 54, 96-97"),
    _structure("accumbens", GM, "26, 58"),
    _structure("brain stem", IGNORE, "16, 170, 173-175, 178, 267"),
    _structure("ventral DC", IGNORE, "27-28, 59-60"),
    _structure("optic chiasm", IGNORE, "85"),
    _structure("vessel", IGNORE, "30, 62"),
    _structure("undetermined", IGNORE, "1, 6, 29, 40, 45, 61, 80-82"),
)
TISSUE_OF_STRUCTURE: tuple[int, ...] = tuple(structure.tissue for structure in STRUCTURES)
DEEP_GREY: tuple[int, ...] = tuple(
    index for index, structure in enumerate(STRUCTURES) if structure.tissue == GM and "cortex" not in structure.name
)
EXTRA_CEREBRAL: tuple[int, ...] = tuple(index for index, structure in enumerate(STRUCTURES) if not structure.brain)

NUMBERINGS: dict[str, Numbering] = {
    numbering.name: numbering
    for numbering in (
        _numbering(
            "tissue",
            "1 CSF, 2 GM, 3 WM: IBSR18 segTRI, FSL FAST, LabelsForTesting of MRBrainS13, this bundle's own results",
            {BACKGROUND: "0", CSF: "1", GM: "2", WM: "3"},
        ),
        # 4 bone, 5 soft tissue, 6 non-brain; 7 lesion, 10 brain stem, 11 cerebellum (both its tissues)
        _numbering(
            "bids",
            "1 GM, 2 WM, 3 CSF: common image-derived labels of the BIDS specification (derivatives/imaging); fMRIPrep",
            {BACKGROUND: "0, 4-6", CSF: "3", GM: "1, 8-9", WM: "2", IGNORE: "7, 10-11"},
        ),
        # 1 cortical GM, 2 basal ganglia, 3 WM, 4 WM lesions, 5 extracerebral CSF, 6 ventricles; the challenges leave
        # 9 infarction and 10 other out; 7 cerebellum and 8 brain stem hold several tissues
        _numbering(
            "mrbrains",
            "MRBrainS13 LabelsForTraining and MRBrainS18 segm: https://mrbrains18.isi.uu.nl/data",
            {BACKGROUND: "0", CSF: "5-6", GM: "1-2", WM: "3-4", IGNORE: "7-10"},
        ),
        # CSF: 3rd (4), 4th (11), 5th (15), lateral (49-52) ventricles, 46. GM: accumbens 23/30, amygdala 31-34, caudate
        # 36/37, hippocampus 47/48, pallidum 55/56, putamen 57/58, thalamus 59/60, basal forebrain 70/75/76. Cortex 100-
        # 207, insula and operculum 65-68, cerebellum 38/39 and vermis 71-73 are drawn with the CSF of their sulci.
        # Of no class: brain stem 35, exterior 42/43 (single voxels between WM, cortex and 0), lesion 53/54, ventral DC
        # 61/62, vessel 63/64, optic chiasm 69. 74 is a marker on the skin.
        _numbering(
            "neuromorphometrics",
            "MICCAI 2012 multi-atlas challenge on OASIS: http://www.neuromorphometrics.com/2012_MICCAI_Challenge_Data.html",
            {
                BACKGROUND: "0, 74",
                CSF: "4, 11, 15, 46, 49-52",
                GM: "23, 30-34, 36-37, 47-48, 55-60, 70, 75-76",
                WM: "40-41, 44-45",
                CSF_OR_GM: "38-39, 65-68, 71-73, 100-207",
                IGNORE: "35, 42-43, 53-54, 61-64, 69",
            },
            rim_mm=5.0,
            telltale=("44-45", "100-207"),
        ),
        Numbering(
            "freesurfer",
            "aseg, aparc+aseg, wmparc: FreeSurferColorLUT.txt; SynthSeg; CMA labels of IBSR18 (seg_ana)",
            {number: structure.tissue for structure in STRUCTURES for number in structure.ids},
            unlabelled_rim_mm=5.0,
            sulcal_csf=next(structure.ids for structure in STRUCTURES if structure.name == "sulcal CSF"),
            telltale=(
                ids_of("2, 41, 3000-4181, 5001-5002"),  # white matter
                ids_of("3, 42, 1000-2181, 11100-12175"),  # cortex
                ids_of("12-60"),  # anything that BIDS does not have
            ),
        ),
    )
}


def check_numbering(name: str, where: str) -> str:
    """`name`, if there is such a numbering.

    Args:
        name: of a numbering.
        where: what gave it, for the message.

    Raises:
        BundleError: if there is none.
    """
    if name not in NUMBERINGS:
        raise BundleError(
            Finding(where, f"numbering {name!r}", f"one of {', '.join(NUMBERINGS)}", "give one of these names")
        )
    return name


def to_tissue(labels: np.ndarray, numbering: str, spacing_mm: Sequence[float], file: str) -> np.ndarray:
    """Classes of a label map.

    Args:
        labels: HWD, whole numbers of any type.
        numbering: name in `NUMBERINGS`.
        spacing_mm: of the voxels, for numberings that leave CSF unlabelled next to the brain.
        file: name for the messages.

    Returns:
        HWD uint8 of BACKGROUND, CSF, GM, WM, CSF_OR_GM and IGNORE.

    Raises:
        BundleError: for numbers that the numbering does not have, and for fractions.
    """
    table = NUMBERINGS[check_numbering(numbering, file)]
    labels = whole_numbers(labels, file)
    out = _take(_tissue_table(numbering), labels)
    if (out == _UNKNOWN).any():
        unknown, counts = np.unique(labels[out == _UNKNOWN], return_counts=True)
        raise BundleError(
            Finding(
                file,
                f"number(s) that {numbering} does not have: {_with_counts(unknown, counts)}",
                f"the numbering {numbering} ({table.source})",
                f"name the label's own numbering with --numbering NAME: one of {', '.join(NUMBERINGS)}",
            )
        )
    if table.unlabelled_rim_mm > 0:
        labelled = labels != 0
        sulcal = sum(int((labels == number).sum()) for number in table.sulcal_csf)
        if sulcal < 0.01 * labelled.sum():
            _ignore_rim(out, labelled, table.unlabelled_rim_mm, spacing_mm)
    return out


def to_structures(labels: np.ndarray, file: str) -> np.ndarray:
    """Indices into `STRUCTURES` of a label map in FreeSurfer's numbering.

    Args:
        labels: HWD, whole numbers of any type.
        file: name for the messages.

    Returns:
        HWD uint8.

    Raises:
        BundleError: for numbers that `STRUCTURES` does not have, and for fractions.
    """
    labels = whole_numbers(labels, file)
    out = _take(_structure_table(), labels)
    if (out == _UNKNOWN).any():
        unknown, counts = np.unique(labels[out == _UNKNOWN], return_counts=True)
        raise BundleError(
            Finding(
                file,
                f"number(s) that freesurfer does not have: {_with_counts(unknown, counts)}",
                f"the numbering freesurfer ({NUMBERINGS['freesurfer'].source})",
                "images are painted from label maps in FreeSurfer's numbering alone: mend the label, or leave it out",
            )
        )
    return out


def require_structures(labels: np.ndarray, file: str) -> None:
    """Refuse a map of tissues, whose 1, 2 and 3 FreeSurfer has for other things.

    Args:
        labels: HWD, whole numbers of any type.
        file: name for the message.

    Raises:
        BundleError: for a map without white matter, without cortex or without any of the numbers from 12 to 60.
    """
    ids = {int(number) for number in _ids_in(whole_numbers(labels, file))}
    if all(ids & set(group) for group in NUMBERINGS["freesurfer"].telltale):
        return
    expected = "structures in FreeSurfer's numbering: white matter (2, 41), cortex (3, 42), any of 12 to 60"
    fix = "a map of tissues cannot be painted: give the map of structures, of SynthSeg for example"
    raise BundleError(Finding(file, f"the numbers {_some(ids)}", expected, fix))


def _some(ids: set[int]) -> str:
    return ", ".join(str(number) for number in sorted(ids)[:16]) + (" ..." if len(ids) > 16 else "")


def detect(labels: np.ndarray | Iterable[int], file: str) -> str:
    """Name of the numbering of a label map, by the numbers it has.

    No more numbers than 0 to 3 are `tissue`, though BIDS has the same numbers for other tissues, which only the layout
    of a data set tells. Other sets are named where exactly one numbering fits.

    Args:
        labels: label map, or the numbers in it.
        file: name for the messages.

    Raises:
        BundleError: if no numbering or more than one fits, and for fractions.
    """
    array = labels if isinstance(labels, np.ndarray) else np.asarray(list(labels))
    ids = {int(number) for number in _ids_in(whole_numbers(array, file))}
    if ids == {0, 1}:
        found, expected = "0 and 1 alone: a mask, of the brain for instance", "a label map of several tissues"
        raise BundleError(Finding(file, found, expected, "give the label; if 1 is CSF: --numbering tissue"))
    if ids <= set(NUMBERINGS["tissue"].classes):
        return "tissue"
    fits = [
        name
        for name in NUMBERINGS
        if ids <= set(NUMBERINGS[name].classes) and all(ids & set(group) for group in NUMBERINGS[name].telltale)
    ]
    return _first_or_refuse(fits, ids, file)


def _first_or_refuse(fits: Sequence[str], ids: set[int], file: str) -> str:
    if len(fits) == 1:
        return fits[0]
    why = f"which {' and '.join(fits)} have" if fits else "which no known numbering has or which too few tell apart"
    raise BundleError(
        Finding(
            file,
            f"the numbers {_some(ids)} ({len(ids)} in all), {why}",
            f"a label in one of the numberings {', '.join(NUMBERINGS)}",
            "name it with --numbering NAME",
        )
    )


def _ids_in(labels: np.ndarray) -> np.ndarray:
    """Distinct numbers; by counting, where that is possible, which is ten times as fast as `np.unique`."""
    if labels.size and labels.min() >= 0 and labels.max() < 1 << 16:
        return np.flatnonzero(np.bincount(labels.ravel()))
    return np.unique(labels)


def _take(table: np.ndarray, labels: np.ndarray) -> np.ndarray:
    if labels.size and labels.min() >= 0 and labels.max() < len(table):
        return table.take(labels, mode="clip")  # without the check of each index that was just made
    known = (labels >= 0) & (labels < len(table))
    return np.where(known, table.take(np.where(known, labels, 0)), np.uint8(_UNKNOWN))


@cache
def _tissue_table(numbering: str) -> np.ndarray:
    return _table(NUMBERINGS[numbering].classes)


@cache
def _structure_table() -> np.ndarray:
    return _table({number: index for index, structure in enumerate(STRUCTURES) for number in structure.ids})


def _table(values: Mapping[int, int]) -> np.ndarray:
    table = np.full(max(values) + 1, _UNKNOWN, np.uint8)
    table[list(values)] = list(values.values())
    table.setflags(write=False)
    return table


def _ignore_rim(out: np.ndarray, labelled: np.ndarray, rim_mm: float, spacing_mm: Sequence[float]) -> None:
    """Set the unlabelled voxels of `out` whose centres lie within `rim_mm` of a labelled one to IGNORE, in place."""
    spacing = [float(s) for s in spacing_mm]
    box = []
    for axis, step in enumerate(spacing):
        inside = np.flatnonzero(labelled.any(axis=tuple(a for a in range(labelled.ndim) if a != axis)))
        if not inside.size:
            return
        margin = int(np.ceil(rim_mm / step))
        box.append(slice(max(int(inside[0]) - margin, 0), int(inside[-1]) + margin + 1))
    part, known = out[tuple(box)], labelled[tuple(box)]
    distance_mm = ndimage.distance_transform_edt(~known, sampling=spacing)
    part[~known & (distance_mm <= rim_mm + 1e-3)] = IGNORE


def _with_counts(ids: np.ndarray, counts: np.ndarray) -> str:
    shown = ", ".join(f"{number} ({count} voxels)" for number, count in zip(ids[:8], counts[:8], strict=True))
    return shown + (f" and {len(ids) - 8} more" if len(ids) > 8 else "")
