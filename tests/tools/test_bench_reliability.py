"""Probabilities against labels."""

from __future__ import annotations

import io
import json
from pathlib import Path

import h5py
import numpy as np
import pytest

from tools.bench.reliability import calibration, draw, expected_error, near_tumour, reliability, temperature, warmed


def drawn(sharper: float, n: int = 40_000) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities 4N, and classes that were drawn by them before they were made sharper."""
    rng = np.random.default_rng(1)
    logits = rng.normal(0, 1.5, (4, n))
    p = np.exp(logits) / np.exp(logits).sum(0)
    label = (p.cumsum(0) < rng.random(n)).sum(0).clip(0, 3).astype(np.uint8)
    return warmed(p, 1 / sharper), label


def test_right_probabilities_have_no_error_and_temperature_1() -> None:
    case = drawn(1)
    assert temperature([case]) == pytest.approx(1, abs=0.03)
    assert all(expected_error(*bins) < 0.01 for bins in reliability([case]).values())


def test_overconfident_ones_are_told_and_mended() -> None:
    case = drawn(2)
    value = temperature([case])
    assert value == pytest.approx(2, abs=0.05)
    before, after = (reliability([(p, case[1])]) for p in (case[0], warmed(case[0], value)))
    for region in before:
        assert expected_error(*before[region]) > 5 * expected_error(*after[region])
    assert np.isfinite(after["WT"][0]).all()
    assert after["WT"][2].sum() == case[1].size


def test_only_what_is_near_the_tumour_counts() -> None:
    label = np.zeros((40, 9, 9), np.uint8)
    label[20, 4, 4] = 3
    probabilities = np.full((3, 40, 9, 9), 0.25, np.float32)
    p, classes = near_tumour(probabilities, label, (2, 10, 10))
    assert classes.size == 11 + 4  # along H up to 5 voxels, and the neighbours along W and D
    assert np.array_equal(p[:, 0], [0.75, 0, 0, 0.25])
    assert near_tumour(probabilities, 0 * label, (1, 1, 1))[1].size == label.size


def test_the_picture() -> None:
    file = io.BytesIO()
    draw({"as they are": reliability([drawn(1, 500)])}, file)
    assert file.getvalue().startswith(b"\x89PNG")


def test_the_labels_are_those_of_the_cases_that_were_evaluated(
    cohort: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    case = next(path for path in sorted(cohort.iterdir()) if path.is_dir())
    image = [str(case / f"{case.name}_{name}.nii.gz") for name in ("t1", "t1ce", "t2", "flair")]
    entry = {"case": "mine", "image": image, "label": str(case / f"{case.name}_seg.nii.gz")}
    datalist = tmp_path / "datalist.json"
    datalist.write_text(json.dumps({"validation": [entry]}))
    small = {"num_workers": 0, "overlap": 0, "patch_size": [24, 24, 24], "runtime": "torch"}
    calibration(str(case), datalist=str(datalist), **small)
    assert "expected calibration error of 1 cases" in capsys.readouterr().out


def test_labels_are_read_as_evaluation_reads_them(
    h5_cohort: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    case, told = min(h5_cohort.iterdir()), []
    with h5py.File(case) as file, h5py.File(tmp_path / case.name, "w") as other:
        file.copy("image", other)
        for key, value in file.attrs.items():
            other.attrs[key] = value
        other["mask"], other["expert"] = 0 * file["mask"][()], file["mask"][()]
    for path, more in ((case, {}), (tmp_path / case.name, {"mask_key": "expert"})):
        small = {"num_workers": 0, "uniform_shape": [32, 32, 32], "runtime": "torch"}
        calibration(str(path), bundle="brats_unet_h5", **small, **more)
        told.append(capsys.readouterr().out.splitlines()[-1])
    assert told[0] == told[1]


def test_only_cases_of_this_call_count(cohort: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    case, other = [path for path in sorted(cohort.iterdir()) if path.is_dir()][:2]
    (tmp_path / f"{other.name}_probabilities.nii.gz").write_bytes(b"of another call")
    small = {"num_workers": 0, "overlap": 0, "patch_size": [24, 24, 24], "runtime": "torch"}
    calibration(str(case), out=str(tmp_path), **small)
    told = capsys.readouterr().out.splitlines()
    assert told[-3].startswith("expected calibration error of 1 cases")
    assert told[-1].endswith("as they are")
    assert all(0 < float(value) < 1 for value in told[-1].split()[:3])
    assert (tmp_path / "reliability.png").is_file()
