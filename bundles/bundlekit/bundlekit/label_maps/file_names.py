"""What the name of a file says about a head: which volumes a folder holds, whose they are, FreeSurfer's folders."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from bundlekit.cases.folders import walk

VOLUME = re.compile(r"\.(nii(\.gz)?|mgz)$", re.IGNORECASE)
"""The end of a file name that is a volume's."""

SYNTHSEG = re.compile(r"^(.+)_synthseg$")
"""The stem of one of SynthSeg's results, and in it that of the scan."""

FREESURFER_LABELS = {"aseg": 0, "aparc+aseg": 1, "wmparc": 2, "aseg.presurf": 3}
"""Stems of label maps in a FreeSurfer subject's `mri`, and their rank: the lowest is preferred."""


def stem_of(path: Path) -> str:
    """Name of a volume without its ending."""
    return VOLUME.sub("", path.name)


def in_freesurfer(path: Path) -> bool:
    """Whether a file is a volume in the `mri` folder of a FreeSurfer subject."""
    return path.name.endswith(".mgz") and _is_subject(path.parent, [file.name for file in path.parent.glob("*.mgz")])


def volumes_below(root: Path) -> list[Path]:
    """NIfTI and MGH files below a folder, as `bundlekit.cases.folders.walk` finds them."""
    return [folder / name for folder, names in walk(root, prune=_is_subject) for name in filter(VOLUME.search, names)]


def _is_subject(folder: Path, names: Sequence[str]) -> bool:
    """Whether it is a FreeSurfer subject's `mri`, below which lie only what its own steps read."""
    return folder.name == "mri" and any(name in names for name in ("T1.mgz", "norm.mgz", "brain.mgz", "aseg.mgz"))
