"""A second network at low resolution beside that of the windows: the mean by hand, and what must not change."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from monai.data import MetaTensor
from monai.networks.nets import UNet
from torch import nn
from torch._subclasses import FakeTensorMode

from bundlekit.brats.lowres import LowresEnsembleInferer
from bundlekit.brats.normalising import NormaliseBraind
from bundlekit.brats.regions import class_logits, nested_labels, region_labels, region_probabilities
from bundlekit.errors import BundleError
from bundlekit.inference.windows import ForegroundInferer, argmax_labels

torch.set_num_threads(1)
SMALL = (4, 4, 4)


class Constant(nn.Module):
    """A network whose logits are its weights, whatever it sees; it keeps what it saw last."""

    def __init__(self, logits: list[float]) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(logits))
        self.seen = torch.empty(0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen = x
        return self.logits.view(1, -1, 1, 1, 1).expand(len(x), -1, *x.shape[2:]).clone()


def brain() -> torch.Tensor:
    return torch.rand(1, 4, 10, 12, 9, generator=torch.Generator().manual_seed(0)) + 0.5


def saved(folder: Path, network: nn.Module) -> str:
    torch.save(network.state_dict(), folder / "lowres.pt")
    return str(folder / "lowres.pt")


def test_the_mean_of_the_regions_of_both(tmp_path: Path) -> None:
    first, second = torch.tensor([0.5, 0.1, 0.1, 0.3]), torch.tensor([0.9, 0.8, 0.2])  # classes; WT, TC, ET
    lowres = saved(tmp_path, Constant(second.logit().tolist()))
    inferer = LowresEnsembleInferer(
        (8, 8, 8), lowres=lowres, lowres_network=Constant([0.0] * 3), lowres_shape=(4, 4, 4)
    )
    logits = inferer(brain(), Constant(first.log().tolist()))
    assert logits.shape == (1, 4, 10, 12, 9)
    regions = region_probabilities(logits)[0, :, 5, 5, 5]
    torch.testing.assert_close(regions, torch.tensor([(0.5 + 0.9) / 2, (0.4 + 0.8) / 2, (0.3 + 0.2) / 2]))
    torch.testing.assert_close(logits[0, :, 5, 5, 5].exp(), torch.tensor([0.3, 0.35, 0.1, 0.25]))
    assert region_labels(logits[0]).unique().tolist() == [1], "WT and TC, not ET"


@pytest.mark.parametrize(
    ("first", "second", "expected"),  # classes; WT, TC, ET; WT, TC, ET of both
    [
        ((0.5, 0.1, 0.1, 0.3), (0.1, 0.0, 0.0), (0.4, 0.4, 0.3)),  # WT is the mean, 0.3, and no less than TC
        ((0.5, 0.1, 0.3, 0.1), (0.9, 0.8, 0.7), (0.7, 0.2, 0.1)),
        ((0.1, 0.0, 0.9, 0.0), (0.1, 0.0, 0.0), (0.5, 0.0, 0.0)),
    ],
)
def test_small_cores_can_be_left_to_the_first(
    first: tuple[float, ...], second: tuple[float, ...], expected: tuple[float, ...], tmp_path: Path
) -> None:
    lowres = saved(tmp_path, Constant(torch.tensor(second).logit(eps=1e-7).tolist()))
    inferer = LowresEnsembleInferer(
        (8, 8, 8), lowres=lowres, lowres_network=Constant([0.0] * 3), lowres_shape=SMALL, core_share=0
    )
    own = torch.tensor(first).clamp_min(1e-9).log()
    regions = region_probabilities(inferer(brain(), Constant(own.tolist())))[0, :, 5, 5, 5]
    torch.testing.assert_close(regions, torch.tensor(expected), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("share", "box"), [(-0.1, 0.0), (0.6, 0.0), (float("nan"), 0.0), (0.0, 0.1)])
def test_a_share_of_the_core_is_at_most_half(share: float, box: float) -> None:
    with pytest.raises(ValueError, match=r"core_share must be from 0 to 0\.5"):
        LowresEnsembleInferer((8, 8, 8), core_share=share, coarse_to_fine=box)


def test_the_second_sees_the_whole_crop_resized_and_between_0_and_1(tmp_path: Path) -> None:
    second = Constant([0.0] * 3)
    lowres = saved(tmp_path, second)
    inferer = LowresEnsembleInferer((8, 8, 8), lowres=lowres, lowres_network=second, lowres_shape=(4, 4, 8))
    image = brain()
    image[:, :, :3] = 0
    inferer((image - image.mean()).where(image != 0, 0.0) * 7, Constant([0.0] * 4))
    expected = NormaliseBraind("minmax", (0.5, 99.5))({"image": image[0]})["image"][None]
    torch.testing.assert_close(second.seen, torch.nn.functional.interpolate(expected, (4, 4, 8), mode="trilinear"))
    assert second.seen.shape == (1, 4, 4, 4, 8)
    assert float(second.seen.max()) <= 1, "as in its training, whatever normalisation the first network takes"


def test_without_a_second_network_nothing_changes() -> None:
    network = UNet(3, 4, 4, [4, 8], [2]).eval()
    image = MetaTensor(brain())
    with torch.no_grad():
        got = LowresEnsembleInferer((8, 8, 8), overlap=0.5)(image, network)
        assert torch.equal(got, ForegroundInferer((8, 8, 8), overlap=0.5)(image, network))
    with pytest.raises(ValueError, match="lowres needs lowres_network"):
        LowresEnsembleInferer((8, 8, 8), lowres="file")


class Spot(nn.Module):
    """Regions that are likely (0.9) in a box, possible (0.2) in another, and unlikely (0.05) elsewhere."""

    def __init__(self, likely: tuple[slice, ...], possible: tuple[slice, ...]) -> None:
        super().__init__()
        self.likely, self.possible = likely, possible

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        probability = torch.full((len(x), 3, *x.shape[2:]), 0.05)
        probability[(..., *self.possible)] = 0.2
        probability[(..., *self.likely)] = 0.9
        return probability.logit()


SPOTS = {  # likely, possible, threshold; the box by hand: margin 1, windows of 4 in 12x12x12 voxels
    "margin": ((slice(3, 8), slice(2, 8), slice(4, 9)), None, 0.1, (slice(2, 9), slice(1, 9), slice(3, 10))),
    "possible": ((slice(4, 7),) * 3, (slice(7, 9),) * 3, 0.1, (slice(3, 10),) * 3),
    "above the possible": ((slice(4, 7),) * 3, (slice(7, 9),) * 3, 0.3, (slice(3, 8),) * 3),
    "a window at least": ((slice(5, 6),) * 3, None, 0.1, (slice(4, 8),) * 3),
    "moved at the edge": (
        (slice(11, 12), slice(0, 1), slice(5, 6)),
        None,
        0.1,
        (slice(8, 12), slice(0, 4), slice(4, 8)),
    ),
    "all": ((slice(0, 12),) * 3, None, 0.1, (slice(0, 12),) * 3),
    "off": ((slice(5, 6),) * 3, None, 0.0, (slice(0, 12),) * 3),
    "nothing": ((slice(0, 0),) * 3, None, 0.1, (slice(0, 12),) * 3),
}


@pytest.mark.parametrize("name", SPOTS)
def test_windows_lie_around_what_the_second_network_holds_for_tumour(name: str, tmp_path: Path) -> None:
    likely, possible, threshold, box = SPOTS[name]
    second = Spot(likely, possible or (slice(0, 0),) * 3)
    torch.save(second.state_dict(), tmp_path / "lowres.pt")
    first, image = UNet(3, 4, 4, [4, 8], [2]).eval(), torch.rand(1, 4, 12, 12, 12) + 0.5
    inferer = LowresEnsembleInferer(
        (4, 4, 4),
        lowres=str(tmp_path / "lowres.pt"),
        lowres_network=second,
        lowres_shape=(12, 12, 12),
        coarse_to_fine=threshold,
        margin=1,
    )
    with torch.no_grad():
        regions = region_probabilities(inferer(image, first))
        expected = second(image).sigmoid()
        part = (slice(None), slice(None), *box)
        own = region_probabilities(ForegroundInferer((4, 4, 4))(image[part], first))
    expected[part] = (expected[part] + own) / 2
    torch.testing.assert_close(regions, torch.stack(nested(expected), dim=1))
    outside = torch.ones(12, 12, 12, dtype=torch.bool)
    outside[box] = False
    assert not region_labels(class_logits(expected)[0])[0][outside].any(), "nothing is found where nobody looked"


@pytest.mark.parametrize(("found", "expected"), [(0.2, 1 + 5**3), (0.95, 1)])
def test_where_nothing_is_found_in_the_box_windows_lie_everywhere(tmp_path: Path, found: float, expected: int) -> None:
    """The first computes one window where the second doubts, and where that is nothing, 5 along each axis."""
    second = Spot((slice(0, 0),) * 3, (slice(4, 8),) * 3)
    torch.save(second.state_dict(), tmp_path / "lowres.pt")
    first = Constant(torch.tensor([1 - found, 0, found, 0]).clamp(min=1e-9).log().tolist())
    seen: list[tuple[int, ...]] = []
    first.register_forward_hook(lambda module, given, out: seen.append(tuple(given[0].shape[2:])))
    inferer = LowresEnsembleInferer(
        (4, 4, 4),
        lowres=str(tmp_path / "lowres.pt"),
        lowres_network=second,
        lowres_shape=(12, 12, 12),
        coarse_to_fine=0.1,
        margin=0,
    )
    inferer(torch.rand(1, 4, 12, 12, 12) + 0.5, first)
    assert len(seen) == expected


def test_one_pass_is_over_the_whole_brain(tmp_path: Path) -> None:
    second = Spot((slice(4, 6),) * 3, (slice(0, 0),) * 3)
    torch.save(second.state_dict(), tmp_path / "lowres.pt")
    inferer = LowresEnsembleInferer(
        (4, 4, 4), lowres=str(tmp_path / "lowres.pt"), lowres_network=second, coarse_to_fine=0.1, whole_brain=True
    )
    likely = torch.zeros(1, 12, 12, 12)
    likely[:, 5, 5, 5] = 0.9
    assert inferer._box(likely) == (slice(None),) * 5
    inferer.whole_brain = False
    assert inferer._box(likely) == (slice(None),) * 2 + (slice(0, 12),) * 3, "8 voxels around"


def nested(regions: torch.Tensor) -> list[torch.Tensor]:
    whole, core, enhancing = regions.unbind(1)
    core = torch.minimum(core, whole)
    return [whole, core, torch.minimum(enhancing, core)]


@pytest.mark.parametrize(("threshold", "margin"), [(0.5, 8), (-0.1, 8), (0.1, -1)])
def test_a_box_that_may_leave_out_tumour_is_refused(threshold: float, margin: int) -> None:
    with pytest.raises(ValueError, match=r"coarse_to_fine must be 0 to below 0\.5 and margin 0 or more"):
        LowresEnsembleInferer((4, 4, 4), coarse_to_fine=threshold, margin=margin)


def test_flips_are_those_of_both(tmp_path: Path) -> None:
    second = UNet(3, 4, 3, [4, 8], [2]).eval()
    arguments = {"lowres": saved(tmp_path, second), "lowres_network": second, "lowres_shape": (8, 8, 8)}
    network, image = UNet(3, 4, 4, [4, 8], [2]).eval(), brain()
    with torch.no_grad():
        plain = LowresEnsembleInferer((16, 16, 16), flips=True, **arguments)(image, network)
        flipped = LowresEnsembleInferer((16, 16, 16), flips=True, **arguments)(image.flip(3), network).flip(3)
    torch.testing.assert_close(plain, flipped, atol=1e-4, rtol=1e-4)


def test_what_computes_and_where_is_that_of_both(tmp_path: Path) -> None:
    second = Constant([0.0] * 3)
    arguments = {"lowres": saved(tmp_path, second), "lowres_network": second, "lowres_shape": SMALL}
    inferer = LowresEnsembleInferer((8, 8, 8), runtime="torch", precision="f32", flips=True, **arguments)
    assert inferer.whole.runtime is not None
    assert (inferer.whole.runtime.runtime, inferer.whole.runtime.precision) == ("torch", "f32")
    assert inferer.whole.flips
    asked: list[tuple] = []
    for part in (inferer, inferer.whole):
        part.runtime.prepare = lambda *given: asked.append(given)  # type: ignore[method-assign, union-attr]
    first = Constant([0.0] * 4)
    inferer.prepare(first, 4)
    assert [(network, tuple(window.shape), several) for network, window, several in asked] == [
        (second, (1, 4, *SMALL), False),
        (first, (1, 4, 8, 8, 8), True),
    ]


def test_a_brain_on_another_device_is_normalised_there() -> None:
    """PyTorch's fake tensors know their device, and refuse two at once, without there being a GPU."""
    with FakeTensorMode():
        image = torch.empty(4, 4, 4, 4, device="cuda")
        offset, scale = torch.zeros(4), torch.ones(4)
        assert NormaliseBraind("minmax").apply(image, offset, scale).device.type == "cuda"


