"""Write scans without what is not brain."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from ignite.engine import Engine, Events
from monai.utils import convert_to_numpy

from bundlekit.files import write_result
from bundlekit.images.nifti import read_volume
from bundlekit.images.writing import cases_of, on_grid_of, refuse_others, signed, to_gzip, unlike

_log = logging.getLogger(__name__)
_SIGNATURE = "stripped by brain_mask_unet"


class WriteStripped:
    """MONAI handler: write `<case>_brain.nii.gz`, the scan's own intensities in the mask and 0 elsewhere.

    On the scan's grid, with its header, as float32; if intensities in the mask are negative, the smallest of them takes
    the place of 0. Each file is written whole or not at all, with the bundle's name and the CRC-32 of the voxels in its
    header (`descrip`); a file that somebody else wrote or corrected is not replaced. It goes behind
    `WriteSegmentations`.

    Args:
        output_dir: folder, made if missing.
    """

    def __init__(self, output_dir: str | os.PathLike[str]) -> None:
        self.output_dir = Path(output_dir)

    def attach(self, engine: Engine) -> None:
        """Register with an evaluator whose batch and output are decollated."""
        engine.add_event_handler(Events.STARTED, self.keep_others)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def keep_others(self, engine: Engine) -> None:
        """Before anything is computed, look for files of the evaluator's cases that are not as this bundle wrote them.

        Raises:
            BundleError: naming them.
        """
        self._refuse_others([self._path(case) for case in cases_of(engine)])

    @staticmethod
    def _refuse_others(paths: Iterable[Path]) -> None:
        refuse_others(
            paths,
            partial(unlike, signature=_SIGNATURE, what="scan"),
            f"a new file, or one {_SIGNATURE} and left as it was",
            "move the file away, or give --write_brain False",
        )

    def _path(self, case: str) -> Path:
        return self.output_dir / f"{case}_brain.nii.gz"

    def files_of(self, case: str) -> list[Path]:
        """The file that is written of a case."""
        return [self._path(case)]

    def __call__(self, engine: Engine) -> None:
        """Write the cases of this iteration.

        Raises:
            BundleError: if a file cannot be written, or would replace one that is not as this bundle wrote it.
        """
        batch: Any = engine.state.batch
        outputs: Any = engine.state.output
        for item, output in zip(batch, outputs, strict=True):
            brain = convert_to_numpy(output["pred"])[0] > 0
            voxels = read_volume(item["source"])
            air = min(float(voxels[brain].min()), 0.0) if brain.any() else 0.0
            stripped = np.where(brain, voxels, air).astype(np.float32)
            image = on_grid_of(item["source"], stripped)
            image.header["descrip"] = signed(_SIGNATURE, stripped)
            path = self._path(item["case"])
            self._refuse_others([path])  # it may have been corrected since the run began
            write_result(path, lambda file, image=image: to_gzip(image, file), "output_dir")  # type: ignore[misc]
            _log.info("wrote %s", path)
