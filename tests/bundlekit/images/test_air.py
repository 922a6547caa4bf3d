"""Air that programs have left as something else than 0, or than the darkest of a stripped scan."""

from __future__ import annotations

import logging

import numpy as np
import pytest
from scipy import ndimage

from bundlekit.images.air import air_for_nan, below_the_brain, without_ringing
from bundlekit.images.intensities import foreground
from tests.bundlekit.conftest import ball


def turned(image: np.ndarray, order: int) -> np.ndarray:
    return ndimage.rotate(image, 6, (0, 1), reshape=False, order=order)


@pytest.fixture
def brain() -> np.ndarray:
    """A ball with a bright middle and dark fluid around it."""
    image = ball(48, 16)
    return np.where(ndimage.binary_erosion(image > 0, iterations=3), image, 0.3 * image).astype(np.float32)


def test_what_a_spline_leaves_in_the_air_goes(brain: np.ndarray, caplog: pytest.LogCaptureFixture) -> None:
    linear, spline = turned(brain, 1), turned(brain, 3)
    assert np.count_nonzero(foreground(spline)) > 2 * np.count_nonzero(linear)
    mended = without_ringing(spline, "t1.nii.gz")
    assert mended.dtype == np.float32
    ours, true = mended != 0, turned((brain > 0).astype(np.float32), 1) > 0.5
    assert 2 * np.count_nonzero(ours & true) > 0.97 * (np.count_nonzero(ours) + np.count_nonzero(true))
    kept = ours & (spline > 1)
    np.testing.assert_array_equal(mended[kept], spline[kept])
    assert (mended >= 0).all()
    assert "t1.nii.gz: around the brain there are small values of either sign" in caplog.text


def test_nan_around_the_head_is_air_and_within_it_a_defect(brain: np.ndarray, caplog: pytest.LogCaptureFixture) -> None:
    there = np.where(brain > 0, brain, np.nan)
    mended = air_for_nan(there, "t1.nii.gz")
    np.testing.assert_array_equal(mended, brain)
    assert "t1.nii.gz: " in caplog.text
    there[24, 24, 24] = np.nan
    assert np.isnan(air_for_nan(there, "t1.nii.gz")).any()
    whole = brain.astype(np.int16)
    assert air_for_nan(whole, "t1.nii.gz") is whole


def test_dark_tissue_within_the_brain_stays(brain: np.ndarray) -> None:
    brain[22:26, 22:26, 22:26] = 0.5
    mended = without_ringing(turned(brain, 3), "")
    assert (mended[23:25, 23:25, 23:25] != 0).all()


def test_a_brain_in_two_pieces_keeps_both(brain: np.ndarray) -> None:
    brain[:, :, 26:29] = 0
    spline = turned(brain, 3)
    mended = without_ringing(spline, "")
    tissue = spline > 60
    assert (mended[tissue] == spline[tissue]).all()


@pytest.mark.parametrize("kind", ["stripped", "head", "z-scored", "shifted", "nothing"])
def test_other_scans_stay_as_they_are(brain: np.ndarray, kind: str, caplog: pytest.LogCaptureFixture) -> None:
    rng = np.random.default_rng(0)
    inside = brain != 0
    image = {
        "stripped": brain,
        "head": brain + rng.normal(0, 3, brain.shape),
        "z-scored": np.where(inside, (brain - brain[inside].mean()) / brain[inside].std(), 0),
        "shifted": np.where(inside, brain, 40) + 1,
        "nothing": 0 * brain,
    }[kind].astype(np.float32)
    assert without_ringing(image, "") is image
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    if kind != "z-scored":
        assert below_the_brain(image) is image


def test_a_brain_that_was_z_scored_lies_above_its_air(brain: np.ndarray) -> None:
    inside = brain != 0
    scored = np.where(inside, (brain - brain[inside].mean()) / brain[inside].std(), 0).astype(np.float32)
    lifted = below_the_brain(scored)
    assert (lifted >= 0).all()
    np.testing.assert_array_equal(lifted[~inside], 0)
    np.testing.assert_allclose(np.diff(lifted[inside]), np.diff(scored[inside]), atol=1e-5)
    clipped = below_the_brain(np.clip(scored, *np.percentile(scored[inside], [3, 97])).astype(np.float32))
    assert (clipped[inside] > 1).all(), "what was clipped is no air"
    assert below_the_brain(turned(brain, 3)).min() < 0, "ringing is another matter"
