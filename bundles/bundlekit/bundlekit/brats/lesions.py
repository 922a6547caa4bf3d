"""Lesions of a mask: components, volumes, removal of the small ones, and the lesion-wise scores of BraTS-METS 2023.

Rules: R. Saluja, "BraTS 2023 Lesion-Wise Performance Metrics" (github.com/rachitsaluja/BraTS-2023-Metrics, challenge
BraTS-MET), the organisers' announcement (synapse.org, Synapse:syn51156910, thread 10357) and the challenge's paper
(Moawad et al., arXiv:2306.00838). Written anew from them; `lesion_scores` says what they are and where it departs.

panoptica 2.1 cannot express them: it does not dilate the reference, and each of its matchers gives a predicted
component to one reference lesion at most, where the challenge scores it against every lesion that it reaches.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from bundlekit.images.components import components, large_components
from bundlekit.scores.masks import hd95, require_one_grid

DILATION_VOXELS = 1
MINIMUM_MM3 = 2.0
PENALTY_MM = 374.0
# Classes of lesion volume: below 0.1 ml (a sphere of 5.8 mm), up to 1 ml (12.4 mm), above.
SIZES = ("under_0.1ml", "0.1_to_1ml", "over_1ml")

SOURCE = (
    "github.com/rachitsaluja/BraTS-2023-Metrics (BraTS-MET: dilation 1, threshold 2; BraTS-GLI: 3 and 50); "
    "synapse.org Synapse:syn51156910, discussion thread 10357; Moawad et al., arXiv:2306.00838"
)


def lesion_rule(challenge: str, dilation_voxels: int = DILATION_VOXELS, minimum_mm3: float = MINIMUM_MM3) -> str:
    """The rules of `lesion_scores` in words, for result files.

    Args:
        challenge: whose they are, e.g. "BraTS-METS 2023".
        dilation_voxels: as for `lesion_scores`.
        minimum_mm3: likewise.
    """
    voxels = f"{dilation_voxels} voxel{'s' * (dilation_voxels != 1)}"
    return (
        f"{challenge}. Lesions are the 26-connected components of the reference dilated by {voxels} "
        "(18-neighbourhood), scored on the undilated voxels. Each is compared with the union of all 26-connected "
        "predicted components that overlap its dilation; a component that reaches several lesions counts whole "
        f"against each. A missed lesion: Dice 0, HD95 {PENALTY_MM:g} mm. A predicted component that reaches no lesion, "
        f"of any size, is a false positive: Dice 0, HD95 {PENALTY_MM:g} mm. Lesions of {minimum_mm3:g} mm3 or less are "
        "left out, and so are the components that reach only them. Departure from the challenge's evaluation: its HD95 "
        "weights surface elements by area, ours counts surface voxels."
    )


@dataclass(frozen=True)
class Lesion:
    """One reference lesion and how well it was found.

    Args:
        volume_ml: of the reference lesion.
        dice: of the lesion and the union of all predicted components that reach it; 0 where none does.
        hd95_mm: of the same two masks; the penalty where no component reaches the lesion.
        detected: a predicted component reaches the lesion: overlaps it or its dilation.
    """

    volume_ml: float
    dice: float
    hd95_mm: float
    detected: bool

    @property
    def size(self) -> str:
        """The one of `SIZES` that the lesion belongs to; 0.1 and 1 ml themselves belong to the middle one."""
        return SIZES[0] if self.volume_ml < 0.1 else SIZES[1] if self.volume_ml <= 1 else SIZES[2]


@dataclass(frozen=True)
class LesionScores:
    """Lesion-wise scores of one case and one region; see `lesion_scores`.

    Args:
        lesions: every reference lesion that counts.
        n_ignored: reference lesions too small to count.
        n_false_positives: predicted components that reach no reference lesion, not even an ignored one.
        penalty_mm: HD95 of a missed and of a spurious lesion.
    """

    lesions: tuple[Lesion, ...]
    n_ignored: int
    n_false_positives: int
    penalty_mm: float

    @property
    def dice(self) -> float:
        """Sum of the lesions' Dice / (lesions + false positives); 1 where there is neither."""
        n = len(self.lesions) + self.n_false_positives
        return math.fsum(lesion.dice for lesion in self.lesions) / n if n else 1.0

    @property
    def hd95_mm(self) -> float:
        """Mean HD95 over lesions and false positives, a false positive counting the penalty; 0 where there is none."""
        n = len(self.lesions) + self.n_false_positives
        total = math.fsum(lesion.hd95_mm for lesion in self.lesions) + self.n_false_positives * self.penalty_mm
        return total / n if n else 0.0

    def count(self, size: str | None = None) -> tuple[int, int]:
        """(lesions, detected lesions), of all sizes or of one of `SIZES`."""
        found = [lesion.detected for lesion in self.lesions if size is None or lesion.size == size]
        return len(found), sum(found)

    def sensitivity(self, size: str | None = None) -> float:
        """Detected lesions / lesions, of all sizes or of one of `SIZES`; NaN where there is no such lesion."""
        lesions, detected = self.count(size)
        return detected / lesions if lesions else math.nan

    def named(self, region: str) -> dict[str, float]:
        """The scores as result files name them, of a region R: `lesion_dice_R`, `lesion_hd95_R` (mm), `lesions_R`,
        `lesions_detected_R`, `false_positives_R`.
        """
        lesions, detected = self.count()
        return {
            f"lesion_dice_{region}": self.dice,
            f"lesion_hd95_{region}": self.hd95_mm,
            f"lesions_{region}": float(lesions),
            f"lesions_detected_{region}": float(detected),
            f"false_positives_{region}": float(self.n_false_positives),
        }