def test_a_network_for_brains_prepared_in_another_way_is_refused(tmp_path: Path) -> None:
    second = Constant([0.0] * 3)
    lowres = str(tmp_path / "model.pt")
    torch.save(second.state_dict(), lowres)
    own = {"uniform_shape": list(SMALL), "normalise": "minmax", "percentiles": [0.5, 99.5], "fit": "resize"}
    for name, value in {
        "percentiles": [0, 100],
        "normalise": "zscore",
        "uniform_shape": [8, 8, 8],
        "fit": "native",
    }.items():
        (tmp_path / "settings.json").write_text(json.dumps({**own, name: value}))
        inferer = LowresEnsembleInferer((8, 8, 8), lowres=lowres, lowres_network=second, lowres_shape=SMALL)
        with pytest.raises(BundleError, match=f"a second network trained with {name} "):
            inferer(brain(), Constant([0.0] * 4))
    # of a first network that it lies beside, whose patches are at the scan's own resolution
    first = {"fit": "native", "uniform_shape": [128, 128, 128]}
    for file, sound in ((lowres, own), (saved(tmp_path, second), first)):
        (tmp_path / "settings.json").write_text(json.dumps(sound))
        LowresEnsembleInferer((8, 8, 8), lowres=file, lowres_network=second, lowres_shape=SMALL)(
            brain(), Constant([0.0] * 4)
        )


