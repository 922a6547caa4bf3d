"""Virtual patients and painted images, for demonstrations, tests and training without scans."""

from bundlekit.virtual.brats import brats, make_case
from bundlekit.virtual.ct import ct
from bundlekit.virtual.metastases import metastases
from bundlekit.virtual.painted_batches import PaintBatch, PaintSeedd, StructureCountsd
from bundlekit.virtual.painting import LabelPainter
from bundlekit.virtual.patches import DrawPatient, PaintGliomas
from bundlekit.virtual.tissue import icbm152, tissue
