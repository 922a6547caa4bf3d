"""Scans that are moved and cut into thick slices, and what the measurements tell of them."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tools.bench import registration
from tools.bench.moved import Head, Stack, random_move

AFFINE = np.array([[-1.0, 0, 0, 9], [0, 2, 0, -4], [0, 0, 1, 7], [0, 0, 0, 1]])


def ball(size: int = 40) -> Head:
    """A ball of 2 over a radius of 10 voxels in a field of cubes."""
    away = np.linalg.norm(np.indices((size,) * 3) - (size - 1) / 2, axis=0)
    brain = away < 10
    return Head(2.0 * brain.astype(np.float32), brain, np.eye(4))


def middle_of(voxels: np.ndarray, affine: np.ndarray) -> np.ndarray:
    return affine[:3, :3] @ (np.argwhere(voxels).mean(0)) + affine[:3, 3]


@pytest.mark.parametrize("seed", range(6))
def test_slices_lie_where_the_head_is(seed: int) -> None:
    """Of every axis; seeds 0 to 5 draw all three."""
    draw = np.random.default_rng(seed)
    head = ball()
    stack = Stack(head, np.eye(4), 0.0, draw)
    assert sorted(stack.grid.spacing) == [1, 1, 5]
    scan = stack.scan(0.0, draw)
    assert scan.voxels.shape == stack.grid.shape
    np.testing.assert_allclose(middle_of(scan.brain, scan.affine), head.middle, atol=0.3)
    assert scan.voxels.sum() * 5 == pytest.approx(head.voxels.sum(), rel=1e-4), "thick slices are averages"


def test_a_head_that_is_turned_about_its_middle_and_shifted() -> None:
    draw = np.random.default_rng(3)
    head = ball()
    move = random_move(head, 20, 8, draw)
    np.testing.assert_allclose(np.linalg.det(move[:3, :3]), 1)
    towards = move[:3, :3] @ head.middle + move[:3, 3] - head.middle
    assert 0 < np.linalg.norm(towards) < 8
    scan = Stack(head, move, 0.0, draw).scan(0.0, draw)
    there = middle_of(scan.brain, scan.affine)
    np.testing.assert_allclose(move[:3, :3] @ there + move[:3, 3], head.middle, atol=0.3)


@pytest.mark.parametrize("seed", range(8))
def test_a_field_that_ends_early_lacks_a_share_of_the_brain(seed: int) -> None:
    """At either end; the slices that are left lie where they lay."""
    head = ball()
    whole, cut = (Stack(head, np.eye(4), share, np.random.default_rng(seed)) for share in (0.0, 0.5))
    before, after = whole.average(head.brain) > 0.5, cut.average(head.brain) > 0.5
    lost = 1 - after.sum() / before.sum()
    assert 0 <= lost <= 0.5
    places = [np.argwhere(inside) @ stack.grid.affine[:3, :3].T + stack.grid.affine[:3, 3]
              for inside, stack in ((before, whole), (after, cut))]  # fmt: skip
    assert {tuple(place) for place in places[1].round(3)} <= {tuple(place) for place in places[0].round(3)}
    assert cut.grid.shape != whole.grid.shape


def test_noise_is_of_a_magnitude() -> None:
    draw = np.random.default_rng(0)
    scan = Stack(ball(), np.eye(4), 0.0, draw).scan(0.1, draw)
    air = scan.voxels[~scan.brain & (scan.voxels < 0.9)]
    assert (scan.voxels >= 0).all()
    assert air.mean() == pytest.approx(0.1 * 2 * np.sqrt(np.pi / 2), rel=0.05)  # Rayleigh


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"trials": 0}, "trials"),
        ({"reference": "T9"}, "--reference is 'T9'; expected one of T1, T1ce"),
        ({"trials": 1, "cut": 0.6}, "cut must be from 0 to 0.5"),
    ],
)
def test_what_cannot_be_is_refused(given: dict[str, Any], message: str, cohort: Path) -> None:
    with pytest.raises(ValueError, match=message):
        registration(str(cohort), **given)


@pytest.mark.parametrize("contrast", ["T1", "T1ce", "T2", "FLAIR"])
def test_air_of_virtual_heads_is_dark(contrast: str) -> None:
    for seed in range(20):
        assert import_module("tools.bench.registration")._means(contrast, np.random.default_rng(seed))[0] < 0.06


def test_a_trial_of_virtual_cases(cohort: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    registration(str(cohort), trials=1, rotation=5, shift=5, cut=0, out=str(tmp_path / "rows.json"))
    (row,) = json.loads((tmp_path / "rows.json").read_text())
    assert row["degrees"] <= 5
    assert row["error_by_data_set_mm"] < 6, "voxels of 5 mm: about one"
    assert capsys.readouterr().out.splitlines()[-1].startswith("1 trials: ")
