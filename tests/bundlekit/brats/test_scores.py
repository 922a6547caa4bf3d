"""Tests of the scores: by hand first, then against a brute-force reference, then the files and the handler."""

from __future__ import annotations

import csv
import json
import logging
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ignite.engine import Engine
from scipy import ndimage
from scipy.spatial.distance import cdist

import bundlekit.brats.scores as scores_module
from bundlekit.brats.regions import REGIONS
from bundlekit.brats.scores import EMPTY_RULE, METRIC_DEFINITIONS, NOTES, ScoreCases, lesion_wise_scores, region_scores
from bundlekit.errors import BundleError
from bundlekit.scores import handler, statistics
from tests.bundlekit.conftest import Scored, with_box

ONE_MM = (1.0, 1.0, 1.0)


def empty(shape: Sequence[int] = (8, 8, 8)) -> np.ndarray:
    return np.zeros(shape, np.uint8)


# --- region_scores, by hand ---------------------------------------------------------------------------------------


def test_one_voxel_that_agrees() -> None:
    volume = with_box((4, 5, 6), (1, 2, 3), 1, 3)
    got = region_scores(volume, volume.copy(), (1, 2, 3))
    for region in REGIONS:
        assert got[f"dice_{region}"] == 1
        assert got[f"hd95_{region}"] == 0
        assert got[f"sensitivity_{region}"] == 1
        assert got[f"specificity_{region}"] == 1
        assert got[f"volume_truth_ml_{region}"] == pytest.approx(0.006)  # 1 x 2 x 3 mm3
        assert got[f"volume_pred_ml_{region}"] == pytest.approx(0.006)
    assert len(got) == 6 * len(REGIONS)
    assert all(type(value) is float for value in got.values())


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_one_voxel_moved_along_each_axis_uses_that_axis_spacing(axis: int) -> None:
    spacing = (0.5, 2.0, 5.0)
    truth, pred = empty(), empty()
    truth[3, 3, 3] = 1
    pred[tuple(3 + 2 * (i == axis) for i in range(3))] = 1
    got = region_scores(pred, truth, spacing)
    assert got["hd95_WT"] == pytest.approx(2 * spacing[axis])
    assert got["dice_WT"] == got["sensitivity_WT"] == 0


def test_shifted_cube() -> None:
    # 4x4x4 against the same cube 1 voxel on: 48 of 64 voxels shared. Of the 56 surface voxels of each, the 16 of the
    # leading face lie 1 voxel off the other surface, as do the 4 inner ones of the opposite face: > 5 %, so HD95 is 1.
    truth, pred = with_box((8, 8, 8), (2, 2, 2), 4, 2), with_box((8, 8, 8), (3, 2, 2), 4, 2)
    got = region_scores(pred, truth, (3, 1, 1))
    assert got["dice_WT"] == pytest.approx(2 * 48 / 128)
    assert got["hd95_WT"] == pytest.approx(3)
    assert got["sensitivity_WT"] == pytest.approx(48 / 64)
    assert got["specificity_WT"] == pytest.approx((512 - 64 - 16) / (512 - 64))
    assert got["volume_pred_ml_WT"] == pytest.approx(64 * 3 / 1000)


def test_hd95_is_the_larger_directed_percentile_not_the_pooled_one() -> None:
    # Truth: 99 voxels in a row. Pred: the same and one voxel 50 mm beyond the end. From truth every distance is 0;
    # from pred 99 are 0 and one is 50, so the 95th percentile is 0 and only the maximum would be 50.
    truth = with_box((160, 3, 3), (1, 1, 1), (99, 1, 1), 3)
    pred = truth.copy()
    pred[149, 1, 1] = 3
    assert region_scores(pred, truth, ONE_MM)["hd95_ET"] == 0
    # Pred: 10 voxels of the row. From pred all 0; from truth distances 0 (x10), 1, 2, ..., 89, whose 95th percentile
    # is at rank 0.95 * 98 = 93.1, that is 84.1; pooling the 109 distances would give 83.6.
    pred = with_box((160, 3, 3), (1, 1, 1), (10, 1, 1), 3)
    assert region_scores(pred, truth, ONE_MM)["hd95_ET"] == pytest.approx(84.1)
    assert region_scores(truth, pred, ONE_MM)["hd95_ET"] == pytest.approx(84.1)