def lesion_scores(
    pred_mask: np.ndarray,
    truth_mask: np.ndarray,
    spacing_mm: Sequence[float],
    dilation_voxels: int = DILATION_VOXELS,
    minimum_mm3: float = MINIMUM_MM3,
    penalty_mm: float = PENALTY_MM,
    with_hd95: bool = True,
) -> LesionScores:
    """Lesion-wise scores of one region by the published BraTS-METS 2023 rules, which the defaults hold.

    1. The reference is dilated by one voxel (face and edge neighbours). Its voxels that lie in one 26-connected
       component of the dilated mask are one lesion: lesions with one or two voxels between them count as one. The
       dilation only groups; Dice and HD95 are taken on the reference as it was drawn.
    2. Predicted lesions are the 26-connected components of the prediction, not dilated.
    3. Every predicted component that overlaps a dilated lesion belongs to it, whole. A lesion is scored against the
       union of its components, so a component that covers two lesions counts against both.
    4. A lesion that no component reaches has Dice 0 and HD95 374 mm.
    5. A predicted component that reaches no lesion, whatever its size, is a false positive: Dice 0, HD95 374 mm.
    6. Lesions of at most 2 mm3 (2 voxels of the challenge's grid) are left out, whether found or missed; components
       that reach only such a lesion are no false positives either. The announcement says "minimum 2 voxels", the
       evaluation keeps what is larger than 2: the evaluation is followed.
    7. Dice and HD95 of the case are means over lesions and false positives; 1 and 0 mm where there is neither.

    One departure: HD95 is `scores.masks.hd95`, the percentile over surface voxels. The challenge weights surface
    elements by their area.

    Args:
        pred_mask: prediction, HWD, non-zero inside.
        truth_mask: reference on the same grid, HWD, non-zero inside.
        spacing_mm: voxel size along H, W and D in mm; may be anisotropic.
        dilation_voxels: how often the reference is dilated, 0 or more; the challenge takes 3 for gliomas.
        minimum_mm3: lesions of this volume or less are left out; the challenge takes 50 for gliomas.
        penalty_mm: HD95 of a missed and of a spurious lesion.
        with_hd95: False leaves the HD95 of found lesions NaN, and with it nine tenths of the time.

    Raises:
        ValueError: the shapes differ or are not 3-D, the spacing is not three positive numbers, or a setting is
            negative.
    """
    require_one_grid(pred_mask, truth_mask)
    if dilation_voxels < 0 or minimum_mm3 < 0 or penalty_mm < 0:
        raise ValueError(
            f"dilation_voxels, minimum_mm3 and penalty_mm must not be negative: "
            f"{dilation_voxels}, {minimum_mm3}, {penalty_mm}"
        )
    mm3 = voxel_mm3(spacing_mm)
    pred, truth = pred_mask != 0, truth_mask != 0
    # Dilation that leaves the box joins nothing that it does not also join inside, so the box needs no margin.
    box = ndimage.find_objects((pred | truth).view(np.uint8))
    if not box:
        return LesionScores((), 0, 0, penalty_mm)
    pred, truth = pred[box[0]], truth[box[0]]

    parts, n_parts = components(pred)
    # Every voxel of a dilated component comes from the lesion within: the component is the dilated lesion of rule 3.
    extents, n_lesions = components(_dilated(truth, dilation_voxels))
    members = _members(extents, parts, n_lesions, n_parts)

    n_truth = np.bincount(extents[truth], minlength=n_lesions + 1)
    n_both = np.bincount(extents[truth & pred], minlength=n_lesions + 1)
    n_part = np.bincount(parts[pred], minlength=n_parts + 1)
    extent_boxes, part_boxes = ndimage.find_objects(extents), ndimage.find_objects(parts)

    lesions = []
    for number in range(1, n_lesions + 1):
        if n_truth[number] * mm3 <= minimum_mm3:
            continue
        volume_ml = float(n_truth[number] * mm3 / 1000)
        own = members[number]
        if not own:
            lesions.append(Lesion(volume_ml, 0.0, penalty_mm, detected=False))
            continue
        dice = 2 * int(n_both[number]) / int(n_truth[number] + n_part[own].sum())
        distance_mm = math.nan
        if with_hd95:
            region = _hull([extent_boxes[number - 1], *(part_boxes[part - 1] for part in own)])
            found, lesion = np.isin(parts[region], own), truth[region] & (extents[region] == number)
            distance_mm = hd95(found, lesion, [float(mm) for mm in spacing_mm])
        lesions.append(Lesion(volume_ml, dice, distance_mm, detected=True))
    matched = {part for own in members for part in own}
    return LesionScores(tuple(lesions), n_lesions - len(lesions), n_parts - len(matched), penalty_mm)


