"""The bundle as a user runs it, and as MONAI's own checks see it."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
import yaml
from matplotlib import image as png
from monai.bundle import ConfigParser, ckpt_export, onnx_export, verify_metadata, verify_net_in_out
from monai.transforms import Compose
from monai.transforms.traits import RandomizableTrait

from abdomen_ct_vnet import UPSTREAM_ORGANS, NormaliseCTd, ResidualVNet, class_weights_of, find_cases
from abdomen_ct_vnet.organs import FLARE22_ORGANS
from bundlekit.command_line import refuse_unknown_settings
from bundlekit.errors import BundleError, bundle_error_in
from bundlekit.weights.settings import write_settings
from tests.abdomen_ct_vnet.conftest import labels, write
from tests.conftest import ROOT, Run, bundle_run
from tools.check import check
from tools.weights import weights

BUNDLE = ROOT / "bundles" / "abdomen_ct_vnet"
CONFIGS = BUNDLE / "configs"
META = str(CONFIGS / "metadata.json")
SHARED = Path(os.environ.get("BRAIN_DATA", ROOT.parent / "shared" / "data")) / "abdomen_ct"
TINY = ["--channels", "[4,8,8]", "--patch_size", "[24,24,24]", "--spacing", "[10,10,10]", "--num_workers", "0"]
TRAINING = ["--batch_size", "2", "--learning_rate", "0.005"]


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


def train(
    run: Run, data: Path, out: Path, *more: str, epochs: int = 2, configs: tuple[str, ...] = ("train.yaml",)
) -> str:
    arguments = ["--dataset_dir", data, "--ckpt_dir", out, "--output_dir", out, "--epochs", str(epochs)]
    done = run(*command("training", *configs), *arguments, *TINY, *TRAINING, *more)
    return done.stdout + done.stderr


def test_train_evaluate_infer(run: Run, abdomens: Path, tmp_path: Path) -> None:
    log = train(run, abdomens, tmp_path, epochs=4)
    losses = [float(v) for v in re.findall(r"train_loss: ([0-9.]+)", log)]
    assert losses[-1] < losses[0] - 0.05
    assert "val_dice_kidneys" in log
    settings = json.loads((tmp_path / "settings.json").read_text())
    assert list(settings["organs"].items()) == list(UPSTREAM_ORGANS.items())
    assert (settings["channels"], settings["output_numbering"]) == ([4, 8, 8], "flare22")
    split = json.loads((tmp_path / "datalist.json").read_text())
    assert [len(split[part]) for part in ("training", "validation")] == [4, 1]

    # classes, widths, voxel size and window are not given again: they lie beside the weights
    common = ["--ckpt_dir", tmp_path, "--num_workers", "0"]
    scores = tmp_path / "scores"
    run(
        *command("evaluating", "inference.yaml", "evaluate.yaml"),
        *common,
        "--dataset_dir",
        abdomens,
        "--output_dir",
        scores,
        "--overlays",
        "True",
    )
    with (scores / "scores.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert row["case"] == "FLARE22_Tr_0005"
    assert float(row["dice_liver"]) > 0.3
    assert 0.9 < float(row["accuracy_of_empty_mask"]) < 1
    assert {"nsd_spleen", "iou50_kidneys", "mean_iou", "mean_iou50", "hd95_liver", "accuracy"} <= set(row)
    summary = json.loads((scores / "summary.json").read_text())
    assert summary["tolerance_mm"] == {"liver": 5.0, "kidneys": 3.0, "spleen": 3.0}
    picture = png.imread(scores / "FLARE22_Tr_0005_overlay.png")[..., :3]
    assert (picture.max(-1) - picture.min(-1) > 0.1).mean() > 0.005, "organs in colour"

    scan = abdomens / "imagesTr" / "FLARE22_Tr_0001_0000.nii.gz"
    out = tmp_path / "masks"
    more = ["--save_probabilities", "True", "--output_numbering", "amos", "--output_dir", out]
    run(*command("inferring", "inference.yaml"), *common, "--dataset_dir", scan, *more)
    mask = nib.load(out / "FLARE22_Tr_0001_seg.nii.gz")
    np.testing.assert_array_equal(mask.affine, nib.load(scan).affine)
    found = np.asarray(mask.dataobj)
    assert found.shape == nib.load(scan).shape
    assert set(np.unique(found).tolist()) <= {0, 6, 2, 1}
    assert (found == 6).any(), "liver in AMOS' numbers"
    probabilities = np.asarray(nib.load(out / "FLARE22_Tr_0001_probabilities.nii.gz").dataobj)
    assert probabilities.shape == (*mask.shape, 4)
    np.testing.assert_allclose(probabilities.sum(-1), 1, atol=3e-3)
    assert (np.array([0, 6, 2, 1])[probabilities.argmax(-1)] == found).mean() > 0.999


def test_other_organs_with_derived_weights_resumed(
    run: Run, abdomens: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Stopped after one epoch of two and resumed: bit for bit the run that was not."""
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    files = ("train.yaml", "organs13.yaml")
    organs = ["liver", "right kidney", "left kidney", "spleen", "stomach"]  # the others vanish at these voxels
    common = ["--organs", str(organs), "--patches_per_case", "2"]
    log = train(run, abdomens, straight, *common, configs=files)
    assert re.search(r"class weights \(sqrt\): background 0\.\d+, liver", log)
    train(run, abdomens, stopped, *common, epochs=1, configs=files)
    last = torch.load(stopped / "last.pt", weights_only=True)
    last["trainer"]["max_epochs"] = 2  # as if a run of two epochs had been stopped; the learning rate is constant
    torch.save(last, stopped / "last.pt")
    resumed = (*files, "resume.yaml")
    assert "after epoch 1 of 2" in train(run, abdomens, stopped, *common, configs=resumed)
    a, b = (torch.load(folder / "last.pt", weights_only=True) for folder in (straight, stopped))
    for key in a["model"]:
        torch.testing.assert_close(a["model"][key], b["model"][key], rtol=0, atol=0, msg=key)
    weights("abdomen_ct_vnet", str(abdomens), organs=organs)
    printed = re.search(r'square root of balanced +--class_weights "\[(.+)\]"', capsys.readouterr().out)
    assert printed is not None
    cases = find_cases(abdomens, organs=organs)
    derived = class_weights_of(None, cases[0]["classes"], cases, "sqrt")
    assert [float(v) for v in printed[1].split(",")] == pytest.approx(derived, rel=1e-3)


