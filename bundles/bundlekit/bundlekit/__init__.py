"""What several of the bundles need and no library has."""

from __future__ import annotations

from bundlekit.bfloat16 import BFloat16Inferer, channels_last_norms, computes_bfloat16
from bundlekit.cases.case import Case, require_cases
from bundlekit.cases.datalist import datalists_beside
from bundlekit.cases.shard import refuse_shard, shard_cases
from bundlekit.cases.split import fold_cases, repeated, select_cases, split_cases
from bundlekit.errors import BundleError, Finding
from bundlekit.files import default_cache_dir
from bundlekit.images.intensities import is_not_air, select_foreground
from bundlekit.images.normalising import NormaliseForegroundd
from bundlekit.images.writing import WriteSegmentations
from bundlekit.inference.ahead import CompileAhead
from bundlekit.inference.brain_masks import StripSkulld
from bundlekit.inference.confidence import AddConfidenced
from bundlekit.inference.ensemble import EnsembleInferer, fold_checkpoints
from bundlekit.inference.second import lowres_beside
from bundlekit.inference.unreadable import CaseDataset, SkipUnreadable
from bundlekit.inference.windows import ForegroundInferer, argmax_labels
from bundlekit.losses import IgnoringDiceCELoss, WeightedDiceFocalLoss
from bundlekit.patches.dataset import EpochSeed, PatchDataset
from bundlekit.patches.deformation import RandDeformedPatchd
from bundlekit.progress import Progress, installed
from bundlekit.report.brain import MeasureBraind
from bundlekit.report.handler import WriteReport, WriteVolumes
from bundlekit.run import loader_workers, prepare_run
from bundlekit.scores.comparing import is_higher, is_lower
from bundlekit.training.accumulating import AccumulatingTrainer
from bundlekit.training.beginning import RequireBetter, ScoreBefore
from bundlekit.training.command import recorded_split
from bundlekit.training.diverging import StopAtNaN
from bundlekit.training.resuming import ResumeRun
from bundlekit.training.saving import RecordPretraining, RecordRun, SaveCheckpoints, require_new_run
from bundlekit.training.stopping import StopInTime
from bundlekit.training.validation import AddAccuracyd, AddLossd, dice_of_each
from bundlekit.version import __version__, require
from bundlekit.weights.loading import LoadWeights, load_matching
from bundlekit.weights.settings import recorded_settings, require_as_recorded
from bundlekit.weights.shipped import training_folder
