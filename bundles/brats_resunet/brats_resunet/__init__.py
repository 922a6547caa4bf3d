"""What the Res-UNet bundle needs beyond MONAI, PyTorch and Ignite."""

from __future__ import annotations

from importlib.util import find_spec

if find_spec("bundlekit") is None:  # no ImportError: MONAI's configs go on after one, and hide what it says
    raise SystemExit(f"{__name__} needs bundlekit: install the project, or take the zip of `python -m tools pack`.")

from bundlekit.version import require, root_of

require(__file__)

from .loss import RegionDiceLoss
from .network import ResUNet, require_weights


def bundle_root() -> str:
    """Folder of the bundle that this package lies in, whatever the working directory."""
    return root_of(__file__)