def test_both_runtimes_give_the_same(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    second = UNet(3, 4, 3, [4, 8], [2]).eval()
    arguments = {"lowres": saved(tmp_path, second), "lowres_network": second, "lowres_shape": (8, 8, 8)}
    network, image = UNet(3, 4, 4, [4, 8], [2]).eval(), brain()
    with torch.no_grad():
        found = [
            LowresEnsembleInferer((16, 16, 16), runtime=runtime, precision="f32", **arguments)(image, network)
            for runtime in ("torch", "openvino")
        ]
    torch.testing.assert_close(*found, atol=1e-3, rtol=1e-3)
    assert caplog.text.count("computed by") == 2 * caplog.text.count("the second network computed by") > 0


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    lowres = saved(tmp_path, Constant([0.0] * 4))
    inferer = LowresEnsembleInferer(
        (8, 8, 8), lowres=lowres, lowres_network=Constant([0.0] * 3), lowres_shape=(4, 4, 4)
    )
    with pytest.raises(BundleError, match=r"lowres\.pt"):
        inferer(brain(), Constant([0.0] * 4))


def test_class_logits_undo_region_probabilities() -> None:
    logits = torch.randn(2, 4, 3, 3, 3, generator=torch.Generator().manual_seed(1))
    regions = region_probabilities(logits)
    torch.testing.assert_close(class_logits(regions).softmax(1), logits.softmax(1), atol=1e-6, rtol=1e-4)
    apart = torch.tensor([0.2, 0.6, 0.4]).reshape(1, 3, 1, 1, 1)  # TC and ET where there is no WT
    torch.testing.assert_close(region_probabilities(class_logits(apart)).flatten(), torch.full((3,), 0.2))
    never = region_probabilities(class_logits(torch.zeros(1, 3, 1, 1, 1)))
    assert float(never.max()) < 1e-6
    assert class_logits(torch.ones(1, 3, 1, 1, 1)).isfinite().all()


def test_labels_by_regions_and_by_the_most_probable_class() -> None:
    split = torch.tensor([0.4, 0.3, 0.3, 0.0]).clamp_min(1e-6).log().reshape(4, 1, 1, 1)
    assert argmax_labels(split).item() == 0
    assert region_labels(split).item() == 2, "tumour is more likely than none, its core is not"
    sure = torch.tensor([[0.1, 0.7, 0.1, 0.1], [0.1, 0.1, 0.1, 0.7], [0.9, 0.1, 0.0, 0.0]]).clamp_min(1e-6).log()
    labels = [region_labels(one.reshape(4, 1, 1, 1)).item() for one in sure]
    assert labels == [1, 3, 0]
    flat = torch.randn(4, 100)
    assert torch.equal(region_labels(flat), nested_labels(region_probabilities(flat[None])[0])), (
        "of voxels in a row, too"
    )
