"""What the brain tissue V-Net bundle needs beyond MONAI, PyTorch, Ignite and TorchIO."""

from __future__ import annotations

from pathlib import Path

from .cases import find_cases, scan_cases
from .checkpoints import LoadWeights, RecordRun, ResumeRun, SaveCheckpoints, StopInTime, require_new_run
from .command_line import refuse_unknown_settings
from .dataset import EpochSeed, PatchDataset
from .deformation import RandDeformedPatchd
from .ensemble import EnsembleInferer, fold_checkpoints
from .errors import BundleError, Finding, show_clear_errors
from .inferer import BrainInferer, argmax_labels
from .memory import keep_freed_memory
from .network import VNet
from .numberings import DEEP_GREY, EXTRA_CEREBRAL
from .painting import LabelPainter, PaintBatch, PaintSeedd, StructureCountsd
from .postprocessing import AddLossd, AirIsBackgroundd, DecideTissuesd, TissueMasksd, fill_background, tissue_output
from .preprocessing import (
    CheckSkullStrippedd,
    CLAHEd,
    N4d,
    NormaliseTissued,
    check_settings,
    limits_of,
    select_foreground,
)
from .progress import Progress, installed
from .reading import LoadStructuresd, LoadTissued
from .scores import ScoreCases
from .settings import recorded_settings
from .shipped import training_folder
from .split import fold_cases, recorded_split, require_cases, select_cases, split_cases
from .unreadable import CaseDataset, SkipUnreadable
from .version import __version__
from .writing import WriteSegmentations

# tools know every bundle's reader of one case by this name
LoadCased = LoadTissued

SAVED_LABEL = {"numbering": "tissue"}
"""Keys of a case whose label has this bundle's own numbers, as those that a viewer saves."""

__all__ = [
    "DEEP_GREY",
    "EXTRA_CEREBRAL",
    "SAVED_LABEL",
    "AddLossd",
    "AirIsBackgroundd",
    "BrainInferer",
    "BundleError",
    "CLAHEd",
    "CaseDataset",
    "CheckSkullStrippedd",
    "DecideTissuesd",
    "EnsembleInferer",
    "EpochSeed",
    "Finding",
    "LabelPainter",
    "LoadCased",
    "LoadStructuresd",
    "LoadTissued",
    "LoadWeights",
    "N4d",
    "NormaliseTissued",
    "PaintBatch",
    "PaintSeedd",
    "PatchDataset",
    "Progress",
    "RandDeformedPatchd",
    "RecordRun",
    "ResumeRun",
    "SaveCheckpoints",
    "ScoreCases",
    "SkipUnreadable",
    "StopInTime",
    "StructureCountsd",
    "TissueMasksd",
    "VNet",
    "WriteSegmentations",
    "__version__",
    "argmax_labels",
    "bundle_root",
    "check_settings",
    "fill_background",
    "find_cases",
    "fold_cases",
    "fold_checkpoints",
    "installed",
    "keep_freed_memory",
    "limits_of",
    "recorded_settings",
    "recorded_split",
    "refuse_unknown_settings",
    "require_cases",
    "require_new_run",
    "scan_cases",
    "select_cases",
    "select_foreground",
    "show_clear_errors",
    "split_cases",
    "tissue_output",
    "training_folder",
]


def bundle_root() -> str:
    """Folder of the bundle that this package lies in, whatever the working directory."""
    return str(Path(__file__).resolve().parents[1])
