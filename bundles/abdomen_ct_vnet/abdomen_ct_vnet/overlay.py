"""Pictures of results: the segmentation over the CT, and the reference where there is one."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ignite.engine import Engine, Events
from monai.utils import convert_to_numpy

from bundlekit.cases.case import Case
from bundlekit.images.drawing import draw, require_matplotlib

from .reading import read_label

_log = logging.getLogger(__name__)


class WriteOverlays:
    """MONAI handler: write `<case>_overlay.png`, three planes through the segmentation; see `bundlekit.images.drawing`.

    Args:
        output_dir: folder, made if missing.
        cases: as `cases.find_cases` gives them.
        window: HU shown as black and as white.

    Raises:
        BundleError: if matplotlib is not installed.
    """

    def __init__(self, output_dir: str, cases: Sequence[Case], window: Sequence[float] = (-160.0, 240.0)) -> None:
        require_matplotlib("--overlays")
        self.output_dir = Path(output_dir)
        self.window = [float(hu) for hu in window]
        self.cases = cases

    def attach(self, engine: Engine) -> None:
        """Register with an evaluator whose batch and output are decollated."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def files_of(self, case: str) -> list[Path]:
        """The file that is written of a case."""
        return [self.output_dir / f"{case}_overlay.png"]

    def __call__(self, engine: Engine) -> None:
        """Draw the cases of this iteration; raises `BundleError` where a picture cannot be written."""
        batch: Any = engine.state.batch
        outputs: Any = engine.state.output
        for item, output in zip(batch, outputs, strict=True):
            case = next(case for case in self.cases if case["case"] == item["case"])
            (path,) = self.files_of(case["case"])
            pred = convert_to_numpy(output["pred"])[0]
            truth = read_label(case)[0] if case["label"] else None
            names = dict(enumerate(case["classes"], 1))
            sides = bool(item.get("grid_known", True))
            draw(item["source"], pred, path, truth, names, self.window, case["case"], sides=sides)
            _log.info("drew %s", path)
