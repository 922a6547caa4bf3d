"""Settings that belong together."""

from __future__ import annotations

from typing import Any

import pytest

from brain_metastasis_attention_unet import check_settings
from bundlekit.errors import BundleError


@pytest.mark.parametrize("weights", [[1, 2], [1, 1, 1, 1, 1], [1, -1, 1, 1], 1, "1111", ["1"] * 4])
def test_class_weights_are_one_for_each_class(weights: Any) -> None:
    with pytest.raises(BundleError, match=r"class_weights is .*; expected 4 numbers, 0 or more"):
        check_settings("native", class_weights=weights)
    check_settings("native", class_weights=[0.1, 1, 1, 2.5])


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"fit": "crop"}, "fit is 'crop'"),
        ({"fit": "native", "slab": 8}, "slabs are drawn from resized volumes"),
        ({"fit": "resize", "slab": 65, "uniform_shape": [96, 96, 64]}, "expected 1 to 64"),
    ],
)
def test_slabs_are_of_resized_volumes(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(BundleError, match=told):
        check_settings(**settings)
    check_settings("resize", 64, [96, 96, 64])
