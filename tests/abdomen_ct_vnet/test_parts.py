"""Network, sampling, weights, and the way back to the scan's grid."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, Invertd, Orientationd, Spacingd

from abdomen_ct_vnet import (
    NativeClassesd,
    NormaliseCTd,
    OrganCentredCropd,
    OrganVoxelsd,
    ResidualVNet,
    class_weights_of,
    find_cases,
)
from abdomen_ct_vnet.organs import UPSTREAM_ORGANS
from abdomen_ct_vnet.postprocessing import _inside, grid_positions
from abdomen_ct_vnet.preprocessing import check_settings
from abdomen_ct_vnet.shear import check_shear
from bundlekit.errors import BundleError

# --- network ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(16, 16, 16), (17, 31, 16), (9, 20, 40)])
def test_any_size_gives_logits_of_that_size(size: tuple[int, int, int]) -> None:
    network = ResidualVNet(out_channels=5, channels=[2, 4, 4, 4]).eval()
    with torch.no_grad():
        assert network(torch.randn(2, 1, *size)).shape == (2, 5, *size)


def test_upstreams_table() -> None:
    with torch.device("meta"):
        network = ResidualVNet()
    assert [block.conv.unit0.conv.out_channels for block in network.encoder] == [16, 32, 64, 128, 128]
    assert [block.conv.unit0.conv.in_channels for block in network.decoder] == [256, 128, 64, 32], "with the skips"
    assert [block.conv.unit0.conv.out_channels for block in network.decoder] == [128, 64, 32, 16]
    assert [type(up.conv).__name__ for up in network.up] == ["ConvTranspose3d"] * 4
    assert [[type(step).__name__ for step in down] for down in network.down] == [["Convolution", "MaxPool3d"]] * 4
    kinds = {type(module).__name__ for module in network.modules()}
    assert {"ReLU", "ChannelsLastInstanceNorm3d"} <= kinds
    assert not {"PReLU", "BatchNorm3d"} & kinds


def test_dropout_is_where_upstream_has_it() -> None:
    """Not after the first downsampling; after the others, and before the head."""
    network, seen = ResidualVNet(channels=[2, 4, 6, 8], dropout=0.3), []
    network.dropout.register_forward_hook(lambda module, inputs, output: seen.append(tuple(output.shape[1:])))
    network(torch.randn(1, 1, 16, 16, 16))
    assert seen == [(4, 4, 4, 4), (6, 2, 2, 2), (2, 16, 16, 16)]


@pytest.mark.parametrize(
    ("named", "kind"),
    [({"activation": "prelu"}, "PReLU"), ({"norm": "batch"}, "BatchNorm3d"), ({"downsampling": "stride"}, "Conv3d")],
)
def test_what_can_be_chosen(named: dict, kind: str) -> None:
    network = ResidualVNet(channels=[2, 4, 4], **named)
    assert kind in {type(module).__name__ for module in network.modules()}
    assert network.eval()(torch.randn(1, 1, 9, 8, 8)).shape == (1, 4, 9, 8, 8)
    told = ResidualVNet.identify(network.state_dict())[1]
    (value,) = named.values()
    assert value in told
    assert value not in ResidualVNet.identify(ResidualVNet(channels=[2, 4, 4]).state_dict())[1]


def test_gradient_reaches_every_weight() -> None:
    torch.manual_seed(0)
    network = ResidualVNet(channels=[2, 4, 4])
    network(torch.randn(1, 1, 16, 16, 16)).square().mean().backward()
    assert all(p.grad is not None and bool(p.grad.ne(0).any()) for p in network.parameters() if p.ndim > 1)


def test_a_state_dict_says_its_widths() -> None:
    found = ResidualVNet.identify(ResidualVNet(out_channels=3, channels=[2, 4]).state_dict())
    assert found[0] == "a V-Net of channels [2,4] for 2 organ class(es) (activation relu downsampling max)"
    assert ResidualVNet.identify(torch.nn.Conv3d(1, 1, 1).state_dict()) == ("", "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"channels": [4]}, "two or more"),
        ({"dropout": 1}, "dropout"),
        ({"norm": "group"}, "norm must be one of instance, batch, none, got 'group'"),
        ({"downsampling": "mean"}, "downsampling must be one of max, stride"),
    ],
)
def test_wrong_networks(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ResidualVNet(**arguments)
    with pytest.raises(ValueError, match=r"1 channel\(s\), got shape"):
        ResidualVNet(channels=[2, 2])(torch.zeros(1, 2, 8, 8, 8))


def test_memory_estimate_counts_the_padded_voxels() -> None:
    network = ResidualVNet(channels=[4, 4], out_channels=3)
    assert network.inference_bytes((7, 8, 8)) == 4 * 8**3 * (8 * 4 + 3 + 2)


# --- weights ----------------------------------------------------------------------------------------------------------


def test_weights_from_the_labels(abdomens: Path) -> None:
    cases = find_cases(abdomens)
    from abdomen_ct_vnet.reading import read_label

    counts = sum(np.bincount(read_label(case)[0].ravel(), minlength=4) for case in cases)
    balanced = class_weights_of(None, UPSTREAM_ORGANS, cases)
    assert balanced == pytest.approx((counts.sum() / (4 * counts)).tolist(), rel=1e-3)
    assert class_weights_of(None, UPSTREAM_ORGANS, cases, "sqrt") == pytest.approx(np.sqrt(balanced).tolist(), rel=1e-3)
    assert class_weights_of([1, 2, 3, 4], UPSTREAM_ORGANS, cases) == [1, 2, 3, 4]
    assert class_weights_of(None, UPSTREAM_ORGANS, []) == [1] * 4
    with pytest.raises(BundleError, match=r"2 value\(s\)[\s\S]*background, liver, kidneys, spleen"):
        class_weights_of([1, 2], UPSTREAM_ORGANS, cases)
    with pytest.raises(BundleError, match="balanced or sqrt"):
        class_weights_of(None, UPSTREAM_ORGANS, cases, "log")
    more = {**UPSTREAM_ORGANS, "bladder": ["bladder"]}
    with pytest.raises(BundleError, match="no voxel of bladder"):
        class_weights_of(None, more, [{**case, "classes": more} for case in cases])


# --- preprocessing and sampling ---------------------------------------------------------------------------------------


def test_window() -> None:
    image = torch.tensor([-1000.0, -160, 40, 240, 3000]).view(1, 5, 1, 1)
    assert NormaliseCTd()({"image": image})["image"].ravel().tolist() == [0, 0, 0.5, 1, 1]
    z = NormaliseCTd(method="zscore")({"image": image})["image"]
    assert (float(z.mean()), float(z.std(unbiased=False))) == pytest.approx((0, 1), abs=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([240, -160], "unit", None), "lower first"),
        (([0, 1], "minmax", None), "one of unit, zscore"),
        (([0, 1], "unit", [1, 1]), "three lengths"),
        (([0, 1], "unit", [1, 0, 1]), "three lengths"),
    ],
)
def test_wrong_settings(arguments: tuple, message: str) -> None:
    with pytest.raises(BundleError, match=message):
        check_settings(*arguments)


def test_classes_are_drawn_alike_however_small() -> None:
    label = torch.zeros(1, 24, 24, 24, dtype=torch.uint8)
    label[:, 2:14, 2:14, 2:14], label[:, 20, 20, 20] = 1, 2
    image = torch.rand(1, 24, 24, 24)
    image[:, :, :, 22:] = 0  # air
    listed = OrganVoxelsd(3)({"image": image, "label": label, "case": "x"})
    assert [len(voxels) for voxels in listed["label_cls_indices"]] == [8000, 12**3, 1]
    crop = OrganCentredCropd([4, 4, 4], 3, organ_probability=0.8).set_random_state(0)
    drawn = [int(np.asarray(crop(listed)["label"])[0, 2, 2, 2]) for _ in range(300)]
    counts = np.bincount(drawn, minlength=3)
    assert counts[1] == pytest.approx(120, abs=35)
    assert counts[2] == pytest.approx(120, abs=35)
    patch = crop({**listed, "image": image.half()})
    assert patch["image"].shape == patch["label"].shape == (1, 4, 4, 4)
    assert patch["image"].dtype == torch.float32
    assert "label_cls_indices" not in patch
    without = OrganVoxelsd(3)({"image": image, "label": label * 0, "case": "x"})
    few = {**listed, "label_cls_indices": [*listed["label_cls_indices"][:2], torch.zeros(0, dtype=torch.int32)]}
    drawn = [int(np.asarray(crop(few)["label"])[0, 2, 2, 2]) for _ in range(300)]
    assert np.mean(np.asarray(drawn) == 1) == pytest.approx(0.8, abs=0.1), "it has the others' share"
    assert OrganCentredCropd([4, 4, 4], 3, 1.0)(without)["label"].max() == 0, "no organ: anywhere in the body"
    with pytest.raises(ValueError, match="organ_probability"):
        OrganCentredCropd([4, 4, 4], 3, 1.2)


# --- back to the scan's grid ------------------------------------------------------------------------------------------


def scan(shape: tuple[int, int, int] = (14, 12, 10), oblique: bool = False) -> MetaTensor:
    affine = np.array([[0, -2, 0, 30], [-1.5, 0, 0, 20], [0, 0, 3, -10], [0, 0, 0, 1]], float)  # PLS
    if oblique:
        angle = np.array([[0.98, -0.19899, 0, 0], [0.19899, 0.98, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
        affine = angle @ affine
    smooth = torch.rand(1, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    return MetaTensor(
        torch.nn.functional.interpolate(smooth[None], shape, mode="trilinear", align_corners=True)[0],
        affine=torch.from_numpy(affine),
    )


@pytest.mark.parametrize("oblique", [False, True])
def test_the_same_as_monais_inverse(oblique: bool) -> None:
    image = scan(oblique=oblique)
    geometry = Compose(
        [Orientationd("image", axcodes="RAS", labels=None), Spacingd("image", pixdim=(2.5, 2.0, 2.0), mode="bilinear")]
    )
    data = geometry({"image": image})
    logits = torch.randn(3, *data["image"].shape[1:], generator=torch.Generator().manual_seed(1))
    logits = torch.nn.functional.avg_pool3d(logits[None], 3, 1, 1)[0]
    native = {"native_affine": image.affine, "native_shape": torch.tensor(image.shape[1:])}
    ours = NativeClassesd(probabilities=True)({**data, **native, "pred": logits})
    both = {**data, "pred": MetaTensor(logits.softmax(0), meta=data["image"].meta)}
    theirs = Invertd("pred", geometry, orig_keys="image", nearest_interp=False)(both)["pred"]
    inner = (slice(None), *[slice(2, -2)] * 3)
    torch.testing.assert_close(
        ours["probabilities"].float()[inner], theirs.as_tensor().float()[inner], atol=2e-3, rtol=0
    )
    # written probabilities are rounded to three digits
    assert (ours["pred"][0] == ours["probabilities"].float().argmax(0)).float().mean() > 0.995
    assert (ours["confident"][0] == (ours["probabilities"].float().max(0).values > 0.5)).float().mean() > 0.99


def test_outside_the_crop_is_background() -> None:
    image = scan()
    affine = image.affine.clone()
    affine[:3, 3] += image.affine[:3, :3] @ torch.tensor([4.0, 3, 2], dtype=affine.dtype)
    part = MetaTensor(image[:, 4:9, 3:9, 2:9].as_tensor(), affine=affine)
    logits = torch.zeros(2, 5, 6, 7)
    logits[1] = 9
    native = {"native_affine": image.affine, "native_shape": torch.tensor(image.shape[1:])}
    found = NativeClassesd()({"image": part, "pred": logits, **native})
    expected = np.zeros(image.shape[1:])
    expected[4:9, 3:9, 2:9] = 1
    np.testing.assert_array_equal(found["pred"][0], expected)
    assert bool(found["confident"].all())


@pytest.mark.parametrize(
    ("first", "step", "count", "expected"),
    [
        (-0.5, 1.0, 11, slice(0, 11)),  # half a voxel beyond either end of ten
        (-0.6, 1.0, 11, slice(1, 11)),
        (-1.2, 2.5, 5, slice(0, 5)),  # slices of 2.5 voxels: the first and the last reach into the ten
        (-1.3, 2.5, 6, slice(1, 5)),
        (10.2, -2.5, 5, slice(0, 5)),
        (9.7, 0.4, 1, slice(0, 0)),
    ],
)
def test_a_voxel_is_on_a_grid_where_half_of_it_reaches(first: float, step: float, count: int, expected: slice) -> None:
    assert _inside(first + step * np.arange(count), 10) == expected


@pytest.mark.parametrize("shear", [0.0, 0.0004, 0.05])
@pytest.mark.parametrize("pixdim", [(0.4, 0.4, 0.4), (3.0, 2.0, 4.0)])
def test_what_the_header_check_lets_through_comes_back(shear: float, pixdim: tuple, tmp_path: Path) -> None:
    """The check and the way back agree, whatever the voxel size: a rounded header is no shear, a tilt is."""
    image = scan((24, 20, 16), oblique=True)
    affine = np.asarray(image.affine).copy()
    affine[:3, 1] += shear * affine[:3, 0]
    nib.save(nib.Nifti1Image(image[0].numpy(), affine), tmp_path / "ct.nii")
    findings = check_shear({"image": [str(tmp_path / "ct.nii")]})
    assert bool(findings) == (shear > 0.01)
    image.affine = torch.from_numpy(affine)
    data = Orientationd("image", axcodes="RAS", labels=None)({"image": image})
    data = Spacingd("image", pixdim=pixdim, mode="bilinear")(data)
    here = np.asarray(data["image"].affine)
    if findings:
        with pytest.raises(ValueError, match="sheared"):
            grid_positions(affine, image.shape[1:], here)
    else:
        assert len(grid_positions(affine, image.shape[1:], here)[1]) == 3


def test_grids_that_are_rotated_are_refused() -> None:
    turned = np.array([[0.9, -0.4, 0, 0], [0.4, 0.9, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    with pytest.raises(ValueError, match="rotated"):
        grid_positions(np.eye(4), (20, 20, 20), turned)
