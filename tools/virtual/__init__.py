"""Virtual patients: made-up cases in the format of a public data set, for demonstrations, tests and pre-training."""

from tools.virtual.brats import brats, make_case
from tools.virtual.tissue import tissue

__all__ = ["brats", "make_case", "tissue"]
