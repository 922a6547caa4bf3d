"""What strangers send or leave beside weights is data, never a program."""

from __future__ import annotations

import pytest

from bundlekit.errors import BundleError
from bundlekit.expressions import refuse_expressions


@pytest.mark.parametrize(
    "values",
    [
        {"seed": "$__import__('os')"},
        {"a": [{"b": " @ckpt_dir"}]},
        {"x": ("%train.yaml",)},
        {"loss": {"_target_": "os.system"}},
        {"$x": 1},
    ],
)
def test_expressions_are_refused(values: dict) -> None:
    with pytest.raises(BundleError, match="the request: "):
        refuse_expressions(values, "the request")


def test_plain_values_pass() -> None:
    refuse_expressions({"epochs": 3, "patch_size": [32, 32, 32], "name": "a$b", "x": None, "a::b": {}}, "the request")
