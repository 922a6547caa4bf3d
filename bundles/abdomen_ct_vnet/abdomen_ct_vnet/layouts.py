"""How the files of abdominal CT data sets lie and are named. A further layout is a further case of `file_of`.

These layouts are known, at any depth, with files that end on .nii or .nii.gz:

    FLARE22           FLARE22_Tr_0001_0000 with FLARE22_Tr_0001 (in any folders; also FLARETs_..., FLARE21_...)
    BTCV              img0001 with label0001
    AMOS              amos_0001 in a folder images* with amos_0001 in a folder labels*
    TotalSegmentator  <case>/ct with <case>/segmentations/<organ>
    plain             a file in a folder images* with the file of the same name, or without its _0000, in a folder
                      labels* beside it; the numbering has to be given
    any               without label, and only where there is no image of the above: every 3-D file
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from bundlekit.cases.folders import walk

VOLUME = re.compile(r"\.nii(\.gz)?$", re.IGNORECASE)
IMAGES = re.compile(r"^(images?|imgs?)(Tr|Ts|Va|Val)?$", re.IGNORECASE)
_LABELS = re.compile(r"^(labels?|masks?)(Tr|Ts|Va|Val)?$", re.IGNORECASE)
_RESULT = re.compile(r"_(seg|probabilities)$")
_FLARE = re.compile(r"^(FLARE\w*?\d{4})(_0000)?$", re.IGNORECASE)
_BTCV = re.compile(r"^(img|label)(\d{4})$")
_AMOS = re.compile(r"^(amos_\d{4})(_0000)?$")
LAYOUTS = (
    "FLARE22 (FLARE22_Tr_0001_0000, FLARE22_Tr_0001), BTCV (img0001, label0001), AMOS (imagesTr/amos_0001, "
    "labelsTr/amos_0001), TotalSegmentator (<case>/ct, <case>/segmentations/<organ>) or images/<case>, labels/<case>; "
    ".nii or .nii.gz"
)
# layout -> where the label of an image lies, as a message tells it
LABEL_EXPECTED = {
    "flare22": "<case>.nii.gz, as FLARE22_Tr_0001.nii.gz for FLARE22_Tr_0001_0000.nii.gz",
    "btcv": "label<number>.nii.gz, as label0001.nii.gz for img0001.nii.gz",
    "amos": "a file of the same name in a folder labels*",
    "totalsegmentator": "segmentations/<organ>.nii.gz beside it",
    "plain": "a file of the same name in a folder labels* beside that of the images",
}


@dataclass(frozen=True)
class LayoutFile:
    """A file of a known layout.

    Args:
        path: the file.
        layout: key of `LABEL_EXPECTED`.
        key: what image and label of one case share.
        case: its name.
        is_label: segmentation or CT.
    """

    path: Path
    layout: str
    key: str
    case: str
    is_label: bool


def stem_of(path: Path) -> str:
    """Name of a file without its ending."""
    return VOLUME.sub("", path.name)


def file_of(path: Path) -> LayoutFile | None:
    """The role of a file by its name and folder, None if no layout has it."""
    stem, folder = stem_of(path), path.parent
    if folder.name == "segmentations":
        return LayoutFile(path, "totalsegmentator", str(folder.parent), folder.parent.name, True)
    if stem == "ct":
        return LayoutFile(path, "totalsegmentator", str(folder), folder.name, False)
    if match := _FLARE.match(stem):
        return LayoutFile(path, "flare22", match[1], match[1], not match[2] and not IMAGES.match(folder.name))
    if match := _BTCV.match(stem):
        return LayoutFile(path, "btcv", match[2], f"img{match[2]}", match[1] == "label")
    if match := _AMOS.match(stem):
        return LayoutFile(path, "amos", match[1], match[1], bool(_LABELS.match(folder.name)))
    for pattern, is_label in ((IMAGES, False), (_LABELS, True)):
        if match := pattern.match(folder.name):
            case = stem.removesuffix("_0000")
            return LayoutFile(path, "plain", f"{folder.parent}/{match[2] or ''}/{case}", case, is_label)
    return None


def volumes_below(root: Path) -> list[Path]:
    """NIfTI files below a folder, as `bundlekit.cases.folders.walk` finds them, without results of inference."""
    files = (folder / name for folder, names in walk(root) for name in filter(VOLUME.search, names))
    return [path for path in files if not _RESULT.search(stem_of(path))]
