"""The bundle as a user runs it, and as MONAI's own checks see it."""

from __future__ import annotations

import csv
import json
import re
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
import yaml
from monai.bundle import ckpt_export, onnx_export, verify_metadata, verify_net_in_out

from brain_metastasis_attention_unet import NETWORKS
from tests.conftest import ROOT, Run, bundle_run

BUNDLE = ROOT / "bundles" / "brain_metastasis_attention_unet"
CONFIGS = BUNDLE / "configs"
META = str(CONFIGS / "metadata.json")
TINY = ["--channels", "[4,8,16]", "--patch_size", "[32,32,32]", "--num_workers", "0"]
TRAINING = ["--batch_size", "2", "--accumulation_steps", "1", "--learning_rate", "0.005"]


def config(name: str) -> dict:
    return yaml.safe_load((CONFIGS / name).read_text())


def command(run_id: str, *configs: str) -> list[str]:
    return bundle_run(run_id, *configs, bundle=BUNDLE)


def train(
    run: Run, data: Path, out: Path, *more: str, epochs: int = 2, configs: tuple[str, ...] = ("train.yaml",)
) -> str:
    arguments = ["--dataset_dir", data, "--ckpt_dir", out, "--output_dir", out, "--epochs", str(epochs)]
    done = run(*command("training", *configs), *arguments, *TINY, *TRAINING, *more)
    return done.stdout + done.stderr


