"""Volumes, pieces, centres and sides of masks that can be counted by hand."""

from __future__ import annotations

import numpy as np
import pytest

from bundlekit.report.volumes import volumes_of

REGIONS = {"WT": (1, 2, 3), "TC": (1, 3)}
AFFINE = np.array(
    [[-2.0, 0, 0, 30], [0, 1, 0, -5], [0, 0, 3, 7], [0, 0, 0, 1]]
)  # voxels of 6 mm3, the first axis to the left


def mask() -> np.ndarray:
    """A box of 8 voxels of class 2 with one of class 3 at its corner, and a voxel of class 3 far away."""
    classes = np.zeros((30, 8, 8), np.uint8)
    classes[2:4, 2:4, 2:4] = 2
    classes[4, 4, 4] = 3
    classes[25, 1, 1] = 3
    return classes


def test_volumes_pieces_and_centres() -> None:
    found = {volume.name: volume for volume in volumes_of(mask(), AFFINE, ["NCR", "ED", "ET"], REGIONS)}
    assert list(found) == ["NCR", "ED", "ET", "WT", "TC"]
    assert [found[name].kind for name in found] == 3 * ["class"] + 2 * ["region"]
    assert [found[name].ml for name in found] == pytest.approx([0, 0.048, 0.012, 0.06, 0.012])
    assert [found[name].components for name in found] == [0, 1, 2, 2, 2]
    assert [found[name].largest_ml for name in found] == pytest.approx([0, 0.048, 0.006, 0.054, 0.006])
    assert found["NCR"].centroid_mm is None
    assert found["ED"].centroid_mm == pytest.approx((30 - 2 * 2.5, -5 + 2.5, 7 + 3 * 2.5))
    assert found["ET"].centroid_mm == pytest.approx((30 - 2 * 14.5, -5 + 2.5, 7 + 3 * 2.5))
    assert all(volume.hemisphere == "" for volume in found.values())


@pytest.mark.parametrize(
    ("midline_mm", "ed", "et"), [(0, "right", "both"), (40, "left", "left"), (-40, "right", "right")]
)
def test_sides_of_the_brain(midline_mm: float, ed: str, et: str) -> None:
    """Class 2 lies at 24 and 26 mm to the right, class 3 at 22 and -20."""
    found = {v.name: v for v in volumes_of(mask(), AFFINE, ["NCR", "ED", "ET"], REGIONS, midline_mm)}
    assert (found["ED"].hemisphere, found["ET"].hemisphere, found["NCR"].hemisphere) == (ed, et, "")


def test_less_than_a_tenth_on_the_other_side_does_not_count() -> None:
    classes = np.zeros((30, 8, 8), np.uint8)
    classes[5, :, :3] = 1  # 24 voxels at 20 mm
    for n, side in ((2, "right"), (3, "both")):
        classes[20, 0, :n] = 1
        assert volumes_of(classes, AFFINE, ["a"], midline_mm=0)[0].hemisphere == side


def test_an_empty_mask() -> None:
    (found,) = volumes_of(np.zeros((3, 3, 3), np.uint8), AFFINE, ["a"], midline_mm=0)
    assert (found.ml, found.components, found.largest_ml, found.centroid_mm, found.hemisphere) == (0, 0, 0, None, "")
