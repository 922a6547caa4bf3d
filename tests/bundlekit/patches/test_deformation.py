"""Crop, rotation and elastic deformation in one map, each checked where the answer is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.transforms import RandTorchIOd

from bundlekit.patches.deformation import Deformation, RandDeformedPatchd

SHAPE = (20, 24, 28)
EYE = np.eye(3)


def volumes(seed: int = 0) -> dict[str, torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return {
        "image": torch.rand(2, *SHAPE, generator=rng),
        "label": torch.randint(0, 4, (1, *SHAPE), generator=rng, dtype=torch.uint8),
        "case": "a",
    }


def still(patch: tuple[int, int, int] = (8, 10, 12)) -> RandDeformedPatchd:
    return RandDeformedPatchd(patch, affine_probability=0, elastic_probability=0)


def centre_of(start: tuple[int, int, int], patch: tuple[int, int, int]) -> tuple[float, float, float]:
    x, y, z = (s + (n - 1) / 2 for s, n in zip(start, patch, strict=True))
    return x, y, z


def test_without_deformation_it_is_a_crop() -> None:
    data = volumes()
    out = still().apply(data, Deformation(centre_of((3, 4, 5), (8, 10, 12)), EYE, None))
    torch.testing.assert_close(out["image"], data["image"][:, 3:11, 4:14, 5:17], rtol=0, atol=0)
    torch.testing.assert_close(out["label"], data["label"][:, 3:11, 4:14, 5:17], rtol=0, atol=0)
    assert out["case"] == "a"
    out["image"].zero_()
    assert bool((data["image"][:, 3:11, 4:14, 5:17] != 0).any()), "a copy, not the cached volume"


@pytest.mark.parametrize("start", [(3, 4, 5), (0, 0, 0), (12, 14, 16)])
def test_resampling_with_nothing_to_do_is_the_same_crop(start: tuple[int, int, int]) -> None:
    data, patch = volumes(), (8, 10, 12)
    centre = centre_of(start, patch)
    plain = still(patch).apply(data, Deformation(centre, EYE, None))
    resampled = still(patch).apply(data, Deformation(centre, EYE, np.zeros((3, 7, 7, 7))))
    torch.testing.assert_close(resampled["image"], plain["image"], rtol=0, atol=1e-4)
    torch.testing.assert_close(resampled["label"], plain["label"], rtol=0, atol=0)
    assert resampled["label"].dtype == torch.uint8


def test_a_patch_larger_than_the_volume_repeats_its_border() -> None:
    data, patch = volumes(), (24, 24, 28)
    start = (-2, 0, 0)
    for control in (None, np.zeros((3, 7, 7, 7))):
        out = still(patch).apply(data, Deformation(centre_of(start, patch), EYE, control))
        torch.testing.assert_close(out["image"][:, 2:22], data["image"], rtol=0, atol=1e-4)
        torch.testing.assert_close(out["image"][:, 0], data["image"][:, 0], rtol=0, atol=1e-4)
        torch.testing.assert_close(out["label"][:, 23], data["label"][:, 19], rtol=0, atol=0)


def test_a_quarter_turn_is_rot90() -> None:
    data = {key: value[:, :20, :20, :20] for key, value in volumes().items() if key != "case"}
    turn = np.array([[0, 1, 0], [-1, 0, 0], [0, 0, 1]], float)
    patch = (20, 20, 20)
    out = still(patch).apply(data, Deformation(centre_of((0, 0, 0), patch), turn, None))
    for key in data:
        torch.testing.assert_close(out[key], torch.rot90(data[key], 1, (1, 2)), rtol=0, atol=1e-4)


def test_every_voxel_comes_from_where_the_map_says() -> None:
    """On a volume whose intensities are coordinates, interpolation is exact."""
    axes = [torch.arange(n, dtype=torch.float32) for n in SHAPE]
    image = torch.stack(torch.meshgrid(*axes, indexing="ij"))
    transform = RandDeformedPatchd((8, 8, 8), affine_probability=1, elastic_probability=1)
    transform.set_random_state(3)
    label = torch.ones(1, *SHAPE, dtype=torch.uint8)
    for _ in range(5):
        out = transform({"image": image, "label": label})
        assert transform.deformation is not None
        points = transform.deformation.sources((8, 8, 8))
        limits = torch.tensor([[n - 1] for n in SHAPE], dtype=torch.float32)
        expected = points.reshape(3, -1).clamp(torch.zeros(3, 1), limits).reshape(3, 8, 8, 8)
        torch.testing.assert_close(out["image"], expected, rtol=0, atol=1e-3)


def test_size_of_the_deformation_and_no_folding() -> None:
    """Displacements reach most of the amplitude, never exceed it, and the map stays one to one."""
    patch, amplitude = 48, 0.47
    transform = RandDeformedPatchd((patch,) * 3, affine_probability=0, elastic_probability=1, amplitude=amplitude)
    transform.set_random_state(0)
    data = {"image": torch.zeros(1, 64, 64, 64), "label": torch.ones(1, 64, 64, 64, dtype=torch.uint8)}
    largest = 0.0
    for _ in range(10):
        transform.randomize(data)
        assert transform.deformation is not None
        moved = transform.deformation.sources((patch,) * 3)
        rest = Deformation(transform.deformation.centre, EYE, None).sources((patch,) * 3)
        shift = moved - rest
        largest = max(largest, float(shift.abs().max()))
        for side in (0, -1):
            for axis in (1, 2, 3):
                assert float(shift.select(axis, side).abs().max()) < 1e-5, "the patch's faces stay where they are"
        slopes = np.stack([np.stack(np.gradient(component.numpy())) for component in moved])
        assert np.linalg.det(np.moveaxis(slopes, (0, 1), (-2, -1))).min() > 0.05
    limit = amplitude * patch / 6
    assert 0.4 * limit < largest <= limit


def test_rotation_and_scaling_stay_in_their_ranges() -> None:
    transform = RandDeformedPatchd(
        (8, 8, 8), affine_probability=1, elastic_probability=0, rotate_range=0.2, scale_range=0.1
    )
    transform.set_random_state(0)
    data = volumes()
    scales = []
    for _ in range(200):
        transform.randomize(data)
        assert transform.deformation is not None
        matrix = transform.deformation.matrix
        singular = np.linalg.svd(matrix, compute_uv=False)
        scales += singular.tolist()
        angle = np.arccos(np.clip((np.trace(matrix @ np.diag(1 / np.linalg.norm(matrix, axis=0))) - 1) / 2, -1, 1))
        assert angle <= 0.2 * np.sqrt(3) + 1e-6
    assert 1 / 1.1 - 1e-6 <= min(scales) < 0.93
    assert 1.07 < max(scales) <= 1 / 0.9 + 1e-6


def test_patches_are_centred_on_the_label_as_often_as_asked() -> None:
    label = torch.zeros(1, 40, 40, 40, dtype=torch.uint8)
    label[:, 18:22, 18:22, 18:22] = 2  # a thousandth of the volume
    label[:, :, :, 30:] = 1
    data = {"image": label.float(), "label": label}
    transform = RandDeformedPatchd(
        (1, 1, 1), affine_probability=0, elastic_probability=0, centre_probability=0.7, centre_above=0
    )
    transform.set_random_state(0)
    hits = sum(int(transform(data)["label"]) > 0 for _ in range(600)) / 600
    share = float((label > 0).float().mean())
    assert hits == pytest.approx(0.7 + 0.3 * share, abs=0.06)
    only = RandDeformedPatchd(
        (1, 1, 1), affine_probability=0, elastic_probability=0, centre_probability=1, centre_above=0
    )
    only.set_random_state(0)
    assert all(int(only(data)["label"]) > 0 for _ in range(100))


def test_rare_values_are_centred_on_as_often_as_asked() -> None:
    label = torch.ones(1, 40, 40, 40, dtype=torch.uint8)
    label[:, 15:24, 15:24, 15:24] = 5
    transform = RandDeformedPatchd(
        (1, 1, 1), affine_probability=0, elastic_probability=0, rare=(5, 7), rare_probability=0.6
    )
    transform.set_random_state(0)
    hits = sum(int(transform({"image": label.float(), "label": label})["label"]) == 5 for _ in range(400)) / 400
    assert hits == pytest.approx(0.6, abs=0.06)
    none = torch.ones(1, 8, 8, 8, dtype=torch.uint8)  # a volume without them
    assert int(transform({"image": none.float(), "label": none})["label"]) == 1


def test_a_patch_stays_inside_the_volume() -> None:
    transform = still((8, 10, 12))
    transform.set_random_state(1)
    data = volumes()
    for _ in range(100):
        transform.randomize(data)
        assert transform.deformation is not None
        for centre, n, size in zip(transform.deformation.centre, SHAPE, (8, 10, 12), strict=True):
            start = centre - (size - 1) / 2
            assert start == int(start)
            assert 0 <= start <= n - size


def test_same_state_same_patch() -> None:
    transform = RandDeformedPatchd((8, 8, 8), affine_probability=0.5, elastic_probability=0.5)
    first = [transform.set_random_state(seed)(volumes()) for seed in range(6)]
    second = [transform.set_random_state(seed)(volumes()) for seed in range(6)]
    for a, b in zip(first, second, strict=True):
        torch.testing.assert_close(a["image"], b["image"], rtol=0, atol=0)
    assert not torch.equal(first[0]["image"], first[1]["image"])


def test_half_precision_volumes_give_single_precision_patches() -> None:
    data = volumes()
    data["image"] = data["image"].half()
    for probability in (0, 1):
        transform = RandDeformedPatchd((8, 8, 8), affine_probability=probability, elastic_probability=0)
        assert transform.set_random_state(0)(data)["image"].dtype == torch.float32


def test_labels_alone() -> None:
    transform = RandDeformedPatchd((8, 8, 8), images=(), labels=("structures",), centre_key="structures")
    out = transform.set_random_state(0)({"structures": volumes()["label"]})
    assert out["structures"].shape == (1, 8, 8, 8)
    assert out["structures"].dtype == torch.uint8


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"affine_probability": 1.5}, "affine_probability must be from 0 to 1"),
        ({"elastic_probability": -1}, "elastic_probability"),
        ({"centre_probability": 2}, "centre_probability"),
        ({"control_points": 4}, "5 or more, got 4"),
        ({"amplitude": 0.6}, "more could fold"),
    ],
)
def test_wrong_arguments(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RandDeformedPatchd((8, 8, 8), **arguments)


def test_torchios_own_deformation_can_take_its_place() -> None:
    """As torchio.yaml builds it: the label keeps its values and follows the image."""
    x = torch.zeros(1, 32, 32, 32)
    x[:, 8:24, 8:24, 8:24] = 3.0
    elastic = RandTorchIOd(
        keys=["image", "label"], name="RandomElasticDeformation", p=1.0, num_control_points=7,
        max_displacement=(2.5, 2.5, 2.5), label_keys=["label"],
    )  # fmt: skip
    torch.manual_seed(0)
    out = elastic({"image": x, "label": x.to(torch.uint8)})
    assert set(np.unique(out["label"]).tolist()) == {0, 3}
    assert not torch.equal(out["image"], x)
    assert float(((out["image"] > 1.5) == (out["label"] == 3)).float().mean()) > 0.99
