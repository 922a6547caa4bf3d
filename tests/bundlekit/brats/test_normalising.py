"""Intensities by the voxels of the brain: against numbers by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from bundlekit.brats.normalising import NormaliseBraind


def test_minmax_and_zscore_by_hand() -> None:
    image = torch.tensor([0.0, 10, 20, 30, 50]).reshape(1, 5, 1, 1).repeat(4, 1, 1, 1)
    out = NormaliseBraind()({"image": image})["image"][0].flatten()
    torch.testing.assert_close(out, torch.tensor([0, 0, 0.25, 0.5, 1]))
    out = NormaliseBraind("minmax", [0, 200 / 3])({"image": image})["image"][0].flatten()
    torch.testing.assert_close(out, torch.tensor([0, 0, 0.5, 1, 1]))
    out = NormaliseBraind("zscore")({"image": image})["image"][0].flatten()
    brain = torch.tensor([10.0, 20, 30, 50])
    torch.testing.assert_close(out[1:], (brain - brain.mean()) / brain.std(correction=0))
    assert out[0] == 0
    empty = torch.zeros(4, 2, 2, 2)
    assert not NormaliseBraind("zscore")({"image": empty})["image"].any()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: NormaliseBraind("none"), "normalise must be one of minmax, zscore"),
        (lambda: NormaliseBraind("minmax", [90, 10]), "percentiles must be"),
    ],
)
def test_bad_settings(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
