"""Foreground, skull check, N4, CLAHE and normalisation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from brain_tissue_vnet.preprocessing import CheckSkullStrippedd, CLAHEd, N4d
from bundlekit.errors import BundleError
from bundlekit.images.normalising import NormaliseForegroundd
from tests.bundlekit.conftest import ball

AFFINE = torch.diag(torch.tensor([2.0, 2.0, 3.0, 1.0], dtype=torch.float64))


def item(array: np.ndarray, affine: torch.Tensor = AFFINE) -> dict:
    return {"image": MetaTensor(torch.from_numpy(array)[None], affine=affine), "source": "scan.nii.gz"}


@pytest.mark.parametrize(("millimetres", "refused"), [(3.9, False), (6.0, True)])
def test_a_head_with_its_skull_is_told_by_its_volume(millimetres: float, refused: bool) -> None:
    """11,500 voxels in the ball: 683 ml at 3.9 mm, 2,490 ml at 6 mm."""
    data = item(ball(), torch.diag(torch.tensor([millimetres] * 3 + [1.0], dtype=torch.float64)))
    CheckSkullStrippedd(whole_head=True)(data)
    if refused:
        with pytest.raises(BundleError, match=r"scan\.nii\.gz[\s\S]*skull[\s\S]*--whole_head True"):
            CheckSkullStrippedd(whole_head=False)(data)
    else:
        assert CheckSkullStrippedd(whole_head=False)(data)["image"] is data["image"]


def test_zscore_is_over_what_is_not_air_and_maps_the_air_along() -> None:
    out = NormaliseForegroundd("zscore")(item(ball()))["image"]
    inside = out[0][torch.from_numpy(ball() > 0)]
    assert float(inside.mean()) == pytest.approx(0, abs=1e-3)
    assert float(inside.std()) == pytest.approx(1, abs=1e-2)
    assert float(out[0, 0, 0, 0]) == -6.0, "air lies ten standard deviations below the tissue, and is clipped"
    torch.testing.assert_close(out.affine, AFFINE)


def test_percentiles_become_0_and_1() -> None:
    image = ball()
    out = NormaliseForegroundd("percentile")(item(image))["image"][0].numpy()
    low, high = np.percentile(image[image > 0], [0.5, 99.5])
    expected = np.clip((image - low) / (high - low), 0, 1)
    np.testing.assert_allclose(out, np.where(image > 0, np.maximum(expected, 1e-3), 0), atol=1e-3)
    np.testing.assert_array_equal(out > 0, image > 0, "air alone is 0")


def test_an_image_without_contrast_gives_no_nan() -> None:
    for method in ("zscore", "percentile"):
        out = NormaliseForegroundd(method)(item(np.where(ball() > 0, 7, 0).astype(np.float32)))["image"]
        assert bool(torch.isfinite(out).all())


def test_unknown_normalisation() -> None:
    with pytest.raises(ValueError, match="zscore, percentile, got 'minmax'"):
        NormaliseForegroundd("minmax")


def test_clahe_raises_local_contrast_and_leaves_the_air() -> None:
    """Two weak steps, one in a dark and one in a bright half: after CLAHE both are larger parts of the range."""
    image = ball(air=0)
    mask = image > 0
    flat = np.where(mask, 50.0, 0).astype(np.float32)
    flat[20:] = np.where(mask[20:], 150, 0)
    flat[:, 20:] = np.where(mask[:, 20:], flat[:, 20:] + 8, 0)
    rng = np.random.default_rng(0)
    flat = np.where(mask, flat + rng.normal(0, 0.5, flat.shape), 0).astype(np.float32)
    out = CLAHEd(clip_limit=0.05, kernel_size=12)(item(flat))["image"][0].numpy()
    assert (out[~mask] == 0).all()
    assert out.min() >= 0
    assert out.max() <= 1
    core = np.zeros_like(mask)
    core[12:28, 12:28, 16:24] = True

    def step(volume: np.ndarray, half: slice) -> float:
        spread = np.percentile(volume[mask], 99) - np.percentile(volume[mask], 1)
        return float((volume[half, 21:26, 16:24].mean() - volume[half, 14:19, 16:24].mean()) / spread)

    for half in (slice(12, 18), slice(22, 28)):
        assert step(out, half) > 1.3 * step(flat, half) > 0


def test_strength_of_clahe_is_a_value() -> None:
    data = item(ball())
    assert CLAHEd(clip_limit=0)(data)["image"] is data["image"]
    inside = ball() > 0
    low, high = np.percentile(ball()[inside], [0.5, 99.5])
    scaled = np.clip((ball() - low) / (high - low), 0, 1)[inside]
    changes = []
    for limit in (1e-4, 0.01, 0.2):
        equal = CLAHEd(clip_limit=limit, kernel_size=20)(data)["image"][0].numpy()[inside]
        changes.append(1 - np.corrcoef(equal, scaled)[0, 1] + abs(equal.std() - scaled.std()))
    assert changes == sorted(changes)
    assert changes[2] > 1.5 * changes[0]
    for wrong in (-0.1, 1.5):
        with pytest.raises(ValueError, match="from 0 to 1"):
            CLAHEd(clip_limit=wrong)


def test_n4_takes_out_a_smooth_field() -> None:
    image = ball()
    mask = image > 0
    field = np.exp(np.linspace(-0.4, 0.4, 40))[:, None, None]
    biased = (image * field).astype(np.float32)
    out = N4d(shrink=2)(item(biased))["image"][0].numpy()
    assert (out[~mask] == 0).all()

    def unevenness(volume: np.ndarray) -> float:
        means = [volume[i][mask[i]].mean() for i in range(10, 30)]
        return float(np.std(means) / np.mean(means))

    assert unevenness(out) < 0.35 * unevenness(biased)


def test_what_is_known_of_the_geometry_is_kept() -> None:
    data = item(ball())
    for transform in (NormaliseForegroundd(), CLAHEd(), N4d(shrink=4, iterations=[2])):
        out = transform(data)["image"]
        assert isinstance(out, MetaTensor)
        assert out.dtype == torch.float32
        torch.testing.assert_close(out.affine, AFFINE)