def mri(data: Path) -> str:
    file = data / "imagesTr" / "FLARE22_Tr_0002_0000.nii.gz"
    image = nib.load(file)
    nib.save(nib.Nifti1Image(np.abs(np.asarray(image.dataobj)), image.affine), file)
    return file.name


def test_bad_input_gives_one_clear_message(run: Run, data: Path, tmp_path: Path) -> None:
    """Found while a case is decoded, in the middle of a run; what stops a run before is the same error earlier."""
    name, out = mri(data), tmp_path / "out"
    arguments = ["--dataset_dir", data, "--ckpt_dir", out, "--output_dir", out, "--epochs", "1"]
    done = run(*command("training", "train.yaml"), *arguments, *TINY, *TRAINING, status=1)
    error = done.stderr.partition("\nERROR: ")[2]
    assert name in error
    assert "a CT in Hounsfield units" in error
    assert "Traceback" not in done.stderr
    assert not list(out.rglob("*.pt"))


def test_bad_settings_are_refused(abdomens: Path) -> None:
    with pytest.raises(RuntimeError) as caught:
        in_process("loss", "train.yaml", dataset_dir=str(abdomens), class_weights=[1, 2])
    assert "4: background, liver, kidneys, spleen" in str(bundle_error_in(caught.value))
    program = "/site-packages/monai/bundle/__main__.py"
    with pytest.raises(BundleError, match=r"did you mean --window\?"):
        refuse_unknown_settings([program, *command("training", "train.yaml")[2:], "--windw", "[0,1]"])


