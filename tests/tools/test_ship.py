"""Weights on their way into a bundle, and what happens to them there."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from ignite.engine import Engine
from monai.networks.nets import UNet

import tools.card
import tools.ship
from brats_resunet import ResUNet
from bundlekit.errors import BundleError
from bundlekit.training.saving import RecordRun, require_new_run
from bundlekit.weights.aside import keep_aside
from bundlekit.weights.loading import LoadWeights
from bundlekit.weights.settings import record_setting
from bundlekit.weights.shipped import check_shipped, shipped_files, shipped_folders, training_folder
from tests.conftest import ROOT


def network() -> ResUNet:
    torch.manual_seed(3)
    return ResUNet(in_channels=4, out_channels=4, channels=[2, 4, 8, 16], supervised_levels=2)


@pytest.fixture
def bundles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the bundle, for the tools to write to."""
    copy = tmp_path / "bundles"
    shutil.copytree(ROOT / "bundles" / "brats_resunet", copy / "brats_resunet",
                    ignore=shutil.ignore_patterns("models", "eval"))  # fmt: skip
    monkeypatch.setattr(tools.ship, "ROOT", copy)
    monkeypatch.setattr(tools.card, "ROOT", copy)
    return copy


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    folder.mkdir()
    torch.save(network().state_dict(), folder / "model.pt")
    (folder / "settings.json").write_text('{"channels": [2, 4, 8, 16], "patch_size": [16, 16, 16]}')
    (folder / "datalist.json").write_text('{"training": [{"case": "b", "image": ["/home/me/b.nii.gz"]}]}')
    (folder / "trained_on.json").write_text('["a"]')  # the weights it began with
    return folder / "model.pt"


@pytest.mark.parametrize("half", [True, False])
def test_shipped_weights_load_and_are_checked(bundles: Path, trained: Path, half: bool) -> None:
    shipped = Path(tools.ship.ship("brats_resunet", str(trained), half=half))
    assert sorted(file.name for file in shipped.parent.iterdir()) == [
        *("SHA256SUMS", "model.pt", "settings.json", "trained_on.json")
    ]
    assert json.loads((shipped.parent / "trained_on.json").read_text()) == ["a", "b"]
    other = network()
    torch.nn.init.zeros_(next(other.parameters()))
    LoadWeights(str(shipped), other)(Engine(lambda *_: None))
    for key, value in network().state_dict().items():
        torch.testing.assert_close(other.state_dict()[key], value, rtol=1e-3 if half else 0, atol=1e-4 if half else 0)
    content = bytearray(shipped.read_bytes())
    for spoilt in (bytes(content[:-100]), bytes(content[:500] + b"x" + content[501:])):
        shipped.write_bytes(spoilt)
        with pytest.raises(BundleError, match=r"the file that came with the bundle.*\n.*copy it again"):
            LoadWeights(str(shipped), other)(Engine(lambda *_: None))


def test_another_network_lies_beside_the_bundles_own(bundles: Path, trained: Path) -> None:
    models = Path(tools.ship.ship("brats_resunet", str(trained))).parent
    other = Path(tools.ship.ship("brats_resunet", str(trained), folder="wide"))
    assert other == models / "wide" / "model.pt"
    assert shipped_folders(models) == [models, other.parent]
    check_shipped(other)
    kept = keep_aside(models, ("model.pt", "settings.json", "SHA256SUMS"))
    assert (kept / "SHA256SUMS").is_file()
    assert shipped_folders(models) == [models, other.parent], "what is put aside is of this machine"
    with pytest.raises(ValueError, match="expected the name of a folder in models/"):
        tools.ship.ship("brats_resunet", str(trained), folder="../wide")


def test_a_second_network_goes_along(bundles: Path, trained: Path) -> None:
    record_setting(trained, "lowres", "lowres.pt")
    torch.save({"a": torch.rand(3)}, trained.with_name("lowres.pt"))
    with pytest.raises(BundleError, match=r"lowres\.pt\n.*another network"):
        tools.ship.ship("brats_resunet", str(trained))
    second = UNet(3, 4, 3, [16, 32, 64, 128, 256], [2] * 4)
    torch.save(second.state_dict(), trained.with_name("lowres.pt"))
    models = Path(tools.ship.ship("brats_resunet", str(trained))).parent
    assert [file.name for file in shipped_files(models)] == ["model.pt", "lowres.pt"]
    for file in shipped_files(models):
        check_shipped(file)
    assert {value.dtype for value in torch.load(models / "lowres.pt", weights_only=True).values()} == {torch.float16}
    kept = keep_aside(models)
    assert sorted(file.name for file in kept.iterdir()) == ["lowres.pt", "model.pt", "settings.json"]
    (models / "lowres.pt").write_bytes(b"cut off")
    with pytest.raises(BundleError, match="7 bytes of another SHA-256"):
        check_shipped(models / "lowres.pt")
    trained.with_name("lowres.pt").unlink()
    with pytest.raises(BundleError, match=r"lowres\.pt"):
        tools.ship.ship("brats_resunet", str(trained))
    (trained.parent / "settings.json").write_text('{"channels": [2, 4, 8, 16]}')
    tools.ship.ship("brats_resunet", str(trained))
    assert not (models / "lowres.pt").exists(), "it is of the earlier weights"


