"""What the h5 U-Net bundle needs beyond MONAI, PyTorch and Ignite."""

from __future__ import annotations

from importlib.util import find_spec

if find_spec("bundlekit") is None:  # no ImportError: MONAI's configs go on after one, and hide what it says
    raise SystemExit(f"{__name__} needs bundlekit: install the project, or take the zip of `python -m tools pack`.")

from bundlekit.version import require, root_of

require(__file__)

from .cases import find_cases, scan_cases
from .chunks import KeepFactsd, OpenChunksd
from .hdf5_masks import WriteHDF5Segmentations
from .loss import DiceBCELoss
from .network import TARGETS, build_network, require_square
from .postprocessing import DecideLabelsd, ProbabilitiesOfd
from .reading import LoadHDF5d, label_reader
from .schedule import build_schedule
from .stopping import EarlyStop, StopEarly


def bundle_root() -> str:
    """Folder of the bundle that this package lies in, whatever the working directory."""
    return root_of(__file__)
