"""Virtual patients: made-up cases in the format of a public data set, for demonstrations, tests and pre-training."""

from tools.virtual.brats import brats, make_case
from tools.virtual.ct import ct
from tools.virtual.metastases import metastases
from tools.virtual.patches import DrawPatient, PaintGliomas, find_heads
from tools.virtual.tissue import icbm152, tissue

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
