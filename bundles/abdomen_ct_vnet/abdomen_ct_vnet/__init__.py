"""What the abdominal CT V-Net bundle needs beyond MONAI, PyTorch and Ignite."""

from __future__ import annotations

from importlib.util import find_spec

if find_spec("bundlekit") is None:  # no ImportError: MONAI's configs go on after one, and hide what it says
    raise SystemExit(f"{__name__} needs bundlekit: install the project, or take the zip of `python -m tools pack`.")

from bundlekit.version import require, root_of

require(__file__)

from .cases import find_cases, scan_cases
from .class_weights import class_weights_of
from .network import ResidualVNet
from .numberings import output_numbering_of
from .organs import UPSTREAM_ORGANS, organ_classes
from .overlay import WriteOverlays
from .postprocessing import NativeClassesd
from .preprocessing import NormaliseCTd, above_air, check_settings
from .reading import LoadCTd
from .sampling import OrganCentredCropd, OrganVoxelsd
from .scores import ScoreOrgans


def bundle_root() -> str:
    """Folder of the bundle that this package lies in, whatever the working directory."""
    return root_of(__file__)