def test_organs_that_flare22_lacks_are_recorded_with_their_numbering(tmp_path: Path) -> None:
    """From the labels to the masks: inference is told neither classes nor numbers, and may be told others."""
    for case in "ab":
        write(tmp_path / "data" / case / "ct.nii.gz")
        write(tmp_path / "data" / case / "segmentations" / "colon.nii.gz", labels((0, 1)))
        write(tmp_path / "data" / case / "segmentations" / "liver.nii.gz", labels((0, 1)))
    data, organs = str(tmp_path / "data"), {"gut": ["colon"], "liver": ["liver"]}
    recorded = in_process("settings", "train.yaml", dataset_dir=data, organs=organs)
    assert recorded["output_numbering"] == "totalsegmentator_v2"
    write_settings(recorded, str(tmp_path))
    assert list(json.loads((tmp_path / "settings.json").read_text())["organs"]) == ["gut", "liver"]
    scan = write(tmp_path / "new.nii.gz")
    for more, values in (({}, [0, 20, 5]), ({"output_numbering": {"colon": 7, "liver": 9}}, [0, 7, 9])):
        (case,) = in_process("cases", "inference.yaml", dataset_dir=str(scan), ckpt_dir=str(tmp_path), **more)
        assert case["label_values"] == values
    chosen = in_process("settings", "train.yaml", dataset_dir=data, organs=organs, output_numbering="dataset")
    assert chosen["output_numbering"] == "dataset"


@pytest.mark.parametrize("normalise", ["unit", "zscore"])
def test_a_small_scan_is_padded_with_air(normalise: str, abdomens: Path) -> None:
    """The same in training, validation and inference; the virtual bodies run through the ends of their scans."""
    settings = {
        "dataset_dir": str(abdomens), "spacing": [8, 8, 8], "patch_size": [32, 32, 48], "normalise": normalise,
    }  # fmt: skip
    volumes = []
    for part, file in (
        ("train::preprocessing", "train.yaml"), ("validate::preprocessing", "train.yaml"),
        ("preprocessing", "inference.yaml"),
    ):  # fmt: skip
        steps = in_process(part, file, **settings).flatten().transforms
        fixed = [step for step in steps if not isinstance(step, RandomizableTrait)]
        volumes.append(Compose(fixed[: 1 + max(i for i, s in enumerate(fixed) if isinstance(s, NormaliseCTd))]))
    case = in_process("cases", "train.yaml", **settings)[0]
    done = [volume(case) for volume in volumes]
    image = done[0]["image"]
    assert image.shape[-1] == 48
    assert not done[0]["label"][..., [0, -1]].any()
    for end in (image[..., 0], image[..., -1]):
        assert float(end.min()) == float(end.max()) == float(image.min()), "air, and nothing of the body"
    assert (float(image.min()) == 0) == (normalise == "unit")
    for other in done[1:]:
        np.testing.assert_allclose(other["image"], image, atol=1e-5)


