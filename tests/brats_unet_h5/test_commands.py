"""The bundle as a user runs it, and as MONAI's own checks see it."""

from __future__ import annotations

import csv
import json
import re
import shutil
from pathlib import Path
from typing import Any

import h5py
import nibabel as nib
import numpy as np
import pytest
import torch
import yaml
from monai.bundle import ConfigParser, ckpt_export, onnx_export, verify_metadata, verify_net_in_out
from nibabel.affines import voxel_sizes

import bundlekit.brats.reading
import bundlekit.brats.scores
from brats_unet_h5 import build_network
from bundlekit.errors import BundleError, bundle_error_in
from bundlekit.weights.settings import write_settings
from tests.brats_unet_h5.conftest import SHAPE, image, write_case, write_file, write_slices
from tests.conftest import ROOT, Run, bundle_run
from tools.check import check
from tools.label.app.lib.bundles import class_names

BUNDLE = ROOT / "bundles" / "brats_unet_h5"
CONFIGS = BUNDLE / "configs"
META = str(CONFIGS / "metadata.json")
TINY = ["--channels", "[4,8,16]", "--uniform_shape", "[32,32,32]", "--num_workers", "0"]


def config(name: str) -> dict:
    return yaml.safe_load((CONFIGS / name).read_text())


def command(run_id: str, *configs: str) -> list[str]:
    return bundle_run(run_id, *configs, bundle=BUNDLE)


def in_process(part: str, *configs: str, **settings: Any) -> Any:
    """A part of a config, built without a new interpreter."""
    parser = ConfigParser()
    parser.read_config([str(CONFIGS / name) for name in configs])
    for key, value in settings.items():
        parser[key] = value
    return parser.get_parsed_content(part)


def train(run: Run, data: Path, out: Path, *more: str, configs: tuple[str, ...] = ("train.yaml",)) -> str:
    arguments = ["--dataset_dir", data, "--ckpt_dir", out, "--output_dir", out]
    done = run(*command("training", *configs), *arguments, *TINY, "--learning_rate", "0.005", *more)
    return done.stdout + done.stderr


def evaluate(run: Run, data: Path, ckpt: Path, out: Path, *more: str) -> list[dict[str, str]]:
    arguments = ["--ckpt_dir", ckpt, "--num_workers", "0", "--dataset_dir", data, "--output_dir", out]
    run(*command("evaluating", "inference.yaml", "evaluate.yaml"), *arguments, *more)
    with (out / "scores.csv").open() as file:
        return list(csv.DictReader(file))


