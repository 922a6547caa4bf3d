"""The smallest lesion that is believed, chosen on validation cases and kept beside the weights."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any

import ignite.distributed as idist
import numpy as np
from ignite.engine import Engine
from nibabel.affines import voxel_sizes

from bundlekit.brats.lesions import lesion_scores, remove_small
from bundlekit.brats.reading import read_label
from bundlekit.brats.regions import REGIONS
from bundlekit.files import write_content
from bundlekit.scores.handler import ScoreHandler
from bundlekit.weights.settings import record_setting

CHOSEN_ON = "minimum_lesion_cases"
"""Setting that names the cases; their scores with the choice flatter, see `ScoreMetastases`."""
_log = logging.getLogger(__name__)


class ChooseMinimumLesion(ScoreHandler):
    """Ignite handler that finds the `minimum_lesion_ml` of the best lesion-wise Dice, and records it.

    It attaches to an evaluator whose postprocessing removes nothing for its size, and reads what `ScoreMetastases`
    reads. Each case is scored once for every candidate; the score is the lesion-wise Dice of
    `bundlekit.brats.lesions.lesion_scores`, mean over WT, TC and ET, then over cases. Of candidates that score alike
    the smallest is taken; where all do, nothing is recorded. At the end `output_dir` holds `minimum_lesion.json` (every
    candidate's score, the number of cases), and `settings.json` beside the checkpoint the choice, from where inference
    and evaluation take it.

    Args:
        candidates_ml: volumes in ml, 0 or more.
        checkpoint: that is evaluated; of an ensemble all.
        output_dir: folder, made if missing.

    Raises:
        ValueError: if there is no candidate, or one is negative.
        BundleError: as `ScoreHandler`, or if a file cannot be written.
    """

    def __init__(
        self,
        candidates_ml: Sequence[float],
        checkpoint: str | os.PathLike[str] | Sequence[str],
        output_dir: str | os.PathLike[str],
    ) -> None:
        super().__init__(output_dir, {})
        if not candidates_ml or min(candidates_ml) < 0:
            raise ValueError(f"candidates_ml must be volumes of 0 ml or more, got {candidates_ml}.")
        self.candidates_ml = sorted({float(volume) for volume in candidates_ml})
        self.checkpoints = [checkpoint] if isinstance(checkpoint, (str, os.PathLike)) else list(checkpoint)

    def score(self, item: Mapping[str, Any], pred: np.ndarray) -> dict[str, float]:
        """Lesion-wise Dice of one case for every candidate."""
        truth, affine = read_label(str(item["label_file"]), [int(value) for value in item["label_values"]])
        spacing = [float(mm) for mm in voxel_sizes(affine)]
        scores = {}
        for volume in self.candidates_ml:
            kept = remove_small(pred.astype(np.uint8), volume, spacing)
            masks = ((np.isin(kept, classes), np.isin(truth, classes)) for classes in REGIONS.values())
            scores[str(volume)] = float(np.mean([lesion_scores(p, t, spacing, with_hd95=False).dice for p, t in masks]))
        return scores

    def _finish(self, engine: Engine) -> None:
        rows = self._gathered()
        mean = {volume: float(np.mean([row[str(volume)] for row in rows])) for volume in self.candidates_ml}
        chosen = max(mean, key=lambda volume: (mean[volume], -volume))
        engine.state.metrics["minimum_lesion_ml"] = chosen
        if idist.get_rank() == 0:
            found = {
                "minimum_lesion_ml": chosen,
                "n_cases": len(rows),
                "score": "lesion-wise Dice (BraTS-METS 2023), mean over WT, TC and ET, then over cases",
                "candidates": [{"minimum_lesion_ml": volume, "lesion_dice": score} for volume, score in mean.items()],
            }
            text = json.dumps(found, indent=2) + "\n"
            write_content(self.output_dir / "minimum_lesion.json", text, "output_dir")
            table = "\n".join(f"{volume:>8g} ml  {score:.4f}" for volume, score in mean.items())
            alike = len(mean) > 1 and min(mean.values()) == max(mean.values())
            _log.info(
                "lesion-wise Dice by minimum_lesion_ml, number of cases %d:\n%s\n%s",
                len(rows), table, "nothing is recorded" if alike else f"recorded: {chosen:g} ml",
            )  # fmt: skip
            if alike:
                _log.warning(
                    "all candidates score alike: there is nothing to choose by (number of cases: %d)", len(rows)
                )
                return
            for checkpoint in self.checkpoints:
                record_setting(checkpoint, "minimum_lesion_ml", chosen)
                record_setting(checkpoint, CHOSEN_ON, sorted(str(row["case"]) for row in rows))
