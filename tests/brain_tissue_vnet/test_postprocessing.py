"""From probabilities to tissues."""

from __future__ import annotations

import pytest
import torch
from monai.data import MetaTensor

from brain_tissue_vnet import DecideTissuesd


@pytest.mark.parametrize(("weight", "expected"), [(1.0, [2, 3, 0]), (1.4, [2, 3, 0]), (1.6, [3, 3, 0])])
def test_white_matter_counts_more_where_it_is_close(weight: float, expected: list[int]) -> None:
    probabilities = torch.tensor([[0.0, 0.1, 0.6], [0.1, 0.1, 0.1], [0.54, 0.1, 0.1], [0.36, 0.7, 0.2]])
    given = MetaTensor(probabilities.reshape(4, 3, 1, 1), affine=torch.diag(torch.tensor([1.0, 2.0, 3.0, 1.0])))
    before = given.clone()
    found = DecideTissuesd(weight)({"pred": given, "probabilities": given, "image": "other"})
    assert found["pred"].flatten().tolist() == expected
    assert found["pred"].shape == (1, 3, 1, 1)
    assert torch.equal(found["pred"].affine, given.affine)
    assert torch.equal(found["probabilities"], before), "those that are written stay as they are"
    assert found["image"] == "other"


@pytest.mark.parametrize("weight", [0, -1, float("nan"), float("inf")])
def test_impossible_weight(weight: float) -> None:
    with pytest.raises(ValueError, match="white_matter_weight must be a number above 0"):
        DecideTissuesd(weight)