@pytest.mark.parametrize("network", NETWORKS)
def test_train_evaluate_infer(network: str, run: Run, metastases: Path, tmp_path: Path) -> None:
    log = train(run, metastases, tmp_path, "--network", network)
    losses = [float(v) for v in re.findall(r"train_loss: ([0-9.]+)", log)]
    assert losses[-1] < losses[0]
    settings = json.loads((tmp_path / "settings.json").read_text())
    assert (settings["network"], settings["channels"]) == (network, [4, 8, 16])
    split = json.loads((tmp_path / "datalist.json").read_text())
    patients = [{entry["patient"] for entry in split[part]} for part in ("training", "validation")]
    assert not patients[0] & patients[1]

    # network, widths and patch are not given again: they lie beside the weights
    common = ["--ckpt_dir", tmp_path, "--num_workers", "0"]
    run(*command("evaluating", "inference.yaml", "evaluate.yaml"), *common, "--dataset_dir", metastases,
        "--output_dir", tmp_path / "scores", "--minimum_lesion_ml", "0.05")  # fmt: skip
    with (tmp_path / "scores" / "scores.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["case"] for row in rows} == {entry["case"] for entry in split["validation"]}
    for name in ("dice_WT", "lesion_dice_ET", "false_positives_WT", "accuracy", "accuracy_of_empty_mask", "iou_ET"):
        assert name in rows[0]
    assert 0.9 < float(rows[0]["accuracy_of_empty_mask"]) < 1
    if network == "unet":  # choose what is too small to believe, and find it used
        all_files = command("evaluating", "inference.yaml", "evaluate.yaml", "choose_minimum_lesion.yaml")
        run(*all_files, *common, "--dataset_dir", metastases, "--output_dir", tmp_path / "chosen",
            "--candidates_ml", "[0,0.1,1000]")  # fmt: skip
        found = json.loads((tmp_path / "chosen" / "minimum_lesion.json").read_text())
        dice = {entry["minimum_lesion_ml"]: entry["lesion_dice"] for entry in found["candidates"]}
        assert list(dice) == [0, 0.1, 1000]
        assert dice[found["minimum_lesion_ml"]] == max(dice.values())
        recorded = json.loads((tmp_path / "settings.json").read_text())
        assert recorded["after_training"] == {"minimum_lesion_ml": found["minimum_lesion_ml"]}
        assert recorded["channels"] == [4, 8, 16]
        cleaning = {"minimum_core_ml": 0.01, "fill_core": True, "minimum_enhancing_ml": 2.0}
        cleaned = recorded | {"after_training": recorded["after_training"] | cleaning}
        (tmp_path / "settings.json").write_text(json.dumps(recorded | cleaning))  # as earlier versions left it
        tuned = tmp_path / "tuned"  # go on from there; the weights stay as they are
        before = (tmp_path / "model.pt").read_bytes()
        done = run(*command("training", "train.yaml", "finetune.yaml"), "--pretrained", tmp_path / "model.pt",
                   "--ckpt_dir", tuned, "--output_dir", tuned, "--dataset_dir", metastases, "--epochs", "1",
                   "--patches_per_case", "2", "--class_weights", "[0.1,1,1,1]", "--num_workers", "0")  # fmt: skip
        assert float(re.findall(r"train_loss: ([0-9.]+)", done.stdout + done.stderr)[0]) < losses[0]
        assert json.loads((tuned / "settings.json").read_text()) == cleaned
        assert (tmp_path / "model.pt").read_bytes() == before
    case = next(folder for folder in sorted(metastases.iterdir()) if folder.is_dir())
    run(*command("inferring", "inference.yaml"), *common, "--dataset_dir", case, "--output_dir", tmp_path / "masks")
    mask = nib.load(tmp_path / "masks" / f"{case.name}_seg.nii.gz")
    np.testing.assert_array_equal(mask.affine, nib.load(case / f"{case.name}-t1n.nii.gz").affine)
    assert set(np.unique(mask.dataobj).tolist()) <= {0, 1, 2, 3}


def test_resume_and_another_network(run: Run, metastases: Path, tmp_path: Path) -> None:
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    train(run, metastases, straight, "--network", "unet", epochs=3)
    train(run, metastases, stopped, "--network", "unet", epochs=3)
    last = torch.load(stopped / "last.pt", weights_only=True)
    assert torch.equal(
        last["model"]["model.0.conv.weight"],
        torch.load(straight / "last.pt", weights_only=True)["model"]["model.0.conv.weight"],
    )
    last["trainer"]["epoch"] -= 1
    torch.save(last, stopped / "last.pt")
    arguments = ["--dataset_dir", metastases, "--ckpt_dir", stopped, "--output_dir", stopped, "--epochs", "3"]
    both = command("training", "train.yaml", "resume.yaml")
    done = run(*both, *arguments, *TINY, *TRAINING, "--network", "resunet", status=1)
    assert "--network unet" in done.stderr
    done = run(*both, *arguments, *TINY, *TRAINING, "--network", "unet", "--fit", "resize", status=1)
    assert "now fit resize" in done.stderr
    assert json.loads((stopped / "settings.json").read_text())["fit"] == "native", "a refused run changes nothing"
    done = run(*both, *arguments, *TINY, *TRAINING, "--network", "unet")
    assert "after epoch 2 of 3" in done.stdout + done.stderr
    done = run(*command("training", "train.yaml"), *arguments, *TINY, *TRAINING, status=1)
    assert "an earlier run" in done.stderr


def test_resizing_and_slabs(run: Run, metastases: Path, tmp_path: Path) -> None:
    more = ["--fit", "resize", "--uniform_shape", "[32,32,32]", "--slab", "8", "--network", "unet"]
    train(run, metastases, tmp_path, *more, epochs=1)
    common = ["--ckpt_dir", tmp_path, "--num_workers", "0", "--dataset_dir", metastases, "--output_dir", tmp_path / "s"]
    run(*command("evaluating", "inference.yaml", "evaluate.yaml"), *common)
    assert (tmp_path / "s" / "summary.json").is_file()


def test_a_missing_modality_is_filled_on_demand_only(run: Run, metastases: Path, tmp_path: Path) -> None:
    data = Path(shutil.copytree(metastases, tmp_path / "data"))
    case = next(folder for folder in sorted(data.iterdir()) if folder.is_dir())
    (case / f"{case.name}-t2w.nii.gz").unlink()
    arguments = ["--dataset_dir", data, "--ckpt_dir", tmp_path, "--output_dir", tmp_path, "--epochs", "1"]
    done = run(*command("training", "train.yaml"), *arguments, *TINY, *TRAINING, status=1)
    assert f"{case.name}-t2w.nii.gz" in done.stderr
    assert "Traceback" not in done.stderr
    train(run, data, tmp_path, "--fill_missing", "True", "--network", "unet", epochs=1)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--network", "vnet"], "network must be one of attention_unet, unet, resunet"),
        (["--class_weights", "[-1,1,1,1]"], "must be 0 or more"),
        (["--patch_size", "[30,32,32]"], "patch_size must divide by 4"),
        (["--gama", "2"], "did you mean --gamma?"),
        (["--fit", "rezise"], "fit is 'rezise'; expected native or resize"),
        (["--slab", "8"], "Add --fit resize"),
    ],
)
def test_bad_settings_give_one_clear_message(
    more: list[str], message: str, run: Run, metastases: Path, tmp_path: Path
) -> None:
    arguments = ["--dataset_dir", metastases, "--ckpt_dir", tmp_path, "--output_dir", tmp_path, "--epochs", "1"]
    done = run(*command("training", "train.yaml"), *arguments, *TINY, *TRAINING, *more, status=1)
    assert message in done.stderr.partition("\nERROR: ")[2]
    assert "Traceback" not in done.stderr


