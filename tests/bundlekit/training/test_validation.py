"""Loss and accuracy of a validation, and that every bundle's log has what its write-up names."""

from __future__ import annotations

import pytest
import torch
from ignite.engine import Engine
from monai.data import MetaTensor

from bundlekit.training.validation import AddAccuracyd, AddLossd, dice_of_each
from tests.bundles import BUNDLES
from tools.bundles import parse

WITH_ACCURACY = ("abdomen_ct_vnet", "brain_metastasis_attention_unet")


def test_loss_of_a_case_in_single_precision() -> None:
    """In half precision the sum of so many voxels is infinite."""
    case = {"pred": MetaTensor(torch.ones(1, 80, 80, 80).half()), "label": MetaTensor(torch.zeros(1, 80, 80, 80))}
    found = AddLossd(lambda pred, label: (pred - label).sum() / pred.shape[0])(case)
    assert float(found["loss"]) == 80**3
    assert found["pred"] is case["pred"]
    assert not isinstance(found["loss"], MetaTensor)


def test_accuracy_counted_by_hand() -> None:
    pred, label = torch.tensor([0, 1, 2, 3]).view(1, 4, 1, 1), torch.tensor([0, 1, 1, 3]).view(1, 4, 1, 1)
    found = AddAccuracyd()({"pred": pred.to(torch.uint8), "label": label.float()})
    assert float(found["accuracy"]) == 0.75


def test_dice_of_each_channel_by_hand() -> None:
    """Channels in order, mean over cases, 1 where both are empty and 0 where one is."""
    label = torch.tensor([[1, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]]).reshape(3, 4, 1, 1).float()
    pred = torch.tensor([[1, 0, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0]]).reshape(3, 4, 1, 1).float()
    items = [{"pred": pred, "label": label}, {"pred": label, "label": label}]
    engine = Engine(lambda engine, batch: items)
    for name, metric in dice_of_each(["WT", "TC", "left part"]).items():
        metric.attach(engine, name)
    engine.run([0])
    assert engine.state.metrics == pytest.approx({"val_dice_WT": 0.75, "val_dice_TC": 0.5, "val_dice_left_part": 1.0})
    (metric,) = dice_of_each(["ET"], first=2).values()
    metric.attach(engine, "second")
    engine.run([0])
    assert engine.state.metrics["second"] == 1


@pytest.mark.parametrize("bundle", BUNDLES)
def test_validation_says_loss_and_dice(bundle: str) -> None:
    parser = parse(bundle, "train.yaml", **BUNDLES[bundle].narrow)
    more = parser.get_parsed_content("validate::evaluator::additional_metrics")
    metrics = {**parser.get_parsed_content("validate::key_metric"), **more}
    assert "val_loss" in metrics
    assert any(name.startswith(("val_dice", "val_mean_dice")) for name in metrics)
    assert ({"val_accuracy", "val_mean_iou"} <= set(metrics)) == (bundle in WITH_ACCURACY)
