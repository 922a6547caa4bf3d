"""Enhancement taken away: what is painted and labelled, and all that stays as it was."""

from __future__ import annotations

import pytest
import torch

from bundlekit.brats import RandRemoveEnhancementd

_SIDE = 32


def _case(et: int = 10) -> dict[str, torch.Tensor]:
    """A core in oedema, with a cube of ET, `et` voxels a side; T1ce of the rest is linear in the other modalities."""
    generator = torch.Generator().manual_seed(0)
    image = torch.rand((4, _SIDE, _SIDE, _SIDE), generator=generator) + 0.5
    image[1] = 0.3 + 0.5 * image[0] - 0.2 * image[2] + 0.1 * image[3]
    image[:, :4] = 0  # air
    label = torch.zeros((1, _SIDE, _SIDE, _SIDE), dtype=torch.uint8)
    label[:, 5:28, 5:28, 5:28] = 2
    label[:, 8:24, 8:24, 8:24] = 1
    label[:, 8 : 8 + et, 8 : 8 + et, 8 : 8 + et] = 3
    image[1][label[0] == 3] += 2
    return {"image": image, "label": label}


def _results(case: dict[str, torch.Tensor], number: int, **kwargs: float) -> list[dict[str, torch.Tensor]]:
    transform = RandRemoveEnhancementd(**kwargs)
    transform.set_random_state(seed=4)
    return [transform(case) for _ in range(number)]


def test_t1ce_is_what_the_other_modalities_foretell() -> None:
    case = _case()
    whole = [r for r in _results(case, 20, prob=1.0) if not (r["label"] == 3).any()]
    assert whole
    enhancing = case["label"][0] == 3
    for result in whole:
        t1, t1ce, t2, flair = result["image"]
        foretold = 0.3 + 0.5 * t1 - 0.2 * t2 + 0.1 * flair
        assert (t1ce - foretold)[enhancing].abs().max() < 1e-4  # the rest of the tumour leaves no noise
        assert torch.equal(result["label"], torch.where(case["label"] == 3, 1, case["label"]))


def test_as_noisy_as_the_rest_of_the_tumour() -> None:
    case = _case()
    case["image"][1] += 0.1 * torch.randn(case["image"][1].shape, generator=torch.Generator().manual_seed(1))
    [result] = _results(case, 1, prob=1.0)
    t1, t1ce, t2, flair = result["image"]
    left = (t1ce - (0.3 + 0.5 * t1 - 0.2 * t2 + 0.1 * flair))[(case["label"] == 3)[0] & (result["label"] == 1)[0]]
    assert 0.04 < left.std() < 0.1  # the median of a deviation of 0.1 is 0.067


def test_the_rest_and_the_input_stay() -> None:
    case = _case()
    before = {key: value.clone() for key, value in case.items()}
    near = torch.nn.functional.max_pool3d((case["label"] == 3).float(), 5, 1, 2)[0] > 0
    for result in _results(case, 5, prob=1.0):
        assert torch.equal(result["image"][[0, 2, 3]], before["image"][[0, 2, 3]])
        assert torch.equal(result["image"][1][~near], before["image"][1][~near])
        assert not torch.equal(result["image"][1], before["image"][1])
        assert not result["image"][:, :4].any()  # air
        assert torch.equal(result["label"] > 0, before["label"] > 0)
        assert torch.equal(result["label"] == 2, before["label"] == 2)
    assert all(torch.equal(case[key], before[key]) for key in case)


def test_half_keep_a_nodule_as_it_is() -> None:
    case = _case()
    results = _results(case, 200, prob=1.0)
    with_nodule = [r for r in results if (r["label"] == 3).any()]
    assert 75 < len(with_nodule) < 125
    for result in with_nodule:
        middle = torch.nn.functional.avg_pool3d((result["label"] == 3).float(), 5, 1, 2)[0] > 0.999
        assert torch.equal(result["image"][1][middle], case["image"][1][middle])  # beyond the fading border
        assert (result["label"] == 3).sum() <= 2145  # a ball of 8 voxels in radius


def test_as_often_as_said_and_the_same_for_a_seed() -> None:
    case = _case()
    first, again = (_results(case, 100, prob=0.2) for _ in range(2))
    changed = [not torch.equal(r["label"], case["label"]) for r in first]
    assert 8 < sum(changed) < 35
    assert all(torch.equal(a["image"], b["image"]) for a, b in zip(first, again, strict=True))
    assert all(r["label"] is case["label"] for r in _results(case, 50, prob=0.0))


@pytest.mark.parametrize("lacks", ["ET", "T1ce", "other tumour", "more than a nodule"])
def test_left_as_it_is(lacks: str) -> None:
    case = _case(et=1 if lacks == "more than a nodule" else 10)
    if lacks == "ET":
        case["label"][case["label"] == 3] = 1
    elif lacks == "T1ce":
        case["image"][1] = 0
    elif lacks == "other tumour":
        case["label"][case["label"] < 3] = 0
    results = _results(case, 30, prob=1.0)
    same = [r["image"] is case["image"] and r["label"] is case["label"] for r in results]
    if lacks == "more than a nodule":
        assert 0 < sum(same) < 30  # where the ball holds it
        assert all((r["label"] == 3).sum() == (1 if kept else 0) for r, kept in zip(results, same, strict=True))
    else:
        assert all(same)


def test_a_modality_of_zeros() -> None:
    """As `fill_missing` gives it."""
    case = _case()
    case["image"][2] = 0
    for result in _results(case, 5, prob=1.0):
        assert torch.isfinite(result["image"]).all()


@pytest.mark.parametrize("wrong", [-0.1, 1.1])
def test_wrong_probability(wrong: float) -> None:
    with pytest.raises(ValueError, match="prob must be from 0 to 1"):
        RandRemoveEnhancementd(wrong)
