"""Tests of the scores of a case: by hand, against a naive reference, then the handler and its files."""

from __future__ import annotations

import csv
import json
import logging
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage

from brain_metastasis_attention_unet.scores import CLASSES, METRIC_DEFINITIONS, NOTES, ScoreMetastases, case_scores
from bundlekit.brats.lesions import SIZES, lesion_scores
from bundlekit.brats.regions import REGIONS
from bundlekit.errors import BundleError
from tests.bundlekit.conftest import Scored, with_box

ONE_MM = (1.0, 1.0, 1.0)


# --- case_scores, by hand -----------------------------------------------------------------------------------------


def test_counts_by_paper() -> None:
    truth, pred = np.zeros((2, 5, 1), np.uint8), np.zeros((2, 5, 1), np.uint8)
    truth.flat[:] = [3, 3, 1, 2, 2, 0, 0, 0, 0, 0]
    pred.flat[:] = [3, 1, 1, 2, 0, 3, 0, 0, 0, 0]
    got = case_scores(pred, truth, (1, 2, 3))
    # WT: truth 5, pred 5, both 4.  TC: truth 3, pred 4, both 3.  ET: truth 2, pred 2, both 1.
    assert [got[f"dice_{r}"] for r in REGIONS] == pytest.approx([8 / 10, 6 / 7, 2 / 4])
    assert [got[f"volume_truth_ml_{r}"] for r in REGIONS] == pytest.approx([0.03, 0.018, 0.012])
    assert [got[f"volume_pred_ml_{r}"] for r in REGIONS] == pytest.approx([0.03, 0.024, 0.012])
    assert (got["accuracy"], got["accuracy_of_empty_mask"]) == (7 / 10, 5 / 10)
    # NETC: truth 1, pred 2, both 1.  SNFH: truth 2, pred 1, both 1.
    assert [got[f"iou_{c}"] for c in CLASSES] == pytest.approx([1 / 2, 1 / 2, 1 / 3])
    assert [got[f"accuracy_{c}"] for c in CLASSES] == pytest.approx([9 / 10, 9 / 10, 8 / 10])
    assert [got[f"accuracy_of_empty_mask_{c}"] for c in CLASSES] == pytest.approx([9 / 10, 8 / 10, 8 / 10])
    assert all(type(value) is float for value in got.values())


def test_an_empty_prediction_scores_the_baseline_and_nothing_else() -> None:
    truth = with_box((20, 20, 20), (5, 5, 5), 2, 3)
    got = case_scores(np.zeros_like(truth), truth, ONE_MM)
    assert got["accuracy"] == got["accuracy_of_empty_mask"] == 1 - 8 / 8000 > 0.99
    assert got["accuracy_ET"] == got["accuracy_of_empty_mask_ET"] == 1 - 8 / 8000
    assert (got["iou_ET"], got["iou_NETC"]) == (0, 1)
    assert (got["dice_ET"], got["lesion_dice_ET"], got["lesion_hd95_ET"]) == (0, 0, 374)
    assert got["hd95_ET"] == pytest.approx(math.sqrt(3) * 20)
    assert (got["lesions_WT"], got["lesions_detected_WT"], got["lesion_sensitivity_WT"]) == (1, 0, 0)


def test_lesions_of_each_region() -> None:
    # Two lesions: enhancing in oedema, and enhancing alone; found are the oedema of the first, and a spurious voxel.
    shape = (30, 12, 12)
    truth = with_box(shape, (2, 2, 2), 7, 2)  # 343 voxels: 0.343 ml
    truth[4:7, 4:7, 4:7] = 3
    truth[20:23, 5:8, 5:8] = 3  # 0.027 ml
    pred = with_box(shape, (2, 2, 2), 7, 2)
    pred[29, 0, 0] = 3
    got = case_scores(pred, truth, ONE_MM)
    assert (got["lesions_WT"], got["lesions_detected_WT"], got["false_positives_WT"]) == (2, 1, 1)
    assert (got["lesion_dice_WT"], got["lesion_hd95_WT"]) == (pytest.approx(1 / 3), pytest.approx(2 * 374 / 3))
    assert (got["lesions_ET"], got["lesions_detected_ET"], got["false_positives_ET"]) == (2, 0, 1)
    assert (got["lesion_dice_ET"], got["lesion_hd95_ET"]) == (0, 374)
    assert [got[f"lesion_sensitivity_{size}_WT"] for size in SIZES[:2]] == [0, 1]
    assert math.isnan(got[f"lesion_sensitivity_{SIZES[2]}_WT"])
    assert [got[f"lesions_{size}_ET"] for size in SIZES] == [2, 0, 0]
    assert [got[f"lesions_{size}_WT"] for size in SIZES] == [1, 1, 0]
    assert [got[f"lesions_detected_{size}_WT"] for size in SIZES] == [0, 1, 0]
    assert "lesion_sensitivity_TC" in got
    assert f"lesion_sensitivity_{SIZES[0]}_TC" not in got