def test_weights_of_another_network_stay_out(bundles: Path, trained: Path) -> None:
    shipped = Path(tools.ship.ship("brats_resunet", str(trained)))
    before = shipped.read_bytes()
    torch.save(torch.nn.Linear(2, 2).state_dict(), trained)
    with pytest.raises(BundleError, match=str(trained)):
        tools.ship.ship("brats_resunet", str(trained))
    trained.write_bytes(trained.read_bytes()[:100])
    with pytest.raises(BundleError, match=str(trained)):
        tools.ship.ship("brats_resunet", str(trained))
    assert shipped.read_bytes() == before


def test_weights_without_a_record_name_no_case(bundles: Path, trained: Path) -> None:
    """An empty list would say that no case trained them."""
    record = Path(tools.ship.ship("brats_resunet", str(trained))).with_name("trained_on.json")
    assert record.is_file()
    for name in ("datalist.json", "trained_on.json"):
        (trained.parent / name).unlink()
    tools.ship.ship("brats_resunet", str(trained))
    assert not record.exists(), "nor those of earlier weights"


def test_a_run_does_not_replace_shipped_weights_unasked(bundles: Path, trained: Path) -> None:
    models = Path(tools.ship.ship("brats_resunet", str(trained))).parent
    assert training_folder(models.parent) == str(models.parent / "eval" / "trained")
    with pytest.raises(BundleError, match="set --ckpt_dir"):
        require_new_run(str(models))
    require_new_run(str(models), overwrite=True)
    require_new_run(str(models.parent / "another"))
    RecordRun(str(models), {"training": [], "validation": [{"case": "a", "image": [], "label": ""}]}, {})(
        SimpleNamespace(state=SimpleNamespace(epoch=1))  # type: ignore[arg-type]
    )
    assert not (models / "SHA256SUMS").exists(), "the run's own weights are no shipped ones"
    assert not (models / "trained_on.json").exists()
    assert training_folder(models.parent) == str(models)


def test_what_cannot_be_shipped(bundles: Path, trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = network().state_dict()
    first = next(iter(state))
    torch.save({**state, first: state[first] + 1e6}, trained)
    with pytest.raises(ValueError, match=f"not finite in this precision, e.g. {first}"):
        tools.ship.ship("brats_resunet", str(trained))
    monkeypatch.setattr(tools.ship, "_LARGEST", 1000)
    with pytest.raises(ValueError, match="expected 50 MB at most"):
        tools.ship.ship("brats_resunet", str(trained), half=False)
    (trained.parent / "settings.json").unlink()
    with pytest.raises(ValueError, match=r"settings\.json is not there"):
        tools.ship.ship("brats_resunet", str(trained))
    assert not (bundles / "brats_resunet" / "models").exists()


def test_figures_go_into_metadata_and_card(bundles: Path, tmp_path: Path) -> None:
    found = {"n": 4, "mean": 0.81234, "median": 0.83, "ci95": [0.7, 0.9]}
    summary = {"n_cases": 4, "metrics": {"dice_WT": found, "hd95_WT": found, "mean_dice": {**found, "ci95": None}}}
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    folder = bundles / "brats_resunet"
    readme = folder / "docs" / "README.md"
    text = readme.read_text().replace("<!-- scores -->", "").replace("<!-- /scores -->", "")
    readme.write_text(text)
    with pytest.raises(ValueError, match="expected one <!-- scores -->"):
        tools.card.card("brats_resunet", str(tmp_path / "summary.json"), on="four cases")
    readme.write_text(text + "\n<!-- scores -->\nold\n<!-- /scores -->\nend\n")
    tools.card.card("brats_resunet", str(tmp_path / "summary.json"), on="four cases")
    metrics = yaml.safe_load((folder / "configs" / "metadata.json").read_text())["eval_metrics"]
    assert metrics == {"dice_WT": 0.812, "mean_dice": 0.812, "n_cases": 4, "cases": "four cases"}
    after = readme.read_text()
    assert "| dice_WT | 0.812 | 0.830 | 0.700 to 0.900 |" in after
    assert "old" not in after[len(text) :]
    assert after.endswith("<!-- /scores -->\nend\n")
    for metrics in ("hd95_WT", ("hd95_WT",)):  # a name alone comes from the command line as a string
        tools.card.card("brats_resunet", str(tmp_path / "summary.json"), on="four cases", metrics=metrics)
        assert "| hd95_WT | 0.812 |" in readme.read_text()
        assert "dice_WT" not in readme.read_text()[len(text) :]
    tools.card.card("brats_resunet", str(tmp_path / "summary.json"), on="four cases", metrics="hd95_WT,dice_WT")
    assert "| hd95_WT | 0.812 | 0.830 | 0.700 to 0.900 |\n| dice_WT |" in readme.read_text()
    with pytest.raises(ValueError, match="no dice_ET; it has dice_WT, hd95_WT, mean_dice"):
        tools.card.card("brats_resunet", str(tmp_path / "summary.json"), on="four cases", metrics="dice_ET")
    with pytest.raises(ValueError, match=r"expected the summary\.json"):
        tools.card.card("brats_resunet", str(readme), on="four cases")
