"""Damaged copies of cases, and the table of what is flagged of them."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from tools.bench import flags as measured
from tools.bench.damaged import DAMAGES, DamageCased, tell


def image() -> np.ndarray:
    rng = np.random.default_rng(0)
    out = (rng.uniform(50, 200, (4, 40, 40, 40)) * np.arange(1, 5)[:, None, None, None]).astype(np.float32)
    out[:, :5] = out[:, 35:] = out[:, :, :5] = out[:, :, 35:] = out[..., :5] = out[..., 35:] = 0
    return out


@pytest.mark.parametrize("name", [name for name in DAMAGES if name != "none"])
def test_a_copy_differs_is_the_same_again_and_keeps_its_air(name: str) -> None:
    before = image()
    case = {"image": MetaTensor(torch.from_numpy(before.copy())), "case": f"a-damage-{name}"}
    once, again = (DamageCased()(case)["image"].numpy() for _ in range(2))
    assert once.dtype == np.float32
    assert once.shape == before.shape
    assert np.array_equal(once, again)
    assert not np.array_equal(once, before)
    assert np.isfinite(once).all()
    if "moved" not in name:
        assert not once[:, before[0] == 0].any()


def test_none_is_the_case_itself() -> None:
    case = {"image": MetaTensor(torch.from_numpy(image())), "case": "a-b-damage-none"}
    assert np.array_equal(DamageCased()(case)["image"].numpy(), image())


def test_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    #          Dice, confidence, flags
    masks = {"a": (0.9, "0.95", ""), "b": (0.8, "0.94", "removed"), "c": (0.6, "0.80", "confidence;removed"),
             "d": (0.0, "", "nothing_found"), "e": (0.5, "0.96", "")}  # fmt: skip
    with (tmp_path / "scores.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("case", "dice_WT"), *((name, mask[0]) for name, mask in masks.items())])
    with (tmp_path / "volumes.csv").open("w", newline="") as file:
        rows = [(name, part, *mask[1:]) for name, mask in masks.items() for part in ("ET", "WT")]
        csv.writer(file).writerows([("case", "name", "confidence", "flags"), *rows])
    tell(tmp_path)
    told = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert told[0][:1] == ["5"]
    assert "3" in told[0]
    assert ["confidence", "1", "0"] in told
    assert ["removed", "1", "1"] in told
    assert ["any", "of", "them", "2", "1"] in told
    assert told[-1] == ["e", "0.50"]
    assert "0.667" in " ".join(told[-3])  # c and d are less sure than a and b, e is more


def test_a_case_and_a_copy_go_through(
    cohort: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    case = next(path for path in sorted(cohort.iterdir()) if path.is_dir())
    for name in set(DAMAGES) - {"none", "no_T1ce"}:
        monkeypatch.delitem(DAMAGES, name)
    measured(str(case), out=str(tmp_path), num_workers=0, overlap=0, patch_size=[24, 24, 24])
    told = capsys.readouterr().out
    assert "2 masks" in told
    with (tmp_path / "scores.csv").open(newline="") as file:
        assert {row["case"].rpartition("-damage-")[2] for row in csv.DictReader(file)} == {"none", "no_T1ce"}