def test_train_stop_resume_evaluate_infer(run: Run, h5_cohort: Path, cohort: Path, tmp_path: Path) -> None:
    """Regions, resized: upstream's way. Two processes train; then a run whose loss stands still ends early."""
    configs = str([str(CONFIGS / name) for name in ("train.yaml", "multi_gpu.yaml")])
    done = run(
        "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "29641",
        "-m", "monai.bundle", "run", "training", "--config_file", configs, "--dataset_dir", h5_cohort,
        "--ckpt_dir", tmp_path, "--output_dir", tmp_path, "--epochs", "3", "--batch_size", "1", *TINY,
        "--learning_rate", "0.01",
    )  # fmt: skip
    losses = [float(v) for v in re.findall(r"Metrics -- train_loss: ([0-9.]+)", done.stdout + done.stderr)]
    assert len(losses) == 3
    assert losses[-1] < losses[0]
    settings = json.loads((tmp_path / "settings.json").read_text())
    assert set(settings) == set(config("train.yaml")["settings"])
    assert (settings["target"], settings["fit"], settings["channels"]) == ("regions", "resize", [4, 8, 16])
    split = json.loads((tmp_path / "datalist.json").read_text())
    validation = {entry["case"] for entry in split["validation"]}

    tuned = tmp_path / "tuned"
    cleaned = settings | {"after_training": {"minimum_core_ml": 0.01, "fill_core": True, "minimum_enhancing_ml": 2.0}}
    (tmp_path / "settings.json").write_text(json.dumps(cleaned))
    done = run(*command("training", "train.yaml", "finetune.yaml"), "--pretrained", tmp_path / "model.pt",
               "--ckpt_dir", tuned, "--output_dir", tuned, "--dataset_dir", h5_cohort, "--epochs", "1",
               "--patches_per_case", "1", "--num_workers", "0")  # fmt: skip
    assert float(re.findall(r"train_loss: ([0-9.]+)", done.stdout + done.stderr)[0]) < losses[0], "goes on from there"
    assert json.loads((tuned / "settings.json").read_text()) == cleaned
    (tmp_path / "settings.json").write_text(json.dumps(settings))

    common = ["--epochs", "9", "--learning_rate", "0", "--stop_patience", "2"]
    log = train(run, h5_cohort, tmp_path / "stopped", *common)
    assert log.count("val_mean_dice:") == 3, "best at the first epoch, then two without a lower loss"
    arguments = ["--dataset_dir", h5_cohort, "--ckpt_dir", tmp_path / "stopped", *TINY, *common]
    done = run(*command("training", "train.yaml", "resume.yaml"), *arguments, status=1)
    assert "has stopped early" in done.stderr
    assert "Traceback" not in done.stderr

    # what the network was trained with is not given again: it lies beside the weights
    rows = evaluate(run, h5_cohort, tmp_path, tmp_path / "scores", "--write_h5", "True")
    assert {row["case"] for row in rows} == validation
    for row in rows:  # the same prediction against the same case's NIfTI label, scored by another bundle
        name = row["case"]
        mask = nib.load(tmp_path / "scores" / f"{name}_seg.nii.gz")
        truth_file = cohort / name / f"{name}_seg.nii.gz"
        truth, affine = bundlekit.brats.reading.read_label(str(truth_file), [0, 1, 2, 4])
        np.testing.assert_array_equal(mask.affine, affine)
        pred = np.searchsorted([0, 1, 2, 4], np.asarray(mask.dataobj))
        expected = bundlekit.brats.scores.region_scores(pred.astype(np.uint8), truth, voxel_sizes(affine))
        for key, value in expected.items():
            assert row[key] == ("" if np.isnan(value) else f"{value:.6g}")
        with h5py.File(tmp_path / "scores" / f"{name}_seg.h5") as file:
            np.testing.assert_array_equal(file["mask"][()], np.asarray(mask.dataobj))
            np.testing.assert_array_equal(file.attrs["affine"], affine)

    case = h5_cohort / f"{sorted(validation)[0]}.h5"
    again = ["--ckpt_dir", tmp_path, "--num_workers", "0", "--dataset_dir", case, "--output_dir", tmp_path / "masks"]
    run(*command("inferring", "inference.yaml"), *again, "--save_probabilities", "True", "--et_label", "3")
    mask = np.asarray(nib.load(tmp_path / "masks" / f"{case.stem}_seg.nii.gz").dataobj)
    with h5py.File(case) as file:
        assert mask.shape == file["mask"].shape
    probabilities = np.asarray(nib.load(tmp_path / "masks" / f"{case.stem}_probabilities.nii.gz").dataobj)
    whole, core, enhancing = np.moveaxis(probabilities, -1, 0) > 0.5
    np.testing.assert_array_equal(mask > 0, whole)
    np.testing.assert_array_equal(np.isin(mask, (1, 3)), whole & core)
    np.testing.assert_array_equal(mask == 3, whole & core & enhancing)