def remove_small(labels: np.ndarray, minimum_ml: float, spacing_mm: Sequence[float]) -> np.ndarray:
    """A copy of a class map HWD without the tumour components that are smaller than `minimum_ml`.

    Components are 26-connected and found on all classes together: a component goes or stays with all that is in it,
    so no enhancing core is left without its surroundings, and none is cut out of them. One of exactly `minimum_ml`
    stays. MONAI's `RemoveSmallObjects` would drop it with scikit-image 0.26,
    against its own documentation.

    Args:
        labels: classes, 0 is background.
        minimum_ml: smallest volume that is kept, in ml; 0 keeps everything.
        spacing_mm: voxel size along H, W and D in mm.

    Raises:
        ValueError: `minimum_ml` is negative or not finite, or the spacing is not three positive numbers.
    """
    if not (math.isfinite(minimum_ml) and minimum_ml >= 0):
        raise ValueError(f"minimum_ml must be a number from 0 up, not {minimum_ml}")
    # Rounding noise in the quotient (7.000000000000001 voxels) must not ask for one voxel more.
    minimum_voxels = math.ceil(minimum_ml * 1000 / voxel_mm3(spacing_mm) - 1e-6)
    kept = labels.copy()
    box = ndimage.find_objects((labels != 0).view(np.uint8))
    if box and minimum_voxels > 1:
        inside = kept[box[0]]
        inside[~large_components(inside, minimum_voxels)] = 0
    return kept


def voxel_mm3(spacing_mm: Sequence[float]) -> float:
    """Volume of a voxel in mm3; ValueError unless `spacing_mm` is three positive numbers."""
    spacing = np.asarray(spacing_mm, dtype=float)
    if spacing.shape != (3,) or not (np.isfinite(spacing) & (spacing > 0)).all():
        raise ValueError(f"spacing_mm must be three positive numbers, not {spacing_mm}")
    # Headers hold 32-bit numbers: unrounded, two voxels of 1.0000001 mm3 would lie above a limit of 2 mm3.
    return round(float(spacing.prod()), 6)


def _dilated(mask: np.ndarray, voxels: int) -> np.ndarray:
    """`mask` dilated `voxels` times by face and edge neighbours."""
    if not voxels:  # SciPy takes 0 iterations for "until nothing changes"
        return mask
    return ndimage.binary_dilation(mask, ndimage.generate_binary_structure(3, 2), voxels)


def _members(extents: np.ndarray, parts: np.ndarray, n_lesions: int, n_parts: int) -> list[list[int]]:
    """For each lesion number (0 has none) the predicted components that overlap its extent."""
    shared = (extents > 0) & (parts > 0)
    pairs = np.unique(extents[shared].astype(np.int64) * (n_parts + 1) + parts[shared])
    members: list[list[int]] = [[] for _ in range(n_lesions + 1)]
    for lesion, part in zip(*np.divmod(pairs, n_parts + 1), strict=True):
        members[lesion].append(int(part))
    return members


def _hull(boxes: Sequence[tuple[slice, ...]]) -> tuple[slice, ...]:
    """The smallest box around all `boxes`."""
    return tuple(slice(min(s.start for s in axis), max(s.stop for s in axis)) for axis in zip(*boxes, strict=True))