@pytest.mark.parametrize(
    ("in_truth", "in_pred", "dice", "hd95", "lesion_hd95"),
    [(False, False, 1, 0, 0), (True, False, 0, 13, 374), (False, True, 0, 13, 374)],
)
def test_empty_regions(in_truth: bool, in_pred: bool, dice: float, hd95: float, lesion_hd95: float) -> None:
    truth, pred = np.zeros((3, 4, 6), np.uint8), np.zeros((3, 4, 6), np.uint8)  # 3 x 4 x 12 mm: diagonal of 13 mm
    for volume, there in ((truth, in_truth), (pred, in_pred)):
        volume[1:3, 2, 2] = 3 if there else 0
    got = case_scores(pred, truth, (1, 1, 2))
    for region in REGIONS:
        assert got[f"dice_{region}"] == got[f"lesion_dice_{region}"] == dice
        assert got[f"hd95_{region}"] == pytest.approx(hd95)
        assert got[f"lesion_hd95_{region}"] == lesion_hd95
        assert got[f"false_positives_{region}"] == in_pred
        sensitivity = got[f"lesion_sensitivity_{region}"]
        assert sensitivity == 0 if in_truth else math.isnan(sensitivity)
    assert got["iou_ET"] == dice
    assert (got["accuracy"] == 1) == (in_truth == in_pred)
    assert got["accuracy_of_empty_mask"] == pytest.approx(70 / 72 if in_truth else 1)


def test_anisotropic_spacing_reaches_every_distance() -> None:
    truth, pred = with_box((12, 12, 12), (3, 3, 3), 3, 3), with_box((12, 12, 12), (3, 3, 4), 3, 3)
    got = case_scores(pred, truth, (0.5, 2, 5))
    assert got["hd95_ET"] == got["lesion_hd95_ET"] == 5
    assert got["volume_truth_ml_ET"] == pytest.approx(0.135)
    assert got["lesions_0.1_to_1ml_ET"] == 1  # 27 voxels are 0.135 ml here


def test_bad_input_is_refused() -> None:
    good = np.zeros((2, 3, 4), np.uint8)
    with pytest.raises(ValueError, match=r"\(2, 3, 5\).*\(2, 3, 4\)"):
        case_scores(np.zeros((2, 3, 5)), good, ONE_MM)
    with pytest.raises(ValueError, match=r"\(3, 4\)"):
        case_scores(good[0], good[0], ONE_MM)
    with pytest.raises(ValueError, match=r"\(0, 3, 4\)"):
        case_scores(good[:0], good[:0], ONE_MM)
    for value in (4, 255, 256, -1, 0.5, math.nan):
        with pytest.raises(ValueError, match="truth must hold the classes"):
            case_scores(good, np.full(good.shape, value), ONE_MM)
        with pytest.raises(ValueError, match="pred must hold the classes"):
            case_scores(np.full(good.shape, value), good, ONE_MM)
    with pytest.raises(ValueError, match="spacing_mm"):
        case_scores(good, good, (1, 1, 0))


