"""Which series of a study is T1, T1ce, T2 and FLAIR: by plain rules, told in a table; nothing is guessed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from bundlekit.brats.naming import MODALITIES
from bundlekit.cases.case import MOST_MISSING
from bundlekit.errors import BundleError, Finding
from bundlekit.preparation.dicom_series import Stack, Study
from bundlekit.preparation.dicom_volumes import grid_of, put_in_order
from bundlekit.preparation.sequences import Verdict, contrast_medium, judge

_THICK_MM = 2.0  # where the direction of the slices matters
_THINNER = 1.5  # longest edge of the voxel, of one that is not clearly thicker than the finest
_REFORMATTED = ("MPR", "REFORMATTED", "CSAPARALLEL", "RESAMPLED", "PROJECTION IMAGE")


@dataclass(eq=False)
class Candidate:
    """A stack and what it is.

    Args:
        stack: of slices.
        modality: T1, T1ce, T2, FLAIR; "" for none of them.
        why: for the user.
        doubt: why it must not be taken unasked; "" if nothing speaks against it.
        medium: whether contrast medium had been given, None: nothing tells it.
        maybe: modalities that it could be, where there is a doubt.
    """

    stack: Stack
    modality: str
    why: str
    doubt: str = ""
    medium: bool | None = None
    maybe: tuple[str, ...] = ()


@dataclass
class Choice:
    """The series that are taken.

    Args:
        candidates: all stacks of the study.
        taken: by modality.
        notes: which rule preferred it, by modality.
    """

    candidates: list[Candidate]
    taken: dict[str, Candidate] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)

    def table(self) -> str:
        """All series: what each is, which are taken and why."""
        heads = ("series", "description", "slices", "voxel mm", "TR/TE/TI ms", "contrast", "taken for", "why")
        rows = [heads, *(self._row(one) for one in self.candidates)]
        widths = [max(len(row[column]) for row in rows) for column in range(len(heads) - 1)]
        return "\n".join("  ".join([*(c.ljust(w) for c, w in zip(row, widths, strict=False)), row[-1]]) for row in rows)

    def _row(self, one: Candidate) -> tuple[str, ...]:
        stack, p = one.stack, one.stack.parameters
        modality = next((name for name, taken in self.taken.items() if taken is one), "-")
        times = "/".join("-" if value is None else f"{value:.4g}" for value in (p.tr, p.te, p.ti))
        medium = {True: "yes", False: "no", None: "not told"}[one.medium] if p.tr or p.te else ""
        size = "x".join(f"{mm:.3g}" for mm in _edges(stack)) if not stack.unfit else ""
        why = self.notes.get(modality, "") if modality != "-" else ""
        told = "; ".join(part for part in (one.why, one.doubt, why) if part)
        description = "".join(c if c.isprintable() else "?" for c in stack.description)[:32]
        return (stack.number or "-", description, str(len(stack.slices)), size, times, medium, modality, told)


def choose(study: Study, asked: Mapping[str, str], given: Sequence[str] = ()) -> Choice:
    """Take one series for each modality.

    A series that is asked for is taken. For the others, of the series of one contrast, those that the scanner made
    itself come before reformats of them, a voxel whose longest edge is at most two thirds before a thicker one, and of
    thick slices the axial ones before others.

    Args:
        study: whose series they are.
        asked: by modality, number or UID of a series.
        given: modalities that come from elsewhere.

    Returns:
        The choice; modalities of which there is no candidate are not in it. Call `refuse_open` to learn what is open.

    Raises:
        BundleError: for a series that is asked for and is not there, or makes no volume.
    """
    for stack in study.stacks:
        put_in_order(stack)
    choice = Choice([_candidate(stack) for stack in study.stacks])
    for modality, series in asked.items():
        taken = choice.taken[modality] = _asked(choice.candidates, modality, str(series), study)
        choice.notes[modality] = f"asked for by --{modality.lower()}"
        if taken.modality.replace("ce", "") not in ("", modality.replace("ce", "")):
            choice.notes[modality] += f", AGAINST its parameters: {taken.modality}"
        elif modality in ("T1", "T1ce") and taken.medium is (modality == "T1"):
            choice.notes[modality] += f", AGAINST its header: {'a' if taken.medium else 'no'} contrast agent is named"
    _sort_t1(choice)
    for modality in MODALITIES:
        if modality not in choice.taken and modality not in given:
            _prefer(choice, modality, given)
    return choice


def refuse_open(choice: Choice, study: Study, given: Sequence[str] = (), fill_missing: bool = False) -> None:
    """Refuse a choice that is open: several series for one modality, or one that may be.

    Args:
        choice: that `choose` made.
        study: whose series they are.
        given: modalities that come from elsewhere.
        fill_missing: accept that one or two modalities are missing, if nothing could be them.

    Raises:
        BundleError: with the options for each modality.
    """
    taken = list(choice.taken.values())
    empty = [name for name in MODALITIES if name not in choice.taken and name not in given]
    options = {modality: _options(choice, modality, taken) for modality in empty}
    findings = []
    lacking = [modality for modality in empty if not options[modality]]
    if len(lacking) > MOST_MISSING * fill_missing:
        for modality in lacking:
            found = f"no series for the {modality}"
            found += "".join(f"\n              {_option(one)}" for one in _broken(choice, modality))
            fix = f"give the series or a file: --{modality.lower()} SERIES"
            fix += ", or go on without it: --fill_missing True" if len(lacking) <= MOST_MISSING else ""
            findings.append(Finding(study.root, found, "T1, T1ce, T2 and FLAIR", fix))
    told: list[list[Candidate]] = []
    for modality in empty:
        if not options[modality] or options[modality] in told:
            continue
        told.append(options[modality])
        names = [name for name in empty if options[name] == options[modality]]
        alike = len(options[modality])
        found = "one series that may be" if alike == 1 else f"{alike} series of which each may be"
        found += f" the {' or the '.join(names)}:"
        found += "".join(f"\n              {_option(one)}" for one in options[modality])
        keys = [one.stack.key for one in choice.candidates]
        told_by = [one.stack.key if keys.count(one.stack.key) == 1 else one.stack.series for one in options[modality]]
        flags = [f"--{name.lower()} {key}" for key in told_by for name in names]
        expected = f"one series for the {' and one for the '.join(names)}"
        findings.append(Finding(study.root, found, expected, f"look at the images, then give {' or '.join(flags)}"))
    if findings:
        raise BundleError(findings)


def without(choice: Choice, given: Sequence[str] = ()) -> list[str]:
    """What a choice that `refuse_open` let pass goes on without, a line for each modality, to be shown.

    Args:
        choice: that `choose` made.
        given: modalities that come from elsewhere.
    """
    lines = []
    for modality in (name for name in MODALITIES if name not in choice.taken and name not in given):
        broken = "".join(f"; it may be {_option(one)}" for one in _broken(choice, modality))
        lines.append(f"going on WITHOUT the {modality}, the mask is worse{broken}")
    return lines


def _broken(choice: Choice, modality: str) -> list[Candidate]:
    """Series that may be a modality and make no volume."""
    return [one for one in choice.candidates if one.stack.unfit and _may_be(one, modality)]


def _options(choice: Choice, modality: str, taken: Sequence[Candidate]) -> list[Candidate]:
    """Series that may be a modality that none was taken for."""
    alike = _of(choice, modality)
    if len(alike) == 1:  # it was not taken unasked, so the others may be meant as well
        return [one for one in choice.candidates if one.modality == modality and one not in taken]
    return alike or [
        one for one in choice.candidates if modality in one.maybe and not one.stack.unfit and one not in taken
    ]


def _candidate(stack: Stack) -> Candidate:
    verdict = judge(stack.parameters)
    medium, told = contrast_medium(stack.parameters)
    if stack.unfit:
        return Candidate(stack, "", stack.unfit, medium=medium)
    if stack.unlikely:
        return Candidate(stack, "", "", f"not taken unasked: {stack.unlikely}", medium, _maybe(verdict, stack))
    if not verdict.contrast:
        return Candidate(stack, "", verdict.why, medium=medium)
    if verdict.doubt:
        hints = _maybe(verdict, stack)
        return Candidate(stack, "", "", f"not taken unasked: {verdict.doubt}", medium, hints)
    if verdict.contrast != "T1":
        return Candidate(stack, verdict.contrast, verdict.why, medium=medium)
    if medium is None and told != "no contrast agent named":
        return Candidate(stack, "", verdict.why, f"not taken unasked: {told}", medium, ("T1", "T1ce"))
    modality = "T1ce" if medium else "T1"
    return Candidate(stack, modality, f"{verdict.why}; {told}", medium=medium)


def _maybe(verdict: Verdict, stack: Stack) -> tuple[str, ...]:
    words = stack.parameters.words.lower()
    names = {verdict.contrast, *(name for name in ("T1", "T2", "FLAIR") if name.lower() in words)}
    return tuple(name for name in MODALITIES if name.replace("ce", "") in names)


def _may_be(one: Candidate, modality: str) -> bool:
    verdict = judge(one.stack.parameters)
    return bool(verdict.contrast) and modality in _maybe(verdict, one.stack)


def _asked(candidates: Sequence[Candidate], modality: str, series: str, study: Study) -> Candidate:
    option = f"--{modality.lower()} {series}"
    found = [one for one in candidates if series in (one.stack.number, one.stack.series)]
    if not found and ":" not in series:
        found = [one for one in candidates if one.stack.number.partition(":")[0] == series]
    usable = [one for one in found if not one.stack.unfit]
    if len(usable) == 1:
        return usable[0]
    there = ", ".join(one.stack.key for one in candidates)
    if len(usable) > 1:
        listed = "".join(f"\n              {one.stack.number} = {one.stack.series}: {_option(one)}" for one in usable)
        raise BundleError(
            Finding(
                study.root,
                f"{option}: {len(usable)} such series{listed}",
                "one",
                "give the number with its part, or the UID",
            )
        )
    if found:
        raise BundleError(
            Finding(str(found[0].stack), found[0].stack.unfit, f"a volume for the {modality}", "give another")
        )
    raise BundleError(Finding(study.root, f"{option}: no such series or file", f"one of {there}", "give one of these"))


def _sort_t1(choice: Choice) -> None:
    """T1s that no header says to be after contrast medium: before it, or open. What a description says can be wrong."""
    asked = [taken for modality, taken in choice.taken.items() if modality == "T1ce"]
    with_medium = [*asked, *(one for one in choice.candidates if one.medium)]
    for one in choice.candidates:
        by_header = one.medium is False and "by its description" not in one.why
        if one.modality != "T1" or by_header or one in choice.taken.values():
            continue
        before = next((other for other in with_medium if _later(one.stack, other.stack)), None)
        if before:
            doubt = f"not taken unasked: begun after series {before.stack.key}, which had contrast medium"
        elif one.medium is None and not with_medium:
            doubt = "not taken unasked: before or after contrast medium is told nowhere"
        else:
            continue
        one.modality, one.doubt, one.maybe = "", doubt, ("T1", "T1ce")


def _of(choice: Choice, modality: str) -> list[Candidate]:
    """What may be taken for a modality, after the rules."""
    left = [one for one in choice.candidates if one.modality == modality and one not in choice.taken.values()]
    own = [one for one in left if not _reformatted(one.stack)]
    left = own or left
    if left:
        finest = min(max(_edges(one.stack)) for one in left)
        left = [one for one in left if max(_edges(one.stack)) < _THINNER * finest]
    if len(left) > 1 and min(max(_edges(one.stack)) for one in left) > _THICK_MM:
        axial = [one for one in left if _plane(one.stack) == "axial"]
        left = axial or left
    return left


def _prefer(choice: Choice, modality: str, given: Sequence[str]) -> None:
    all_of = [one for one in choice.candidates if one.modality == modality and one not in choice.taken.values()]
    left = _of(choice, modality)
    if len(left) != 1:
        return
    others = [one for one in all_of if one is not left[0]]
    first = all(_later(left[0].stack, one.stack) is False for one in others)
    if modality == "T1" and left[0].medium is None and not first:
        return  # the finer T1 is not known to be the first, and may be after contrast medium: asked, not guessed
    last = all(_later(left[0].stack, one.stack) for one in others if not _reformatted(one.stack))
    if modality == "T1ce" and not last and not _has_t1(choice, given):
        for one in all_of:  # some sites name the agent in every series of a study
            one.modality, one.maybe = "", ("T1", "T1ce")
            one.doubt = "not taken unasked: contrast medium is named in all T1s, and the first may be before it"
        return
    choice.taken[modality] = left[0]
    for one in others:
        if _reformatted(one.stack) and not _reformatted(left[0].stack):
            rule = "a reformat"
        elif max(_edges(one.stack)) >= _THINNER * max(_edges(left[0].stack)):
            rule = "thicker"
        else:
            rule = f"{_plane(one.stack)}, the other axial"
        one.why += f"; series {left[0].stack.number} preferred: this one is {rule}"


def _has_t1(choice: Choice, given: Sequence[str]) -> bool:
    return "T1" in (*choice.taken, *given) or any("T1" in (one.modality, *one.maybe) for one in choice.candidates)


def _later(one: Stack, other: Stack) -> bool | None:
    """Whether it was begun after another series of its study; None where that is not told."""
    (day, time), (other_day, other_time) = one.begun, other.begun
    if not (time and other_time) or one.begun == other.begun:  # anonymisers give all series one time
        return None
    if day and other_day and day != other_day:
        return day > other_day
    return time > other_time  # without days, too: anonymised studies keep their times


def _reformatted(stack: Stack) -> bool:
    kinds = [token.upper() for token in stack.parameters.image_type]
    return any(token.startswith(_REFORMATTED) for token in kinds) or "SECONDARY" in kinds[1:2]


def _edges(stack: Stack) -> np.ndarray:
    return grid_of(stack).spacing


def _plane(stack: Stack) -> str:
    normal = np.abs(grid_of(stack).affine[:3, 2])
    return ("sagittal", "coronal", "axial")[int(np.argmax(normal))]


def _option(one: Candidate) -> str:
    stack = one.stack
    size = "" if stack.unfit else f", {' x '.join(f'{mm:.3g}' for mm in _edges(stack))} mm, {_plane(stack)}"
    told = "; ".join(part for part in (one.why, one.doubt.replace("not taken unasked: ", "")) if part)
    return f"{stack.key}: {stack.description!r}, {len(stack.slices)} slices{size}: {told}"
