"""What the h5 U-Net bundle needs beyond MONAI, PyTorch and Ignite."""

from __future__ import annotations

from pathlib import Path

from .cases import find_cases, scan_cases
from .checkpoints import LoadWeights, RecordRun, ResumeRun, SaveCheckpoints, StopInTime, require_new_run
from .chunks import KeepFactsd, OpenChunksd
from .command_line import refuse_unknown_settings
from .core import FillCored, RelabelUnenhancedd, RemoveCorelessd
from .dataset import EpochSeed, PatchDataset
from .ensemble import EnsembleInferer, fold_checkpoints
from .errors import BundleError, Finding, show_clear_errors
from .inferer import BrainInferer
from .layout import MODALITIES
from .loss import DiceBCELoss
from .memory import keep_freed_memory
from .network import TARGETS, build_network
from .postprocessing import AddLossd, DecideLabelsd, ProbabilitiesOfd, RegionMasksd
from .preprocessing import NormaliseBraind, check_settings
from .progress import Progress, installed
from .reading import LoadCased, label_reader
from .regions import REGIONS, region_output
from .results import WriteSegmentations
from .sampling import TumourCentredCropd, TumourVoxelsd
from .scores import ScoreCases
from .settings import recorded_settings
from .shipped import training_folder
from .split import fold_cases, recorded_split, require_cases, select_cases, split_cases
from .stopping import EarlyStop, StopEarly
from .unreadable import CaseDataset, SkipUnreadable
from .version import __version__

__all__ = [
    "MODALITIES",
    "REGIONS",
    "TARGETS",
    "AddLossd",
    "BrainInferer",
    "BundleError",
    "CaseDataset",
    "DecideLabelsd",
    "DiceBCELoss",
    "EarlyStop",
    "EnsembleInferer",
    "EpochSeed",
    "FillCored",
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
    "RelabelUnenhancedd",
    "RemoveCorelessd",
    "ResumeRun",
    "SaveCheckpoints",
    "ScoreCases",
    "SkipUnreadable",
    "StopEarly",
    "StopInTime",
    "TumourCentredCropd",
    "TumourVoxelsd",
    "WriteSegmentations",
    "__version__",
    "build_network",
    "bundle_root",
    "check_settings",
    "find_cases",
    "fold_cases",
    "fold_checkpoints",
    "installed",
    "keep_freed_memory",
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
    "training_folder",
]


def bundle_root() -> str:
    """Folder of the bundle that this package lies in, whatever the working directory."""
    return str(Path(__file__).resolve().parents[1])
