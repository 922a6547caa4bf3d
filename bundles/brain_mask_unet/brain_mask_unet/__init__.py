"""What the brain mask U-Net bundle needs beyond MONAI, PyTorch and Ignite."""

from __future__ import annotations

from importlib.util import find_spec

if find_spec("bundlekit") is None:  # no ImportError: MONAI's configs go on after one, and hide what it says
    raise SystemExit(f"{__name__} needs bundlekit: install the project, or take the zip of `python -m tools pack`.")

from bundlekit.version import require, root_of

require(__file__)

import skimage.filters  # where air is noise, bundlekit finds the head by Otsu's threshold

from .cases import find_cases, scan_cases
from .network import MaskUNet
from .postprocessing import OneBraind
from .reading import LoadScand
from .scores import ScoreCases
from .stripped import WriteStripped

SAVED_LABEL = None  # masks that a viewer saves do not train it: label maps of whole heads do


def bundle_root() -> str:
    """Folder of the bundle that this package lies in, whatever the working directory."""
    return root_of(__file__)
