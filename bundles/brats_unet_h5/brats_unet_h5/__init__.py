"""What the h5 U-Net bundle needs beyond MONAI, PyTorch and Ignite."""

from __future__ import annotations

from pathlib import Path

from .cases import find_cases, scan_cases
from .checkpoints import LoadWeights, RecordRun, ResumeRun, SaveCheckpoints, require_new_run
from .chunks import KeepFactsd, OpenChunksd
from .command_line import refuse_unknown_settings
from .dataset import EpochSeed, PatchDataset
from .errors import BundleError, Finding, show_clear_errors
from .inferer import BrainInferer
from .layout import MODALITIES
from .loss import DiceBCELoss
from .network import TARGETS, build_network
from .postprocessing import AddLossd, DecideLabelsd, ProbabilitiesOfd, RegionMasksd
from .preprocessing import NormaliseBraind
from .progress import Progress, installed
from .reading import LoadCased, label_reader
from .regions import REGIONS, region_output
from .results import WriteSegmentations
from .sampling import TumourCentredCropd, TumourVoxelsd
from .scores import ScoreCases
from .settings import recorded_settings
from .split import recorded_split, require_cases, select_cases, split_cases
from .stopping import EarlyStop, StopEarly
from .version import __version__

__all__ = [
    "MODALITIES",
    "REGIONS",
    "TARGETS",
    "AddLossd",
    "BrainInferer",
    "BundleError",
    "DecideLabelsd",
    "DiceBCELoss",
    "EarlyStop",
    "EpochSeed",
    "Finding",
    "KeepFactsd",
    "LoadCased",
    "LoadWeights",
    "NormaliseBraind",
    "OpenChunksd",
    "PatchDataset",
    "ProbabilitiesOfd",
    "Progress",
    "RecordRun",
    "RegionMasksd",
    "ResumeRun",
    "SaveCheckpoints",
    "ScoreCases",
    "StopEarly",
    "TumourCentredCropd",
    "TumourVoxelsd",
    "WriteSegmentations",
    "__version__",
    "build_network",
    "bundle_root",
    "check_settings",
    "find_cases",
    "installed",
    "label_reader",
    "recorded_settings",
    "recorded_split",
    "refuse_unknown_settings",
    "region_output",
    "require_cases",
    "require_new_run",
    "scan_cases",
    "select_cases",
    "show_clear_errors",
    "split_cases",
]


def bundle_root() -> str:
    """Folder of the bundle that this package lies in, whatever the working directory."""
    return str(Path(__file__).resolve().parents[1])


def check_settings(fit: str, read: str) -> None:
    """Refuse values that the config does not know.

    Raises:
        BundleError: naming the setting, what was given and what is possible.
    """
    if fit not in ("resize", "native"):
        raise BundleError(f"fit is {fit!r}; expected resize or native.")
    if read not in ("whole", "chunks"):
        raise BundleError(f"read is {read!r}; expected whole or chunks.")
    if read == "chunks" and fit != "native":
        raise BundleError("read chunks goes with fit native: a resized volume has to be read whole.")