def test_confusion_by_paper() -> None:
    truth, pred = empty((2, 5, 1)), empty((2, 5, 1))
    truth.flat[:] = [3, 3, 1, 2, 2, 0, 0, 0, 0, 0]
    pred.flat[:] = [3, 1, 1, 2, 0, 3, 0, 0, 0, 0]
    got = region_scores(pred, truth, ONE_MM)
    # WT: truth 5, pred 5, both 4, outside 5.  TC: truth 3, pred 4, both 3, outside 7.  ET: truth 2, pred 2, both 1.
    expected = {"WT": (8 / 10, 4 / 5, 4 / 5), "TC": (6 / 7, 1, 6 / 7), "ET": (2 / 4, 1 / 2, 7 / 8)}
    for region, values in expected.items():
        assert [got[f"{key}_{region}"] for key in ("dice", "sensitivity", "specificity")] == pytest.approx(values)
    assert [got[f"volume_truth_ml_{r}"] for r in REGIONS] == pytest.approx([0.005, 0.003, 0.002])
    assert [got[f"volume_pred_ml_{r}"] for r in REGIONS] == pytest.approx([0.005, 0.004, 0.002])


def test_classes_swapped_inside_a_region_do_not_count_against_it() -> None:
    truth, pred = with_box((6, 6, 6), (1, 1, 1), 3, 3), with_box((6, 6, 6), (1, 1, 1), 3, 1)
    got = region_scores(pred, truth, ONE_MM)
    assert (got["dice_WT"], got["dice_TC"], got["dice_ET"]) == (1, 1, 0)
    assert region_scores(pred, truth, ONE_MM, {"NCR": (1,), "any": [1, 3]})["dice_any"] == 1
    assert set(region_scores(pred, truth, ONE_MM, {"NCR": (1,)})) >= {"dice_NCR", "volume_truth_ml_NCR"}


@pytest.mark.parametrize(
    ("in_truth", "in_pred", "dice", "hd95"), [(False, False, 1, 0), (True, False, 0, 13), (False, True, 0, 13)]
)
def test_empty_region(in_truth: bool, in_pred: bool, dice: float, hd95: float) -> None:
    # Oedema is there in both, so WT is scored while TC and ET are empty; 3 x 4 x 12 mm has a diagonal of 13 mm.
    truth, pred = with_box((3, 4, 6), (0, 0, 0), 1, 2), with_box((3, 4, 6), (0, 0, 0), 1, 2)
    if in_truth:
        truth[2, 2, 2] = 3
    if in_pred:
        pred[2, 2, 2] = 3
    got = region_scores(pred, truth, (1, 1, 2))
    for region in ("TC", "ET"):
        assert got[f"dice_{region}"] == dice
        assert got[f"hd95_{region}"] == pytest.approx(hd95)
        assert got[f"sensitivity_{region}"] == 0 if in_truth else math.isnan(got[f"sensitivity_{region}"])
        assert got[f"specificity_{region}"] == pytest.approx(71 / 72 if in_pred else 1)
    assert 0 < got["dice_WT"] <= 1


def test_all_background_and_all_tumour() -> None:
    nothing, everything = empty((3, 4, 12)), np.full((3, 4, 12), 3, np.uint8)
    got = region_scores(nothing, nothing, ONE_MM)
    assert (got["dice_WT"], got["hd95_WT"], got["specificity_WT"], got["volume_truth_ml_WT"]) == (1, 0, 1, 0)
    assert math.isnan(got["sensitivity_WT"])
    got = region_scores(everything, everything, ONE_MM)
    assert (got["dice_WT"], got["hd95_WT"], got["sensitivity_WT"]) == (1, 0, 1)
    assert math.isnan(got["specificity_WT"])  # no voxel outside


