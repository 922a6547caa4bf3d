"""Scores of cases: how unsure a network is of one, and how much of its first segmentation was kept."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monailabel.interfaces.datastore import DefaultLabelTag
from monailabel.interfaces.tasks.scoring import ScoringMethod
from monailabel.tasks.scoring.epistemic_v2 import EpistemicScoring
from monailabel.utils.others.generic import name_to_device

from bundlekit.errors import bundle_error_in
from bundlekit.images.nifti import without_rounding
from lib.datastore import CaseDatastore
from lib.infer import CaseInfer

logger = logging.getLogger(__name__)


class Uncertainty(EpistemicScoring):
    """Entropy of the network's output, averaged over the voxels it sees, from 0 (sure) to 1 (knows nothing).

    That of the softmax over the classes; for a network of regions that of each region's sigmoid, averaged over them.

    One pass for each case without label. MONAI Label's own epistemic score takes several passes of a network with
    dropout, which not every bundle has.

    Args:
        name: of the bundle.
        infer_task: of the bundle.
        regions: whether its network's channels are regions.
    """

    def __init__(self, name: str, infer_task: CaseInfer, regions: bool) -> None:
        super().__init__(infer_task, key_output_entropy=f"{name}_entropy", key_output_ts=f"{name}_ts")
        self.description = f"Mean entropy of {name} over a case"
        self.name = name
        self.regions = regions

    def run_scoring(self, image_id: str, simulation_size: int, model_ts: int, datastore: CaseDatastore) -> None:
        """Score one case and keep the result with it."""
        if datastore.case(self.name, image_id) is None:
            return
        if datastore.get_image_info(image_id).get(self.key_output_ts) == model_ts:  # by the weights of now
            return
        device = name_to_device("cuda")
        data = {"image": datastore.input_file(self.name, image_id), "device": device, "logging": "error"}
        try:
            data = self.infer_task.run_pre_transforms(data, self.infer_task.pre_transforms(data))
        except Exception as error:  # MONAI puts a RuntimeError around it
            message = bundle_error_in(error)
            if message is None:
                raise
            logger.warning("%s has no score: %s", image_id, message)
            return
        data["model_filename"] = "model.pt"
        logits = self.infer_task.run_inferer(data, device=device)[self.infer_task.output_label_key]
        logits = torch.as_tensor(logits).float()
        if self.regions:  # two classes each: in the region and not, with logits x and 0
            logits = torch.stack([logits, torch.zeros_like(logits)])
        logs = torch.log_softmax(logits, dim=0)
        entropy = float(-(logs.exp() * logs).sum(dim=0).mean()) / math.log(len(logs))
        datastore.update_image_info(image_id, {self.key_output_entropy: entropy, self.key_output_ts: model_ts})


def _voxels(file: str) -> np.ndarray:
    """HWD, also of a label that was saved with a fourth axis of 1."""
    voxels = without_rounding(np.asarray(nib.load(file).dataobj))  # type: ignore[attr-defined]
    return voxels[..., 0] if voxels.ndim == 4 and voxels.shape[3] == 1 else voxels


class LabelDice(ScoringMethod):
    """Dice of each label between the network's segmentation ("original") and the saved one ("final").

    1 for a label that is in neither; the mean over the labels is kept with the case. MONAI Label's own Dice score
    multiplies label values, which has a meaning for one label alone.

    Args:
        class_names: bundle -> {name of a class: its index}.
    """

    def __init__(self, class_names: Mapping[str, Mapping[str, int]]) -> None:
        super().__init__("Dice of the network's segmentation and the saved label, label by label")
        self.class_names = class_names

    def __call__(self, request: dict[str, Any], datastore: CaseDatastore) -> dict[str, dict[str, float]]:
        """Score all cases that have both."""
        y, y_pred = request.get("y", DefaultLabelTag.FINAL), request.get("y_pred", DefaultLabelTag.ORIGINAL)
        result = {}
        for image_id in datastore.list_images():
            files = [datastore.get_label_uri(image_id, tag) for tag in (y, y_pred)]
            model = datastore.get_label_info(image_id, y_pred).get("model")
            if not all(files) or model not in self.class_names:
                continue
            if datastore.says(model, image_id) is False:
                continue  # a tumour's label is not compared with a mask of the brain
            truth, pred = (_voxels(file) for file in files)
            case = datastore.case(model, image_id)
            values = [int(v) for v in case["label_values"]] if case else None
            dice = {}
            for name, index in self.class_names[model].items():
                a, b = (part == (values[index] if values else index) for part in (truth, pred))
                total = int(a.sum()) + int(b.sum())
                dice[name] = 2 * int((a & b).sum()) / total if total else 1.0
            datastore.update_image_info(image_id, {"dice": float(np.mean(list(dice.values())))})
            result[image_id] = dice
        return result
