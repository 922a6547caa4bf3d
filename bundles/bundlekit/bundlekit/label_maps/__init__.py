"""Label maps of heads: what their numbers mean, how they are found, and how they are read."""

from __future__ import annotations

from bundlekit.label_maps.finding import find_label_maps, scan_label_maps
from bundlekit.label_maps.reading import LoadStructuresd
