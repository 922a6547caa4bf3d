"""The cleaning of predictions, as the BraTS bundles' inference configs put it together."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from monai.data import MetaTensor

from tools.bundles import parse

NCR, ED, ET = 1, 2, 3
NIFTI, METS, HDF5 = "brats_resunet", "brain_metastasis_attention_unet", "brats_unet_h5"


def case() -> tuple[torch.Tensor, torch.Tensor]:
    """A prediction with everything to clean, and what is left of it; 1 mm."""
    found = torch.zeros(1, 40, 24, 24, dtype=torch.uint8)
    found[0, 2:20, 2:20, 2:20] = ED
    found[0, 4:10, 4:10, 4:10] = ET
    found[0, 5:9, 5:9, 5:9] = NCR
    found[0, 6, 6, 6] = ED  # a hole
    found[0, 14:18, 14:18, 14:18] = NCR  # far from the enhancing rim
    found[0, 24:36, 2:20, 2:20] = ED  # no core at all
    found[0, 30, 10, 10:20] = NCR  # nor enhancement
    found[0, 38, 22, 20:22] = ET  # too small
    expected = found.clone()
    expected[0, 6, 6, 6] = NCR
    expected[0, 14:18, 14:18, 14:18] = ED
    expected[0, 22:] = 0
    return found, expected


@pytest.mark.parametrize("bundle", [NIFTI, METS, HDF5])
@pytest.mark.parametrize("recorded", [True, False])
def test_recorded_settings_clean_and_none_leave_all(bundle: str, recorded: bool, tmp_path: Path) -> None:
    settings = {"minimum_core_ml": 0.003, "minimum_enhancing_ml": 0.1, "fill_core": True} if recorded else {}
    (tmp_path / "settings.json").write_text(json.dumps(settings))
    parser = parse(bundle, "inference.yaml", ckpt_dir=str(tmp_path))
    steps = parser.get_parsed_content("postprocessing").transforms
    first = next(i for i, step in enumerate(steps) if type(step).__name__ == "FillCored")
    assert any(type(step).__name__ == "Invertd" for step in steps[:first]), "volumes are of the native grid"
    found, expected = case()
    data = {"pred": MetaTensor(found, affine=torch.eye(4))}
    for step in steps[first:]:
        data = step(data)
    assert torch.equal(torch.as_tensor(data["pred"]), expected if recorded else found)
