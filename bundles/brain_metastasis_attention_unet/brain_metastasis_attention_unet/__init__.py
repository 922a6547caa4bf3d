"""What the brain metastasis bundle needs beyond MONAI, PyTorch and Ignite."""

from __future__ import annotations

from importlib.util import find_spec

if find_spec("bundlekit") is None:  # no ImportError: MONAI's configs go on after one, and hide what it says
    raise SystemExit(f"{__name__} needs bundlekit: install the project, or take the zip of `python -m tools pack`.")

from bundlekit.version import require, root_of

require(__file__)

from .minimum_lesion import ChooseMinimumLesion
from .network import NETWORKS, build_network
from .postprocessing import RemoveSmallLesionsd
from .scores import ScoreMetastases
from .settings import check_settings


def bundle_root() -> str:
    """Folder of the bundle that this package lies in, whatever the working directory."""
    return root_of(__file__)
