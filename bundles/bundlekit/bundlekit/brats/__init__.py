"""What the bundles for BraTS data share: cases, regions, sampling, cleaning, scores."""

from __future__ import annotations

from bundlekit.brats.axes import AxesInOrderd
from bundlekit.brats.cases import find_cases, scan_cases
from bundlekit.brats.cleaning import (
    FillCored,
    RelabelSmallComponentsd,
    RelabelUnenhancedd,
    RemoveCorelessd,
    RemoveSmallPartsd,
)
from bundlekit.brats.lowres import LowresEnsembleInferer
from bundlekit.brats.missing import RandDropModalitiesd, tell_filled
from bundlekit.brats.naming import MODALITIES
from bundlekit.brats.normalising import NormaliseBraind
from bundlekit.brats.order import CheckOrderd
from bundlekit.brats.reading import LoadCased
from bundlekit.brats.regions import REGIONS, RegionProbabilitiesd, labels_by_region, region_labels, regions_of
from bundlekit.brats.sampling import TumourCentredCropd, TumourVoxelsd
from bundlekit.brats.scores import ScoreCases
