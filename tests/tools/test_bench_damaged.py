"""Damaged copies of cases, and the table of what is flagged of them."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from tools.bench import flags as measured
from tools.bench import missing
from tools.bench.damaged import DAMAGES, MISSING, DamageCased
from tools.bench.flagged import Mask, below_limits_of_others, draw, limit_of, masks_in, tell
from tools.bundles import parse


def image() -> np.ndarray:
    rng = np.random.default_rng(0)
    out = (rng.uniform(50, 200, (4, 40, 40, 40)) * np.arange(1, 5)[:, None, None, None]).astype(np.float32)
    out[:, :5] = out[:, 35:] = out[:, :, :5] = out[:, :, 35:] = out[..., :5] = out[..., 35:] = 0
    return out


@pytest.mark.parametrize("name", sorted((set(DAMAGES) | set(MISSING)) - {"none"}))
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
    tell(masks_in([tmp_path]))
    told = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert told[0][:1] == ["5"]
    assert "3" in told[0]
    assert ["confidence", "1", "0"] in told
    assert ["removed", "1", "1"] in told
    assert ["any", "of", "them", "2", "1"] in told
    assert told[-1] == ["e", "0.50"]
    assert "0.667" in " ".join(told[-4])  # c and d are less sure than a and b, e is more
    assert "2 of the 3 bad masks, 1 of the 2 others" in " ".join(told[-3])  # b's limit is of a alone


def test_a_limit_is_tried_on_what_has_not_chosen_it() -> None:
    def mask(group: str, dice: float, confidence: float) -> Mask:
        return Mask(group, group, dice, confidence, frozenset())

    masks = [mask("a", 0.9, 0.8), mask("a", 0.6, 0.85), mask("b", 0.9, 0.9), mask("b", 0.5, 0.79)]
    assert limit_of(masks) == pytest.approx(0.805)
    below, limits = below_limits_of_others(masks)
    assert limits == pytest.approx([0.9, 0.8])
    assert below == [masks[0], masks[1], masks[3]]
    assert below_limits_of_others(masks[:2]) == ([], [])


def test_the_curve() -> None:
    masks = [Mask(name, name, dice, dice, frozenset()) for name, dice in (("a", 0.9), ("b", 0.8), ("c", 0.3))]
    file = io.BytesIO()
    draw(masks, file)
    assert file.getvalue().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("bundle", "settings"),
    [("brats_resunet", {"overlap": 0, "patch_size": [24, 24, 24]}), ("brats_unet_h5", {"uniform_shape": [32, 32, 32]})],
)
def test_a_case_and_a_copy_go_through(
    bundle: str,
    settings: dict[str, Any],
    data_of: Callable[[str], Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    case = next(path for path in sorted(data_of(bundle).iterdir()) if path.is_dir() or path.suffix == ".h5")
    for name in set(DAMAGES) - {"none", "no_T1ce"}:
        monkeypatch.delitem(DAMAGES, name)
    measured(str(case), out=str(tmp_path), bundle=bundle, num_workers=0, **settings)
    told = capsys.readouterr().out
    assert "2 masks" in told
    with (tmp_path / "scores.csv").open(newline="") as file:
        assert {row["case"].rpartition("-damage-")[2] for row in csv.DictReader(file)} == {"none", "no_T1ce"}


def test_missing_modalities_by_the_networks_of_folds(
    cohort: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    cases = [path.name for path in sorted(cohort.iterdir()) if path.is_dir()]
    network = parse("brats_resunet", "train.yaml", channels=[4, 4, 4, 4, 4]).get_parsed_content("network_def")
    for fold in range(2):
        place = tmp_path / "cv" / f"fold_{fold}"
        place.mkdir(parents=True)
        torch.save(network.state_dict(), place / "last.pt")
        (place / "settings.json").write_text(json.dumps({"channels": [4, 4, 4, 4, 4], "patch_size": [24, 24, 24]}))
        known = cases[:-1]  # the last one came to the data set later
        parts = {"training": known[:fold] + known[fold + 1 :], "validation": known[fold : fold + 1]}
        split = {part: [{"case": case} for case in those] for part, those in parts.items()}
        (place / "datalist.json").write_text(json.dumps(split))
    for name in set(MISSING) - {"none", "no_T1_and_T2"}:
        monkeypatch.delitem(MISSING, name)
    missing(
        str(cohort), cv_dir=str(tmp_path / "cv"), out=str(tmp_path / "out"), num_workers=0, overlap=0, runtime="torch"
    )
    told = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [row[:2] for row in told[-2:]] == [["none", "2"], ["no_T1_and_T2", "2"]]
    for fold in range(2):
        with (tmp_path / "out" / f"fold_{fold}" / "scores.csv").open(newline="") as file:
            assert {row["case"].partition("-damage-")[0] for row in csv.DictReader(file)} == {cases[fold]}


def test_where_the_networks_are_is_told_once(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"fold_0/last\.pt"):
        missing("here", cv_dir=str(tmp_path))
    with pytest.raises(ValueError, match="--subset: the measurement sets this itself"):
        missing("here", subset="training")
    with pytest.raises(ValueError, match=r"no setting --overlp.*Did you mean --overlap"):
        missing("here", overlp=0)
    with pytest.raises(ValueError, match=r"(?s)nowhere.*found"):
        missing(str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match=r"--bundle is 'brats'; expected brats_resunet or brats_unet_h5"):
        missing("here", bundle="brats")
    with pytest.raises(ValueError, match="one of them"):
        missing("here", checkpoint="a.pt", cv_dir=str(tmp_path))
