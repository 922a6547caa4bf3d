"""Every bundle as MONAI's own checks and exporters see it."""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from monai.bundle import ckpt_export, onnx_export, verify_metadata
from torch.onnx._internal.exporter._registration import ONNXRegistry

from tests.bundles import BUNDLES
from tests.conftest import ROOT, config
from tools.bundles import names, parse

NETWORKS = [(bundle, chosen) for bundle, row in BUNDLES.items() for chosen in row.networks]


def configs(bundle: str) -> Path:
    return ROOT / "bundles" / bundle / "configs"


def test_every_bundle_has_its_row() -> None:
    assert sorted(BUNDLES) == names()


@pytest.mark.parametrize("bundle", BUNDLES)
def test_metadata_follows_the_specification(bundle: str, tmp_path: Path) -> None:
    schema, meta = tmp_path / "schema.json", configs(bundle) / "metadata.json"
    shutil.copy(ROOT / "tests" / "metadata_schema.json", schema)
    verify_metadata(meta_file=str(meta), filepath=schema)
    content = json.loads(meta.read_text())
    assert content["changelog"].get(content["version"])
    broken = tmp_path / "metadata.json"
    broken.write_text(meta.read_text().replace('"monai_version": "1.6.1"', '"monai_version": 1.6'))
    with pytest.raises(ValueError, match="is not of type"):
        verify_metadata(meta_file=str(broken), filepath=schema)


@pytest.fixture(scope="module")
def operators_read_once() -> Iterator[None]:
    """For each export PyTorch reads the source of every ONNX operator that it knows, and leaves it as it is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ONNXRegistry, "from_torchlib", staticmethod(functools.cache(ONNXRegistry.from_torchlib)))
        yield


@pytest.mark.usefixtures("operators_read_once")
@pytest.mark.parametrize(("bundle", "chosen"), NETWORKS, ids=[f"{name}-{chosen}" for name, chosen in NETWORKS])
def test_exports_compute_the_same(bundle: str, chosen: dict[str, str], tmp_path: Path) -> None:
    torch.manual_seed(0)
    settings = {**BUNDLES[bundle].narrow, **chosen}
    network = parse(bundle, "inference.yaml", **settings).get_parsed_content("network_def").eval()
    weights = tmp_path / "model.pt"
    torch.save(network.state_dict(), weights)
    meta = configs(bundle) / "metadata.json"
    channels = json.loads(meta.read_text())["network_data_format"]["inputs"]["image"]["num_channels"]
    x = torch.rand(1, channels, 32, 32, 32)
    with torch.no_grad():
        expected = network(x).numpy()
    common = {
        "ckpt_file": str(weights), "meta_file": str(meta), "config_file": str(configs(bundle) / "inference.yaml"),
        "input_shape": list(x.shape), **settings,
    }  # fmt: skip
    once = {"converter_kwargs": {"check_trace": False}}  # PyTorch would trace again; outputs are compared here
    for traced in (True, False):
        ckpt_export("network_def", str(tmp_path / "model.ts"), use_trace=traced, **(once if traced else {}), **common)
        with torch.no_grad():
            found = torch.jit.load(tmp_path / "model.ts")(x)
        np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=1e-4)
    onnx_export("network_def", str(tmp_path / "model.onnx"), **common)
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize("bundle", [name for name, row in BUNDLES.items() if not row.maps])
def test_inference_prepares_as_training_does(bundle: str) -> None:
    """The same steps in the same order; training has labels, and what it must store besides."""
    train, infer = config(bundle, "train"), config(bundle, "inference")
    assert {key: value for key, value in train["network_def"].items() if key != "dropout"} == infer["network_def"]
    steps = [step for name, step in train["prepare"].items() if name not in ("halve", "pad_label")]
    targets = {step["_target_"] for step in steps}
    theirs = [step for step in infer["preprocessing"]["transforms"] if step["_target_"] in targets]
    # a training is told by its overlays
    without = {"keys", "mode", "with_label", "check_orientation", "allow_missing_keys", "_disabled_"}
    for mine, other in zip(steps, theirs, strict=True):
        assert {k: v for k, v in mine.items() if k not in without} == {
            k: v for k, v in other.items() if k not in without
        }
        assert other.get("keys", "image") == "image"
        assert mine.get("keys", "image") in ("image", ["image", "label"])
        assert other.get("mode") in (mine.get("mode"), (mine.get("mode") or [None])[0])
    assert train["prepared"]["transforms"] == [f"%prepare::{name}" for name in train["prepare"]]


@pytest.mark.parametrize("bundle", BUNDLES)
def test_what_a_user_sets_has_the_same_name_everywhere(bundle: str) -> None:
    shared = {"dataset_dir", "datalist", "output_dir", "ckpt_dir", "device", "amp", "num_workers", "seed", "batch_size"}
    training = {"epochs", "learning_rate", "accumulation_steps", "train_cases", "train_fraction", "patches_per_case",
                "cache", "time_limit", "val_interval", "overwrite"}  # fmt: skip
    assert not (shared | training | BUNDLES[bundle].small.keys()) - config(bundle, "train").keys()
    inference = {"checkpoint", "patch_size", "overlap", "flips", "save_probabilities", "unreadable"}
    assert not (shared | inference | BUNDLES[bundle].small.keys()) - config(bundle, "inference").keys()


@pytest.mark.parametrize("bundle", BUNDLES)
def test_handlers_are_plain_lists(bundle: str) -> None:
    """References in them crash `check_properties` and MONAI Label."""
    train, infer = config(bundle, "train"), config(bundle, "inference")
    for handlers in (train["train"]["handlers"], train["validate"]["handlers"], infer["handlers"]):
        assert isinstance(handlers, list)
        assert all(isinstance(handler, dict) and "_target_" in handler for handler in handlers)
