"""What a user of this bundle can run, beside what every bundle has."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from ignite.engine import Events
from monai.data import MetaTensor
from monai.transforms import Compose

from tests.bundles import BUNDLES, options
from tests.conftest import ROOT, Run, built, bundle_run, config, losses, printed, refusal, training
from tools.bundles import parse

NAME = "brain_metastasis_attention_unet"


def train(data: Path, out: Path, **more: object) -> tuple[list[float], dict]:
    """Two epochs in this process: the loss of each, and the scores of the validation cases."""
    where = {"dataset_dir": str(data), "ckpt_dir": str(out), "output_dir": str(out), "num_workers": 0}
    settings = {**where, **BUNDLES[NAME].small, **BUNDLES[NAME].training, "cache": "none", "epochs": 2, **more}
    trainer, found = built(NAME, "train::trainer", "train.yaml", **settings), []
    trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda: found.append(trainer.state.metrics["train_loss"]))
    trainer.run()
    built(NAME, "evaluator", "inference.yaml", "evaluate.yaml", **where, minimum_lesion_ml=0.05).run()
    return found, json.loads((out / "summary.json").read_text())["metrics"]


@pytest.mark.parametrize("network", ["attention_unet", "resunet"])
def test_the_other_networks_train_and_are_scored(network: str, metastases: Path, tmp_path: Path) -> None:
    found, metrics = train(metastases, tmp_path, network=network)
    assert found[-1] < found[0]
    settings = json.loads((tmp_path / "settings.json").read_text())
    assert (settings["network"], settings["channels"]) == (network, [4, 8, 16])
    for name in ("dice_WT", "lesion_dice_ET", "false_positives_WT", "accuracy", "accuracy_of_empty_mask", "iou_ET"):
        assert name in metrics
    assert 0.9 < metrics["accuracy_of_empty_mask"]["mean"] < 1


def test_the_smallest_lesion_is_chosen_and_recorded(run: Run, metastases: Path, trained, tmp_path: Path) -> None:
    model = Path(shutil.copytree(trained(NAME), tmp_path / "model"))
    before = json.loads((model / "settings.json").read_text())
    files = bundle_run("evaluating", "inference.yaml", "evaluate.yaml", "choose_minimum_lesion.yaml", bundle=NAME)
    where = ["--ckpt_dir", model, "--dataset_dir", metastases, "--output_dir", tmp_path / "out", "--num_workers", "0"]
    run(*files, *where, "--candidates_ml", "[0,0.1,1000]", "--runtime", "torch")
    found = json.loads((tmp_path / "out" / "minimum_lesion.json").read_text())
    dice = {entry["minimum_lesion_ml"]: entry["lesion_dice"] for entry in found["candidates"]}
    assert list(dice) == [0, 0.1, 1000]
    assert dice[found["minimum_lesion_ml"]] == max(dice.values())
    recorded = json.loads((model / "settings.json").read_text())
    after = recorded.pop("after_training")
    assert recorded == before
    assert after.pop("minimum_lesion_ml") == found["minimum_lesion_ml"]
    validation = json.loads((model / "datalist.json").read_text())["validation"]
    assert after == {"minimum_lesion_cases": [entry["case"] for entry in validation]}
    other = tmp_path / "other"
    other.mkdir()
    torch.save(parse(NAME, "inference.yaml").get_parsed_content("lowres_network").state_dict(), other / "lowres.pt")
    (other / "settings.json").write_text("{}")
    second = ["--lowres", other / "lowres.pt", "--candidates_ml", "[0,0.1,1000]", "--runtime", "torch"]
    run(*files, *where[:-4], "--output_dir", tmp_path / "out", "--num_workers", "0", *second)
    assert (other / "settings.json").read_text() == "{}", "nothing is recorded beside the second network"
    for fold in range(2):  # of an ensemble, all are told
        shutil.copytree(trained(NAME), tmp_path / "cv" / f"fold_{fold}")
    many = ("inference.yaml", "evaluate.yaml", "inference_ensemble.yaml", "choose_minimum_lesion.yaml")
    several = ["--cv_dir", tmp_path / "cv", "--num_folds", "2", *where[2:4], "--output_dir", tmp_path / "more"]
    run(*bundle_run("evaluating", *many, bundle=NAME), *several, "--candidates_ml", "[0.1]", "--runtime", "torch")
    there = {"cv_dir": str(tmp_path / "cv"), "num_folds": 2}
    assert built(NAME, "minimum_lesion_ml", *many[:3], **there) == 0.1
    assert built(NAME, "minimum_lesion_cases", *many[:3], **there) == after["minimum_lesion_cases"]
    assert built(NAME, "minimum_lesion_cases", *many[:3], **there, minimum_lesion_ml=7.0) == []
    where = {"checkpoint": str(model / "model.pt")}
    files = ("inference.yaml", "evaluate.yaml")
    assert built(NAME, "minimum_lesion_cases", *files, **where) == after["minimum_lesion_cases"]
    assert built(NAME, "minimum_lesion_cases", *files, **where, minimum_lesion_ml=7.0) == []


def test_the_unet_begins_with_the_second_network(tmp_path: Path) -> None:
    """All but its last layer, whose classes are others."""
    second = str(ROOT / "bundles" / NAME / "models" / "lowres.pt")
    files = ("train.yaml", "warm_start.yaml")
    parser = parse(NAME, *files, network="unet", warm_start=second, ckpt_dir=str(tmp_path))
    (parser["begin"],) = [step for step in parser.get("initialize") if "load_matching" in step]
    parser.get_parsed_content("begin")
    network = parser.get_parsed_content("network_def")
    given = torch.load(parser.get_parsed_content("warm_start"), weights_only=True)
    other = [key for key, value in network.state_dict().items() if key not in given or given[key].shape != value.shape]
    assert other == [key for key in given if key.startswith("model.2.")]
    assert all(torch.equal(network.state_dict()[key], given[key].float()) for key in given if key not in other)


def test_cleaning_recorded_by_earlier_versions_is_handed_on(trained, tmp_path: Path) -> None:
    """They wrote it among the settings of the network."""
    cleaning = {"minimum_core_ml": 0.01, "fill_core": True, "minimum_enhancing_ml": 2.0}
    recorded = json.loads((trained(NAME) / "settings.json").read_text())
    after = {"minimum_lesion_ml": 0.1}
    (tmp_path / "settings.json").write_text(json.dumps(recorded | cleaning | {"after_training": after}))
    (tmp_path / "model.pt").touch()
    settings = built(NAME, "settings", "train.yaml", "finetune.yaml", pretrained=str(tmp_path / "model.pt"))
    assert settings == recorded | {"after_training": after | cleaning}


def test_another_network_or_grid_is_not_resumed(run: Run, metastases: Path, trained, tmp_path: Path) -> None:
    stopped = Path(shutil.copytree(trained(NAME), tmp_path / "stopped"))
    last = torch.load(stopped / "last.pt", weights_only=True)
    last["trainer"]["epoch"] -= 1
    torch.save(last, stopped / "last.pt")
    both = bundle_run("training", "train.yaml", "resume.yaml", bundle=NAME)
    for more, message in (
        ({"network": "resunet"}, "a run with network unet"),
        ({"fit": "resize"}, "a run with fit native"),
    ):
        arguments = training(NAME, metastases, stopped, **more)
        assert message in refusal(run(*both, *arguments, status=1))
    assert json.loads((stopped / "settings.json").read_text())["fit"] == "native", "a refused run changes nothing"


def test_resizing_and_slabs(metastases: Path, tmp_path: Path) -> None:
    """Validation and inference look through the slabs that training drew."""
    settings = {"fit": "resize", "uniform_shape": [32, 32, 40], "slab": 8}
    assert train(metastases, tmp_path, network="unet", epochs=1, **settings)[1]
    assert json.loads((tmp_path / "settings.json").read_text())["slab"] == 8
    for inferer in (
        built(NAME, "validate::inferer", "train.yaml", **settings),
        built(NAME, "inferer", "inference.yaml", ckpt_dir=str(tmp_path)),
    ):
        assert list(inferer.roi_size) == [32, 32, 8]


@pytest.mark.parametrize("second", [{}, {"lowres": "$None"}])
def test_a_resized_mask_has_no_steps(second: dict[str, str]) -> None:
    """A network that sees every third voxel, and enhancing tumour beyond an oblique plane through the whole volume."""
    settings = {"fit": "resize", "uniform_shape": [8, 8, 8], **second}
    parser = parse(NAME, "inference.yaml", **settings)
    scan = {"image": MetaTensor(torch.rand(4, 24, 24, 24) + 1)}
    steps = parser.get_parsed_content("preprocessing").transforms[1:]  # without reading
    parser["preprocessing"] = Compose(steps)
    item = parser.get_parsed_content("preprocessing")(scan)
    positions = np.stack(np.meshgrid(*3 * [np.arange(8) * 3 + 1], indexing="ij"))
    logits = torch.zeros(4, 8, 8, 8)
    logits[1:3] = -20
    logits[3] = torch.from_numpy(0.3 * (positions.sum(0) - 34.5))
    item["pred"] = MetaTensor(logits, meta=dict(item["image"].meta))
    found = parser.get_parsed_content("postprocessing")(item)["pred"][0].numpy() == 3
    truth = np.indices((24, 24, 24)).sum(0) > 34.5
    dice = 2 * (found & truth).sum() / (found.sum() + truth.sum())
    assert dice > 0.98, "0.972 where classes are interpolated"


def test_a_missing_modality_is_filled_on_demand_only(run: Run, metastases: Path, tmp_path: Path) -> None:
    data = Path(shutil.copytree(metastases, tmp_path / "data"))
    case = next(folder for folder in sorted(data.iterdir()) if folder.is_dir())
    (case / f"{case.name}-t2w.nii.gz").unlink()
    command = [*bundle_run("training", "train.yaml", bundle=NAME)]
    command += training(NAME, data, tmp_path / "out", epochs=1, network="unet")
    assert f"{case.name}-t2w.nii.gz" in refusal(run(*command, status=1))
    assert len(losses(printed(run(*command, "--fill_missing", "True")))) == 1


def test_weights_are_derived_from_the_labels(run: Run, metastases: Path) -> None:
    out = run("-m", "tools", "weights", NAME, *options(dataset_dir=metastases)).stdout
    counts = [int(v) for v in re.search(r"class: \[(.+)\]", out)[1].split(",")]
    weights = [float(v) for v in re.search(r'balanced +--class_weights "\[(.+)\]"', out)[1].split(",")]
    assert weights == pytest.approx([sum(counts) / (4 * n) for n in counts], rel=1e-3)


def test_defaults_are_upstreams_but_for_the_draw() -> None:
    train_ = config(NAME, "train")
    assert (train_["network"], train_["draw"]) == ("attention_unet", "lesion")
