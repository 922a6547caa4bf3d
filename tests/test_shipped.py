"""The weights that come with the bundles: whole, of the settings that the cards tell, and loaded by the configs."""

from __future__ import annotations

import json

import pytest
import torch

from bundlekit.weights.shipped import check_shipped, shipped_hash
from tests.conftest import ROOT
from tools.bundles import names, parse

AT_INFERENCE = {"minimum_core_ml": 0.05, "fill_core": True, "minimum_enhancing_ml": 1.0}
WIDTHS = [16, 32, 64, 128, 256]
TOLD = {
    "brats_resunet": {"channels": WIDTHS, "patch_size": [64, 64, 64], **AT_INFERENCE},
    "brain_tissue_vnet": {"init_filters": 8, "norm": "instance", "whole_head": True, "white_matter_weight": 0.3},
    "brain_metastasis_attention_unet": {
        "network": "attention_unet",
        "channels": WIDTHS,
        "patch_size": [64, 64, 64],
        "minimum_lesion_ml": 0.02,
        "minimum_core_ml": 0.02,
        "fill_core": True,
        "minimum_enhancing_ml": 0.01,
    },
    "brats_unet_h5": {
        "target": "regions",
        "channels": WIDTHS,
        "uniform_shape": [128, 128, 128],
        **AT_INFERENCE,
    },
}


def test_none_is_left_out() -> None:
    assert set(TOLD) == {name for name in names() if (ROOT / "bundles" / name / "models" / "model.pt").exists()}


@pytest.mark.parametrize("bundle", TOLD)
def test_the_file_is_whole_and_fits_its_settings(bundle: str) -> None:
    models = ROOT / "bundles" / bundle / "models"
    weights = models / "model.pt"
    assert shipped_hash(weights)
    check_shipped(weights)
    recorded = json.loads((models / "settings.json").read_text())
    assert TOLD[bundle].items() <= (recorded | recorded["after_training"]).items()
    parser = parse(bundle, "inference.yaml")
    parser.get_parsed_content("network_def").load_state_dict(torch.load(weights, weights_only=True))
    assert weights.stat().st_size < 50 * 2**20