def test_classes_at_native_resolution_from_chunks(h5_cohort: Path, tmp_path: Path) -> None:
    native = {"target": "classes", "normalise": "zscore", "res_units": 1}
    tiny = {"channels": [4, 8], "patch_size": [16, 16, 16], "draw": "lesion", "num_workers": 1, "epochs": 1}
    common = {"dataset_dir": str(h5_cohort), "ckpt_dir": str(tmp_path), "output_dir": str(tmp_path)}
    settings = {**common, "cache_dir": str(tmp_path / "cache"), **native, **tiny}
    trainer = in_process("train::trainer", "train.yaml", "native.yaml", "chunks.yaml", **settings)
    trainer.run()
    recorded = json.loads((tmp_path / "settings.json").read_text())
    assert (recorded["target"], recorded["fit"], recorded["patch_size"]) == ("classes", "native", [16, 16, 16])
    evaluator = in_process("evaluator", "inference.yaml", "evaluate.yaml", **common, num_workers=0)
    evaluator.run()
    assert 0 <= evaluator.state.metrics["mean_dice"] <= 1
    assert evaluator.inferer.roi_size == [16, 16, 16], "native, though no overlay says so"
    tuning = {**common, "pretrained": str(tmp_path / "model.pt"), "ckpt_dir": str(tmp_path / "tuned")}
    with pytest.raises(RuntimeError) as caught:
        in_process("initialize", "train.yaml", "finetune.yaml", **tuning)
    assert "a network trained with fit native" in str(bundle_error_in(caught.value))
    assert in_process("input_shape", "train.yaml", "native.yaml", "finetune.yaml", **tuning) == [16, 16, 16]


