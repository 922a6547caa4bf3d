"""What the inferers of two networks share."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from monai.networks.nets import UNet

from brain_tissue_vnet import DeepGreyInferer
from bundlekit.brats import LowresEnsembleInferer
from bundlekit.errors import BundleError
from bundlekit.inference.second import TwoNetworkInferer, lowres_beside


def unet(inputs: int, outputs: int) -> UNet:
    return UNet(3, inputs, outputs, [4, 8], [2]).eval()


@pytest.mark.parametrize(
    ("kind", "inputs", "outputs", "several"), [(LowresEnsembleInferer, 4, 3, False), (DeepGreyInferer, 1, 5, True)]
)
def test_both_networks_are_compiled_ahead_as_they_will_be_used(
    kind: type[TwoNetworkInferer],
    inputs: int,
    outputs: int,
    several: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    second, network = unet(inputs, outputs), unet(inputs, 4)
    torch.save(second.state_dict(), tmp_path / "lowres.pt")
    files = {"lowres": str(tmp_path / "lowres.pt"), "lowres_network": second}
    inferer = kind((16, 16, 16), sw_batch_size=3, runtime="torch", **files)  # type: ignore[arg-type, call-arg]
    assert inferer.whole.batch_size == 3
    told: list[tuple] = []
    for one in (inferer, inferer.whole):
        monkeypatch.setattr(one.runtime, "prepare", lambda *what: told.append(what))
    inferer.prepare(network, inputs)
    window = [int(n) for n in inferer.whole.roi_size]  # type: ignore[union-attr]
    assert [(what[0] is second, list(what[1].shape), what[2]) for what in told] == [
        (True, [1, inputs, *window], several),
        (False, [1, inputs, 16, 16, 16], True),
    ]


def test_a_second_network_of_another_preparation_is_refused_by_any_name(tmp_path: Path) -> None:
    second = unet(4, 3)
    for name in ("model.pt", "best.pt", "lowres.pt"):
        torch.save(second.state_dict(), tmp_path / name)
    own = {"fit": "resize", "uniform_shape": [16, 16, 16], "normalise": "minmax", "percentiles": [0, 100]}
    (tmp_path / "settings.json").write_text(json.dumps(own))

    def asked(name: str) -> torch.nn.Module:
        files = {"lowres": str(tmp_path / name), "lowres_network": second, "lowres_shape": (16, 16, 16)}
        return LowresEnsembleInferer((16, 16, 16), runtime="torch", **files).second(torch.device("cpu"))  # type: ignore[arg-type]

    for name in ("model.pt", "best.pt"):
        with pytest.raises(BundleError, match="percentiles"):
            asked(name)
    asked("lowres.pt")  # by its usual name: the settings are those of the network that it lies beside
    (tmp_path / "settings.json").write_text(json.dumps({**own, "after_training": {"lowres": "best.pt"}}))
    asked("best.pt")


def test_the_file_is_looked_for_beside_the_checkpoint(tmp_path: Path) -> None:
    checkpoint = tmp_path / "model.pt"
    assert lowres_beside(checkpoint, {}, "") is None
    with pytest.raises(
        BundleError, match=r"(?s)lowres.pt\n.*no such file.*copy it, too.*--lowres '\$None'.*lower Dice"
    ):
        lowres_beside(checkpoint, {"lowres": "lowres.pt"}, "lower Dice")
    (tmp_path / "lowres.pt").touch()
    assert lowres_beside(checkpoint, {"lowres": "lowres.pt"}, "lower Dice") == str(tmp_path / "lowres.pt")
    for elsewhere in ("../lowres.pt", "/lowres.pt", "a/lowres.pt"):
        with pytest.raises(BundleError, match="one beside the checkpoint"):
            lowres_beside(checkpoint, {"lowres": elsewhere}, "")