def test_penalty_on_the_brats_grid_is_the_challenges() -> None:
    truth = empty((240, 240, 155))
    truth[100, 100, 100] = 3
    assert region_scores(empty(truth.shape), truth, ONE_MM)["hd95_ET"] == pytest.approx(373.13, abs=0.005)
    assert "373.13" in EMPTY_RULE


def test_border_of_the_image_is_surface() -> None:
    # Solid slabs that touch the image border on five sides: without surface there, their HD95 would be another.
    truth, pred = with_box((9, 5, 5), (0, 0, 0), (8, 5, 5), 2), with_box((9, 5, 5), (0, 0, 0), (5, 5, 5), 2)
    assert region_scores(pred, truth, ONE_MM)["hd95_WT"] == pytest.approx(reference_hd95(pred > 0, truth > 0, ONE_MM))
    assert region_scores(pred, truth, ONE_MM)["hd95_WT"] == 3


def test_air_around_the_tumour_changes_no_distance() -> None:
    rng = np.random.default_rng(3)
    pred, truth = blobs(rng, (12, 10, 8)), blobs(rng, (12, 10, 8))
    padding = ((3, 9), (20, 0), (1, 1))
    near, far = (
        region_scores(*pair, (1, 2, 3)) for pair in ((pred, truth), (np.pad(pred, padding), np.pad(truth, padding)))
    )
    for region in REGIONS:
        assert far[f"hd95_{region}"] == near[f"hd95_{region}"] > 0
        assert far[f"dice_{region}"] == near[f"dice_{region}"]
        assert far[f"specificity_{region}"] > near[f"specificity_{region}"]


def test_other_number_types_are_taken_when_they_hold_classes() -> None:
    truth, pred = with_box((6, 6, 6), (1, 1, 1), 3, 3), with_box((6, 6, 6), (2, 1, 1), 3, 3)
    expected = region_scores(pred, truth, ONE_MM)
    assert region_scores(pred.astype(np.float32), truth.astype(np.int64), ONE_MM) == expected


def test_bad_input_is_refused() -> None:
    good = empty((2, 3, 4))
    with pytest.raises(ValueError, match=r"\(2, 3, 5\).*\(2, 3, 4\)"):
        region_scores(empty((2, 3, 5)), good, ONE_MM)
    with pytest.raises(ValueError, match=r"\(3, 4\)"):
        region_scores(good[0], good[0], ONE_MM)
    for value in (4, 255, 256, -1, 0.5):
        with pytest.raises(ValueError, match="truth must hold the classes"):
            region_scores(good, np.full(good.shape, value), ONE_MM)
        with pytest.raises(ValueError, match="pred must hold the classes"):
            region_scores(np.full(good.shape, value), good, ONE_MM)
    for spacing in ((1, 1), (1, 1, 0), (1, 1, -1), (1, 1, math.nan), (1, 1, math.inf)):
        with pytest.raises(ValueError, match="spacing_mm"):
            region_scores(good, good, spacing)


# --- region_scores, against brute force ---------------------------------------------------------------------------


def blobs(rng: np.random.Generator, shape: Sequence[int]) -> np.ndarray:
    """Random class map of smooth blobs that holds all the classes."""
    smooth = ndimage.gaussian_filter(rng.normal(size=shape), 1.2)
    return np.digitize(smooth, np.quantile(smooth, [0.6, 0.75, 0.9])).astype(np.uint8)


def reference_hd95(pred: np.ndarray, truth: np.ndarray, spacing: Sequence[float]) -> float:
    """HD95 from the definition: every surface voxel against every other."""

    def surface(mask: np.ndarray) -> np.ndarray:
        points = []
        for point in np.argwhere(mask):
            for step in np.concatenate([np.eye(3, dtype=int), -np.eye(3, dtype=int)]):
                there = point + step
                if (there < 0).any() or (there >= mask.shape).any() or not mask[tuple(there)]:
                    points.append(point * np.asarray(spacing))
                    break
        return np.asarray(points)

    distances = cdist(surface(pred), surface(truth))
    return max(float(np.percentile(distances.min(axis), 95)) for axis in (0, 1))


