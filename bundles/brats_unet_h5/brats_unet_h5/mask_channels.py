"""What the channels of a mask are: classes or regions, by their names or by what one mask shows."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

CLASSES = ("NCR", "ED", "ET")
REGION_NAMES = ("WT", "TC", "ET")
_PRESETS = {"classes": CLASSES, "regions": REGION_NAMES}


def mask_names(given: str | Sequence[str], count: int) -> list[str]:
    """Names of a mask's channels, from a preset or the names themselves.

    Args:
        given: "classes" (NCR, ED, ET; with four channels the background first), "regions" (WT, TC, ET), or the names of
            the channels in order.
        count: channels of the mask.

    Raises:
        ValueError: if the names are not those of classes or of regions, or of another number of channels.
    """
    words = [given] if isinstance(given, str) else [str(name) for name in given]
    known = {name.lower(): name for name in (*CLASSES, *REGION_NAMES, "BG")} | {"background": "BG", "edema": "ED"}
    known |= {"oedema": "ED", "net": "NCR", "ncr/net": "NCR"}
    names = [known.get(word.lower(), word) for word in words]
    if len(words) == 1 and words[0].lower() in _PRESETS:
        names = list(_PRESETS[words[0].lower()])
        names = ["BG", *names] if count == len(names) + 1 else names
    core = sorted(name for name in names if name != "BG")
    if core not in (sorted(CLASSES), sorted(REGION_NAMES)) or len(names) != count:
        raise ValueError(
            f"mask_channels is {list(words)} for masks of {count} channels; expected classes, regions, or the names of "
            'the channels in order, e.g. "[NCR,ED,ET]" or "[TC,WT,ET]" (BG for the background).'
        )
    return names


def tell_mask_channels(mask: np.ndarray) -> list[str] | None:
    """Meaning of a mask's channels (CHWD, 0 is no member), where one mask tells it; None where it does not.

    Three channels of which each lies within another are WT, TC and ET, from large to small; three that share no
    voxel are taken as NCR, ED and ET, in the order of their labels, unless they cover every voxel, so that one is the
    background. Four that cover every voxel once, the first the largest, are the same after the background.
    """
    inside = mask != 0
    sizes = inside.reshape(len(inside), -1).sum(axis=1)
    if len(inside) == 4:
        once = bool((inside.sum(axis=0) == 1).all())
        return ["BG", *CLASSES] if once and int(sizes.argmax()) == 0 and (sizes[1:] > 0).any() else None
    if len(inside) != 3 or (sizes > 0).sum() < 2:
        return None
    covered = inside.sum(axis=0)
    if (covered == 1).all():  # one of the three is the background
        return None
    if int((covered > 1).sum()) == 0:
        return list(CLASSES)
    order = np.argsort(-sizes, kind="stable")
    nested = all(not (inside[small] & ~inside[large]).any() for large, small in itertools.pairwise(order))
    if not nested or len(set(sizes.tolist())) < 3:
        return None
    names = [""] * 3
    for name, channel in zip(REGION_NAMES, order, strict=True):
        names[int(channel)] = name
    return names
