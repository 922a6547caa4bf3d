"""Organs, and the classes that a network tells apart.

A *class* is one organ or several taken together ("kidneys"); class 0 is background. Class indices are what the network
and the scores work with; what numbers in files mean is told in `numberings`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from bundlekit.errors import BundleError, Finding

Classes = dict[str, list[str]]
"""Name of a class -> names of its organs; class 1 comes first."""

UPSTREAM_ORGANS: Classes = {"liver": ["liver"], "kidneys": ["right kidney", "left kidney"], "spleen": ["spleen"]}
"""The four classes of the write-up less background; which organs they are is this bundle's choice."""

FLARE22_ORGANS = (
    "liver", "right kidney", "spleen", "pancreas", "aorta", "inferior vena cava", "right adrenal gland",
    "left adrenal gland", "gallbladder", "esophagus", "stomach", "duodenum", "left kidney",
)  # fmt: skip

# mm, of FLARE22's own evaluation (github.com/JunMa11/FLARE, FLARE22/Evaluation)
FLARE22_TOLERANCE_MM = {
    "liver": 5.0, "right kidney": 3.0, "spleen": 3.0, "pancreas": 5.0, "aorta": 2.0, "inferior vena cava": 2.0,
    "right adrenal gland": 2.0, "left adrenal gland": 2.0, "gallbladder": 2.0, "esophagus": 3.0, "stomach": 5.0,
    "duodenum": 7.0, "left kidney": 3.0,
}  # fmt: skip
OTHER_TOLERANCE_MM = 3.0

# how TotalSegmentator names the file of an organ, where that is not the organ's name with underscores
_SEGMENTATIONS = {
    "right kidney": "kidney_right", "left kidney": "kidney_left", "right adrenal gland": "adrenal_gland_right",
    "left adrenal gland": "adrenal_gland_left", "portal and splenic vein": "portal_vein_and_splenic_vein",
    "bladder": "urinary_bladder",
}  # fmt: skip


def organ_classes(organs: Mapping[str, Sequence[str] | str] | Sequence[str] | str) -> Classes:
    """The classes of a network, from any of the three ways in which they are set.

    Args:
        organs: a mapping, class name -> organ or organs; a list of organs, each a class of its own; or "flare22", the
            13 organs of FLARE22 in the order of its numbers.

    Raises:
        BundleError: if no class is given, an organ is in two classes, or a name is none.
    """
    if organs == "flare22":
        organs = list(FLARE22_ORGANS)
    if isinstance(organs, str):
        organs = [organs]
    pairs = list(organs.items()) if isinstance(organs, Mapping) else [(name, [name]) for name in organs]
    classes = {str(name): [parts] if isinstance(parts, str) else [str(p) for p in parts] for name, parts in pairs}
    used = [organ for _, parts in pairs for organ in ([parts] if isinstance(parts, str) else parts)]
    doubled = sorted({organ for organ in used if used.count(organ) > 1})
    if not classes or not all(classes.values()) or len(classes) > 200 or "background" in classes or doubled:
        found = f"{', '.join(doubled)} in more than one class" if doubled else repr(organs)
        raise BundleError(
            Finding(
                "--organs",
                found,
                "class names with their organs, background not among them",
                'give e.g. --organs "[liver,spleen]", flare22, or a mapping from class to organs',
            )
        )
    return classes


def segmentation_file(organ: str) -> str:
    """Stem of TotalSegmentator's file of an organ."""
    return _SEGMENTATIONS.get(organ, organ.replace(" ", "_"))


def tolerance_of(organs: Sequence[str]) -> float:
    """Tolerance in mm of a class's surface score: FLARE22's, the smallest of its organs; 3 mm for other organs."""
    return min(FLARE22_TOLERANCE_MM.get(organ, OTHER_TOLERANCE_MM) for organ in organs)
