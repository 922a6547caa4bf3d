"""A second network of tissues, which knows deep grey matter: the mean by hand, and what must not change."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from ignite.engine import Engine
from monai.data import MetaTensor
from torch import nn

from brain_tissue_vnet import DeepGreyInferer, TissueMasksd
from bundlekit import CompileAhead, EnsembleInferer, RecordRun, WriteVolumes
from bundlekit.errors import BundleError
from bundlekit.inference.windows import ForegroundInferer
from tests.conftest import ROOT
from tools.bundles import parse

OVERLAYS = ("train_from_labels.yaml", "pretrain_label_maps.yaml", "lowres.yaml")
OWN = [0.1, 0.2, 0.1, 0.6]  # background, CSF, GM, WM


class Constant(nn.Module):
    """A network whose logits are its weights, whatever it sees; it keeps what it saw last."""

    def __init__(self, probabilities: list[float]) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(probabilities).log())
        self.seen = torch.empty(0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen = x
        return self.logits.view(1, -1, 1, 1, 1).expand(len(x), -1, *x.shape[2:]).clone()


class Bright(nn.Module):
    """Deep grey matter where the image is above 0, white matter elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.steepness = nn.Parameter(torch.tensor(50.0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        low = torch.full_like(x, -100.0)
        return torch.cat([low, low, low, -self.steepness * x, self.steepness * x], dim=1)


def brain(spacing: float = 1.0) -> torch.Tensor:
    image = torch.rand(1, 1, 20, 24, 18, generator=torch.Generator().manual_seed(0)) - 0.5
    affine = torch.diag(torch.tensor([-spacing, spacing, spacing, 1.0], dtype=torch.float64))
    return MetaTensor(image, affine=affine)


def with_second(folder: Path, second: nn.Module, **settings: object) -> DeepGreyInferer:
    torch.save(second.state_dict(), folder / "lowres.pt")
    return DeepGreyInferer((16, 16, 16), lowres=str(folder / "lowres.pt"), lowres_network=second, **settings)


@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_the_mean_of_both_and_deep_grey_out_of_white(tmp_path: Path, share: float) -> None:
    own, other = torch.tensor(OWN), torch.tensor([0.1, 0.1, 0.1, 0.2, 0.5])
    inferer = with_second(tmp_path, Constant(other.tolist()), lowres_share=share)
    with torch.no_grad():
        found = inferer(brain().expand(2, -1, -1, -1, -1), Constant(OWN)).softmax(1)
    mean = (1 - share) * own + share * torch.tensor([0.1, 0.1, 0.1 + 0.5, 0.2])
    expected = torch.tensor([mean[0], mean[1], mean[2] + mean[3] * 0.5, mean[3] * 0.5])
    torch.testing.assert_close(found.as_tensor(), expected.view(1, 4, 1, 1, 1).expand_as(found))


@pytest.mark.parametrize(("spacing", "seen"), [(1.0, (10, 12, 9)), (2.0, (20, 24, 18)), (0.5, (5, 6, 4))])
def test_the_second_network_sees_its_own_spacing(tmp_path: Path, spacing: float, seen: tuple[int, ...]) -> None:
    second = Constant([0.2] * 5)
    with torch.no_grad():
        with_second(tmp_path, second, lowres_window=seen)(brain(spacing), Constant(OWN))
    assert tuple(second.seen.shape[2:]) == seen
    mean = float(brain().mean())
    assert float(second.seen.mean()) == pytest.approx(mean, abs=0.01)


@pytest.mark.parametrize("flips", [False, True])
def test_it_lies_where_the_second_network_sees_it(tmp_path: Path, flips: bool) -> None:
    """Halves of the image: neither is mirrored or moved on the way to the coarser grid and back."""
    image = brain() * 0 - 1
    image[:, :, 12:, :8] = 1
    with torch.no_grad():
        found = with_second(tmp_path, Bright(), lowres_share=0, flips=flips)(image, Constant(OWN)).argmax(1)[0]
    inside = torch.zeros(20, 24, 18, dtype=torch.bool)
    inside[12:, :8] = True
    away = torch.ones_like(inside)  # from the border, which is interpolated
    away[11:13, :9] = False
    away[11:, 7:9] = False
    assert (found[away & inside] == 2).all()
    assert (found[away & ~inside] == 3).all()


def test_without_a_second_network_nothing_changes() -> None:
    with torch.no_grad():
        alone, plain = (kind((16, 16, 16))(brain(), Constant(OWN)) for kind in (DeepGreyInferer, ForegroundInferer))
    torch.testing.assert_close(alone, plain)


@pytest.mark.parametrize(
    ("recorded", "name"),
    [
        ({"lowres_spacing": [1.5, 1.5, 1.5]}, "lowres_spacing"),
        ({"lowres_window": [96, 96, 96]}, "lowres_window"),
        ({"normalise": "zscore", "after_training": {"lowres_normalise": "percentile"}}, "lowres_normalise"),
        ({"after_training": {"lowres_clahe": 0.01}}, "lowres_clahe"),
    ],
)
def test_a_network_for_other_images_is_refused(tmp_path: Path, recorded: dict[str, object], name: str) -> None:
    """By what is recorded with it, or with the V-Net that it lies beside."""
    inferer = with_second(tmp_path, Constant([0.2] * 5))
    (tmp_path / "settings.json").write_text(json.dumps(recorded))
    with pytest.raises(BundleError, match=f"(?s)a second network trained with {name} .*go without") as caught:
        inferer(brain(), Constant(OWN))
    assert caught.value.ends_run


def test_another_network_is_refused_with_what_is_expected(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    inferer = with_second(tmp_path, Constant([0.2] * 5))
    with torch.no_grad():
        inferer(brain(), Constant(OWN))
    assert "lowres.pt as the second network" in caplog.text
    torch.save({"x": torch.ones(2)}, tmp_path / "lowres.pt")
    other = DeepGreyInferer((16, 16, 16), lowres=inferer.lowres, lowres_network=Constant([0.2] * 5))
    with pytest.raises(
        BundleError, match=r"(?s)another network.*--lowres\): one that configs/lowres.yaml trained"
    ) as caught:
        other(brain(), Constant(OWN))
    assert caught.value.ends_run


def test_wrong_values_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="lowres_share must be from 0 to 1"):
        with_second(tmp_path, Constant([0.2] * 5), lowres_share=1.5)
    with pytest.raises(ValueError, match="lowres needs lowres_network"):
        DeepGreyInferer((16, 16, 16), lowres="file")


def test_in_an_ensemble(tmp_path: Path) -> None:
    """The mean over the V-Nets; the second network is the same for each."""
    files = []
    for number, probabilities in enumerate((OWN, [0.1, 0.6, 0.2, 0.1])):
        files.append(str(tmp_path / f"{number}.pt"))
        torch.save(Constant(probabilities).state_dict(), files[-1])
    inferer, network = with_second(tmp_path, Constant([0.2] * 5)), Constant(OWN)
    with torch.no_grad():
        found = EnsembleInferer(inferer, network, files)(brain(), network).softmax(1)[0, :, 5, 5, 5]
        alone = []
        for file in files:
            network.load_state_dict(torch.load(file))
            alone.append(inferer(brain(), network).softmax(1)[0, :, 5, 5, 5])
    torch.testing.assert_close(found, (alone[0] + alone[1]) / 2)


def test_what_trains_is_what_infers() -> None:
    trained = parse("brain_tissue_vnet", "train.yaml", *OVERLAYS)
    told = parse("brain_tissue_vnet", "inference.yaml", lowres="$None")
    networks = (trained.get_parsed_content("network_def"), told.get_parsed_content("lowres_network"))
    first, second = ({name: value.shape for name, value in net.state_dict().items()} for net in networks)
    assert first == second
    inferer = told.get_parsed_content("inferer")
    settings = trained.get_parsed_content("settings")
    assert {name: settings[name] for name in inferer.trained_for()} == dict(inferer.trained_for())
    assert list(inferer.whole.roi_size) == settings["patch_size"]


def test_its_training_is_that_of_a_second_network(tmp_path: Path) -> None:
    for overlays, second in ((OVERLAYS, True), (OVERLAYS[:-1], False)):
        config = parse("brain_tissue_vnet", "train.yaml", *overlays, ckpt_dir=str(tmp_path))
        place = [part["_target_"] for part in config["train"]["handlers"]].index("bundlekit.RecordRun")
        assert config.get_parsed_content(f"train::handlers::{place}::second") is second


def test_one_that_cannot_be_had_is_told_before_anything_is_written(tmp_path: Path) -> None:
    inferer = with_second(tmp_path, Constant([0.2] * 5))
    torch.save({"x": torch.ones(2)}, tmp_path / "lowres.pt")
    network = Constant(OWN)
    evaluator = Engine(lambda *_: None)
    evaluator.inferer = inferer  # type: ignore[attr-defined]
    CompileAhead(network, 1).attach(evaluator)
    WriteVolumes(str(tmp_path / "out"), ["CSF", "GM", "WM"], "brain_tissue_vnet", []).attach(evaluator)
    with pytest.raises(BundleError, match="another network"):
        evaluator.run([0])
    assert not (tmp_path / "out").exists()


def test_the_log_of_its_training_tells_how_to_use_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    for second, told in ((True, f"--lowres {tmp_path / 'model.pt'}"), (False, "--ckpt_dir")):
        handler = RecordRun(
            str(tmp_path), {"training": [{"case": "a", "patient": "a", "image": "a", "label": "a"}]}, {}, second
        )
        handler.attach(engine := Engine(lambda *_: None))
        engine.run([0], max_epochs=1)
        assert told in caplog.text
        caplog.clear()


def test_a_training_begins_with_the_encoder_of_another_network(tmp_path: Path) -> None:
    mask = ROOT / "bundles" / "brain_mask_unet" / "models" / "model.pt"
    parser = parse("brain_tissue_vnet", "train.yaml", *OVERLAYS, warm_start=str(mask), ckpt_dir=str(tmp_path))
    network = parser.get_parsed_content("network_def")
    parser.get_parsed_content("initialize")
    weights = torch.load(mask, weights_only=True)
    name = "model.0.conv.unit0.conv.weight"
    torch.testing.assert_close(network.state_dict()[name], weights[name].float())


def test_masks_of_the_classes_that_are_asked_for() -> None:
    """Class 4 is deep grey matter; 255 is in no mask."""
    classes = torch.tensor([[0, 1, 2, 3, 4, 255]]).view(1, 1, 1, 6).to(torch.uint8)
    data = {"pred": torch.full_like(classes, 4), "label": classes}
    masks = TissueMasksd((1, 2, 3, 4))(data)
    assert masks["label"].flatten(1).tolist() == [[int(n == c) for n in range(6)] for c in (1, 2, 3, 4)]
    assert masks["pred"].flatten(1).tolist()[3] == [1, 1, 1, 1, 1, 0]
    assert len(TissueMasksd()(data)["label"]) == 3
