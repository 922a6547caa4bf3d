"""What the masks of a data set mean: told by the user, by the files' attributes, or by the voxels of a mask."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np

from bundlekit.cases.case import Case
from bundlekit.errors import BundleError, Finding

from .mask_channels import mask_names, tell_mask_channels
from .reading import read_mask

LABELS = [0, 1, 2, 4]  # background, NCR, ED, ET, unless told otherwise
_log = logging.getLogger(__name__)


def tell_masks(cases: Sequence[Case], mask_channels: Sequence[str] | str | None, labelled: bool) -> list[Finding]:
    """Give masks with channels their meaning: forced, else as the file said, else as the first mask that tells it.

    Args:
        cases: `mask_channels` is set in place.
        mask_channels: what the user says, see `mask_names`; None: nothing.
        labelled: whether a meaning that stays unknown is a finding.
    """
    findings: list[Finding] = []
    for count in sorted({case["mask_count"] for case in cases} - {0, 1}):
        group = [case for case in cases if case["mask_count"] == count]
        if mask_channels is not None:
            try:
                forced = mask_names(mask_channels, count)
            except ValueError as error:
                raise BundleError(str(error)) from error
            for case in group:
                case["mask_channels"] = forced
        open_ones = [case for case in group if case["mask_channels"] is None]
        told = _told_by(open_ones)
        for case in open_ones:
            case["mask_channels"] = told
        if open_ones and told is not None:
            _log.info("the channels of %s are taken as %s", open_ones[0]["mask_key"], ", ".join(told))
        if open_ones and told is None and labelled:
            found = f"{count} channels in {open_ones[0]['mask_key']}, which neither overlap nor nest so that they tell"
            fix = "say what they are: --mask_channels classes (NCR, ED, ET), regions (WT, TC, ET), or their names"
            findings.append(Finding(open_ones[0]["label"], found, "classes or regions", fix))
    return findings


def _told_by(cases: Sequence[Case]) -> list[str] | None:
    for case in cases:
        try:
            told = tell_mask_channels(read_mask(case))
        except BundleError:  # named, with everything else, when the case is decoded
            continue
        if told is not None:
            return told
    return None


def tell_et_label(cases: Sequence[Case], et_label: int | None) -> None:
    """Value of enhancing tumour: forced, else as the file says, else as the integer masks show; then tidy the cases.

    Args:
        cases: `label_values` is set in place.
        et_label: 3 or 4 for all cases; None: found out.
    """
    open_ones = [case for case in cases if case["told"] is None and case["mask_count"] < 2 and case["label"]]
    value = et_label or _seen_et_label(open_ones) or LABELS[3]
    for case in cases:
        values = case.pop("told") or [*LABELS[:3], value]
        case["label_values"] = [*values[:3], et_label or values[3]]
        if case["mask_count"] == 1:
            case["mask_channels"] = None
        del case["mask_count"], case["grid"]


def _seen_et_label(cases: Sequence[Case]) -> int | None:
    """3 or 4, whichever the first mask with one of them holds; a case with both is refused when it is decoded."""
    for case in cases:
        try:
            seen = {3, 4} & set(np.unique(read_mask(case)).tolist())
        except BundleError:
            continue
        if len(seen) == 1:
            return int(seen.pop())
    return None