def test_every_score_is_defined_in_the_summary() -> None:
    names = set()
    for name in case_scores(*[with_box((9, 9, 9), (2, 2, 2), 3, 3)] * 2, ONE_MM):
        for suffix in [f"_{size}_{region}" for size in SIZES for region in REGIONS] + [
            f"_{r}" for r in (*REGIONS, *CLASSES)
        ]:
            if name.endswith(suffix):
                name = name.removesuffix(suffix)
                break
        names.add(name)
    assert names <= set(METRIC_DEFINITIONS)
    assert json.loads(json.dumps(NOTES)) == NOTES
    assert "374" in NOTES["lesion_rule"]
    assert "BraTS-2023-Metrics" in NOTES["lesion_rule_source"]


# --- case_scores, against the definitions -------------------------------------------------------------------------


def blobs(rng: np.random.Generator, shape: Sequence[int]) -> np.ndarray:
    """Random class map of smooth blobs that holds all the classes."""
    smooth = ndimage.gaussian_filter(rng.normal(size=shape), 1.2)
    return np.digitize(smooth, np.quantile(smooth, [0.85, 0.9, 0.95])).astype(np.uint8)


@pytest.mark.parametrize("seed", range(5))
def test_agrees_with_the_definitions_whatever_the_air_around(seed: int) -> None:
    rng = np.random.default_rng(seed)
    shape, spacing = rng.integers(8, 18, 3).tolist(), rng.uniform(0.4, 3, 3).tolist()
    pred, truth = blobs(rng, shape), blobs(rng, shape)
    padding = ((3, 9), (12, 0), (1, 1))
    far = [np.pad(volume, padding) for volume in (pred, truth)]
    got = case_scores(*far, spacing)
    for region, classes in REGIONS.items():
        p, t = np.isin(pred, classes), np.isin(truth, classes)
        assert got[f"dice_{region}"] == pytest.approx(2 * (p & t).sum() / (p.sum() + t.sum()))
        whole = lesion_scores(*(np.isin(volume, classes) for volume in far), spacing)
        assert (got[f"lesion_dice_{region}"], got[f"lesion_hd95_{region}"]) == (whole.dice, whole.hd95_mm)
        assert got[f"false_positives_{region}"] == whole.n_false_positives
        assert case_scores(pred, truth, spacing)[f"hd95_{region}"] == got[f"hd95_{region}"] > 0
    assert got["accuracy"] == pytest.approx((far[0] == far[1]).mean())
    assert got["accuracy_of_empty_mask"] == pytest.approx((far[1] == 0).mean())
    for name, value in CLASSES.items():
        p, t = pred == value, truth == value
        assert got[f"iou_{name}"] == pytest.approx((p & t).sum() / (p | t).sum())
        assert got[f"accuracy_{name}"] == pytest.approx(((far[0] == value) == (far[1] == value)).mean())
        assert got[f"accuracy_of_empty_mask_{name}"] == pytest.approx((far[1] != value).mean())


# --- ScoreMetastases ------------------------------------------------------------------------------------------------

SHAPE = (12, 7, 8)
SCORED = Scored(SHAPE, (0, 1, 2, 3))
read_label, item, output, run = SCORED.read_label, SCORED.item, SCORED.output, SCORED.run
# found exactly, spurious in a healthy brain, shifted by one of three voxels, missed with a spurious one elsewhere
PAIRS = [
    (item("b"), output(1)),
    (item("c", "/data/healthy.nii.gz"), output(1)),
    (item("a,1"), output(2)),
    (item("d"), output(8)),
]


