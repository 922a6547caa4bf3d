"""Ignite handlers that write `volumes.csv` while an evaluator segments, and the pages when it is done."""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from ignite.engine import Engine, Events
from monai.utils import convert_to_numpy

from bundlekit.cases.case import Case
from bundlekit.command_line import beside_defaults, read_command_line
from bundlekit.errors import BundleError, Finding
from bundlekit.files import sha256_of
from bundlekit.images.drawing import require_matplotlib
from bundlekit.report.flags import Result, flags_of, require_limits
from bundlekit.report.pages import write_report
from bundlekit.report.scans import ScansOf
from bundlekit.report.table import NOW, VolumeTable
from bundlekit.report.volumes import Volume, volumes_of
from bundlekit.version import bundle_version

_log = logging.getLogger(__name__)


class WriteVolumes:
    """MONAI handler: a row of `volumes.csv` for each class and region of every case, and `volumes.json` beside it.

    Put it behind `WriteSegmentations`, so that a case with rows has its mask. See `bundlekit.report.table` for the
    columns.

    Args:
        output_dir: folder of the masks.
        classes: names of the classes but the background.
        bundle: that segments.
        weights: its checkpoint, or several.
        regions: name -> class indices, for volumes of several classes together.
        brain: where the brain's volume and middle come from: "image", from `MeasureBraind`; the name of a class or
            region; None: unknown.
        checks: name of a check in `bundlekit.report.flags` -> its limit.
        shard: part of the data set that is computed, which has a table of its own, see `VolumeTable`.

    Raises:
        BundleError: for what is no check, or no limit of it.
    """

    def __init__(
        self,
        output_dir: str,
        classes: Sequence[str],
        bundle: str,
        weights: str | Sequence[str],
        regions: Mapping[str, Sequence[int]] | None = None,
        brain: str | None = None,
        checks: Mapping[str, Any] | None = None,
        shard: str | None = None,
    ) -> None:
        self.table = VolumeTable(output_dir, shard)
        self.shard = shard
        self.classes = list(classes)
        self.bundle = bundle
        self.weights = [weights] if isinstance(weights, str) else list(weights)
        self.regions = dict(regions or {})
        self.brain = brain
        self.checks = dict(checks or {})
        require_limits(self.checks, [*self.classes, *self.regions])
        self.given = ""  # in place of the bundle's defaults
        self._made_by: dict[str, str] = {}

    def attach(self, engine: Engine) -> None:
        """Register with an evaluator whose batch and output are decollated."""
        engine.add_event_handler(Events.STARTED, self._begin)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def _begin(self, engine: Engine) -> None:
        if self.shard is None:
            self.table.begin()
        else:  # where cases have come or gone, another part has some that were in this one
            cases: Any = getattr(getattr(engine.state.dataloader, "dataset", None), "data", [])
            self.table.begin({str(case["case"]) for case in cases}.__contains__)
        now = self.table.path.with_name(NOW) if isinstance(self.table, VolumeTable) else None
        if now is not None and now.is_file():
            _log.warning("%s tells of the masks of before: write it anew with `python -m tools volumes`", now)
        command = read_command_line()
        if command is not None:
            self.given = beside_defaults(command.files, command.given)
        self._made_by = {
            "bundle": self.bundle,
            "version": bundle_version(self.bundle).partition(" ")[2],
            "settings": self.given,
            "weights_sha256": ";".join(sha256_of(file) for file in self.weights if Path(file).is_file()),
        }

    def __call__(self, engine: Engine) -> None:
        """Add the cases of this iteration.

        Raises:
            BundleError: if the table cannot be written.
        """
        batch: Any = engine.state.batch  # ignite's annotations know nothing of MONAI's lists of dicts
        outputs: Any = engine.state.output
        computed_by = str(getattr(getattr(engine, "inferer", None), "computed_by", ""))
        for item, output in zip(batch, outputs, strict=True):
            classes = convert_to_numpy(output["pred"])[0].astype(np.uint8)
            affine = np.asarray(output["pred"].affine, float)
            removed_ml = float(output.get("removed_ml", 0.0))
            result = Result(
                classes,
                {},
                None,
                removed_ml,
                grid_known=bool(item.get("grid_known", True)),
                order_doubt=str(item.get("order_doubt", "")),
                missing_modalities=str(item.get("missing_modalities", "")),
                intensity_distance=float(item.get("intensity_distance", 0.0)),
                confidence=output.get("confidence", {}),
            )
            rows = self.rows_of(str(item["case"]), result, affine, item)
            self.table.add([{**row, **self._made_by, "computed_by": computed_by} for row in rows])

    def rows_of(
        self, case: str, result: Result, affine: np.ndarray, item: Mapping[Hashable, Any]
    ) -> list[dict[str, Any]]:
        """Rows of a case, without what made it; what the checks find is logged.

        Args:
            case: its name.
            result: class indices HWD, and what is known of how they came about.
            affine: of their grid, 4x4, mm.
            item: `brain_ml` and `midline_mm`, as from `MeasureBraind`, where the brain is that of the image.
        """
        brain_ml, midline_mm = (
            (_number(item, "brain_ml"), _number(item, "midline_mm")) if self.brain == "image" else (None, None)
        )
        volumes = volumes_of(result.classes, affine, self.classes, self.regions, midline_mm)
        if not result.grid_known:  # where left is, and how far, is not known
            volumes = [replace(volume, centroid_mm=None, hemisphere="") for volume in volumes]
        by_name = {volume.name: volume for volume in volumes}
        if self.brain in by_name:
            brain_ml = by_name[self.brain].ml
        flags = flags_of(replace(result, volumes=by_name, brain_ml=brain_ml), self.checks)
        for flag in flags:
            _log.warning("%s: look at it: %s", case, flag.sentence)
        found = {
            "flags": ";".join(flag.name for flag in flags),
            "reasons": " | ".join(flag.sentence for flag in flags),
        }
        return [{**_row(case, volume, brain_ml, result.confidence.get(volume.name)), **found} for volume in volumes]


