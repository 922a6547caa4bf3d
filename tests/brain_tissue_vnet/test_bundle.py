"""The bundle as MONAI's own checks and exporters see it."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from monai.bundle import ckpt_export, onnx_export, verify_metadata, verify_net_in_out

from brain_tissue_vnet import TissueVNet
from tests.conftest import ROOT

BUNDLE = ROOT / "bundles" / "brain_tissue_vnet"
CONFIGS = BUNDLE / "configs"
META = str(CONFIGS / "metadata.json")


def config(name: str) -> dict:
    return yaml.safe_load((CONFIGS / name).read_text())


def test_metadata_follows_the_specification(tmp_path: Path) -> None:
    schema = tmp_path / "schema.json"
    shutil.copy(ROOT / "tests" / "metadata_schema.json", schema)
    verify_metadata(meta_file=META, filepath=schema)
    assert yaml.safe_load(Path(META).read_text())["changelog"].get(yaml.safe_load(Path(META).read_text())["version"])


def test_network_input_and_output_are_as_described() -> None:
    verify_net_in_out("network_def", meta_file=META, config_file=str(CONFIGS / "inference.yaml"), init_filters=2)


@pytest.mark.parametrize("norm", ["batch", "instance"])
def test_exports_compute_the_same(norm: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = TissueVNet(init_filters=2, norm=norm).eval()
    weights = tmp_path / "model.pt"
    torch.save(network.state_dict(), weights)
    x = torch.rand(1, 1, 32, 32, 32)
    with torch.no_grad():
        expected = network(x).numpy()
    common = {
        "ckpt_file": str(weights),
        "meta_file": META,
        "config_file": str(CONFIGS / "inference.yaml"),
        "init_filters": 2,
        "norm": norm,
    }
    script = tmp_path / "model.ts"
    ckpt_export("network_def", str(script), use_trace=True, input_shape=[1, 1, 32, 32, 32], **common)
    with torch.no_grad():
        np.testing.assert_allclose(torch.jit.load(script)(x).numpy(), expected, atol=1e-4)
    onnx = tmp_path / "model.onnx"
    onnx_export("network_def", str(onnx), input_shape=[1, 1, 32, 32, 32], **common)
    import onnxruntime

    session = onnxruntime.InferenceSession(str(onnx), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    np.testing.assert_allclose(found, expected, atol=1e-3)


def test_configs_agree_where_they_speak_of_the_same() -> None:
    train, infer = config("train.yaml"), config("inference.yaml")
    without = {"dropout", "keys", "mode", "with_label"}
    assert {k: v for k, v in train["network_def"].items() if k not in without} == infer["network_def"]
    without |= {"_disabled_"}  # inference follows what was recorded, a training its overlays
    resize, clahe = list(train["prepare"]).index("resize"), list(train["prepare"]).index("clahe")
    ours = [step for name, step in train["prepare"].items() if name != "halve"]
    ours[clahe] = config("n4.yaml")["prepare::clahe"]["transforms"]
    ours = [*ours[:clahe], *ours[clahe], *ours[clahe + 1 :], *config("pad.yaml")["+prepared::transforms"]]
    theirs = infer["preprocessing"]["transforms"]
    for mine, other in zip(ours, theirs, strict=True):
        assert {k: v for k, v in mine.items() if k not in without} == {
            k: v for k, v in other.items() if k not in without
        }
    assert [theirs[i]["_disabled_"] for i in (resize, clahe, -1)] == [
        "$@fit != 'resize'", "$not @n4", "$@fit != 'pad'",
    ]  # fmt: skip
    assert train["prepared"]["transforms"] == [f"%prepare::{name}" for name in train["prepare"]]


def test_what_a_user_sets_has_the_same_name_as_in_the_first_bundle() -> None:
    first = yaml.safe_load((ROOT / "bundles" / "brats_resunet" / "configs" / "train.yaml").read_text())
    top = {key for key, value in first.items() if not isinstance(value, dict)}
    own = {"accumulation_steps", "channels", "cross_entropy", "draw", "et_label", "channel_order", "tumour_probability",
           "flip_probability", "overlap", "degrade_probability"}  # fmt: skip
    assert top - own <= set(config("train.yaml"))
    shared = {
        "dataset_dir",
        "output_dir",
        "ckpt_dir",
        "checkpoint",
        "device",
        "patch_size",
        "amp",
        "num_workers",
        "seed",
    }
    assert shared | {"batch_size", "overlap", "flips", "whole_brain"} <= set(config("inference.yaml"))


def test_handlers_are_plain_lists() -> None:
    """References in them crash `check_properties` and MONAI Label."""
    train, infer = config("train.yaml"), config("inference.yaml")
    for handlers in (train["train"]["handlers"], train["validate"]["handlers"], infer["handlers"]):
        assert isinstance(handlers, list)
        assert all(isinstance(handler, dict) and "_target_" in handler for handler in handlers)


def test_defaults_are_upstreams() -> None:
    train = config("train.yaml")
    assert train["init_filters"] == 16
    assert train["fit"] == "resize"
    assert train["clahe"] > 0
    assert train["accumulation_steps"] > 1
    assert list(train["validate"]["key_metric"]) == ["val_loss"]