def test_weights_are_derived_from_the_labels(run: Run, metastases: Path) -> None:
    out = run("-m", "tools", "weights", "brain_metastasis_attention_unet", "--dataset_dir", metastases).stdout
    counts = [int(v) for v in re.search(r"class: \[(.+)\]", out)[1].split(",")]
    weights = [float(v) for v in re.search(r'balanced +--class_weights "\[(.+)\]"', out)[1].split(",")]
    assert weights == pytest.approx([sum(counts) / (4 * n) for n in counts], rel=1e-3)


def test_metadata_and_network(tmp_path: Path) -> None:
    schema = tmp_path / "schema.json"
    shutil.copy(ROOT / "tests" / "metadata_schema.json", schema)
    verify_metadata(meta_file=META, filepath=schema)
    assert yaml.safe_load(Path(META).read_text())["changelog"].get(yaml.safe_load(Path(META).read_text())["version"])
    verify_net_in_out("network_def", meta_file=META, config_file=str(CONFIGS / "inference.yaml"), channels=[2, 4, 8])


@pytest.mark.parametrize("network", NETWORKS)
def test_onnx_computes_the_same(network: str, tmp_path: Path) -> None:
    import onnxruntime

    from brain_metastasis_attention_unet import build_network

    torch.manual_seed(0)
    model = build_network(network, channels=[2, 4, 8]).eval()
    torch.save(model.state_dict(), tmp_path / "model.pt")
    onnx = str(tmp_path / "model.onnx")
    onnx_export(
        "network_def", onnx, ckpt_file=str(tmp_path / "model.pt"), meta_file=META,
        config_file=str(CONFIGS / "inference.yaml"), input_shape=[1, 4, 16, 16, 16], channels=[2, 4, 8],
        network=network,
    )  # fmt: skip
    session = onnxruntime.InferenceSession(onnx, providers=["CPUExecutionProvider"])
    x = torch.rand(1, 4, 16, 16, 16)
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(found), model(x), rtol=0, atol=1e-4)


def test_two_processes_train_like_one(run: Run, metastases: Path, tmp_path: Path) -> None:
    """Same cases, patches and steps; unlike the losses, equal weights also need the gradients' exchange."""
    one, two = tmp_path / "one", tmp_path / "two"
    more = ["--network", "unet", "--loss::batch", "False"]
    train(run, metastases, one, *more)
    files = [str(CONFIGS / name) for name in ("train.yaml", "multi_gpu.yaml")]
    run("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2",
        "-m", "monai.bundle", "run", "training", "--config_file", str(files), "--dataset_dir", metastases,
        "--ckpt_dir", two, "--output_dir", two, "--epochs", "2", *TINY, *TRAINING, *more,
        "--batch_size", "1")  # fmt: skip
    a, b = (torch.load(folder / "last.pt", weights_only=True)["model"] for folder in (one, two))
    kernels = [key for key in a if a[key].ndim == 5]  # biases before a norm have no gradient but rounding
    assert kernels
    for key in kernels:
        torch.testing.assert_close(a[key], b[key], rtol=0, atol=2e-3, msg=key)


@pytest.mark.parametrize("network", NETWORKS)
def test_export_computes_the_same(network: str, tmp_path: Path) -> None:
    from brain_metastasis_attention_unet import build_network

    torch.manual_seed(0)
    model = build_network(network, channels=[2, 4, 8]).eval()
    torch.save(model.state_dict(), tmp_path / "model.pt")
    ckpt_export(
        "network_def", str(tmp_path / "model.ts"), ckpt_file=str(tmp_path / "model.pt"), meta_file=META,
        config_file=str(CONFIGS / "inference.yaml"), use_trace=True, input_shape=[1, 4, 16, 16, 16],
        channels=[2, 4, 8], network=network,
    )  # fmt: skip
    x = torch.rand(1, 4, 16, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(torch.jit.load(tmp_path / "model.ts")(x), model(x), rtol=0, atol=1e-4)


def test_defaults_are_upstreams_but_for_the_draw() -> None:
    train_ = config("train.yaml")
    assert train_["network"] == "attention_unet"
    assert train_["draw"] == "lesion"