def test_slices_without_affine_and_with_air(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The widespread export, from training to masks."""
    for number in range(1, 4):
        write_slices(tmp_path / "data", number)
    common = {"dataset_dir": str(tmp_path / "data"), "ckpt_dir": str(tmp_path / "run"), "num_workers": 0}
    small = {"channels": [4, 8], "uniform_shape": [16, 16, 16], "epochs": 1, "cache": "none"}
    in_process("train::trainer", "train.yaml", **common, **small, output_dir=str(tmp_path / "run")).run()
    assert "T1, T1Gd, T2, FLAIR" in caplog.text
    arguments = {**common, "output_dir": str(tmp_path / "out")}
    in_process("evaluator", "inference.yaml", "evaluate.yaml", **arguments).run()
    assert "keeps no affine" in caplog.text
    mask = nib.load(tmp_path / "out" / "volume_3_seg.nii.gz")
    assert mask.shape == SHAPE
    np.testing.assert_array_equal(mask.affine, np.eye(4))
    with pytest.raises(BundleError, match="the folder of the scan itself"):
        in_process("evaluator", "inference.yaml", **{**arguments, "output_dir": str(tmp_path / "data")}).run()
    with pytest.raises(BundleError, match=r'--target regions --channels "\[4,8\]" --res_units 0'):
        in_process("evaluator", "inference.yaml", **arguments, channels=[4, 6]).run()


def test_the_order_of_channels_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Training is told; inference finds it beside the weights, and is told otherwise on its own command line only."""
    for number in range(1, 3):
        write_slices(tmp_path / "data", number)
    write_case(tmp_path / "telling" / "case.h5")
    common = {"dataset_dir": str(tmp_path / "data"), "ckpt_dir": str(tmp_path / "run"), "num_workers": 0}
    order = ["flair", "t1", "t1ce", "t2"]
    write_settings(in_process("settings", "train.yaml", **common, channel_order=order), str(tmp_path / "run"))
    assert {tuple(case["channels"]) for case in in_process("cases", "inference.yaml", **common)} == {(1, 2, 3, 0)}
    assert "T1, T1Gd, T2, FLAIR" not in caplog.text
    telling = {**common, "dataset_dir": str(tmp_path / "telling")}
    assert in_process("cases", "inference.yaml", **telling)[0]["channels"] == [0, 1, 2, 3]
    told = ["t2", "flair", "t1", "t1ce"]
    assert in_process("cases", "inference.yaml", **telling, channel_order=told)[0]["channels"] == [2, 3, 0, 1]


def test_bad_input_gives_one_clear_message(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tmp_path / "data"
    write_case(data / "a.h5")
    write_file(data / "b.h5", {"picture": image()[0]})
    (data / "c.h5").write_text("no HDF5")
    arguments = ["--dataset_dir", data, "--ckpt_dir", tmp_path, "--output_dir", tmp_path, *TINY]
    done = run(*command("training", "train.yaml"), *arguments, status=1)
    message = done.stderr.partition("\nERROR: ")[2]
    assert "2 problem(s)" in message
    assert "picture 12x10x8 int16" in message
    assert "not an HDF5 file" in message
    assert "Traceback" not in done.stderr
    with pytest.raises(SystemExit):
        check("brats_unet_h5", str(data))
    assert "1 complete case(s), files, headers and voxels checked: 2 finding(s)." in capsys.readouterr().out


# --- as MONAI sees it -------------------------------------------------------------------------------------------------


def test_metadata_and_network(tmp_path: Path) -> None:
    schema = tmp_path / "schema.json"
    shutil.copy(ROOT / "tests" / "metadata_schema.json", schema)
    verify_metadata(meta_file=META, filepath=schema)
    assert yaml.safe_load(Path(META).read_text())["changelog"].get(yaml.safe_load(Path(META).read_text())["version"])
    verify_net_in_out("network_def", meta_file=META, config_file=str(CONFIGS / "inference.yaml"), channels=[2, 2, 2])


def test_metadata_tells_what_the_network_gives_and_what_is_written() -> None:
    meta = json.loads(Path(META).read_text())
    pred = meta["network_data_format"]["outputs"]["pred"]
    torch.manual_seed(0)
    network = build_network("regions", channels=[4, 8]).eval()
    with torch.no_grad():
        out = network(torch.rand(1, 4, 16, 16, 16))
    low, high = pred["value_range"]
    assert out.min() < 0, "logits"
    assert low <= out.min() <= out.max() <= high
    assert pred["type"] != "probabilities"
    assert class_names(str(BUNDLE)) == {"NCR": 1, "ED": 2, "ET": 3}  # as MONAI Label's server reads it
    assert "ET: 4" in meta["pred_classes"]


def test_exports_compute_the_same(tmp_path: Path) -> None:
    import onnxruntime

    torch.manual_seed(0)
    network = build_network("classes", channels=[2, 4, 8]).eval()
    torch.save(network.state_dict(), tmp_path / "model.pt")
    arguments = {
        "ckpt_file": str(tmp_path / "model.pt"), "meta_file": META, "config_file": str(CONFIGS / "inference.yaml"),
        "input_shape": [1, 4, 16, 16, 16], "channels": [2, 4, 8], "target": "classes",
    }  # fmt: skip
    ckpt_export("network_def", str(tmp_path / "model.ts"), use_trace=True, **arguments)
    onnx_export("network_def", str(tmp_path / "model.onnx"), **arguments)
    x = torch.rand(1, 4, 16, 16, 16)
    with torch.no_grad():
        expected = network(x)
        torch.testing.assert_close(torch.jit.load(tmp_path / "model.ts")(x), expected, rtol=0, atol=1e-4)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    (got,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    np.testing.assert_allclose(got, expected.numpy(), rtol=0, atol=1e-4)


def test_configs_agree_where_they_speak_of_the_same() -> None:
    train_, infer = config("train.yaml"), config("inference.yaml")
    prepare = {step["_target_"]: step for step in train_["prepare"].values()}
    for step in infer["preprocessing"]["transforms"]:
        mine = prepare[step["_target_"]]
        assert {k: v for k, v in step.items() if k not in ("keys", "mode", "with_label", "_disabled_")} == {
            k: v for k, v in mine.items() if k not in ("keys", "mode")
        }


def test_defaults_are_upstreams() -> None:
    train_ = config("train.yaml")
    assert (train_["target"], train_["settings"]["fit"], train_["normalise"]) == ("regions", "resize", "minmax")
    assert train_["uniform_shape"] == [128, 128, 128]
    assert train_["optimizer"]["_target_"] == "torch.optim.Adam"
    assert train_["learning_rate"] == 1e-3
    assert train_["lr_scheduler"]["_target_"] == "torch.optim.lr_scheduler.ReduceLROnPlateau"
    assert train_["bce"] == 1
