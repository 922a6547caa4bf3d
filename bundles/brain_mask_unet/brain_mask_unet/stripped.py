"""Write scans without what is not brain."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
from ignite.engine import Engine, Events
from monai.utils import convert_to_numpy

from bundlekit.files import write_result
from bundlekit.images.nifti import read_volume
from bundlekit.images.writing import on_grid_of, to_gzip

_log = logging.getLogger(__name__)


class WriteStripped:
    """MONAI handler: write `<case>_brain.nii.gz`, the scan's own intensities in the mask and 0 elsewhere.

    On the scan's grid, with its header, and in its type where that is a number of nibabel's NIfTI; each file is written
    whole or not at all. It goes behind `WriteSegmentations`, which refuses a mask that may not be replaced.

    Args:
        output_dir: folder, made if missing.
    """

    def __init__(self, output_dir: str | os.PathLike[str]) -> None:
        self.output_dir = Path(output_dir)

    def attach(self, engine: Engine) -> None:
        """Register with an evaluator whose batch and output are decollated."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Write the cases of this iteration.

        Raises:
            BundleError: if a file cannot be written.
        """
        batch: Any = engine.state.batch
        outputs: Any = engine.state.output
        for item, output in zip(batch, outputs, strict=True):
            brain = convert_to_numpy(output["pred"])[0] > 0
            image = on_grid_of(item["source"], np.where(brain, read_volume(item["source"]), 0).astype(np.float32))
            path = self.output_dir / f"{item['case']}_brain.nii.gz"
            write_result(path, lambda file, image=image: to_gzip(image, file), "output_dir")  # type: ignore[misc]
            _log.info("wrote %s", path)