@pytest.mark.parametrize("seed", range(8))
def test_agrees_with_brute_force(seed: int) -> None:
    rng = np.random.default_rng(seed)
    shape, spacing = rng.integers(6, 15, 3).tolist(), rng.uniform(0.4, 5, 3)
    pred, truth = blobs(rng, shape), blobs(rng, shape)
    got = region_scores(pred, truth, spacing.tolist())
    for region, classes in REGIONS.items():
        p, t = np.isin(pred, classes), np.isin(truth, classes)
        assert got[f"dice_{region}"] == pytest.approx(2 * (p & t).sum() / (p.sum() + t.sum()))
        assert got[f"sensitivity_{region}"] == pytest.approx((p & t).sum() / t.sum())
        assert got[f"specificity_{region}"] == pytest.approx((~p & ~t).sum() / (~t).sum())
        assert got[f"volume_truth_ml_{region}"] == pytest.approx(t.sum() * spacing.prod() / 1000)
        assert got[f"volume_pred_ml_{region}"] == pytest.approx(p.sum() * spacing.prod() / 1000)
        assert got[f"hd95_{region}"] == pytest.approx(reference_hd95(p, t, spacing.tolist()), rel=1e-5)


# --- summarise ----------------------------------------------------------------------------------------------------


def summarise(rows: Sequence[Mapping[str, Any]], seed: int = 0) -> dict[str, Any]:
    return statistics.summarise(rows, NOTES, seed)


def row(case: str, dice: Sequence[float], sensitivity: float = 0.5) -> dict[str, Any]:
    return {
        "case": case,
        **dict(zip(["dice_WT", "dice_TC", "dice_ET"], dice, strict=True)),
        "sensitivity_ET": sensitivity,
    }


def test_summary_of_known_numbers() -> None:
    rows = [row("a", (0.9, 0.6, 0.3), 1.0), row("b", (0.5, 0.5, 0.5), math.nan), row("c", (1.0, 0.0, 0.2), 0.0)]
    got = summarise(rows)
    assert got["n_cases"] == 3
    dice = got["metrics"]["dice_WT"]
    assert (dice["n"], dice["n_undefined"]) == (3, 0)
    assert dice["mean"] == pytest.approx(0.8)
    assert dice["sd"] == pytest.approx(math.sqrt((0.01 + 0.09 + 0.04) / 2))
    assert dice["median"] == pytest.approx(0.9)
    sensitivity = got["metrics"]["sensitivity_ET"]
    assert (sensitivity["n"], sensitivity["n_undefined"]) == (2, 1)
    assert (sensitivity["mean"], sensitivity["median"]) == (0.5, 0.5)
    assert sensitivity["sd"] == pytest.approx(math.sqrt(0.5))
    assert got["metrics"]["mean_dice"]["mean"] == pytest.approx((0.6 + 0.5 + 0.4) / 3)
    assert [c["case"] for c in got["worst_cases"]] == ["c", "b", "a"]
    assert [c["case"] for c in got["best_cases"]] == ["a", "b", "c"]
    assert got["worst_cases"][0]["mean_dice"] == pytest.approx(0.4)
    assert got["empty_region_rule"] == EMPTY_RULE
    assert got["metric_definitions"] == METRIC_DEFINITIONS
    assert "mean_dice" not in rows[0]  # the caller's rows are left as they were


def test_every_score_is_defined_in_the_summary() -> None:
    volume = with_box((4, 4, 4), (1, 1, 1), 2, 3)
    scores = region_scores(volume, volume, ONE_MM) | lesion_wise_scores(volume, volume, ONE_MM)
    names = {name.rpartition("_")[0] for name in scores}
    assert names <= set(METRIC_DEFINITIONS)


def test_summary_of_few_and_undefined_cases_is_json() -> None:
    for rows in ([], [row("a", (1, 1, 1), math.nan)], [row("a", (1, 1, 1), math.nan), row("b", (1, 1, 1), math.nan)]):
        got = summarise(rows)
        assert json.loads(json.dumps(got, allow_nan=False)) == got
    assert summarise([])["metrics"] == {}
    one = summarise([row("a", (0.2, 0.4, 0.9), math.nan)])["metrics"]
    assert one["dice_WT"] == {"n": 1, "n_undefined": 0, "mean": 0.2, "sd": None, "median": 0.2, "ci95": None}
    assert one["sensitivity_ET"] == {"n": 0, "n_undefined": 1, "mean": None, "sd": None, "median": None, "ci95": None}
    assert summarise([row("a", (1, 1, 1)), row("b", (1, 1, 1))])["metrics"]["dice_WT"]["ci95"] == [1, 1]