class WriteReport:
    """MONAI handler: when all cases are segmented, write `report/` beside the masks; see `bundlekit.report.pages`.

    Put it behind `WriteVolumes`.

    Args:
        output_dir: folder of the masks.
        classes: names of the classes but the background.
        bundle: that segments, for the title.
        cases: of the data set.
        load: the bundle's transform that decodes a case.
        window: intensities that are black and white in the pictures; None: by the scan.
        shown: modality in the pictures, of cases that have four.
        shard: of the inference; pages are of all cases, so that one part of them is refused.

    Raises:
        BundleError: if matplotlib is not installed, or for a shard; while running, if a picture cannot be written.
    """

    def __init__(
        self,
        output_dir: str,
        classes: Sequence[str],
        bundle: str,
        cases: Sequence[Case],
        load: Callable[[Any], Mapping[Any, Any]],
        window: Sequence[float] | None = None,
        shown: str = "FLAIR",
        shard: str | None = None,
    ) -> None:
        if shard:
            fix = "leave --report out, put the tables together when all are done, and run python -m tools report"
            raise BundleError(Finding("--report", f"--shard {shard}, a part of the cases", "all of them", fix))
        require_matplotlib("--report")
        self.output_dir = Path(output_dir)
        self.classes = list(classes)
        self.bundle = bundle
        self.cases = cases
        self.scans = ScansOf(cases, load, window, shown)

    def attach(self, engine: Engine) -> None:
        """Register with an evaluator."""
        engine.add_event_handler(Events.COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Write the pages."""
        path = write_report(self.output_dir, self.scans, names_of(self.cases, self.classes), f"{self.bundle}: results")
        _log.info("wrote %s", path)


def names_of(cases: Sequence[Case], classes: Sequence[str]) -> Callable[[str], dict[int, str] | None]:
    """What gives, for a case's name, value in its mask -> name of the class: data sets may mix numberings.

    None for a case that is not among `cases`.
    """
    values = {str(case["case"]): list(case.get("label_values") or range(len(classes) + 1))[1:] for case in cases}

    def names(case: str) -> dict[int, str] | None:
        return dict(zip(map(int, values[case]), classes, strict=False)) if case in values else None

    return names


def _row(case: str, volume: Volume, brain_ml: float | None, confidence: float | None) -> dict[str, Any]:
    centroid = ("", "", "") if volume.centroid_mm is None else tuple(f"{v:.1f}" for v in volume.centroid_mm)
    return {
        "case": case,
        "name": volume.name,
        "kind": volume.kind,
        "ml": f"{volume.ml:.6g}",
        "components": volume.components,
        "largest_ml": f"{volume.largest_ml:.6g}",
        "confidence": "" if confidence is None else f"{confidence:.3f}",
        **dict(zip(("x_mm", "y_mm", "z_mm"), centroid, strict=True)),
        "hemisphere": volume.hemisphere,
        "brain_ml": "" if brain_ml is None else f"{brain_ml:.6g}",
    }


def _number(item: Mapping[Hashable, Any], name: str) -> float | None:
    return float(item[name]) if name in item else None
