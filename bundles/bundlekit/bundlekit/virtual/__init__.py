"""Virtual patients: made-up cases in the format of a public data set, for demonstrations, tests and pre-training."""

from bundlekit.virtual.brats import brats, make_case
from bundlekit.virtual.ct import ct
from bundlekit.virtual.metastases import metastases
from bundlekit.virtual.patches import DrawPatient, PaintGliomas, find_heads
from bundlekit.virtual.tissue import icbm152, tissue

__all__ = [
    "DrawPatient",
    "PaintGliomas",
    "brats",
    "ct",
    "find_heads",
    "icbm152",
    "make_case",
    "metastases",
    "tissue",
]
