"""Tests of lesions: cases worked by hand, then a naive reference on random blobs, then removal by volume."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from scipy import ndimage
from scipy.spatial.distance import cdist

from brain_metastasis_attention_unet.postprocessing import RemoveSmallLesionsd
from bundlekit.brats.lesions import (
    SIZES,
    Lesion,
    LesionScores,
    lesion_scores,
    remove_small,
    voxel_mm3,
)
from bundlekit.images.components import components

ONE_MM = (1.0, 1.0, 1.0)
Box = tuple[Sequence[int], int | Sequence[int]]


def mask(*boxes: Box, shape: Sequence[int] = (30, 12, 12)) -> np.ndarray:
    """A mask of boxes, each (start, size)."""
    volume = np.zeros(shape, bool)
    for start, size in boxes:
        sizes = [size] * 3 if isinstance(size, int) else size
        volume[tuple(slice(a, a + n) for a, n in zip(start, sizes, strict=True))] = True
    return volume


CUBE: Box = ((2, 2, 2), 3)  # 27 voxels
FAR: Box = ((20, 5, 5), 3)


# --- lesion_scores, by hand ---------------------------------------------------------------------------------------


def test_small_is_measured_on_the_grid_of_the_prediction() -> None:
    """The image may still lie on the resized grid, whose voxels have another size."""
    classes = np.zeros((1, 20, 20, 20), np.uint8)
    classes[0, 5:12, 5:9, 5:10] = 3  # 140 voxels of 1 mm
    data = {
        "pred": MetaTensor(torch.from_numpy(classes), affine=torch.eye(4)),
        "image": MetaTensor(torch.zeros(4, 8, 6, 10), affine=torch.diag(torch.tensor([2.5, 3.25, 2.0, 1.0]))),
    }
    assert not RemoveSmallLesionsd(0.3)(data)["pred"].any()
    assert RemoveSmallLesionsd(0.14)(data)["pred"].any()


def test_found_exactly() -> None:
    got = lesion_scores(mask(CUBE, FAR), mask(CUBE, FAR), ONE_MM)
    assert got == LesionScores((Lesion(0.027, 1.0, 0.0, True),) * 2, 0, 0, 374.0)
    assert (got.dice, got.hd95_mm, got.count(), got.sensitivity()) == (1, 0, (2, 2), 1)


def test_a_missed_lesion() -> None:
    got = lesion_scores(mask(CUBE), mask(CUBE, FAR), ONE_MM)
    assert [(x.dice, x.hd95_mm, x.detected) for x in got.lesions] == [(1, 0, True), (0, 374, False)]
    assert (got.dice, got.hd95_mm, got.n_false_positives) == (1 / 2, 374 / 2, 0)
    assert (got.count(), got.sensitivity()) == ((2, 1), 0.5)


def test_spurious_lesions() -> None:
    # One voxel is a false positive as much as a cube is: there is no threshold of size for the prediction.
    got = lesion_scores(mask(CUBE, FAR, ((12, 9, 9), 1)), mask(CUBE), ONE_MM)
    assert (len(got.lesions), got.n_false_positives) == (1, 2)
    assert (got.dice, got.hd95_mm) == (pytest.approx(1 / 3), pytest.approx(2 * 374 / 3))
    assert got.sensitivity() == 1


def test_two_lesions_merged_into_one_prediction() -> None:
    # A bar of 11 x 3 x 3 = 99 voxels over two cubes of 27 with 5 voxels between: it counts whole against each of them.
    truth, pred = mask(CUBE, ((10, 2, 2), 3)), mask(((2, 2, 2), (11, 3, 3)))
    got = lesion_scores(pred, truth, ONE_MM)
    assert [x.dice for x in got.lesions] == pytest.approx([2 * 27 / (27 + 99)] * 2)
    # 9 of the bar's 90 surface voxels are its far end, 8 voxels off the cube: more than 5 %.
    assert [x.hd95_mm for x in got.lesions] == pytest.approx([8, 8])
    assert got.dice == pytest.approx(2 * 27 / (27 + 99))
    assert (got.count(), got.n_false_positives) == ((2, 2), 0)


def test_one_lesion_split_into_two_predictions() -> None:
    # The bar of 99 voxels, of which the prediction holds both ends, 27 each: they are united, none is spurious.
    got = lesion_scores(mask(CUBE, ((10, 2, 2), 3)), mask(((2, 2, 2), (11, 3, 3))), ONE_MM)
    assert [x.dice for x in got.lesions] == pytest.approx([2 * 54 / (54 + 99)])
    assert (got.count(), got.n_false_positives) == ((1, 1), 0)
    assert got.dice == got.lesions[0].dice


@pytest.mark.parametrize(
    ("in_pred", "in_truth", "dice", "hd95", "false_positives"),
    [((), (), 1, 0, 0), ((CUBE, FAR), (), 0, 374, 2), ((), (CUBE, FAR), 0, 374, 0)],
)
def test_empty_masks(in_pred: Any, in_truth: Any, dice: float, hd95: float, false_positives: int) -> None:
    got = lesion_scores(mask(*in_pred), mask(*in_truth), ONE_MM)
    assert (got.dice, got.hd95_mm, got.n_false_positives) == (dice, hd95, false_positives)
    assert got.count() == (len(in_truth), 0)
    assert got.sensitivity() == 0 if in_truth else math.isnan(got.sensitivity())


@pytest.mark.parametrize(("gap", "lesions"), [(1, 1), (2, 1), (3, 2)])
def test_lesions_a_voxel_or_two_apart_count_as_one(gap: int, lesions: int) -> None:
    # Each grows by one voxel: over a gap of 1 they overlap, over 2 they touch, over 3 one voxel is left between them.
    truth = mask(CUBE, ((5 + gap, 2, 2), 3))
    got = lesion_scores(truth, truth, ONE_MM)
    assert [x.volume_ml for x in got.lesions] == pytest.approx([0.054 / lesions] * lesions)
    assert [x.dice for x in got.lesions] == [1] * lesions  # on the voxels as drawn, not on the dilated ones
    assert got.n_false_positives == 0  # though the prediction has two components


def test_the_dilation_is_a_parameter() -> None:
    truth = mask(CUBE, ((11, 2, 2), 3))  # 6 voxels between
    assert [len(lesion_scores(truth, truth, ONE_MM, dilation_voxels=n).lesions) for n in (0, 1, 2, 3)] == [2, 2, 2, 1]
    near = mask(CUBE, ((6, 2, 2), 3))
    assert len(lesion_scores(near, near, ONE_MM, dilation_voxels=0).lesions) == 2


def test_the_dilation_has_faces_and_edges_but_no_corners() -> None:
    truth = mask(CUBE)
    edge, corner = mask(((5, 5, 4), 1)), mask(((5, 5, 5), 1))
    assert lesion_scores(edge, truth, ONE_MM).n_false_positives == 0
    assert lesion_scores(corner, truth, ONE_MM).n_false_positives == 1


def test_a_prediction_beside_a_lesion_detects_it_with_dice_0() -> None:
    got = lesion_scores(mask(((5, 2, 2), 3)), mask(CUBE), ONE_MM)  # face to face, no voxel shared
    assert got.lesions == (Lesion(0.027, 0.0, 3.0, True),)
    assert (got.n_false_positives, got.dice) == (0, 0)
    assert lesion_scores(mask(((6, 2, 2), 3)), mask(CUBE), ONE_MM).n_false_positives == 1  # one voxel further


def test_components_touch_by_their_corners() -> None:
    diagonal = mask(((1, 1, 1), 1), ((2, 2, 2), 1), ((3, 3, 3), 1))
    assert components(diagonal)[1] == 1
    assert lesion_scores(diagonal, mask(FAR), ONE_MM).n_false_positives == 1


def test_lesions_of_two_voxels_are_left_out_found_or_not() -> None:
    two, three = ((2, 2, 2), (2, 1, 1)), ((12, 2, 2), (3, 1, 1))
    got = lesion_scores(mask(two), mask(two, three), ONE_MM)
    # The prediction reaches only the lesion that is left out: neither a hit nor a false positive.
    assert (got.count(), got.n_ignored, got.n_false_positives) == ((1, 0), 1, 0)
    assert (got.dice, got.hd95_mm) == (0, 374)
    got = lesion_scores(mask(three), mask(two, three), ONE_MM)
    assert (got.count(), got.n_ignored, got.dice, got.hd95_mm) == ((1, 1), 1, 1, 0)
    got = lesion_scores(mask(), mask(two), ONE_MM)
    assert (got.count(), got.n_ignored, got.dice, got.hd95_mm) == ((0, 0), 1, 1, 0)
    assert lesion_scores(mask(), mask(three), ONE_MM, minimum_mm3=3).n_ignored == 1


def test_the_threshold_is_in_mm3_and_blind_to_the_headers_rounding() -> None:
    two = mask(((2, 2, 2), (2, 1, 1)))
    assert lesion_scores(two, two, (1, 1, 1.5)).count() == (1, 1)  # 3 mm3
    assert lesion_scores(two, two, (1, 1, 0.5)).n_ignored == 1
    assert lesion_scores(two, two, (1.00000005, 1, 1)).n_ignored == 1


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_anisotropic_spacing(axis: int) -> None:
    spacing = (0.5, 2.0, 5.0)
    start = [3, 3, 3]
    start[axis] += 1
    got = lesion_scores(mask((start, 3)), mask(((3, 3, 3), 3)), spacing).lesions[0]
    assert got.volume_ml == pytest.approx(27 * 5 / 1000)
    assert got.dice == pytest.approx(18 / 27)
    # 9 of the 26 surface voxels lie in the face that has moved on by one voxel: more than 5 %.
    assert got.hd95_mm == pytest.approx(spacing[axis])


def test_the_penalty_is_a_parameter() -> None:
    got = lesion_scores(mask(CUBE), mask(FAR), ONE_MM, penalty_mm=10)
    assert (got.hd95_mm, got.lesions[0].hd95_mm) == (10, 10)


def test_sizes() -> None:
    # A voxel of 0.1 x 1 x 10 mm is 1 mm3: 99, 100, 1000 and 1001 of them, by volume and not by length.
    lesions = ((0, 99), (5, 100), (10, 1000), (15, 1001))
    truth = np.zeros((20, 1, 1001), bool)
    for row, n in lesions:
        truth[row, 0, :n] = True
    pred = truth.copy()
    pred[0] = pred[10] = False
    got = lesion_scores(pred, truth, (0.1, 1, 10))
    assert sorted((x.volume_ml, x.size) for x in got.lesions) == [
        (0.099, SIZES[0]),
        (0.1, SIZES[1]),
        (1.0, SIZES[1]),
        (1.001, SIZES[2]),
    ]
    assert [got.count(size) for size in SIZES] == [(1, 0), (2, 1), (1, 1)]
    assert [got.sensitivity(size) for size in SIZES] == [0, 0.5, 1]
    assert got.sensitivity() == 0.5
    small = lesion_scores(mask(CUBE), mask(CUBE), ONE_MM)
    assert [math.isnan(small.sensitivity(size)) for size in SIZES] == [False, True, True]


def test_lesions_at_the_border_of_the_image() -> None:
    truth = mask(((0, 0, 0), (30, 2, 2)), ((0, 10, 10), (30, 2, 2)))
    got = lesion_scores(truth, truth, ONE_MM)
    assert (got.count(), got.dice, got.hd95_mm) == ((2, 2), 1, 0)


def test_any_number_type_and_memory_order() -> None:
    pred, truth = mask(CUBE, FAR), mask(((3, 2, 2), 3))
    expected = lesion_scores(pred, truth, ONE_MM)
    assert lesion_scores(pred.astype(np.float32) * 2, np.asfortranarray(truth.astype(np.int64)), ONE_MM) == expected
    flip = (slice(None, None, -1),) * 3
    assert lesion_scores(pred[flip], truth[flip], ONE_MM) == expected


def test_bad_input_is_refused() -> None:
    good = mask(CUBE)
    with pytest.raises(ValueError, match=r"\(30, 12, 11\).*\(30, 12, 12\)"):
        lesion_scores(good[..., 1:], good, ONE_MM)
    with pytest.raises(ValueError, match=r"\(12, 12\)"):
        lesion_scores(good[0], good[0], ONE_MM)
    for settings in ({"dilation_voxels": -1}, {"minimum_mm3": -1}, {"penalty_mm": -1}):
        with pytest.raises(ValueError, match="must not be negative"):
            lesion_scores(good, good, ONE_MM, **settings)  # type: ignore[arg-type]
    for spacing in ((1, 1), (1, 1, 0), (1, 1, -1), (1, 1, math.nan)):
        with pytest.raises(ValueError, match="spacing_mm"):
            lesion_scores(good, good, spacing)
        with pytest.raises(ValueError, match="spacing_mm"):
            remove_small(good, 0.1, spacing)


# --- lesion_scores, against a naive reference ---------------------------------------------------------------------

TOUCHING = np.ones((3, 3, 3))


def naive_hd95(pred: np.ndarray, truth: np.ndarray, spacing: Sequence[float]) -> float:
    """Every surface voxel against every other."""
    surfaces = []
    for volume in (pred, truth):
        inner = ndimage.binary_erosion(volume)  # face neighbours; what lies outside the image counts as background
        surfaces.append(np.argwhere(volume & ~inner) * np.asarray(spacing))
    distances = cdist(*surfaces)
    return max(float(np.percentile(distances.min(axis), 95)) for axis in (0, 1))


def naive(pred: np.ndarray, truth: np.ndarray, spacing: Sequence[float], dilation: int, minimum: float) -> dict:
    """The published rules on whole volumes, one lesion after the other, without boxes or tables."""

    def dilated(volume: np.ndarray) -> np.ndarray:
        for _ in range(dilation):
            volume = ndimage.binary_dilation(volume, ndimage.generate_binary_structure(3, 2))
        return volume

    groups, n_groups = ndimage.label(dilated(truth), TOUCHING)
    parts, n_parts = ndimage.label(pred, TOUCHING)
    reached: set[int] = set()
    dices, hd95s, volumes, detected = [], [], [], []
    for group in range(1, n_groups + 1):
        lesion = truth & (groups == group)
        own = {int(i) for i in np.unique(parts[dilated(lesion)]) if i}
        reached |= own
        volume = lesion.sum() * np.prod(spacing)
        if volume <= minimum:
            continue
        union = np.isin(parts, list(own))
        volumes.append(volume / 1000)
        detected.append(bool(own))
        dices.append(2 * (union & lesion).sum() / (union.sum() + lesion.sum()))
        hd95s.append(naive_hd95(union, lesion, spacing) if own else 374)
    n_false = n_parts - len(reached)
    n = len(dices) + n_false
    return {
        "volumes": volumes,
        "detected": detected,
        "dices": dices,
        "n_false": n_false,
        "dice": sum(dices) / n if n else 1,
        "hd95": (sum(hd95s) + 374 * n_false) / n if n else 0,
    }


def blobs(rng: np.random.Generator, shape: Sequence[int], share: float) -> np.ndarray:
    smooth = ndimage.gaussian_filter(rng.normal(size=shape), rng.uniform(0.6, 1.4))
    return smooth > np.quantile(smooth, 1 - share)


def test_agrees_with_the_naive_reference() -> None:
    rng = np.random.default_rng(0)
    seen = {"merged": 0, "missed": 0, "false": 0, "ignored": 0, "beside": 0}
    for _ in range(60):
        shape, spacing = rng.integers(8, 20, 3).tolist(), rng.uniform(0.5, 3, 3).tolist()
        pred, truth = blobs(rng, shape, rng.uniform(0, 0.12)), blobs(rng, shape, rng.uniform(0, 0.08))
        dilation, minimum = int(rng.integers(0, 4)), float(rng.uniform(0, 30))
        got = lesion_scores(pred, truth, spacing, dilation, minimum)
        expected = naive(pred, truth, spacing, dilation, minimum)
        # The lesions' order is not part of the interface.
        assert sorted(x.volume_ml for x in got.lesions) == pytest.approx(sorted(expected["volumes"]), rel=1e-5)
        assert sorted(x.dice for x in got.lesions) == pytest.approx(sorted(expected["dices"]))
        assert got.count() == (len(expected["detected"]), sum(expected["detected"]))
        assert got.n_false_positives == expected["n_false"]
        assert got.dice == pytest.approx(expected["dice"])
        assert got.hd95_mm == pytest.approx(expected["hd95"], rel=1e-5)
        seen["merged"] += len(got.lesions) + got.n_ignored < components(truth)[1]
        seen["missed"] += got.count()[0] > got.count()[1]
        seen["false"] += got.n_false_positives > 0
        seen["ignored"] += got.n_ignored > 0
        seen["beside"] += any(x.detected and x.dice == 0 for x in got.lesions)
    assert min(seen.values()) >= 3, seen  # the random cases exercise every rule


# --- components, volumes, removal ---------------------------------------------------------------------------------


def test_volume_of_a_voxel() -> None:
    assert voxel_mm3((0.5, 2, 3)) == 3


def test_remove_small_takes_whole_tumours_by_their_volume() -> None:
    labels = np.zeros((30, 12, 12), np.uint8)
    labels[2:5, 2:5, 2:5] = 2  # 27 voxels of oedema ...
    labels[3, 3, 3] = 3  # ... around one of enhancing tumour: one component, which no class leaves alone
    labels[10, 2, 2], labels[11, 3, 3] = 3, 1  # two voxels that touch by a corner: one component of two classes
    labels[20, 5, 5] = 3
    spacing = (0.5, 2.0, 3.0)  # 3 mm3 a voxel: 0.081, 0.006 and 0.003 ml
    before = labels.copy()

    assert np.array_equal(remove_small(labels, 0.003, spacing), before)  # exactly the limit stays
    got = remove_small(labels, 0.0031, spacing)
    assert got[20, 5, 5] == 0
    got[20, 5, 5] = 3
    assert np.array_equal(got, before)  # and nothing else has changed
    assert np.flatnonzero(remove_small(labels, 0.006, spacing)).size == 29
    only_the_large = remove_small(labels, 0.0061, spacing)
    assert np.array_equal(np.unique(only_the_large, return_counts=True), [[0, 2, 3], [30 * 144 - 27, 26, 1]])
    assert not remove_small(labels, 0.082, spacing).any()
    assert np.array_equal(labels, before)  # the input is left as it was
    assert got.dtype == np.uint8


def test_remove_small_at_limits_that_floats_cannot_hold() -> None:
    spacing = (1, 1, 0.3)
    assert 0.0021 * 1000 / 0.3 > 7  # 7.000000000000001 voxels in binary floating point
    labels = mask(((0, 0, 0), (7, 1, 1))).astype(np.uint8)
    assert remove_small(labels, 0.0021, spacing).sum() == 7
    assert remove_small(labels, 0.0022, spacing).sum() == 0


def test_remove_small_of_nothing() -> None:
    labels = mask(CUBE).astype(np.int16)
    assert np.array_equal(remove_small(labels, 0, ONE_MM), labels)
    assert remove_small(labels, 0, ONE_MM) is not labels
    assert not remove_small(np.zeros((3, 3, 3), np.uint8), 1, ONE_MM).any()
    for bad in (-0.1, math.nan, math.inf):
        with pytest.raises(ValueError, match="minimum_ml"):
            remove_small(labels, bad, ONE_MM)
