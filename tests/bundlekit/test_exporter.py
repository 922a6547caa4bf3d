"""What an export needs."""

from __future__ import annotations

import pytest

from bundlekit import version

EXPORT = ["/x/monai/bundle/__main__.py", "onnx_export", "network_def"]


def test_a_missing_package_is_named_with_the_way_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(version, "find_spec", lambda name: None if name == "onnxscript" else object())
    with pytest.raises(SystemExit, match=r"^ERROR: onnx_export needs onnxscript: pip install onnxscript$"):
        version.require_exporter(EXPORT)
    for other in ([EXPORT[0], "ckpt_export"], ["pytest", "onnx_export"], [EXPORT[0]]):
        version.require_exporter(other)
    monkeypatch.setattr(version, "find_spec", lambda name: object())
    version.require_exporter(EXPORT)
