"""What the brain metastasis bundle needs beyond MONAI, PyTorch and Ignite."""

from __future__ import annotations

from pathlib import Path

from .minimum_lesion import ChooseMinimumLesion
from .network import NETWORKS, build_network
from .postprocessing import RemoveSmallLesionsd
from .scores import ScoreMetastases
from .settings import check_settings

__all__ = [
    "NETWORKS",
    "ChooseMinimumLesion",
    "RemoveSmallLesionsd",
    "ScoreMetastases",
    "build_network",
    "bundle_root",
    "check_settings",
]


def bundle_root() -> str:
    """Folder of the bundle that this package lies in, whatever the working directory."""
    return str(Path(__file__).resolve().parents[1])
