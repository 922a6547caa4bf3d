"""What a user of this bundle can run, beside what every bundle has."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import h5py
import nibabel as nib
import numpy as np
import pytest
import torch
from ignite.engine import Events
from nibabel.affines import voxel_sizes

import bundlekit.brats.reading
import bundlekit.brats.scores
from brats_unet_h5 import build_network
from brats_unet_h5.schedule import build_schedule
from bundlekit.errors import BundleError, bundle_error_in
from bundlekit.weights.settings import write_settings
from tests.brats_unet_h5.conftest import SHAPE, image, write_case, write_file, write_slices
from tests.conftest import ROOT, Run, built, bundle_run, config, printed, refusal, training
from tools.bundles import parse
from tools.check import check
from tools.label.app.lib.bundles import class_names

NAME = "brats_unet_h5"


def test_a_loss_that_stands_still_ends_the_training(run: Run, h5_cohort: Path, tmp_path: Path) -> None:
    arguments = training(NAME, h5_cohort, tmp_path, epochs=9, learning_rate=0, stop_patience=2)
    log = printed(run(*bundle_run("training", "train.yaml", bundle=NAME), *arguments))
    assert log.count("val_mean_dice:") == 3, "best at the first epoch, then two without a lower loss"
    resumed = run(*bundle_run("training", "train.yaml", "resume.yaml", bundle=NAME), *arguments, status=1)
    assert "has stopped early" in refusal(resumed)


def test_the_rate_falls_over_the_epochs_where_no_validation_may_steer_it(h5_cohort: Path, tmp_path: Path) -> None:
    small = {"channels": [4, 8], "uniform_shape": [16, 16, 16], "cache": "none", "num_workers": 0, "val_interval": 9}
    common = {"dataset_dir": str(h5_cohort), "output_dir": str(tmp_path), "ckpt_dir": str(tmp_path), **small}
    cosine = {"schedule": "cosine", "stop_patience": None, "epochs": 2, "learning_rate": 0.01}
    trainer = built(NAME, "train::trainer", "train.yaml", **common, **cosine)
    rates = []
    trainer.add_event_handler(Events.EPOCH_STARTED, lambda: rates.append(trainer.optimizer.param_groups[0]["lr"]))
    trainer.run()
    assert [*rates, trainer.optimizer.param_groups[0]["lr"]] == pytest.approx([0.01, 0.005, 0])
    with pytest.raises(ValueError, match="schedule must be one of plateau, cosine, got 'linear'"):
        build_schedule("linear", trainer.optimizer, 2)


def test_a_missing_modality_is_filled_on_demand(
    h5_cohort: Path, trained, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    case = min(h5_cohort.iterdir())
    with h5py.File(case) as file, h5py.File(tmp_path / case.name, "w") as less:
        less["image"], less["mask"] = file["image"][[0, 1, 3]], file["mask"][()]
        less["image"].attrs["modalities"] = ["T1", "T1ce", "FLAIR"]
        less.attrs["affine"] = file.attrs["affine"]
    where = {"dataset_dir": str(tmp_path / case.name), "ckpt_dir": str(trained(NAME)), "num_workers": 0}
    out = {"output_dir": str(tmp_path / "out"), "subset": "all"}
    parser = parse(NAME, "inference.yaml", "evaluate.yaml", **where, **out, fill_missing=True)
    parser.get_parsed_content("evaluating")
    assert f"{case.stem} has no T2: zeros in its place; the network was NOT trained for that" in caplog.text
    assert (tmp_path / "out" / f"{case.stem}_seg.nii.gz").is_file()
    with (tmp_path / "out" / "scores.csv").open() as file:
        assert [row["case"] for row in csv.DictReader(file)] == [case.stem]


def test_scores_are_those_of_the_nifti_labels(h5_cohort: Path, cohort: Path, trained, tmp_path: Path) -> None:
    """The same prediction against the same case's NIfTI label, scored by what the other bundles use."""
    where = {"dataset_dir": str(h5_cohort), "ckpt_dir": str(trained(NAME)), "num_workers": 0}
    out = {"output_dir": str(tmp_path), "write_h5": True, "subset": "all"}
    built(NAME, "evaluator", "inference.yaml", "evaluate.yaml", **where, **out).run()
    with (tmp_path / "scores.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 5
    for row in rows:
        name = row["case"]
        mask = nib.load(tmp_path / f"{name}_seg.nii.gz")
        truth_file = cohort / name / f"{name}_seg.nii.gz"
        truth, affine = bundlekit.brats.reading.read_label(str(truth_file), [0, 1, 2, 4])
        np.testing.assert_array_equal(mask.affine, affine)
        pred = np.searchsorted([0, 1, 2, 4], np.asarray(mask.dataobj))
        expected = bundlekit.brats.scores.region_scores(pred.astype(np.uint8), truth, voxel_sizes(affine))
        for key, value in expected.items():
            assert row[key] == ("" if np.isnan(value) else f"{value:.6g}")
        with h5py.File(tmp_path / f"{name}_seg.h5") as file:
            np.testing.assert_array_equal(file["mask"][()], np.asarray(mask.dataobj))
            np.testing.assert_array_equal(file.attrs["affine"], affine)

    case = h5_cohort / f"{rows[-1]['case']}.h5"
    more = {"dataset_dir": str(case), "output_dir": str(tmp_path / "3"), "save_probabilities": True, "et_label": 3}
    built(NAME, "evaluator", "inference.yaml", **{**where, **more}).run()
    mask = np.asarray(nib.load(tmp_path / "3" / f"{case.stem}_seg.nii.gz").dataobj)
    with h5py.File(case) as file:
        assert mask.shape == file["mask"].shape
    probabilities = np.asarray(nib.load(tmp_path / "3" / f"{case.stem}_probabilities.nii.gz").dataobj)
    whole, core, enhancing = np.moveaxis(probabilities, -1, 0) > 0.5
    np.testing.assert_array_equal(mask > 0, whole)
    np.testing.assert_array_equal(np.isin(mask, (1, 3)), whole & core)
    np.testing.assert_array_equal(mask == 3, whole & core & enhancing)


def test_classes_at_native_resolution_from_chunks(h5_cohort: Path, tmp_path: Path) -> None:
    native = {"target": "classes", "normalise": "zscore", "res_units": 1}
    tiny = {"channels": [4, 8], "patch_size": [16, 16, 16], "draw": "lesion", "num_workers": 1, "epochs": 1}
    common = {"dataset_dir": str(h5_cohort), "ckpt_dir": str(tmp_path), "output_dir": str(tmp_path)}
    settings = {**common, "cache_dir": str(tmp_path / "cache"), **native, **tiny}
    trainer = built(NAME, "train::trainer", "train.yaml", "native.yaml", "chunks.yaml", **settings)
    trainer.run()
    recorded = json.loads((tmp_path / "settings.json").read_text())
    assert (recorded["target"], recorded["fit"], recorded["patch_size"]) == ("classes", "native", [16, 16, 16])
    evaluator = built(NAME, "evaluator", "inference.yaml", "evaluate.yaml", **common, num_workers=0)
    evaluator.run()
    assert 0 <= evaluator.state.metrics["mean_dice"] <= 1
    assert evaluator.inferer.roi_size == [16, 16, 16], "native, though no overlay says so"
    tuning = {**common, "pretrained": str(tmp_path / "model.pt"), "ckpt_dir": str(tmp_path / "tuned")}
    with pytest.raises(RuntimeError) as caught:
        built(NAME, "initialize", "train.yaml", "finetune.yaml", **tuning)
    assert "a network trained with fit native" in str(bundle_error_in(caught.value))
    assert built(NAME, "input_shape", "train.yaml", "native.yaml", "finetune.yaml", **tuning) == [16, 16, 16]


def test_slices_without_affine_and_with_air(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The widespread export, from training to masks."""
    for number in range(1, 4):
        write_slices(tmp_path / "data", number)
    common = {"dataset_dir": str(tmp_path / "data"), "ckpt_dir": str(tmp_path / "run"), "num_workers": 0}
    small = {"channels": [4, 8], "uniform_shape": [16, 16, 16], "epochs": 1, "cache": "none"}
    built(NAME, "train::trainer", "train.yaml", **common, **small, output_dir=str(tmp_path / "run")).run()
    assert "T1, T1Gd, T2, FLAIR" in caplog.text
    arguments = {**common, "output_dir": str(tmp_path / "out")}
    built(NAME, "evaluator", "inference.yaml", "evaluate.yaml", **arguments).run()
    assert "keeps no affine" in caplog.text
    mask = nib.load(tmp_path / "out" / "volume_3_seg.nii.gz")
    assert mask.shape == SHAPE
    np.testing.assert_array_equal(mask.affine, np.eye(4))
    with pytest.raises(BundleError, match="the folder of the scan itself"):
        built(NAME, "evaluator", "inference.yaml", **{**arguments, "output_dir": str(tmp_path / "data")}).run()
    with pytest.raises(BundleError, match=r'--target regions --channels "\[4,8\]" --res_units 0'):
        built(NAME, "evaluator", "inference.yaml", **arguments, channels=[4, 6]).run()


def test_the_order_of_channels_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Training is told; inference finds it beside the weights, and is told otherwise on its own command line only."""
    for number in range(1, 3):
        write_slices(tmp_path / "data", number)
    write_case(tmp_path / "telling" / "case.h5")
    common = {"dataset_dir": str(tmp_path / "data"), "ckpt_dir": str(tmp_path / "run"), "num_workers": 0}
    order = ["flair", "t1", "t1ce", "t2"]
    write_settings(built(NAME, "settings", "train.yaml", **common, channel_order=order), str(tmp_path / "run"))
    assert {tuple(case["channels"]) for case in built(NAME, "cases", "inference.yaml", **common)} == {(1, 2, 3, 0)}
    assert "T1, T1Gd, T2, FLAIR" not in caplog.text
    telling = {**common, "dataset_dir": str(tmp_path / "telling")}
    assert built(NAME, "cases", "inference.yaml", **telling)[0]["channels"] == [0, 1, 2, 3]
    told = ["t2", "flair", "t1", "t1ce"]
    assert built(NAME, "cases", "inference.yaml", **telling, channel_order=told)[0]["channels"] == [2, 3, 0, 1]


def test_bad_input_gives_one_clear_message(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tmp_path / "data"
    write_case(data / "a.h5")
    write_file(data / "b.h5", {"picture": image()[0]})
    (data / "c.h5").write_text("no HDF5")
    done = run(*bundle_run("training", "train.yaml", bundle=NAME), *training(NAME, data, tmp_path), status=1)
    message = refusal(done)
    assert "2 problem(s)" in message
    assert "picture 12x10x8 int16" in message
    assert "not an HDF5 file" in message
    with pytest.raises(SystemExit):
        check(NAME, str(data))
    assert "1 complete case(s), files, headers and voxels checked: 2 finding(s)." in capsys.readouterr().out


def test_metadata_tells_what_the_network_gives_and_what_is_written() -> None:
    meta = json.loads((ROOT / "bundles" / NAME / "configs" / "metadata.json").read_text())
    pred = meta["network_data_format"]["outputs"]["pred"]
    torch.manual_seed(0)
    network = build_network("regions", channels=[4, 8]).eval()
    with torch.no_grad():
        out = network(torch.rand(1, 4, 16, 16, 16))
    low, high = pred["value_range"]
    assert out.min() < 0, "logits"
    assert low <= out.min() <= out.max() <= high
    assert pred["type"] != "probabilities"
    assert class_names(str(ROOT / "bundles" / NAME)) == {"NCR": 1, "ED": 2, "ET": 3}  # as MONAI Label's server reads it
    assert "ET: 4" in meta["pred_classes"]


def test_defaults_are_upstreams() -> None:
    train_ = config(NAME, "train")
    assert (train_["target"], train_["settings"]["fit"], train_["normalise"]) == ("regions", "resize", "minmax")
    assert train_["uniform_shape"] == [128, 128, 128]
    assert train_["optimizer"]["_target_"] == "torch.optim.Adam"
    assert train_["learning_rate"] == 1e-3
    assert train_["schedule"] == "plateau"
    schedule = built(NAME, "lr_scheduler", "train.yaml")
    assert isinstance(schedule, torch.optim.lr_scheduler.ReduceLROnPlateau)
    assert (schedule.factor, schedule.patience) == (0.5, 5)
    assert train_["bce"] == 1
