"""The ensemble of the networks of a cross-validation."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from monai.inferers import SimpleInferer
from torch import nn

from bundlekit.errors import BundleError
from bundlekit.inference.ensemble import EnsembleInferer, fold_checkpoints
from bundlekit.weights.settings import record_setting


class Constant(nn.Module):
    """A network whose logits are its weights, whatever it sees."""

    def __init__(self, logits: list[float]) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(logits))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.logits.view(1, -1, 1, 1, 1).expand(len(x), -1, *x.shape[2:]).clone()


def folds_of(folder: Path, *logits: list[float], settings: dict | None = None) -> None:
    for fold, values in enumerate(logits):
        place = folder / f"fold_{fold}"
        place.mkdir()
        torch.save(Constant(values).state_dict(), place / "model.pt")
        (place / "settings.json").write_text(json.dumps(settings or {"channels": [4]}))


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_mean_of_probabilities(activation: str, tmp_path: Path) -> None:
    logits = [[2.0, 0.0, -1.0], [0.0, 3.0, 0.0], [-50.0, 60.0, 1.0]]
    folds_of(tmp_path, *logits)
    network = Constant([0.0, 0.0, 0.0])
    inferer = EnsembleInferer(SimpleInferer(), network, fold_checkpoints(str(tmp_path), 3), activation)
    with torch.no_grad():
        found = inferer(torch.zeros(1, 4, 2, 2, 2), network)
    apply = (lambda x: x.softmax(1)) if activation == "softmax" else torch.sigmoid
    expected = torch.stack([apply(torch.tensor([values])) for values in logits]).mean(0).view(1, 3, 1, 1, 1)
    torch.testing.assert_close(apply(found), expected.expand(1, 3, 2, 2, 2), rtol=0, atol=2e-6)
    assert torch.isfinite(found).all()


def test_one_network_is_its_own_ensemble(tmp_path: Path) -> None:
    folds_of(tmp_path, [1.0, -2.0])
    network = Constant([0.0, 0.0])
    inferer = EnsembleInferer(SimpleInferer(), network, fold_checkpoints(str(tmp_path), 1))
    with torch.no_grad():
        found = inferer(torch.zeros(1, 4, 1, 1, 1), network)
    torch.testing.assert_close(found.softmax(1).flatten(), torch.tensor([1.0, -2.0]).softmax(0))


def test_each_network_has_its_own_weights_in_half_precision(tmp_path: Path) -> None:
    """Autocast keeps the weights that it has cast; here as on a GPU, where the evaluator opens it around the whole."""
    network = nn.Conv3d(1, 2, 1)
    logits = [[8.0, 0.0], [0.0, 8.0], [0.0, 8.0]]
    for fold, values in enumerate(logits):
        with torch.no_grad():
            network.weight.copy_(torch.tensor(values).view(2, 1, 1, 1, 1))
            network.bias.zero_()
        (tmp_path / f"fold_{fold}").mkdir()
        torch.save(network.state_dict(), tmp_path / f"fold_{fold}" / "model.pt")
    inferer = EnsembleInferer(SimpleInferer(), network, fold_checkpoints(str(tmp_path), 3))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        found = inferer(torch.ones(1, 1, 2, 2, 2), network)
    expected = torch.tensor(logits).softmax(1).mean(0)
    torch.testing.assert_close(found.softmax(1)[0, :, 0, 0, 0], expected, rtol=0, atol=1e-3)


def test_what_is_off_and_what_an_earlier_version_did_not_have_are_the_same(tmp_path: Path) -> None:
    for fold, recorded in enumerate(({"width": 4}, {"width": 4, "dropout": 0.0, "heads": False, "order": None})):
        place = tmp_path / f"fold_{fold}"
        place.mkdir()
        (place / "model.pt").touch()
        (place / "settings.json").write_text(json.dumps(recorded))
    assert len(fold_checkpoints(tmp_path, 2)) == 2
    (tmp_path / "fold_1" / "settings.json").write_text(json.dumps({"width": 4, "dropout": 0.3}))
    with pytest.raises(BundleError, match=r"dropout.*0\.3"):
        fold_checkpoints(tmp_path, 2)


def test_missing_fold_and_other_settings(tmp_path: Path) -> None:
    folds_of(tmp_path, [0.0], [0.0])
    with pytest.raises(BundleError, match=r"fold_2.model\.pt"):
        fold_checkpoints(str(tmp_path), 3)
    with pytest.raises(BundleError, match=r"fold_0.last\.pt"):
        fold_checkpoints(str(tmp_path), 2, "last")
    for fold in range(2):
        (tmp_path / f"fold_{fold}" / "last.pt").touch()
    assert [Path(file).name for file in fold_checkpoints(str(tmp_path), 2, "last")] == ["last.pt"] * 2
    with pytest.raises(ValueError, match="which is 'first'; expected best or last"):
        fold_checkpoints(str(tmp_path), 2, "first")
    record_setting(tmp_path / "fold_1" / "model.pt", "minimum_lesion_ml", 0.02)
    assert len(fold_checkpoints(str(tmp_path), 2)) == 2, "chosen after training"
    (tmp_path / "fold_1" / "settings.json").write_text('{"channels": [8]}')
    with pytest.raises(BundleError, match="train all folds with the same settings"):
        fold_checkpoints(str(tmp_path), 2)
    with pytest.raises(ValueError, match="activation"):
        EnsembleInferer(SimpleInferer(), Constant([0.0]), ["a"], "tanh")
    with pytest.raises(ValueError, match="at least one"):
        EnsembleInferer(SimpleInferer(), Constant([0.0]), [])
