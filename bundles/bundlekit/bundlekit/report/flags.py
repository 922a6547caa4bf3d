"""Reasons to look at a result before it is used: each with a name, a value, a limit and a sentence."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bundlekit.errors import BundleError, Finding
from bundlekit.images.components import components
from bundlekit.report.volumes import Volume

_LITTLE = 0.01  # share of core in a piece of a tumour


@dataclass(frozen=True)
class Flag:
    """Something of a case that should be looked at."""

    name: str
    value: float
    sentence: str


@dataclass(frozen=True)
class Result:
    """What the checks know of a case."""

    classes: np.ndarray  # HWD, class indices on the scan's own grid
    volumes: Mapping[str, Volume]  # of classes and regions, by name
    brain_ml: float | None  # None: unknown
    removed_ml: float = 0.0  # by the cleaning of the mask
    grid_known: bool = True  # whether its file tells voxel size and orientation
    order_doubt: str = ""  # which modalities look like others
    missing_modalities: str = ""  # names of those that zeros stand for
    intensity_distance: float = 0.0  # squared Mahalanobis distance from the scans of known cases
    confidence: Mapping[str, float] = field(default_factory=dict)  # of classes and regions, see `AddConfidenced`


def flags_of(result: Result, limits: Mapping[str, Any]) -> list[Flag]:
    """The flags of a case.

    Args:
        result: of the case.
        limits: name of a check -> its limit, as `require_limits` lets pass.
    """
    on = {name: limit for name, limit in limits.items() if limit is not None and limit is not False}
    found = [CHECKS[name].run(result, limit) for name, limit in on.items()]
    return [flag for flag in found if flag is not None]


def require_limits(limits: Mapping[str, Any], names: Collection[str]) -> None:
    """Refuse what is no check, or no limit of it; null or false switches any off.

    Args:
        limits: name of a check -> its limit.
        names: of the classes and regions that have volumes.

    Raises:
        BundleError: all findings at once.
    """
    findings = []
    for name, limit in limits.items():
        if name not in CHECKS:
            expected = f"one of {', '.join(CHECKS)}"
            findings.append(Finding(f"checks::{name}", "no such check", expected, "see docs/results.md"))
        elif limit is not None and limit is not False and not CHECKS[name].takes(limit, names):
            expected = f"{CHECKS[name].limit.format(names=', '.join(names))}, or null to switch it off"
            findings.append(Finding(f"checks::{name}", repr(limit), expected, "see docs/results.md"))
    if findings:
        raise BundleError(findings)


def _true(value: Any, names: Collection[str] = ()) -> bool:
    return value is True


def _number(value: Any, names: Collection[str] = ()) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value >= 0


def _range(value: Any, names: Collection[str] = ()) -> bool:
    pair = isinstance(value, Sequence) and not isinstance(value, str) and len(value) == 2
    return pair and all(map(_number, value)) and value[0] <= value[1]


def _by_name(value: Any, names: Collection[str]) -> bool:
    return isinstance(value, Mapping) and set(value) <= set(names) and all(map(_number, value.values()))


def _shares(value: Any, names: Collection[str]) -> bool:
    return (
        isinstance(value, Mapping)
        and set(value) <= set(names)
        and all(
            isinstance(one, Sequence) and len(one) == 3 and one[0] in names and _range(one[1:])
            for one in value.values()
        )
    )


def _nothing_found(result: Result, limit: bool) -> Flag | None:
    if result.classes.any():
        return None
    return Flag("nothing_found", 0.0, "The mask is empty: nothing was found.")


def _at_the_border(result: Result, limit: float) -> Flag | None:
    """Share of the mask in the outermost layer of the field of view."""
    total = np.count_nonzero(result.classes)
    if not total:
        return None
    share = (total - np.count_nonzero(result.classes[1:-1, 1:-1, 1:-1])) / total
    if share <= limit:
        return None
    return Flag("at_the_border", share, f"{share:.1%} of the mask lie at the border of the scan: the scan ends in it.")


def _brain_volume(result: Result, limit: Sequence[float]) -> Flag | None:
    if result.brain_ml is None or limit[0] <= result.brain_ml <= limit[1]:
        return None
    volume = _rounded(result.brain_ml, limit, 0)
    told = f"The brain has {volume:g} ml; {limit[0]:g} to {limit[1]:g} ml were expected."
    return Flag("brain_volume", result.brain_ml, f"{told} Is the skull in it, or a part of the brain missing?")


def _many_components(result: Result, limit: Mapping[str, int]) -> Flag | None:
    for name, most in limit.items():
        n = result.volumes[name].components
        if n > most:
            return Flag("many_components", n, f"{name} is in {n} pieces, more than {most}: some may be false.")
    return None


def _largest_part(result: Result, limit: Mapping[str, float]) -> Flag | None:
    """A part of a region that lies apart from its main mass and is not small."""
    for name, least in limit.items():
        volume = result.volumes[name]
        share = volume.largest_ml / volume.ml if volume.ml else 1.0
        if share < least:
            holds = 100 * _rounded(share, [least], 2)
            told = f"The largest piece of {name} holds {holds:g}% of it, less than {100 * least:g}%"
            return Flag("largest_part", share, f"{told}: several lesions, or a false one.")
    return None


def _little_core(result: Result, limit: float) -> Flag | None:
    """Pieces of a tumour of BraTS (1 and 3: core, 2: oedema) of which less than a hundredth is core."""
    total_ml = max((volume.ml for volume in result.volumes.values()), default=0.0)  # of the whole tumour
    if total_ml <= limit:
        return None
    pieces, _ = components(result.classes > 0)
    sizes = np.bincount(pieces.ravel())
    core = np.bincount(pieces[(result.classes > 0) & (result.classes != 2)], minlength=len(sizes))
    little = core < _LITTLE * sizes
    little[0] = False
    ml = total_ml * float(sizes[little].sum() / max(sizes[1:].sum(), 1))
    if ml <= limit:
        return None
    told = f"{ml:.3g} ml of the mask lie in pieces with hardly any core"
    return Flag("little_core", ml, f"{told}: oedema whose lesion is not seen, or a false finding.")


def _removed(result: Result, limit: float) -> Flag | None:
    if result.removed_ml <= limit:
        return None
    told = f"{result.removed_ml:.2f} ml that lay apart were removed from the mask"
    return Flag("removed", result.removed_ml, f"{told}: false findings, or small lesions.")


def _share(result: Result, limit: Mapping[str, Sequence[Any]]) -> Flag | None:
    """A part outside of the range that its whole gives it: name -> [whole, least, most]."""
    for name, (whole, least, most) in limit.items():
        total = result.volumes[whole].ml
        share = result.volumes[name].ml / total if total else least
        if not least <= share <= most:
            is_now = 100 * _rounded(share, [least, most], 2)
            told = f"{name} is {is_now:g}% of {whole}; {100 * least:g}% to {100 * most:g}% were expected."
            return Flag("share", share, told)
    return None


def _grid_unknown(result: Result, limit: bool) -> Flag | None:
    if result.grid_known:
        return None
    told = (
        "The file does not tell how it lies in space: left and right are open, and where it has no voxel size (HDF5), "
        "ml are those of voxels of 1 mm."
    )
    return Flag("grid_unknown", 1.0, told)


def _missing(result: Result, limit: bool) -> Flag | None:
    if not result.missing_modalities:
        return None
    names = result.missing_modalities
    told = f"No {names}: zeros stood for what is missing, and the mask is worse than with all modalities."
    return Flag("missing", 1.0 + names.count(","), told)


def _modalities(result: Result, limit: bool) -> Flag | None:
    if not result.order_doubt:
        return None
    told = f"By their intensities {result.order_doubt}: were files exchanged? The mask is wrong then."
    return Flag("modalities", 1.0, told)


def _intensities(result: Result, limit: float) -> Flag | None:
    distance = result.intensity_distance
    if distance <= limit:
        return None
    told = f"The intensities are unlike those of known cases (distance {distance:.0f}, above {limit:g})"
    return Flag("intensities", distance, f"{told}: a strong bias field, another contrast, or exchanged files.")


def _confidence(result: Result, limit: Mapping[str, float]) -> Flag | None:
    for name, least in limit.items():
        found = result.confidence.get(name, 1.0)
        if found < least:
            told = f"The network is unsure of {name}: confidence {_rounded(found, [least], 2):g}, below {least:g}"
            return Flag("confidence", found, f"{told}. Where masks were right, few were below.")
    return None


def _rounded(value: float, limits: Sequence[float], digits: int) -> float:
    """`value` for a sentence, with so many digits more that it is on its own side of each limit still."""
    while digits < 9:
        shown = round(value, digits)
        if all((shown < limit) == (value < limit) and (shown > limit) == (value > limit) for limit in limits):
            return shown
        digits += 1
    return value


@dataclass(frozen=True)
class Check:
    """A reason to look at a case, and what its limit has to be."""

    run: Callable[[Result, Any], Flag | None]
    limit: str  # in words
    takes: Callable[[Any, Collection[str]], bool]  # a limit, and the names of classes and regions


CHECKS = {
    "missing": Check(_missing, "true", _true),
    "modalities": Check(_modalities, "true", _true),
    "intensities": Check(_intensities, "a squared distance, e.g. 54", _number),
    "grid_unknown": Check(_grid_unknown, "true", _true),
    "nothing_found": Check(_nothing_found, "true", _true),
    "at_the_border": Check(_at_the_border, "a share, e.g. 0.002", _number),
    "brain_volume": Check(_brain_volume, "the least and the most ml, e.g. [900, 2000]", _range),
    "many_components": Check(_many_components, "numbers by name, of {names}", _by_name),
    "largest_part": Check(_largest_part, "shares by name, of {names}", _by_name),
    "little_core": Check(_little_core, "ml, e.g. 5", _number),
    "confidence": Check(_confidence, "shares by name, of {names}", _by_name),
    "removed": Check(_removed, "ml", _number),
    "share": Check(_share, "[whole, least, most] by name, of {names}", _shares),
}
