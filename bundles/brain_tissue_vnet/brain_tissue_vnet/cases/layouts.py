"""The layouts of data sets other than BIDS: the role that a file has by its name and folder."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from bundlekit.label_maps.file_names import FREESURFER_LABELS, SYNTHSEG, in_freesurfer, stem_of

# words of a name
_T1 = re.compile(r"t1w?|t1n|mp2?rage|spgr|fspgr|bravo")
_AFTER_AGENT = re.compile(r"t1c|t1w?ce|t1w?gd|t1w?post|t1w?km|gadolinium|postcontrast|postgd")
_OTHER = re.compile(r"flair|t2(?!\d)[a-z]*|pdw|bold|sbref|dwi|dti|adc|swi|perf(usion)?|mra")
# the same behind the first word alone, which may be a group's or a patient's: PD_001 is of somebody with Parkinson's
_AGENT_BEHIND = re.compile(r"ce|gd|gad|km|contrast")
_OTHER_BEHIND = re.compile(r"pd|epi|fa|asl|ct|cta|tof")
_NO_AGENT = re.compile(r"\b(?:pre|no|non|without) contrast\b")
_T1_POST = re.compile(r"\bt1w? post\b")
_BIDS_T1 = re.compile(r"sub-[A-Za-z0-9]+(_[A-Za-z0-9]+-[A-Za-z0-9+]+)*_(T1w|dseg|probseg)")
_CE = re.compile(r"_ce-[A-Za-z0-9]")  # BIDS's entity; its ses-post is no contrast
_WHOSE = re.compile(r"^sub-[A-Za-z0-9]+(_ses-[A-Za-z0-9]+)?_")
LIKE_A_LABEL = re.compile(
    r"(^|[_.-])(dseg|probseg|segm?|glm|synthseg|labels?|probabilities|(brain_?)?mask|aseg.*|aparc.*|wmparc.*|segTRI.*|"
    r"LabelsFor.*)$",
    re.IGNORECASE,
)
_IBSR = re.compile(r"^(IBSR_\d+)(?:_(.+))?$")
_PLAIN = re.compile(r"^(.+?)(?:_(T1w?|t1w?|seg|label)|-t1n)$")
_MICCAI = re.compile(r"^(.+)_(SS|glm)$")

# what follows the case in a name -> preference, and the numbering of a label
_IBSR_IMAGES = {"ana_strip": 0, "ana": 1, None: 2}
_IBSR_LABELS = {
    "segTRI_fill_ana": (0, "tissue"),
    "segTRI_ana": (1, "tissue"),
    "seg": (2, "tissue"),
    "seg_ana": (3, "freesurfer"),
}
_MRBRAINS_LABELS = {"LabelsForTraining": (0, "mrbrains"), "LabelsForTesting": (1, "tissue")}
_FREESURFER_IMAGES = {"norm": 0, "brain": 1, "T1": 2}

EXPECTED = {
    "bids": "<entities>_dseg.nii.gz or <entities>_label-{CSF,GM,WM}_probseg.nii.gz of the same entities",
    "ibsr": "<case>_segTRI_fill_ana, <case>_segTRI_ana, <case>_seg or <case>_seg_ana",
    "mrbrains13": "LabelsForTraining.nii or LabelsForTesting.nii beside it",
    "mrbrains18": "segm.nii.gz in the folder above",
    "miccai": "<case>_glm.nii.gz",
    "freesurfer": "aseg.mgz, aparc+aseg.mgz or wmparc.mgz beside it",
    "plain": "<case>_seg.nii.gz or <case>_label.nii.gz",
}
LAYOUTS = (
    "BIDS (sub-*_T1w, sub-*_dseg), IBSR18 (IBSR_*_ana, IBSR_*_segTRI_ana), MRBrainS (T1, LabelsForTraining; "
    "pre/reg_T1, segm), MICCAI 2012 (<case>_SS, <case>_glm), FreeSurfer (<case>/mri/norm.mgz, aseg.mgz), SynthSeg "
    "(<case>, <case>_synthseg) or <case>_T1 or _T1w, <case>_seg; .nii, .nii.gz or .mgz"
)


@dataclass(frozen=True)
class ScanFile:
    """A file of a known layout other than BIDS.

    Args:
        path: the file.
        layout: key of `EXPECTED`, or "synthseg".
        key: what the files of one case share.
        case: its name.
        is_label: segmentation or T1.
        rank: of several, the lowest is taken.
        numbering: of a label; "" if the layout does not tell.
    """

    path: Path
    layout: str
    key: str
    case: str
    is_label: bool
    rank: int = 0
    numbering: str = ""


def file_of(path: Path) -> ScanFile | None:
    """The role of a file by its name and folder, None if no layout but BIDS may have it."""
    stem, folder = stem_of(path), path.parent
    if in_freesurfer(path):
        case = folder.parent.name
        if stem in _FREESURFER_IMAGES:
            return ScanFile(path, "freesurfer", str(folder), case, False, _FREESURFER_IMAGES[stem])
        if stem in FREESURFER_LABELS:
            return ScanFile(path, "freesurfer", str(folder), case, True, FREESURFER_LABELS[stem], "freesurfer")
        return None
    if folder.name == "pre" and stem in ("reg_T1", "T1"):
        return ScanFile(path, "mrbrains18", str(folder.parent), folder.parent.name, False, ("reg_T1", "T1").index(stem))
    if stem == "segm":
        return ScanFile(path, "mrbrains18", str(folder), folder.name, True, 0, "mrbrains")
    if stem == "T1" and folder.name != "orig":  # MRBrainS18 has one there, before bias correction
        return ScanFile(path, "mrbrains13", str(folder), folder.name, False)
    if stem in _MRBRAINS_LABELS:
        return ScanFile(path, "mrbrains13", str(folder), folder.name, True, *_MRBRAINS_LABELS[stem])
    if match := _IBSR.match(stem):
        case, role = match.groups()
        if role in _IBSR_IMAGES:
            return ScanFile(path, "ibsr", case, case, False, _IBSR_IMAGES[role])
        if role in _IBSR_LABELS:
            return ScanFile(path, "ibsr", case, case, True, *_IBSR_LABELS[role])
        return None
    if match := SYNTHSEG.match(stem):
        return ScanFile(path, "synthseg", match[1], match[1], True, 0, "freesurfer")
    if match := _MICCAI.match(stem):
        is_label = match[2] == "glm"
        return ScanFile(path, "miccai", match[1], match[1], is_label, 0, "neuromorphometrics" if is_label else "")
    if match := _PLAIN.match(stem):
        return ScanFile(path, "plain", match[1], match[1], match[2] in ("seg", "label"), int(match[2] == "label"))
    return None


def after_agent(stem: str) -> bool:
    """Whether a name says that the scan is one after contrast agent: `sub-1_ce-gad_T1w`, `P01_Gd_T1`, `P01_T1_post`."""
    if _BIDS_T1.fullmatch(stem):
        return bool(_CE.search(stem))
    text = _NO_AGENT.sub("", " ".join(_words(stem)))
    words = text.split()
    behind = words[1:] if len(words) > 1 else words
    told = any(map(_AFTER_AGENT.fullmatch, words)) or any(map(_AGENT_BEHIND.fullmatch, behind))
    return told or bool(_T1_POST.search(text))


def other_contrast(stem: str) -> bool:
    """Whether a name says that it is no T1 (`P01_FLAIR_brain`), or one after contrast agent."""
    words = _words(stem)
    behind = words[1:] if len(words) > 1 else words
    other = any(map(_OTHER.fullmatch, words)) or any(map(_OTHER_BEHIND.fullmatch, behind))
    return after_agent(stem) or (other and not any(map(_T1.fullmatch, words)))


def _words(stem: str) -> list[str]:
    """Of a name in small letters; "sub-01_ses-post" in front is one word, of whose scan it is."""
    whose = _WHOSE.match(stem)
    rest = stem[whose.end() :] if whose else stem
    words = [word for word in re.split(r"[^a-z0-9]+", rest.lower()) if word]
    return ["sub", *words] if whose else words


def is_label(path: Path) -> bool:
    """Whether a file is named as a segmentation or mask is, in any layout."""
    file = file_of(path)
    return file.is_label if file else bool(LIKE_A_LABEL.search(stem_of(path)))
