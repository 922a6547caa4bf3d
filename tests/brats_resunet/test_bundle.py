"""The bundle as MONAI's own checks and exporters see it."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from monai.bundle import ckpt_export, onnx_export, verify_metadata, verify_net_in_out

from brats_resunet import ResUNet
from tests.conftest import BUNDLE, ROOT

CONFIGS = BUNDLE / "configs"
META = str(CONFIGS / "metadata.json")
CHANNELS = [4, 8, 16, 32, 64]


def config(name: str) -> dict:
    return yaml.safe_load((CONFIGS / name).read_text())


def test_metadata_follows_the_specification(tmp_path: Path) -> None:
    schema = tmp_path / "schema.json"
    shutil.copy(ROOT / "tests" / "metadata_schema.json", schema)
    verify_metadata(meta_file=META, filepath=schema)
    broken = tmp_path / "metadata.json"
    broken.write_text(Path(META).read_text().replace('"monai_version": "1.6.1"', '"monai_version": 1.6'))
    with pytest.raises(ValueError, match="is not of type"):
        verify_metadata(meta_file=str(broken), filepath=schema)


def test_package_and_metadata_carry_one_version() -> None:
    assert yaml.safe_load(Path(META).read_text())["changelog"].get(yaml.safe_load(Path(META).read_text())["version"])


def test_network_input_and_output_are_as_described() -> None:
    verify_net_in_out("network_def", meta_file=META, config_file=str(CONFIGS / "inference.yaml"), channels=CHANNELS)


def test_exports_compute_the_same(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = ResUNet(channels=CHANNELS).eval()
    weights = tmp_path / "model.pt"
    torch.save(network.state_dict(), weights)
    x = torch.rand(1, 4, 32, 32, 32)
    with torch.no_grad():
        expected = network(x).numpy()
    common = {
        "ckpt_file": str(weights),
        "meta_file": META,
        "config_file": str(CONFIGS / "inference.yaml"),
        "channels": CHANNELS,
    }
    script = tmp_path / "model.ts"
    ckpt_export("network_def", str(script), use_trace=True, input_shape=[1, 4, 32, 32, 32], **common)
    with torch.no_grad():
        np.testing.assert_allclose(torch.jit.load(script)(x).numpy(), expected, atol=1e-4)
    onnx = tmp_path / "model.onnx"
    onnx_export("network_def", str(onnx), input_shape=[1, 4, 32, 32, 32], **common)
    import onnxruntime

    session = onnxruntime.InferenceSession(str(onnx), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    np.testing.assert_allclose(found, expected, atol=1e-3)


def test_configs_agree_where_they_speak_of_the_same() -> None:
    train, infer = config("train.yaml"), config("inference.yaml")
    assert train["network_def"] == infer["network_def"]
    load, crop, normalise = infer["preprocessing"]["transforms"]
    assert load["_target_"] == train["prepare"]["load"]["_target_"]
    assert normalise == train["prepare"]["normalise"]
    assert {**crop, "keys": None} == {**train["prepare"]["crop"], "keys": None}


def test_what_a_user_sets_has_the_same_name_everywhere() -> None:
    shared = {"dataset_dir", "output_dir", "ckpt_dir", "device", "patch_size", "channels", "amp", "num_workers", "seed"}
    assert shared | {"batch_size", "epochs", "learning_rate"} <= set(config("train.yaml"))
    assert shared | {"batch_size"} <= set(config("inference.yaml"))


def test_handlers_are_plain_lists() -> None:
    """References in them crash `check_properties` and MONAI Label."""
    train, infer = config("train.yaml"), config("inference.yaml")
    for handlers in (train["train"]["handlers"], train["validate"]["handlers"], infer["handlers"]):
        assert isinstance(handlers, list)
        assert all(isinstance(handler, dict) and "_target_" in handler for handler in handlers)


def test_defaults_are_upstreams() -> None:
    train = config("train.yaml")
    assert train["channels"] == [32, 64, 128, 256, 512]
    assert train["patch_size"] == [96, 96, 96]
    assert train["batch_size"] * train["accumulation_steps"] == 32
    assert (train["epochs"], train["learning_rate"], train["weight_decay"]) == (100, 1e-4, 1e-5)
    assert train["loss"]["weights"] == [1.0, 0.5, 0.25]
    assert train["loss"]["loss"]["regions"] == [[1, 2, 3], [1, 3], [3]]
    assert train["tumour_probability"] == 0.5
    assert train["train_cases"] == 1000