def test_handler_end_to_end(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    out = tmp_path / "made" / "here"
    with caplog.at_level(logging.INFO, logger="brain_metastasis_attention_unet"):
        engine = run(ScoreMetastases(str(out), read_label=read_label), PAIRS)

    assert sorted(os.listdir(out)) == ["scores.csv", "scores.png", "summary.json"]
    rows = list(csv.DictReader((out / "scores.csv").read_text().splitlines()))
    assert [r["case"] for r in rows] == ["a,1", "b", "c", "d"]
    assert [r["dice_ET"] for r in rows] == ["0.666667", "1", "0", "0"]
    assert [r["lesion_dice_ET"] for r in rows] == ["0.666667", "1", "0", "0"]
    assert [r["lesion_hd95_ET"] for r in rows] == ["2", "0", "374", "374"]  # spacing from the affine
    assert [r["lesion_sensitivity_ET"] for r in rows] == ["1", "1", "", "0"]
    assert [r["lesion_sensitivity_0.1_to_1ml_ET"] for r in rows] == ["1", "1", "", "0"]  # 27 voxels of 6 mm3
    assert [r["lesion_sensitivity_under_0.1ml_ET"] for r in rows] == [""] * 4
    assert [r["false_positives_WT"] for r in rows] == ["0", "0", "1", "1"]
    assert [r["accuracy_of_empty_mask"] for r in rows] == [f"{x:.6g}" for x in (645 / 672, 645 / 672, 1, 645 / 672)]

    summary = json.loads((out / "summary.json").read_text())
    assert summary["n_cases"] == 4
    assert summary["lesion_rule"] == NOTES["lesion_rule"]
    assert summary["metrics"]["lesion_dice_WT"]["mean"] == pytest.approx(5 / 12)
    sensitivity = summary["metrics"]["lesion_sensitivity_WT"]
    assert (sensitivity["n"], sensitivity["n_undefined"], sensitivity["mean"]) == (3, 1, pytest.approx(2 / 3))
    # voxel-wise Dice alone makes up mean_dice
    assert engine.state.metrics["mean_dice"] == pytest.approx(5 / 12)
    assert summary["metrics"]["mean_dice"]["mean"] == pytest.approx(5 / 12)
    text = caplog.text
    assert "lesion-wise Dice 0.4167, HD95 187.5 mm, lesions detected 2/3 (0.667), false positives a case 0.5" in text
    assert "under_0.1ml 0/0, 0.1_to_1ml 2/3 (0.667), over_1ml 0/0" in text
    accuracies = [summary["metrics"][name]["mean"] for name in ("accuracy", "accuracy_of_empty_mask")]
    assert f"accuracy {accuracies[0]:.5f}, of an empty mask {accuracies[1]:.5f}" in text
    assert accuracies[1] == pytest.approx((3 * 645 / 672 + 1) / 4)


@pytest.mark.parametrize(("chosen_on", "known"), [(["b", "z"], ["b"]), (["c_ses-2"], ["c"]), (["z"], []), ([], [])])
def test_cases_that_chose_the_smallest_lesion_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, chosen_on: list[str], known: list[str]
) -> None:
    run(ScoreMetastases(str(tmp_path), read_label=read_label, chosen_on=chosen_on), PAIRS[:2])
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary.get("minimum_lesion_chosen_on", []) == known
    assert ("minimum_lesion_ml was chosen on 1 of these 2 cases: their scores flatter" in caplog.text) == bool(known)


def test_the_reader_of_brats_labels_is_the_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("brain_metastasis_attention_unet.scores.read_original_label", read_label)
    run(ScoreMetastases(tmp_path), PAIRS[:1])
    assert json.loads((tmp_path / "summary.json").read_text())["metrics"]["dice_ET"]["mean"] == 1


@pytest.mark.parametrize(
    ("file", "out", "reason"),
    [
        ("/data/missing.nii.gz", output(1), "FileNotFoundError"),
        ("", {"pred": torch.zeros(1, 6, 7, 9)}, r"\(6, 7, 9\).*\(12, 7, 8\)"),
        ("", {"pred": torch.full((1, *SHAPE), 4)}, "pred must hold the classes"),
    ],
)
def test_a_case_that_cannot_be_scored_is_named(tmp_path: Path, file: str, out: dict[str, Any], reason: str) -> None:
    bad = item("BraTS-MET-00007-000", file)
    with pytest.raises(BundleError, match=f"case BraTS-MET-00007-000 .*{bad['label_file']}.*{reason}"):
        run(ScoreMetastases(tmp_path, read_label=read_label), [PAIRS[0], (bad, out)])
    assert os.listdir(tmp_path) == []


def test_other_ranks_write_and_log_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    handler = ScoreMetastases(tmp_path / "out", read_label=read_label)
    monkeypatch.setattr("ignite.distributed.get_rank", lambda: 1)
    with caplog.at_level(logging.INFO, logger="brain_metastasis_attention_unet"):
        run(handler, PAIRS[:2])
    assert not (tmp_path / "out").exists()
    assert caplog.text == ""
