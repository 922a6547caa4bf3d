"""Each check: just inside its limit, and just beyond."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from bundlekit.errors import BundleError
from bundlekit.report.flags import CHECKS, Result, flags_of, require_limits
from bundlekit.report.volumes import volumes_of
from tools.bundles import names, parse


def result(classes: np.ndarray, brain_ml: float | None = None, removed_ml: float = 0.0) -> Result:
    volumes = volumes_of(classes, np.eye(4), ["a", "b"], {"all": (1, 2)})
    return Result(classes, {volume.name: volume for volume in volumes}, brain_ml, removed_ml)


def box() -> np.ndarray:
    """20 voxels of class 1, 5 of class 2 beside them, 2 of class 2 apart; none in the outermost layer."""
    classes = np.zeros((12, 12, 12), np.uint8)
    classes[2:6, 2:7, 2] = 1
    classes[6, 2:7, 2] = 2
    classes[9, 9, 9:11] = 2
    return classes


@pytest.mark.parametrize(
    ("check", "good", "bad", "value"),
    [
        ("many_components", {"all": 2}, {"all": 1}, 2),
        ("largest_part", {"all": 25 / 27}, {"all": 0.93}, 25 / 27),
        ("share", {"b": ["all", 0.2, 0.3]}, {"b": ["all", 0.3, 1]}, 7 / 27),
        ("brain_volume", [900, 1200], [900, 1199], 1200),
        ("removed", 0.5, 0.4, 0.5),
        ("intensities", 50, 49, 50),
        ("confidence", {"all": 0.9}, {"all": 0.91}, 0.9),
        ("little_core", 0.002, 0.001, 0.002),  # ml
    ],
)
def test_a_limit(check: str, good: Any, bad: Any, value: float) -> None:
    case = replace(result(box(), brain_ml=1200, removed_ml=0.5), intensity_distance=50, confidence={"all": 0.9})
    assert flags_of(case, {check: good}) == []
    (flag,) = flags_of(case, {check: bad})
    assert (flag.name, flag.value) == (check, pytest.approx(value))
    assert flag.sentence.endswith((".", "?"))


@pytest.mark.parametrize(
    ("check", "limit", "told"),
    [
        ("brain_volume", [1200.4, 2000], "has 1200 ml; 1200.4 to 2000"),
        ("brain_volume", [1200.04, 2000], "has 1200 ml; 1200.04 to"),
        ("largest_part", {"all": 0.93}, "holds 92.6% of it, less than 93%"),
        ("share", {"b": ["all", 0.3, 1]}, "b is 26% of all; 30% to 100%"),
        ("share", {"b": ["all", 0.26, 1]}, "b is 25.9% of all; 26% to 100%"),
        ("share", {"b": ["all", 0.25, 1]}, ""),
        ("share", {"b": ["all", 0.2, 0.259]}, "b is 26% of all; 20% to 25.9%"),
        ("confidence", {"all": 0.9}, "confidence 0.8996, below 0.9"),
    ],
)
def test_a_sentence_does_not_round_a_value_to_its_limit(check: str, limit: Any, told: str) -> None:
    case = replace(result(box(), brain_ml=1200), confidence={"all": 0.8996})
    flags = flags_of(case, {check: limit})
    assert [told in flag.sentence for flag in flags] == [True] * bool(told)


def test_a_modality_that_is_missing() -> None:
    assert flags_of(result(box()), {"missing": True}) == []
    (flag,) = flags_of(replace(result(box()), missing_modalities="T1, T2"), {"missing": True})
    assert (flag.name, flag.value) == ("missing", 2)
    assert "No T1, T2" in flag.sentence


def test_a_mask_that_the_scan_cuts_off() -> None:
    classes = box()
    classes[0, 5, 5] = classes[11, 5, 5] = 1
    assert flags_of(result(classes), {"at_the_border": 2 / 29}) == []
    (flag,) = flags_of(result(classes), {"at_the_border": 0.06})
    assert flag.value == pytest.approx(2 / 29)
    assert flags_of(result(box()), {"at_the_border": 0}) == []


def test_nothing_found_and_nothing_more_is_said_of_it() -> None:
    limits = {"nothing_found": True, "at_the_border": 0.0, "many_components": {"all": 0}, "largest_part": {"all": 1.0}}
    assert [flag.name for flag in flags_of(result(0 * box()), limits)] == ["nothing_found"]
    assert "nothing_found" not in [flag.name for flag in flags_of(result(box()), limits)]


@pytest.mark.parametrize("off", [None, False])
def test_a_check_that_is_off(off: Any) -> None:
    assert flags_of(result(0 * box()), dict.fromkeys(CHECKS, off)) == []


def test_an_unknown_brain_is_no_wrong_one() -> None:
    assert flags_of(result(box()), {"brain_volume": [900, 2000]}) == []


@pytest.mark.parametrize(
    ("checks", "told"),
    [
        ({"brain_size": 3}, "no such check"),
        ({"at_the_border": "abc"}, "'abc'"),
        ({"at_the_border": "false"}, "or null to switch it off"),
        ({"brain_volume": 2000}, r"expected: the least and the most ml, e\.g\. \[900, 2000\]"),
        ({"brain_volume": [2000, 900]}, "the least and the most"),
        ({"largest_part": 0.9}, "shares by name, of NCR, WT"),
        ({"largest_part": {"TC": 0.9}}, "shares by name, of NCR, WT"),
        ({"many_components": {"WT": "3"}}, "numbers by name"),
        ({"share": {"NCR": [0.1, 0.2]}}, r"\[whole, least, most\] by name"),
        ({"removed": True}, "expected: ml"),
        ({"confidence": 0.9}, "shares by name, of NCR, WT"),
        ({"nothing_found": 1}, "expected: true"),
    ],
)
def test_what_is_no_check_or_no_limit_is_refused(checks: dict[str, Any], told: str) -> None:
    with pytest.raises(BundleError, match=told):
        require_limits(checks, ["NCR", "WT"])


def test_every_check_can_be_switched_off_and_every_bundle_has_limits_that_pass() -> None:
    for off in (None, False):
        require_limits(dict.fromkeys(CHECKS, off), [])
    for bundle in names():
        parts = {"WT", "TC", "ET", "brain", "CSF", "GM", "WM"}
        require_limits(parse(bundle, "inference.yaml").get_parsed_content("checks"), parts)


def test_a_file_that_does_not_tell_its_grid() -> None:
    known = result(box())
    assert flags_of(known, {"grid_unknown": True}) == []
    (flag,) = flags_of(replace(known, grid_known=False), {"grid_unknown": True})
    assert "voxels of 1 mm" in flag.sentence
