"""Every bundle's configs, alone and with their overlays, as MONAI's own check of a bundle's properties sees them."""

from __future__ import annotations

from pathlib import Path

import ignite.distributed as idist
import pytest
import yaml
from monai.bundle import ConfigParser, ConfigWorkflow

from bundlekit.weights.settings import HANDED_ON
from tests.conftest import ROOT
from tools.bundles import names

TRAINING = ([], ["multi_gpu"], ["resume"], ["cross_validation"], ["cross_validation", "resume"])
INFERENCE = ([], ["evaluate"], ["evaluate", "cross_validation"])
OWN = {
    "brats_resunet": (
        [
            ["compact", "pretrain_virtual"],
            ["finetune", "resume"],
            ["pretrain_label_maps"],
            ["compact", "pretrain_label_maps", "resume"],
            ["pretrain_label_maps", "multi_gpu"],
        ],
        [],
    ),
    "brain_tissue_vnet": (
        [
            ["train_from_labels"],
            ["train_from_labels", "resume"],
            ["train_from_labels", "pretrain_label_maps", "finetune"],
            ["finetune"],
        ],
        [],
    ),
    "brain_metastasis_attention_unet": (
        [["pretrain_virtual"], ["finetune", "resume"]],
        [["evaluate", "choose_minimum_lesion"]],
    ),
    "brats_unet_h5": ([["pretrain_virtual"], ["finetune", "resume"]], []),
    "abdomen_ct_vnet": ([["organs13"]], []),
}
NARROW = {"brain_tissue_vnet": {"init_filters": 2}, "abdomen_ct_vnet": {"channels": [2, 2, 2]}}
NEEDS_NETWORKS = {"inference_ensemble"}  # of a cross-validation, see tests/tools/test_cv.py


def overlays() -> list[tuple[str, str, list[str]]]:
    return [
        (bundle, kind, [first, *more])
        for bundle in names()
        for kind, first, lists in (
            ("train", "train", (*TRAINING, *OWN[bundle][0])),
            ("infer", "inference", (*INFERENCE, *OWN[bundle][1])),
        )
        for more in lists
    ]


@pytest.mark.parametrize(
    ("bundle", "kind", "files"), overlays(), ids=lambda part: part if isinstance(part, str) else "+".join(part)
)
def test_properties_are_complete(
    bundle: str, kind: str, files: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configs = ROOT / "bundles" / bundle / "configs"
    workflow = ConfigWorkflow(
        [str(configs / f"{name}.yaml") for name in files],
        workflow_type=kind,
        meta_file=str(configs / "metadata.json"),
        logging_file=False,
        output_dir=str(tmp_path),
        ckpt_dir=str(tmp_path),
        **NARROW.get(bundle, {}),
    )
    # Ignite remembers the process group that an earlier test had
    monkeypatch.setattr(idist.utils, "_model", idist.utils._SerialModel())
    monkeypatch.setattr(idist.utils, "_need_to_sync", True)
    if "multi_gpu" in files:  # one process is a group too
        for name, value in {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0", "RANK": "0", "WORLD_SIZE": "1"}.items():
            monkeypatch.setenv(name, value)
    workflow.initialize()
    try:
        assert workflow.check_properties() == []
    finally:
        workflow.finalize()


FINE_TUNED = [bundle for bundle in names() if (ROOT / "bundles" / bundle / "configs" / "finetune.yaml").exists()]


@pytest.mark.parametrize("bundle", FINE_TUNED)
def test_fine_tuning_takes_every_setting_of_the_weights(bundle: str) -> None:
    train, tuned, infer = (
        yaml.safe_load((ROOT / "bundles" / bundle / "configs" / f"{name}.yaml").read_text())
        for name in ("train", "finetune", "inference")
    )
    # channel_order is about the files, not about the network
    expected = {key: train[key] for key in train["settings"] if key != "channel_order"}
    inherited = set(HANDED_ON) & infer["defaults"].keys()  # for inference, and handed on
    assert tuned["unrecorded"] == expected | {key: infer["defaults"][key] for key in inherited}
    assert expected.items() <= infer["defaults"].items()
    for key in expected:
        assert tuned[key] == f"$@recorded['{key}']"
    for key in inherited:
        assert tuned[f"settings::{key}"] == f"$@recorded['{key}']"


@pytest.mark.parametrize("bundle", names())
def test_training_leaves_shipped_weights_alone(bundle: str, tmp_path: Path) -> None:
    def goes_to() -> str:
        parser = ConfigParser()
        parser.read_config(ROOT / "bundles" / bundle / "configs" / "train.yaml")
        parser["bundle_root"] = str(tmp_path)
        return parser.get_parsed_content("ckpt_dir")

    assert goes_to() == str(tmp_path / "models")
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "SHA256SUMS").touch()
    assert goes_to() == str(tmp_path / "eval" / "trained")


@pytest.mark.parametrize("bundle", names())
def test_no_config_is_left_out(bundle: str) -> None:
    there = {path.stem for path in (ROOT / "bundles" / bundle / "configs").glob("*.yaml")}
    assert there - NEEDS_NETWORKS == {name for b, _, files in overlays() if b == bundle for name in files}


@pytest.mark.parametrize("bundle", names())
@pytest.mark.parametrize("file", ["train", "multi_gpu", "inference"])
def test_freed_memory_is_kept(bundle: str, file: str) -> None:
    config = yaml.safe_load((ROOT / "bundles" / bundle / "configs" / f"{file}.yaml").read_text())
    assert f"${bundle}.keep_freed_memory(@device)" in config["initialize"]
