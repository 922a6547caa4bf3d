"""Images painted from label maps: what is random, what is not, and what a network is told about them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from monai.transforms import Compose
from scipy import ndimage

from bundlekit.images.intensities import foreground, normalise, statistics
from bundlekit.label_maps.numberings import (
    CSF,
    DEEP_GREY,
    EXTRA_CEREBRAL,
    GM,
    IGNORE,
    STRUCTURES,
    TISSUE_OF_STRUCTURE,
    WM,
)
from bundlekit.virtual import LabelPainter, PaintBatch, PaintSeedd, StructureCountsd
from bundlekit.virtual.painting import _kept

NAMES = [structure.name for structure in STRUCTURES]
K = len(STRUCTURES)
BRAIN = [index for index, structure in enumerate(STRUCTURES) if structure.brain and structure.name != "sulcal CSF"]


def head(size: int = 40) -> torch.Tensor:
    """Nested balls: skin, bone, CSF, cortex, white matter, a ventricle with a stem beneath; 1HWD structure indices."""
    axes = np.ogrid[:size, :size, :size]
    r = np.sqrt(sum((a - (size - 1) / 2) ** 2 for a in axes)) / size
    out = np.zeros((size,) * 3, np.uint8)
    for radius, name in (
        (0.48, "skin"), (0.44, "cortical bone"), (0.40, "sulcal CSF"), (0.36, "cerebral cortex"),
        (0.28, "cerebral white matter"), (0.10, "lateral ventricle"),
    ):  # fmt: skip
        out[r < radius] = NAMES.index(name)
    out[: size // 4][out[: size // 4] == NAMES.index("cerebral white matter")] = NAMES.index("brain stem")
    return torch.from_numpy(out)[None]


def counts_of(structures: torch.Tensor) -> np.ndarray:
    return StructureCountsd()({"structures": structures})["structure_counts"].numpy()


def painted(seed: int, **settings: float) -> tuple[torch.Tensor, torch.Tensor]:
    painter, structures = LabelPainter(**settings), head()
    return painter.paint(structures, painter.draw(counts_of(structures), seed))


def test_same_seed_same_image_and_others_differ() -> None:
    first, again, other = painted(1)[0], painted(1)[0], painted(2)[0]
    torch.testing.assert_close(first, again, rtol=0, atol=0)
    assert float((first - other).abs().mean()) > 0.1


@pytest.mark.parametrize(
    ("seed", "method", "line", "mean", "deviation", "voxels"),
    [
        (
            0, "zscore", [-2.2455, -0.7238, 0.74849, 1.26706, 3.55139, 1.04365, 0.69757, 0.09213], -1.701545, 1.064857,
            [46744, 4968, 6664, 5572, 52],
        ),
        (
            3, "percentile", [0.0, 0.0, 0.71177, 0.5543, 0.0, 0.86677, 0.79413, 0.0], 0.116455, 0.250588,
            [51432, 280, 6664, 5572, 52],
        ),
    ],
)  # fmt: skip
def test_a_seed_gives_the_image_that_it_always_gave(
    seed: int, method: str, line: list[float], mean: float, deviation: float, voxels: list[int]
) -> None:
    """A training that goes on sees what it would have seen; recorded once, on a CPU."""
    image, label = painted(seed, method=method)
    np.testing.assert_allclose(image[0, 20, 20, ::5].numpy(), line, atol=2e-5)
    assert (float(image.mean()), float(image.std())) == pytest.approx((mean, deviation), abs=1e-5)
    assert label.unique(return_counts=True)[1].tolist() == voxels


def test_label_is_the_tissue_of_the_structure() -> None:
    structures = head()
    _, label = painted(0, strip_probability=0)
    expected = torch.tensor(TISSUE_OF_STRUCTURE, dtype=torch.uint8)[structures.long()]
    torch.testing.assert_close(label, expected, rtol=0, atol=0)
    assert {CSF, GM, WM, IGNORE, 0} == set(label.unique().tolist())


def test_stripped_images_have_no_head_and_no_label_where_they_were_cut() -> None:
    structures = head()
    rims = set()
    painter = LabelPainter(strip_probability=1)
    for seed in range(12):
        paint = replace(painter.draw(counts_of(structures), seed), rests=False)
        image, label = painter.paint(structures, paint)
        air = image == image[0, 0, 0, 0]
        outside = torch.isin(structures, torch.tensor(EXTRA_CEREBRAL))
        assert bool(air[outside].all())
        assert bool((label[outside] == 0).all())
        brain = ~outside & (structures != NAMES.index("sulcal CSF"))
        torch.testing.assert_close(
            label[brain], torch.tensor(TISSUE_OF_STRUCTURE, dtype=torch.uint8)[structures[brain].long()]
        )
        rims.add(int((label == CSF).sum()))
    assert len(rims) > 1, "skull strippers leave more or less of the fluid"


def test_rests_of_the_skull_stay_near_the_brain_and_are_background() -> None:
    structures = head()
    painter = LabelPainter(strip_probability=1)
    paint = replace(painter.draw(counts_of(structures), 0), rests=True, rim=5)
    image, label = painter.paint(structures, paint)
    bone = structures == NAMES.index("cortical bone")
    assert bool((image != image[0, 0, 0, 0])[bone].any())
    assert bool((label[bone] == 0).all())
    near = replace(paint, rim=1)
    inside = structures == NAMES.index("cerebral cortex")
    distance = torch.from_numpy(ndimage.distance_transform_cdt(~inside[0].numpy(), "chessboard"))
    image, _ = painter.paint(structures, near)
    seen = (image != image[0, 0, 0, 0])[0]
    assert int(distance[seen & ~torch.isin(structures[0], torch.tensor(BRAIN))].max()) == 1


def test_t1_contrast_is_a_t1s() -> None:
    structures = head()
    for seed in range(20):
        image, _ = painted(seed, t1_probability=1, strip_probability=1, low_resolution_probability=0)
        means = {
            n: float(image[structures == NAMES.index(n)].mean()) for n in NAMES if (structures == NAMES.index(n)).any()
        }
        assert (
            means["cerebral white matter"] > means["cerebral cortex"] > means["lateral ventricle"] > means["background"]
        )


def test_deep_grey_matter_of_a_t1_is_uneven_each_structure_by_itself() -> None:
    counts, others = counts_of(head()), [k for k in range(K) if k not in DEEP_GREY]
    deep = list(DEEP_GREY)
    paints = [LabelPainter(t1_probability=1).draw(counts, seed) for seed in range(30)]
    assert all(len(set(paint.unevenness[deep])) == len(deep) for paint in paints)
    assert all(len(set(paint.unevenness[others])) == 1 for paint in paints)
    assert max(paint.unevenness[deep].max() for paint in paints) > 2 * max(
        paint.unevenness[others].max() for paint in paints
    )
    assert len(set(LabelPainter(t1_probability=0).draw(counts, 0).unevenness)) == 1


def test_unevenness_is_a_slow_change_within_the_structure_that_has_it() -> None:
    structures = head()
    white, cortex = (structures == NAMES.index(n) for n in ("cerebral white matter", "cerebral cortex"))
    painter = LabelPainter(t1_probability=1, strip_probability=0, low_resolution_probability=0)
    paint = painter.draw(counts_of(structures), 0)
    smooth = replace(paint, noise=0.0, deviations=np.zeros(K), bias=np.zeros((4, 4, 4)), blur=0.0, gamma=1.0)
    flat, uneven = (
        painter.paint(structures, replace(smooth, unevenness=np.where(np.array(NAMES) == "cerebral cortex", u, 0.0)))[0]
        for u in (0.0, 0.2)
    )
    assert float(flat[cortex].std()) < 1e-5 < 0.05 / smooth.scale < float(uneven[cortex].std())
    torch.testing.assert_close(uneven[white], flat[white])
    steps = uneven[0].diff(dim=0)[(cortex[0, 1:] & cortex[0, :-1])]
    assert float(steps.abs().mean()) < 0.3 * float(uneven[cortex].std()), "neighbours are alike"


def test_any_contrast_occurs_otherwise() -> None:
    structures = head()
    orders = set()
    for seed in range(30):
        image, _ = painted(seed, t1_probability=0, strip_probability=0, low_resolution_probability=0)
        means = [
            float(image[structures == NAMES.index(n)].mean())
            for n in ("cerebral white matter", "cerebral cortex", "lateral ventricle")
        ]
        orders.add(tuple(np.argsort(means)))
    assert len(orders) == 6


@pytest.mark.parametrize("clean_air", [True, False])
def test_a_whole_head_is_normalised_as_preprocessing_does(clean_air: bool) -> None:
    """White matter lies where it does in an image that is normalised as a whole, with zeroed and with noisy air."""
    structures, white = head(64), NAMES.index("cerebral white matter")
    painter = LabelPainter(strip_probability=0, t1_probability=1, low_resolution_probability=0)
    errors = []
    counts = counts_of(structures)
    for seed in range(40):
        paint = painter.draw(counts, seed)
        if paint.clean_air != clean_air:
            continue
        image, _ = painter.paint(structures, replace(paint, bias=np.zeros((4, 4, 4)), blur=0.0))
        raw = image * paint.scale + paint.offset  # what a scanner would have given
        raw = torch.where(image == image.min(), 0, raw) if clean_air else raw
        again = normalise(raw, *statistics(raw.numpy()[foreground(raw)], "zscore"), "zscore")
        errors.append(float(image[structures == white].mean() - again[structures == white].mean()))
    assert len(errors) > 10
    assert abs(np.median(errors)) < 0.2, "the drawn jitter has a standard deviation of 0.2"
    assert np.percentile(np.abs(errors), 80) < 0.5


def test_counts_are_of_what_skull_stripping_leaves() -> None:
    structures = head()
    counts = counts_of(structures)
    assert counts.shape == (7, K)
    assert counts[-1].sum() == structures.numel()
    assert not counts[0][np.setdiff1d(np.arange(K), BRAIN)].any()
    np.testing.assert_array_equal(counts[3][BRAIN], counts[-1][BRAIN])
    for rim in range(6):
        paint = replace(LabelPainter().draw(counts, 0), stripped=True, rests=True, rim=rim)
        assert int(_kept(structures[0].long(), paint).sum()) == counts[rim].sum()


@pytest.mark.parametrize("method", ["zscore", "percentile"])
@pytest.mark.parametrize("rests", [False, True])
def test_a_stripped_brain_is_normalised_as_preprocessing_does(method: str, rests: bool) -> None:
    """The statistics foreseen from what the stripping leaves are those of the image, up to the drawn jitter."""
    structures = head(48)
    counts = counts_of(structures)
    painter = LabelPainter(method=method, strip_probability=1, low_resolution_probability=0)
    offsets, scales = [], []
    for seed in range(120):
        paint = painter.draw(counts, seed)
        if paint.rests != rests or len(offsets) == 20:
            continue
        image, _ = painter.paint(structures, replace(paint, bias=np.zeros((4, 4, 4))))
        inside = image[0][_kept(structures[0].long(), paint)]
        if method == "zscore":
            offsets.append(float(inside.mean()))
            scales.append(float(inside.std()))
        else:
            low, high = np.percentile(inside.numpy(), [0.5, 99.5])
            offsets.append(float(low))
            scales.append(float(high - low))
    assert len(offsets) > 15
    assert abs(np.mean(offsets)) < 0.15
    # partial volume leaves less of the extremes of so small a head
    assert np.mean(scales) == pytest.approx(1 if method == "zscore" else 0.85, abs=0.15)


def test_thick_slices_are_smooth_along_one_axis() -> None:
    structures = head()
    painter = LabelPainter(strip_probability=0, low_resolution_probability=0)
    paint = replace(painter.draw(counts_of(structures), 3), slices=(1.0, 1.0, 4.0), noise=0.0)
    sharp = replace(paint, slices=(1.0, 1.0, 1.0))
    thick, thin = painter.paint(structures, paint)[0][0], painter.paint(structures, sharp)[0][0]

    def roughness(volume: torch.Tensor, axis: int) -> float:
        return float(volume.diff(n=2, dim=axis).abs().mean())

    kept = [roughness(thick, axis) / roughness(thin, axis) for axis in range(3)]
    assert kept[2] < 0.8 * min(kept[:2])


def test_values_are_finite_and_bounded() -> None:
    for seed in range(20):
        for method, low, high in (("zscore", -6, 6), ("percentile", 0, 1)):
            image, _ = painted(seed, method=method)
            assert bool(torch.isfinite(image).all())
            assert float(image.min()) >= low
            assert float(image.max()) <= high


def test_a_batch_is_painted_sample_by_sample() -> None:
    structures = head()
    prepare = Compose([StructureCountsd(), PaintSeedd()]).set_random_state(0)
    items = [prepare({"structures": structures}) for _ in range(2)]
    assert items[0]["paint_seed"] != items[1]["paint_seed"]
    batch = {
        "structures": torch.stack([structures, structures]),
        "structure_counts": torch.stack([item["structure_counts"] for item in items]),
        "paint_seed": torch.tensor([item["paint_seed"] for item in items]),
    }
    painter = LabelPainter()
    images, labels = PaintBatch(painter)(batch, "cpu")
    assert images.shape == (2, 1, 40, 40, 40)
    assert labels.dtype == torch.uint8
    for index, item in enumerate(items):
        alone = painter.paint(structures, painter.draw(counts_of(structures), item["paint_seed"]))
        torch.testing.assert_close(images[index], alone[0], rtol=0, atol=0)
        torch.testing.assert_close(labels[index], alone[1], rtol=0, atol=0)


def test_a_map_of_air_alone_is_painted() -> None:
    painter = LabelPainter()
    air = torch.zeros(1, 8, 8, 8, dtype=torch.uint8)
    for seed in range(4):
        image, label = painter.paint(air, painter.draw(counts_of(air), seed))
        assert bool(torch.isfinite(image).all())
        assert not bool(label.any())


_PROBABILITIES = ("t1", "strip", "low_resolution", "lesion", "cut", "ageing", "shift", "ringing")


@pytest.mark.parametrize("name", [f"{name}_probability" for name in _PROBABILITIES])
def test_wrong_arguments(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be from 0 to 1, got 1.5"):
        LabelPainter(**{name: 1.5})
    with pytest.raises(ValueError, match="normalise must be one of"):
        LabelPainter(method="none")


# --- the brain alone, lesions, a field of view that ends in the head --------------------------------------------------


def test_the_brain_is_one_class_with_stem_and_fluid() -> None:
    structures = head()
    _, label = painted(3, target="brain", strip_probability=0.0)
    inside = torch.tensor([structure.brain for structure in STRUCTURES])[structures.long()]
    torch.testing.assert_close(label, inside.to(torch.uint8))
    assert bool((label[structures == NAMES.index("brain stem")] == 1).all())


def test_what_stripping_has_cut_is_no_brain() -> None:
    image, label = painted(3, target="brain", strip_probability=1.0, method="percentile")
    assert 0 < int(label.sum()) < int((head() > 0).sum())
    assert not bool(label[head() == NAMES.index("skin")].any())
    assert float(image[label == 1].mean()) > float(image[label == 0].mean())


def test_a_lesion_lies_in_the_brain_and_leaves_the_label() -> None:
    painter, structures = LabelPainter(lesion_probability=1.0, strip_probability=0.0, target="brain"), head()
    paint = painter.draw(counts_of(structures), 5)
    assert paint.lesion is not None
    paint = replace(paint, lesion=replace(paint.lesion, share=0.1, mean=3.0, deviation=0.0))
    ill, label = painter.paint(structures, paint)
    sound, same = painter.paint(structures, replace(paint, lesion=None))
    torch.testing.assert_close(label, same)
    brighter = (ill - sound) > 0.5
    assert 0.03 < float(brighter[label == 1].float().mean()) < 0.25, "a tenth, and what blur adds"
    assert not bool(brighter[structures == NAMES.index("skin")].any())


def test_lesions_of_the_old_are_white_matter_that_is_darker() -> None:
    painter, structures = LabelPainter(t1_probability=1.0, strip_probability=0.0, ageing_probability=1.0), head()
    paint = replace(painter.draw(counts_of(structures), 5), deviations=np.zeros(K), unevenness=np.zeros(K), noise=0.0)
    assert paint.ageing is not None
    means = paint.means.copy()
    means[NAMES.index("white matter lesion")] = 0.6
    ageing = replace(paint.ageing, ventricles=0.0, sulci=0.0, lesions=0.2, size=8)
    paint = replace(paint, means=means, ageing=ageing, blur=0.0, slices=(1.0, 1.0, 1.0))
    old, label = painter.paint(structures, paint)
    young, same = painter.paint(structures, replace(paint, ageing=None))
    torch.testing.assert_close(label, same)
    darker = old < young - 0.1
    assert set(label[darker].tolist()) == {WM}
    assert float(darker[structures == NAMES.index("cerebral white matter")].float().mean()) == pytest.approx(
        0.2, abs=0.02
    )


def test_ringing_reaches_beyond_a_border_and_leaves_the_mean() -> None:
    painter, structures = LabelPainter(strip_probability=0.0, t1_probability=1.0), head()
    paint = replace(painter.draw(counts_of(structures), 5), deviations=np.zeros(K), unevenness=np.zeros(K), noise=0.0)
    paint = replace(paint, blur=0.0, slices=(1.0, 1.0, 1.0), gamma=1.0, clean_air=False, bias=np.zeros((4, 4, 4)))
    plain, ringing = (painter.paint(structures, replace(paint, ringing=ringing))[0] for ringing in (0.0, 0.45))
    middle = structures == NAMES.index("cerebral white matter")
    assert float(plain[middle].std()) < 1e-5
    assert float(ringing[middle].std()) > 0.01
    assert float(ringing.mean()) == pytest.approx(float(plain.mean()), abs=0.1)  # magnitudes: air gains


def test_beyond_the_field_of_view_is_air_or_its_border() -> None:
    painter, structures = LabelPainter(cut_probability=1.0, strip_probability=0.0, target="brain"), head()
    paint = painter.draw(counts_of(structures), 5)
    assert paint.cut is not None
    cut = replace(paint.cut, axis=2, first=0.25, last=0.75)
    _, whole = painter.paint(structures, replace(paint, cut=None))
    _, label = painter.paint(structures, replace(paint, cut=replace(cut, air=True)))
    assert not bool(label[..., :10].any() | label[..., 30:].any())
    torch.testing.assert_close(label[..., 10:30], whole[..., 10:30])
    _, label = painter.paint(structures, replace(paint, cut=replace(cut, air=False)))
    torch.testing.assert_close(label[..., :10], whole[..., 10:11].expand(-1, -1, -1, 10))
    torch.testing.assert_close(label[..., 30:], whole[..., 29:30].expand(-1, -1, -1, 10))


def test_images_of_a_seed_do_not_depend_on_what_is_off() -> None:
    on = dict.fromkeys((f"{name}_probability" for name in ("lesion", "cut", "ageing", "shift", "ringing")), 1.0)
    painter, structures = LabelPainter(**on), head()
    paint = painter.draw(counts_of(structures), 7)
    assert all((paint.lesion, paint.cut, paint.ageing, any(paint.shift), paint.ringing))
    paint = replace(paint, lesion=None, cut=None, ageing=None, shift=(0.0, 0.0, 0.0), ringing=0.0)
    torch.testing.assert_close(painter.paint(structures, paint)[0], painted(7)[0], rtol=0, atol=0)


def test_an_unknown_target_is_refused() -> None:
    with pytest.raises(ValueError, match="target must be one of tissue, tissue_deep_grey, brain, got 'skull'"):
        LabelPainter(target="skull")


def test_deep_grey_matter_as_a_class_of_its_own() -> None:
    structures = head()
    for position, name in enumerate(("thalamus", "putamen", "hippocampus")):
        structures[0, 26:28, 12 + 4 * position : 15 + 4 * position, 18:22] = NAMES.index(name)
    deep, labels = torch.isin(structures, torch.tensor(DEEP_GREY)), []
    assert int(deep.sum()) == 3 * 2 * 3 * 4
    for target in ("tissue", "tissue_deep_grey"):
        painter = LabelPainter(strip_probability=0.0, t1_probability=1.0, target=target)
        labels.append(painter.paint(structures, painter.draw(counts_of(structures), 3))[1])
    tissue, label = labels
    assert (label[deep] == 4).all()
    assert (tissue[deep] == 2).all()
    assert torch.equal(label[~deep], tissue[~deep])
