"""volumes.csv as an evaluator writes it."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from ignite.engine import Engine
from monai.data import MetaTensor
from monai.transforms import Resized

import brain_tissue_vnet  # noqa: F401  # a bundle that this process has loaded
from bundlekit.errors import BundleError
from bundlekit.report.brain import MeasureBraind
from bundlekit.report.handler import WriteReport, WriteVolumes
from bundlekit.report.table import COLUMNS, NOW, VolumeTable
from tests.conftest import ROOT

AFFINE = np.diag([-2.0, -2.0, 2.0, 1.0])


class Loader(list):
    """Of one case."""

    dataset = SimpleNamespace(data=[{"case": "a"}])


def rows(out: Path, shard: str | None = None, name: str = "mine", **item: Any) -> list[dict[str, str]]:
    """Of one case, whose lesion has 8 voxels on the right (the first voxels, by the affine)."""
    image = MetaTensor(torch.ones(4, 10, 10, 10), affine=AFFINE)
    pred = torch.zeros(1, 10, 10, 10)
    pred[0, 1:3, 4:6, 4:6] = 1
    output = {"pred": MetaTensor(pred, affine=AFFINE), "confidence": {"WT": 0.91234}}
    engine = Engine(lambda _, batch: [output])
    given: dict[str, Any] = {"brain": "image", "checks": {"grid_unknown": True}, "shard": shard}
    WriteVolumes(str(out), ["NCR"], name, [], {"WT": [1]}, **given).attach(engine)
    engine.run(Loader([[MeasureBraind()({"case": "a", "image": image, **item})]]))
    return VolumeTable(out, shard).rows()


def test_volume_place_and_side(tmp_path: Path) -> None:
    found, region = rows(tmp_path)
    assert (found["name"], found["ml"], found["hemisphere"], found["brain_ml"]) == ("NCR", "0.064", "right", "8")
    assert (found["x_mm"], found["y_mm"], found["z_mm"]) == ("-3.0", "-9.0", "9.0")
    assert (region["name"], region["kind"], region["flags"]) == ("WT", "region", "")
    assert (found["confidence"], region["confidence"]) == ("", "0.912")


def test_what_made_a_mask_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    config = ROOT / "bundles" / "brain_tissue_vnet" / "configs" / "inference.yaml"
    command = ["/x/monai/bundle/__main__.py", "run", "inferring", "--config_file", str(config), "--overlap", "0.5"]
    monkeypatch.setattr("sys.argv", [*command, "--dataset_dir", "/patients"])
    (tmp_path / NOW).write_text("of before")
    (found, _) = rows(tmp_path)
    assert found["settings"] == "--overlap 0.5"
    assert "volumes_now.csv tells of the masks of before" in caplog.text
    monkeypatch.setattr("sys.argv", ["program"])
    (found, _) = rows(tmp_path, name="brain_tissue_vnet")
    version = json.loads(config.with_name("metadata.json").read_text())["version"]
    assert (found["bundle"], found["version"], found["settings"]) == ("brain_tissue_vnet", version, "")


def test_the_brain_is_measured_before_it_is_resized() -> None:
    image = torch.zeros(4, 12, 12, 12)
    image[:, 2:10, 2:10, 4:8] = 1
    measured = MeasureBraind()({"image": MetaTensor(image, affine=AFFINE)})
    resized = Resized("image", (17, 17, 17), mode="trilinear")(measured)
    assert resized["brain_ml"] == pytest.approx(8 * 8 * 4 * 0.008)
    assert resized["midline_mm"] == pytest.approx(float(AFFINE[0, :3] @ np.array([5.5, 5.5, 5.5]) + AFFINE[0, 3]))
    assert "brain_ml" not in MeasureBraind()({"image": MetaTensor(0 * image, affine=AFFINE)})


def test_where_the_grid_is_unknown_no_side_and_no_place_is_told(tmp_path: Path) -> None:
    for found in rows(tmp_path, grid_known=False):
        assert (found["hemisphere"], found["x_mm"], found["y_mm"], found["z_mm"]) == ("", "", "", "")
        assert found["flags"] == "grid_unknown"
        assert found["ml"] == "0.064"


@pytest.mark.parametrize(("shard", "cases"), [("1/2", "aa"), (None, "baa")])
def test_a_case_that_moved_to_another_part_has_no_rows_in_this_one(
    tmp_path: Path, shard: str | None, cases: str
) -> None:
    VolumeTable(tmp_path, shard).rewrite(lambda _: [{**dict.fromkeys(COLUMNS, ""), "case": case} for case in "ab"])
    assert "".join(row["case"] for row in rows(tmp_path, shard)) == cases


def test_limits_are_looked_at_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="shares by name, of NCR, WT"):
        WriteVolumes(str(tmp_path), ["NCR"], "mine", [], {"WT": [1]}, checks={"largest_part": 0.9})


def test_pages_of_a_part_of_the_cases_are_refused_before_it_is_computed(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"--shard 1/2, a part of the cases") as error:
        WriteReport(str(tmp_path), ["NCR"], "mine", [], lambda case: case, shard="1/2")
    assert "python -m tools report" in str(error.value)
