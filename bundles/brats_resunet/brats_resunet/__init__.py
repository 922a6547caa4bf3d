"""What the Res-UNet bundle needs beyond MONAI, PyTorch and Ignite."""

from __future__ import annotations

from pathlib import Path

from .loss import RegionDiceLoss
from .network import ResUNet

__all__ = [
    "RegionDiceLoss",
    "ResUNet",
    "bundle_root",
]


def bundle_root() -> str:
    """Folder of the bundle that this package lies in, whatever the working directory."""
    return str(Path(__file__).resolve().parents[1])
