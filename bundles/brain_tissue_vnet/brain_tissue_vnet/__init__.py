"""What the brain tissue V-Net bundle needs beyond MONAI, PyTorch, Ignite and TorchIO."""

from __future__ import annotations

from importlib.util import find_spec

if find_spec("bundlekit") is None:  # no ImportError: MONAI's configs go on after one, and hide what it says
    raise SystemExit(f"{__name__} needs bundlekit: install the project, or take the zip of `python -m tools pack`.")

from bundlekit.version import require, root_of

require(__file__)

from bundlekit.images.intensities import limits_of, select_foreground

from .cases import find_cases, scan_cases
from .deep_grey import DeepGreyInferer
from .network import TissueVNet
from .postprocessing import AirIsBackgroundd, TissueMasksd, fill_background
from .preprocessing import (
    CheckSkullStrippedd,
    CLAHEd,
    N4d,
    check_settings,
)
from .reading import LoadTissued
from .scores import ScoreCases

SAVED_LABEL = {"numbering": "tissue"}


def bundle_root() -> str:
    """Folder of the bundle that this package lies in, whatever the working directory."""
    return root_of(__file__)