def test_at_most_five_cases_are_listed() -> None:
    got = summarise([row(f"case{i}", (i / 10, i / 10, i / 10)) for i in (3, 1, 0, 7, 5, 2, 6, 4)])
    assert [c["case"] for c in got["worst_cases"]] == [f"case{i}" for i in range(5)]
    assert [c["case"] for c in got["best_cases"]] == [f"case{i}" for i in (7, 6, 5, 4, 3)]


def test_bootstrap_interval() -> None:
    x = np.random.default_rng(1).normal(0.8, 0.1, 60)
    rows = [row(f"case{i}", (v, v, v)) for i, v in enumerate(x)]
    got = summarise(rows)["metrics"]["dice_WT"]
    low, high = got["ci95"]
    assert low < got["mean"] < high
    half = 1.96 * x.std(ddof=1) / math.sqrt(len(x))  # normal theory holds for 60 normal values
    assert (got["mean"] - low, high - got["mean"]) == pytest.approx((half, half), rel=0.15)
    assert summarise(rows)["metrics"]["dice_WT"]["ci95"] == [low, high]
    assert summarise(rows, seed=1)["metrics"]["dice_WT"]["ci95"] != [low, high]


# --- lesion_wise_scores -------------------------------------------------------------------------------------------


def test_lesions_by_the_rules_of_the_glioma_challenge() -> None:
    truth = empty((40, 12, 12))
    truth[2:6, 2:6, 2:6] = 2  # 64 mm3: one lesion with what is 4 voxels off, which 3 voxels of dilation join
    truth[10:14, 2:6, 2:6] = 3
    truth[30:32, 2:7, 2:7] = 3  # 50 mm3: left out
    pred = empty(truth.shape)
    pred[2:6, 2:6, 2:6] = 2
    pred[30:32, 2:7, 2:7] = 3
    pred[20, 10, 10] = 1  # one voxel, reaches nothing
    got = lesion_wise_scores(pred, truth, ONE_MM)
    assert got["lesions_WT"] == got["lesions_detected_WT"] == got["false_positives_WT"] == 1
    assert got["lesion_dice_WT"] == pytest.approx(2 * 64 / (128 + 64) / 2)
    assert (got["lesions_ET"], got["lesions_detected_ET"], got["false_positives_ET"]) == (1, 0, 0)
    assert (got["lesion_dice_ET"], got["lesion_hd95_ET"]) == (0, 374)
    assert all(type(value) is float for value in got.values())
    assert lesion_wise_scores(truth, truth, ONE_MM)["lesion_dice_ET"] == 1
    assert lesion_wise_scores(empty(), empty(), ONE_MM)["lesion_dice_WT"] == 1


# --- ScoreCases ---------------------------------------------------------------------------------------------------

SHAPE = (6, 7, 8)
SCORED = Scored(SHAPE, (0, 1, 2, 4))
read_label, item, output, run = SCORED.read_label, SCORED.item, SCORED.output, SCORED.run
PAIRS = [(item("b"), output(1)), (item("c", "/data/healthy.nii.gz"), output(1)), (item("a,1"), output(2))]


