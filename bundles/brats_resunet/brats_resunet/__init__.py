"""What the Res-UNet bundle needs beyond MONAI, PyTorch and Ignite."""

from __future__ import annotations

from pathlib import Path

from .cases import MODALITIES, find_cases, scan_cases
from .checkpoints import LoadWeights, RecordRun, ResumeRun, SaveCheckpoints, StopInTime, require_new_run
from .command_line import refuse_unknown_settings
from .core import FillCored, RelabelUnenhancedd, RemoveCorelessd
from .dataset import EpochSeed, PatchDataset
from .ensemble import EnsembleInferer, fold_checkpoints
from .errors import BundleError, Finding, show_clear_errors
from .inferer import BrainInferer, argmax_labels
from .loss import RegionDiceLoss
from .memory import keep_freed_memory
from .network import ResUNet
from .progress import Progress, installed
from .reading import LoadCased
from .regions import REGIONS, RegionProbabilitiesd, region_output, regions_of
from .sampling import TumourCentredCropd, TumourVoxelsd
from .scores import ScoreCases
from .settings import recorded_settings
from .shipped import training_folder
from .split import fold_cases, recorded_split, require_cases, select_cases, split_cases
from .unreadable import CaseDataset, SkipUnreadable
from .version import __version__
from .writing import WriteSegmentations

__all__ = [
    "MODALITIES",
    "REGIONS",
    "BrainInferer",
    "BundleError",
    "CaseDataset",
    "EnsembleInferer",
    "EpochSeed",
    "FillCored",
    "Finding",
    "LoadCased",
    "LoadWeights",
    "PatchDataset",
    "Progress",
    "RecordRun",
    "RegionDiceLoss",
    "RegionProbabilitiesd",
    "RelabelUnenhancedd",
    "RemoveCorelessd",
    "ResUNet",
    "ResumeRun",
    "SaveCheckpoints",
    "ScoreCases",
    "SkipUnreadable",
    "StopInTime",
    "TumourCentredCropd",
    "TumourVoxelsd",
    "WriteSegmentations",
    "__version__",
    "argmax_labels",
    "bundle_root",
    "find_cases",
    "fold_cases",
    "fold_checkpoints",
    "installed",
    "keep_freed_memory",
    "recorded_settings",
    "recorded_split",
    "refuse_unknown_settings",
    "region_output",
    "regions_of",
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
