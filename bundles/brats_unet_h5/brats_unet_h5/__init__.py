"""What the h5 U-Net bundle needs beyond MONAI, PyTorch and Ignite."""

from __future__ import annotations

from pathlib import Path

from .cases import find_cases, scan_cases
from .chunks import KeepFactsd, OpenChunksd
from .hdf5_masks import WriteHDF5Segmentations
from .loss import DiceBCELoss
from .network import TARGETS, build_network
from .postprocessing import AddLossd, DecideLabelsd, ProbabilitiesOfd, RegionMasksd
from .preprocessing import NormaliseBraind
from .reading import LoadHDF5d, label_reader
from .stopping import EarlyStop, StopEarly

__all__ = [
    "TARGETS",
    "AddLossd",
    "DecideLabelsd",
    "DiceBCELoss",
    "EarlyStop",
    "KeepFactsd",
    "LoadHDF5d",
    "NormaliseBraind",
    "OpenChunksd",
    "ProbabilitiesOfd",
    "RegionMasksd",
    "StopEarly",
    "WriteHDF5Segmentations",
    "build_network",
    "bundle_root",
    "find_cases",
    "label_reader",
    "scan_cases",
]


def bundle_root() -> str:
    """Folder of the bundle that this package lies in, whatever the working directory."""
    return str(Path(__file__).resolve().parents[1])