def test_checking_tool_names_each_file(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    check("abdomen_ct_vnet", str(data), organs="flare22")
    assert "5 complete case(s), files, headers and voxels checked: 0" in capsys.readouterr().out
    name = mri(data)
    with pytest.raises(SystemExit):
        check("abdomen_ct_vnet", str(data))
    assert name in capsys.readouterr().out


@pytest.mark.skipif(not SHARED.is_dir(), reason="no real data here")
def test_a_real_ct_goes_through(run: Run, tmp_path: Path) -> None:
    """A few steps; its labels are a model's, so that the scores mean nothing."""
    entry = {
        "image": str(SHARED / "example_ct.nii.gz"),
        "label": str(SHARED / "example_seg_v1_fullmodel.nii.gz"),
        "numbering": "totalsegmentator_v1",
    }
    listed = tmp_path / "list.json"
    listed.write_text(json.dumps({p: [{**entry, "case": p}] for p in ("training", "validation")}))
    common = ["--datalist", listed, "--ckpt_dir", tmp_path, "--num_workers", "0"]
    small = ["--channels", "[4,8,8]", "--patch_size", "[32,32,32]", "--spacing", "[8,8,8]"]
    run(*command("training", "train.yaml"), *common, "--output_dir", tmp_path, *small, *TRAINING, "--epochs", "1")
    out = tmp_path / "out"
    run(*command("evaluating", "inference.yaml", "evaluate.yaml"), *common, "--output_dir", out)
    mask, scan = nib.load(out / "validation_seg.nii.gz"), nib.load(entry["image"])
    np.testing.assert_array_equal(mask.affine, scan.affine)
    assert mask.shape == scan.shape
    summary = json.loads((out / "summary.json").read_text())
    assert summary["metrics"]["volume_truth_ml_liver"]["mean"] > 300


def test_metadata_and_network(tmp_path: Path) -> None:
    schema = tmp_path / "schema.json"
    shutil.copy(ROOT / "tests" / "metadata_schema.json", schema)
    verify_metadata(meta_file=META, filepath=schema)
    meta = yaml.safe_load(Path(META).read_text())
    assert meta["changelog"].get(meta["version"])
    verify_net_in_out("network_def", meta_file=META, config_file=str(CONFIGS / "inference.yaml"), channels=[2, 2, 2])
    # a server takes the keys for the values of the mask, and the mask's values are the classes' indices by default
    names = meta["network_data_format"]["outputs"]["pred"]["channel_def"]
    assert list(names.values()) == ["background", *UPSTREAM_ORGANS]
    from abdomen_ct_vnet.numberings import label_values

    assert [str(value) for value in label_values(UPSTREAM_ORGANS, "flare22")] == list(names)


def test_exports_compute_the_same(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = ResidualVNet(channels=[2, 4, 4]).eval()
    weights = tmp_path / "model.pt"
    torch.save(network.state_dict(), weights)
    x = torch.rand(1, 1, 16, 16, 16)
    with torch.no_grad():
        expected = network(x).numpy()
    common = {
        "ckpt_file": str(weights), "meta_file": META, "config_file": str(CONFIGS / "inference.yaml"),
        "channels": [2, 4, 4],
        "input_shape": [1, 1, 16, 16, 16],
    }  # fmt: skip
    ckpt_export("network_def", str(tmp_path / "model.ts"), use_trace=True, **common)
    with torch.no_grad():
        np.testing.assert_allclose(torch.jit.load(tmp_path / "model.ts")(x).numpy(), expected, atol=1e-4)
    onnx_export("network_def", str(tmp_path / "model.onnx"), **common)
    import onnxruntime

    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    np.testing.assert_allclose(found, expected, atol=1e-3)


def test_configs_agree_where_they_speak_of_the_same() -> None:
    train_, infer, evaluate = config("train.yaml"), config("inference.yaml"), config("evaluate.yaml")
    assert evaluate["numbering"] == train_["numbering"]
    without = {"dropout", "keys", "mode", "with_label", "check_orientation"}
    assert {k: v for k, v in train_["network_def"].items() if k not in without} == infer["network_def"]
    ours = [step for name, step in train_["prepare"].items() if name not in ("halve", "pad_label")]
    for mine, theirs in zip(ours, infer["preprocessing"]["transforms"], strict=True):
        assert {k: v for k, v in mine.items() if k not in without} == {
            k: v for k, v in theirs.items() if k not in without
        }
    assert train_["prepared"]["transforms"] == [f"%prepare::{name}" for name in train_["prepare"]]


def test_defaults_are_upstreams() -> None:
    train_ = config("train.yaml")
    assert train_["class_weights"] == [0.26, 22.53, 22.53, 26.21]
    assert train_["channels"] == [16, 32, 64, 128]
    assert (train_["learning_rate"], train_["optimizer"]["_target_"]) == (1e-4, "torch.optim.Adam")
    assert train_["organs"] == UPSTREAM_ORGANS
    from abdomen_ct_vnet import organ_classes

    assert list(organ_classes(config("organs13.yaml")["organs"])) == list(FLARE22_ORGANS)
