"""Tests of the tumour-centred crop: where the tumour is, what is drawn how often, and what is cut out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from bundlekit.brats.sampling import TumourCentredCropd, TumourVoxelsd

torch.set_num_threads(1)

Voxels = dict[tuple[int, int, int], int]


def labelled(shape: tuple[int, ...], voxels: Voxels) -> torch.Tensor:
    label = torch.zeros((1, *shape), dtype=torch.uint8)
    for where, index in voxels.items():
        label[(0, *where)] = index
    return label


def prepared(label: torch.Tensor, image: torch.Tensor | None = None) -> dict[str, Any]:
    """A case as the crop gets it; without an image, every voxel is brain and holds its own number."""
    if image is None:
        image = torch.arange(1, label.numel() + 1, dtype=torch.float32).reshape(label.shape)
    return TumourVoxelsd()({"image": image, "label": label, "case": "a"})


def centres(data: dict[str, Any], draws: int, seed: int = 0, **kwargs: Any) -> np.ndarray:
    crop = TumourCentredCropd((4, 4, 4), **kwargs)
    crop.set_random_state(seed=seed)
    found = []
    for _ in range(draws):
        crop.randomize(data)
        found.append(crop.centre)
    return np.array(found)


def share(found: np.ndarray, mask: torch.Tensor) -> float:
    """Part of the centres that lie in a mask (HWD)."""
    return float(mask.numpy()[tuple(found.T)].astype(bool).mean())


def bound(p: float, draws: int) -> float:
    """Four and a half standard deviations of a share."""
    return 4.5 * (p * (1 - p) / draws) ** 0.5


# --- where the tumour is ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("voxels", "lesions"),  # in the order of the voxels
    [
        pytest.param({}, [], id="none"),
        pytest.param({(0, 0, 0): 1}, [0], id="one voxel"),
        pytest.param({(0, 0, 0): 1, (0, 0, 1): 1}, [0, 0], id="a face in common"),
        pytest.param({(0, 0, 0): 1, (0, 1, 1): 1}, [0, 0], id="an edge in common"),
        pytest.param({(0, 0, 0): 1, (1, 1, 1): 1}, [0, 0], id="a corner in common"),
        pytest.param({(2, 0, 2): 1, (1, 1, 3): 1}, [0, 0], id="another corner in common"),
        pytest.param({(0, 0, 0): 1, (0, 0, 2): 1}, [0, 1], id="a gap along the last axis"),
        pytest.param({(0, 0, 0): 1, (2, 0, 0): 1}, [0, 1], id="a gap along the first axis"),
        pytest.param({(0, 0, 0): 1, (1, 1, 1): 2, (2, 2, 2): 3}, [0, 0, 0], id="a lesion of three classes"),
        pytest.param({(0, 0, 0): 2, (0, 3, 3): 3, (1, 0, 0): 2, (3, 3, 0): 1}, [0, 1, 0, 2], id="three lesions"),
        pytest.param({(0, 0, 3): 1, (0, 1, 0): 1}, [0, 1], id="neighbours in memory, not in space"),
    ],
)
def test_voxels_classes_and_lesions_by_hand(voxels: Voxels, lesions: list[int]) -> None:
    shape = (4, 4, 5)
    data = prepared(labelled(shape, voxels))
    where = sorted(voxels)
    assert data["tumour_voxels"].tolist() == [(i * 4 + j) * 5 + k for i, j, k in where]
    assert data["tumour_classes"].tolist() == [voxels[w] for w in where]
    assert data["tumour_lesions"].tolist() == lesions
    assert [data[f"tumour_{n}"].dtype for n in ("voxels", "classes", "lesions")] == [
        torch.int32,
        torch.uint8,
        torch.int32,
    ]


def test_the_case_itself_is_left_alone() -> None:
    case = {"label": labelled((3, 3, 3), {(1, 1, 1): 3}), "case": "a"}
    result = TumourVoxelsd()(case)
    assert set(case) == {"label", "case"}
    assert result["label"] is case["label"]


def test_more_lesions_than_sixteen_bits_can_number() -> None:
    label = torch.zeros(1, 82, 82, 82, dtype=torch.uint8)
    label[0, ::2, ::2, ::2] = 1  # 41 ** 3 voxels that do not touch
    lesions = TumourVoxelsd()({"label": label})["tumour_lesions"]
    assert torch.equal(lesions, torch.arange(41**3, dtype=torch.int32))


# --- what is drawn how often --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tumour_in_air() -> dict[str, Any]:
    """A tumour where the image is 0, so that no brain draw can hit it."""
    label = labelled((10, 10, 10), {(5, 5, k): 1 + k % 3 for k in range(10)})
    return prepared(label, (label == 0).float())


@pytest.mark.parametrize("draw", ["voxel", "region", "lesion"])
@pytest.mark.parametrize("probability", [0, 0.2, 0.5, 1])
def test_tumour_probability(tumour_in_air: dict[str, Any], probability: float, draw: str) -> None:
    found = centres(tumour_in_air, 2000, tumour_probability=probability, draw=draw)
    tumour = share(found, tumour_in_air["label"][0])
    assert abs(tumour - probability) <= bound(probability, 2000)  # exactly 0 and 1 at the ends


def test_half_of_the_patches_by_default(tumour_in_air: dict[str, Any]) -> None:
    crop = TumourCentredCropd((4, 4, 4))
    assert (crop.tumour_probability, crop.draw) == (0.5, "voxel")


@pytest.mark.parametrize("draw", ["voxel", "region", "lesion"])
def test_every_voxel_of_one_lesion_is_drawn_as_often(draw: str) -> None:
    voxels = {(n % 3, n // 3, n % 2): 2 for n in range(12)}
    data = prepared(labelled((6, 6, 6), voxels))
    assert data["tumour_lesions"].unique().tolist() == [0]
    found = centres(data, 6000, tumour_probability=1, draw=draw)
    counts = [int((found == where).all(axis=1).sum()) for where in sorted(voxels)]
    assert sum(counts) == 6000
    assert stats.chisquare(counts).pvalue > 1e-4


@pytest.fixture(scope="module")
def small_and_large() -> dict[str, Any]:
    """20 voxels of ET and 2000 of ED, apart."""
    label = torch.zeros(1, 30, 24, 20, dtype=torch.uint8)
    label[0, :20, :10, :10] = 2
    label[0, 25:29, 20, 10:15] = 3
    return prepared(label)


@pytest.mark.parametrize(("draw", "expected"), [("voxel", 20 / 2020), ("region", 0.5), ("lesion", 0.5)])
def test_how_often_a_small_satellite_is_seen(small_and_large: dict[str, Any], draw: str, expected: float) -> None:
    found = centres(small_and_large, 3000, tumour_probability=1, draw=draw)
    satellite = share(found, small_and_large["label"][0] == 3)
    assert abs(satellite - expected) <= bound(expected, 3000)
    assert share(found, small_and_large["label"][0]) == 1


@pytest.mark.parametrize(
    ("draw", "expected"), [("voxel", (4 / 26, 2 / 26, 20 / 26)), ("region", (1 / 3, 1 / 3, 1 / 3))]
)
def test_regions_of_one_lesion(draw: str, expected: tuple[float, ...]) -> None:
    voxels = {(0, 0, k): 1 for k in range(4)} | {(1, 0, k): 3 for k in range(20)} | {(2, 0, k): 2 for k in range(2)}
    data = prepared(labelled((4, 4, 20), voxels))
    found = centres(data, 3000, tumour_probability=1, draw=draw)
    for index, p in zip((1, 2, 3), expected, strict=True):
        assert abs(share(found, data["label"][0] == index) - p) <= bound(p, 3000)


def test_lesions_of_one_class() -> None:
    voxels = {(0, 0, k): 1 for k in range(20)} | {(3, 3, 3): 1}
    data = prepared(labelled((4, 4, 20), voxels))
    found = centres(data, 2000, tumour_probability=1, draw="lesion")
    assert abs(float((found == (3, 3, 3)).all(axis=1).mean()) - 0.5) <= bound(0.5, 2000)


def test_brain_draws_are_in_the_brain_and_everywhere_in_it() -> None:
    image = torch.zeros(2, 6, 6, 6)
    image[0, :3] = 1  # one channel each: a voxel is brain where any is not 0
    image[1, 5] = -1
    data = prepared(labelled((6, 6, 6), {(4, 0, 0): 1}), image)
    found = centres(data, 4000, tumour_probability=0)
    assert share(found, (image != 0).any(dim=0)) == 1
    assert len(np.unique(found, axis=0)) == int((image != 0).any(dim=0).sum()) == 144
    counts = np.unique(found, axis=0, return_counts=True)[1]
    assert stats.chisquare(counts).pvalue > 1e-4


@pytest.mark.parametrize("draw", ["voxel", "region", "lesion"])
def test_without_tumour_always_a_brain_patch(draw: str) -> None:
    image = torch.zeros(1, 6, 6, 6)
    image[0, 2:5] = 1
    found = centres(prepared(labelled((6, 6, 6), {}), image), 300, tumour_probability=1, draw=draw)
    assert share(found, image[0]) == 1


def test_an_image_of_air_ends_on_some_voxel() -> None:
    found = centres(prepared(labelled((3, 4, 5), {}), torch.zeros(1, 3, 4, 5)), 20)
    assert ((found >= 0) & (found < (3, 4, 5))).all()


# --- what is cut out ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("length", "size", "middle", "start"),
    [
        (10, 4, 5, 3),  # an even patch has its centre at index size // 2
        (10, 3, 5, 4),
        (10, 4, 2, 0),
        (10, 4, 1, 0),  # moved inwards
        (10, 4, 0, 0),
        (10, 4, 8, 6),
        (10, 4, 9, 6),
        (10, 3, 9, 7),
        (10, 10, 0, 0),
        (10, 1, 9, 9),
    ],
)
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_patch_along_one_axis_by_hand(length: int, size: int, middle: int, start: int, axis: int) -> None:
    shape, sizes, centre = [1, 1, 1], [1, 1, 1], [0, 0, 0]
    shape[axis], sizes[axis], centre[axis] = length, size, middle
    image = torch.arange(1, length + 1).reshape(1, *shape)
    patch = TumourCentredCropd(sizes).crop(image, centre)
    assert patch.shape == (1, *sizes)
    assert patch.flatten().tolist() == list(range(start + 1, start + size + 1))


@pytest.mark.parametrize(
    ("length", "size", "before", "after"), [(3, 4, 0, 1), (3, 5, 1, 1), (3, 6, 1, 2), (1, 8, 3, 4), (4, 4, 0, 0)]
)
@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float16, torch.float32])
def test_smaller_volume_is_padded_on_both_sides(
    length: int, size: int, before: int, after: int, axis: int, dtype: torch.dtype
) -> None:
    shape, sizes = [5, 5, 5], [3, 3, 3]
    shape[axis], sizes[axis] = length, size
    image = torch.arange(1, 26 * length - length + 1).reshape(1, *shape).to(dtype)
    for middle in range(length):
        centre = [2, 2, 2]
        centre[axis] = middle
        patch = TumourCentredCropd(sizes).crop(image, centre)
        inside = [slice(1, 4)] * 3
        inside[axis] = slice(None)
        expected = image[(slice(None), *inside)]
        patch = patch.movedim(axis + 1, -1)
        assert not patch[..., :before].any()
        assert not patch[..., size - after :].any()
        assert torch.equal(patch[..., before : size - after], expected.movedim(axis + 1, -1).to(patch.dtype))


@pytest.mark.parametrize("size", [(4, 5, 6), (1, 11, 3), (9, 11, 12)])
def test_patches_lie_inside_and_hold_their_centre(size: tuple[int, ...]) -> None:
    shape = (9, 11, 12)
    image = torch.arange(1, 1 + 9 * 11 * 12).reshape(1, *shape)
    crop = TumourCentredCropd(size)
    corners = [(i, j, k) for i in (0, 4, 8) for j in (0, 5, 10) for k in (0, 6, 11)]
    for centre in corners:
        start = [int(np.clip(c - s // 2, 0, n - s)) for c, s, n in zip(centre, size, shape, strict=True)]
        patch = crop.crop(image, centre)
        assert torch.equal(patch, image[(slice(None), *(slice(a, a + s) for a, s in zip(start, size, strict=True)))])
        assert int(image[(0, *centre)]) in patch


@pytest.mark.parametrize("shape", [(12, 11, 10), (3, 11, 4)])
def test_image_and_label_are_cropped_alike(shape: tuple[int, int, int]) -> None:
    number = torch.arange(1, 1 + shape[0] * shape[1] * shape[2]).reshape(1, *shape)
    data = prepared((number % 4).to(torch.uint8), torch.cat((number, -number)).float())
    crop = TumourCentredCropd((6, 6, 6))
    crop.set_random_state(seed=0)
    for _ in range(20):
        patch = crop(data)
        assert patch["image"].shape == (2, 6, 6, 6)
        assert patch["label"].shape == (1, 6, 6, 6)
        assert torch.equal(patch["label"][0], (patch["image"][0].long() % 4).to(torch.uint8))
        assert torch.equal(patch["image"][1], -patch["image"][0])


@pytest.mark.parametrize(
    ("stored", "returned"), [(torch.float16, torch.float32), (torch.float32, torch.float32), (torch.uint8, torch.uint8)]
)
def test_patch_is_a_contiguous_copy(stored: torch.dtype, returned: torch.dtype) -> None:
    image = torch.arange(64).reshape(1, 4, 4, 4).to(stored)
    for size in (2, 4):
        patch = TumourCentredCropd((size, size, size)).crop(image, (2, 2, 2))
        assert patch.dtype == returned
        assert patch.is_contiguous()
        patch += 1
        assert torch.equal(image.flatten().long(), torch.arange(64))


def test_lists_of_voxels_are_dropped_and_the_rest_is_kept() -> None:
    data = prepared(labelled((6, 6, 6), {(1, 1, 1): 1}))
    assert set(TumourCentredCropd((4, 4, 4))(data)) == {"image", "label", "case"}
    assert {"tumour_voxels", "tumour_classes", "tumour_lesions"} < set(data)
    assert data["image"].shape == (1, 6, 6, 6)


def test_other_keys() -> None:
    label = labelled((6, 6, 6), {(1, 2, 3): 1})
    data = TumourVoxelsd("truth")({"scan": label.float(), "truth": label})
    patch = TumourCentredCropd((3, 3, 3), tumour_probability=1, image_key="scan", label_key="truth")(data)
    assert int(patch["truth"].sum()) == int(patch["truth"][0, 1, 1, 1]) == int(patch["scan"][0, 1, 1, 1]) == 1


# --- random state -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("draw", ["voxel", "region", "lesion"])
def test_the_same_random_state_replays(small_and_large: dict[str, Any], draw: str) -> None:
    runs = [centres(small_and_large, 30, seed=seed, draw=draw) for seed in (3, 3, 4)]
    assert (runs[0] == runs[1]).all()
    assert (runs[0] != runs[2]).any()


def test_draw_and_crop_are_separate(small_and_large: dict[str, Any]) -> None:
    together, apart = TumourCentredCropd((6, 5, 4)), TumourCentredCropd((6, 5, 4))
    together.set_random_state(seed=1)
    apart.set_random_state(seed=1)
    for _ in range(10):
        patch = together(small_and_large)
        apart.randomize(small_and_large)
        for key in ("image", "label"):
            assert torch.equal(patch[key], apart.crop(small_and_large[key], apart.centre))


def test_the_draw_does_not_depend_on_the_patch_size(small_and_large: dict[str, Any]) -> None:
    crops = [TumourCentredCropd(size) for size in ((4, 4, 4), (40, 2, 9))]
    for crop in crops:
        crop.set_random_state(seed=5)
        crop.randomize(small_and_large)
    assert crops[0].centre == crops[1].centre


@pytest.mark.parametrize("probability", [-0.1, 1.1, 50, float("nan")])
def test_wrong_probability(probability: float) -> None:
    with pytest.raises(ValueError, match="tumour_probability must be from 0 to 1"):
        TumourCentredCropd((4, 4, 4), tumour_probability=probability)


@pytest.mark.parametrize("draw", ["Voxel", "", "class"])
def test_wrong_draw(draw: str) -> None:
    with pytest.raises(ValueError, match="draw must be"):
        TumourCentredCropd((4, 4, 4), draw=draw)
