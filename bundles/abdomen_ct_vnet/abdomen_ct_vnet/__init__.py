"""What the abdominal CT V-Net bundle needs beyond MONAI, PyTorch and Ignite."""

from __future__ import annotations

from pathlib import Path

from .cases import UPSTREAM_ORGANS, find_cases, scan_cases
from .checkpoints import LoadWeights, RecordRun, ResumeRun, SaveCheckpoints, StopInTime, require_new_run
from .command_line import refuse_unknown_settings
from .dataset import EpochSeed, PatchDataset
from .ensemble import EnsembleInferer, fold_checkpoints
from .errors import BundleError, Finding, show_clear_errors
from .inferer import BrainInferer, argmax_labels
from .loss import DiceFocalLoss
from .memory import keep_freed_memory
from .network import VNet
from .organs import organ_classes, output_numbering_of
from .overlay import WriteOverlays
from .postprocessing import NativeClassesd, dice_of_each
from .preprocessing import NormaliseCTd, above_air, check_settings
from .progress import Progress, installed
from .reading import LoadCased
from .sampling import OrganCentredCropd, OrganVoxelsd
from .scores import ScoreCases
from .settings import recorded_settings
from .shipped import training_folder
from .split import fold_cases, recorded_split, require_cases, select_cases, split_cases
from .unreadable import CaseDataset, SkipUnreadable
from .version import __version__
from .weights import class_weights_of
from .writing import WriteSegmentations

__all__ = [
    "UPSTREAM_ORGANS",
    "BrainInferer",
    "BundleError",
    "CaseDataset",
    "DiceFocalLoss",
    "EnsembleInferer",
    "EpochSeed",
    "Finding",
    "LoadCased",
    "LoadWeights",
    "NativeClassesd",
    "NormaliseCTd",
    "OrganCentredCropd",
    "OrganVoxelsd",
    "PatchDataset",
    "Progress",
    "RecordRun",
    "ResumeRun",
    "SaveCheckpoints",
    "ScoreCases",
    "SkipUnreadable",
    "StopInTime",
    "VNet",
    "WriteOverlays",
    "WriteSegmentations",
    "__version__",
    "above_air",
    "argmax_labels",
    "bundle_root",
    "check_settings",
    "class_weights_of",
    "dice_of_each",
    "find_cases",
    "fold_cases",
    "fold_checkpoints",
    "installed",
    "keep_freed_memory",
    "organ_classes",
    "output_numbering_of",
    "recorded_settings",
    "recorded_split",
    "refuse_unknown_settings",
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