def test_handler_end_to_end(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    out = tmp_path / "made" / "here"
    with caplog.at_level(logging.INFO, logger="bundlekit"):
        engine = run(ScoreCases(str(out), read_label=read_label), PAIRS)

    assert sorted(os.listdir(out)) == ["scores.csv", "scores.png", "summary.json"]
    text = (out / "scores.csv").read_text()
    rows = list(csv.DictReader(text.splitlines()))
    assert text.startswith("case,dice_WT,hd95_WT,")
    assert [r["case"] for r in rows] == ["a,1", "b", "c"]
    assert [r["dice_ET"] for r in rows] == ["0.666667", "1", "0"]  # shifted by one of three, equal, no reference
    assert [r["hd95_ET"] for r in rows] == ["2", "0", f"{math.sqrt(12**2 + 7**2 + 24**2):.6g}"]  # spacing from affine
    assert [r["sensitivity_ET"] for r in rows] == ["0.666667", "1", ""]
    assert [r["volume_truth_ml_WT"] for r in rows] == ["0.162", "0.162", "0"]
    assert [r["lesion_dice_ET"] for r in rows] == ["0.666667", "1", "0"]
    assert [r["false_positives_ET"] for r in rows] == ["0", "0", "1"]

    summary = json.loads((out / "summary.json").read_text())
    assert summary["n_cases"] == 3
    assert summary["metrics"]["mean_dice"]["mean"] == pytest.approx(5 / 9)
    assert summary["worst_cases"][0] == {"case": "c", "mean_dice": 0}
    assert engine.state.metrics["mean_dice"] == pytest.approx(5 / 9)
    assert "mean Dice 0.5556" in caplog.text
    assert all(region in caplog.text for region in REGIONS)


def test_a_second_run_starts_afresh(tmp_path: Path) -> None:
    handler = ScoreCases(tmp_path, read_label=read_label)
    run(handler, PAIRS)
    run(handler, PAIRS[:1])
    assert json.loads((tmp_path / "summary.json").read_text())["n_cases"] == 1


def test_handler_uses_the_bundles_reader_and_regions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scores_module, "read_original_label", read_label)
    run(ScoreCases(tmp_path, regions={"ET": [3]}), PAIRS)
    header = (tmp_path / "scores.csv").read_text().splitlines()[0]
    assert "dice_ET" in header
    assert "WT" not in header


@pytest.mark.parametrize(
    ("file", "out", "reason"),
    [
        ("/data/missing.nii.gz", output(1), "FileNotFoundError"),
        ("", {"pred": torch.zeros(1, 6, 7, 9)}, r"\(6, 7, 9\).*\(6, 7, 8\)"),
        ("", {"pred": torch.zeros(4, *SHAPE)}, "one channel"),
        ("", {}, "KeyError"),
    ],
)
def test_a_case_that_cannot_be_scored_is_named(tmp_path: Path, file: str, out: dict[str, Any], reason: str) -> None:
    bad = item("BraTS_007", file)
    with pytest.raises(ValueError, match=f"case BraTS_007 .*{bad['label_file']}.*{reason}"):
        run(ScoreCases(tmp_path, read_label=read_label), [PAIRS[0], (bad, out)])
    assert os.listdir(tmp_path) == []


def test_no_case_at_all_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no case was scored"):
        ScoreCases(tmp_path, read_label=read_label)._finish(Engine(lambda engine, batch: None))
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_failure_while_writing_leaves_the_old_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    run(ScoreCases(tmp_path, read_label=read_label), PAIRS[:1])
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def refuse(*args: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, failing, refuse)
    with pytest.raises(BundleError, match="disk full"):
        run(ScoreCases(tmp_path, read_label=read_label), PAIRS)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("rank", [0, 1])
def test_ranks_are_gathered_and_rank_0_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rank: int) -> None:
    other = ScoreCases(tmp_path / "other", read_label=read_label)
    run(other, [PAIRS[2], PAIRS[0]])  # "b" went to both ranks, as a sampler does that evens out their shares
    monkeypatch.setattr(handler.idist, "get_world_size", lambda: 2)
    monkeypatch.setattr(handler.idist, "get_rank", lambda: rank)
    monkeypatch.setattr(handler.idist, "all_gather", lambda mine: [mine, other._rows])
    engine = run(ScoreCases(tmp_path / "out", read_label=read_label), PAIRS[:2])
    assert engine.state.metrics["mean_dice"] == pytest.approx(5 / 9)
    assert (tmp_path / "out").exists() == (rank == 0)
    if rank == 0:
        rows = list(csv.DictReader((tmp_path / "out" / "scores.csv").open()))
        assert [r["case"] for r in rows] == ["a,1", "b", "c"]
