"""Scans that are given as others are noticed."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import numpy as np
import pytest

from bundlekit.brats import CheckOrderd, LoadCased, find_cases
from bundlekit.brats.naming import MODALITIES
from bundlekit.brats.order import _ORDERS, doubts, fit, measured
from tests.conftest import ROOT

REAL = Path(os.environ.get("BRAIN_DATA", ROOT.parent / "shared" / "data"), "brats_glioma")


@pytest.fixture(scope="module")
def image(cohort: Path) -> np.ndarray:
    """A virtual glioma, on a grid fine enough."""
    voxels = LoadCased(with_label=False)(find_cases(cohort)[0])["image"].numpy()
    return np.repeat(np.repeat(np.repeat(voxels, 3, 1), 3, 2), 3, 3)


def test_in_their_order_there_is_no_doubt(image: np.ndarray) -> None:
    assert CheckOrderd()({"image": image, "case": "a"})["order_doubt"] == ""


def test_what_is_missing_is_named(image: np.ndarray) -> None:
    assert CheckOrderd()({"image": image})["missing_modalities"] == ""
    less = image.copy()
    less[[0, 2]] = 0
    assert CheckOrderd()({"image": less})["missing_modalities"] == "T1, T2"


@pytest.mark.parametrize(("one", "other"), list(itertools.combinations(range(4), 2))[1:])
def test_two_that_are_exchanged_are_named(one: int, other: int, image: np.ndarray) -> None:
    # T1 and T1ce are too much alike in a virtual case of 5 mm
    order = list(range(4))
    order[one], order[other] = other, one
    doubt, _ = doubts(image[order])  # of coarse virtual scans; it may take a third for one of the two as well
    assert MODALITIES[one] in doubt
    assert MODALITIES[other] in doubt
    assert " looks like a " in doubt


def test_a_bias_field_makes_them_unlike(image: np.ndarray) -> None:
    ramp = np.exp(np.linspace(-1.5, 1.5, image.shape[1]))[:, None, None]
    _, before = doubts(image)
    _, after = doubts(image * ramp)
    assert after > 2 * before
    assert CheckOrderd()({"image": image * ramp})["intensity_distance"] == after


def test_any_linear_scale_gives_the_same(image: np.ndarray) -> None:
    scaled = np.where(image != 0, 3 * image.astype(np.float64) + 100, 0)
    for one, other in zip(measured(image) or (), measured(scaled) or (), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("missing", [0, 3])
def test_of_three_scans_nothing_is_said(missing: int, image: np.ndarray) -> None:
    given = image[[1, 0, 2, 3]].copy()
    given[missing] = 0
    assert doubts(given) == ("", 0.0)
    assert doubts(image[:, :8, :8, :8]) == ("", 0.0)


def test_a_fit_knows_its_own_cases() -> None:
    rng = np.random.default_rng(0)
    cases = [(np.corrcoef(rng.normal(size=(4, 50)) + np.arange(50)), rng.normal(size=(4, 5))) for _ in range(40)]
    found = fit(cases)
    assert np.shape(found["mean"]) == (26,)
    inverse = np.asarray(found["inverse"])
    np.testing.assert_allclose(inverse, inverse.T, rtol=1e-4)
    assert (np.linalg.eigvalsh(inverse) > 0).all()
    assert len(_ORDERS) == 24
    assert _ORDERS[0] == (0, 1, 2, 3)


@pytest.mark.skipif(not REAL.is_dir(), reason="no real data")
def test_real_gliomas() -> None:
    """Of those that fitted it, six: fast, and the order of files is that of people."""
    for case in find_cases(REAL):
        image = LoadCased(with_label=False)(case)["image"].numpy()
        doubt, distance = doubts(image)
        assert doubt == ""
        assert distance < 54
        assert doubts(image[[1, 0, 2, 3]])[0] == "the T1 looks like a T1ce, the T1ce like a T1"
        assert doubts(image[[0, 1, 3, 2]])[0] == "the T2 looks like a FLAIR, the FLAIR like a T2"
