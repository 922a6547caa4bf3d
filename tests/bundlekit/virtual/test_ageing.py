"""Ageing of a map of structures, on shapes that can be counted by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bundlekit.label_maps.numberings import STRUCTURES
from bundlekit.virtual.ageing import Ageing, aged, draw_ageing

INDEX = {structure.name: index for index, structure in enumerate(STRUCTURES)}
WHITE, LESION = INDEX["cerebral white matter"], INDEX["white matter lesion"]
VENTRICLE, CAUDATE = INDEX["lateral ventricle"], INDEX["caudate"]
SULCAL, CORTEX = INDEX["sulcal CSF"], INDEX["cerebral cortex"]
NOTHING = {"ventricles": 0.0, "sulci": 0.0, "lesions": 0.0, "periventricular": 0.0, "size": 4}


def older(index: torch.Tensor, **changes: float) -> torch.Tensor:
    return aged(index, Ageing(**{**NOTHING, **changes}), torch.Generator().manual_seed(0))  # type: ignore[arg-type]


def head() -> torch.Tensor:
    """White matter around a ventricle and beside a caudate; cortex and CSF on one side."""
    index = torch.full((32, 32, 32), WHITE)
    index[12:20, 12:20, 12:20] = VENTRICLE
    index[20:24, 12:20, 12:20] = CAUDATE
    index[:, :, 28:30], index[:, :, 30:] = CORTEX, SULCAL
    return index


def test_nothing_is_nothing() -> None:
    assert torch.equal(older(head()), head())


def test_ventricles_grow_into_white_matter_alone() -> None:
    before, after = head(), older(head(), ventricles=3)
    changed = before != after
    assert set(before[changed].tolist()) == {WHITE}
    assert set(after[changed].tolist()) == {VENTRICLE}
    assert after[8:12, 16, 16].eq(VENTRICLE).any()  # beside it
    assert after[:4, :, :28].eq(WHITE).all()  # far away


@pytest.mark.parametrize(("sulci", "lost", "won"), [(0.5, CORTEX, SULCAL), (-0.5, SULCAL, CORTEX)])
def test_sulci_take_or_give_half_of_one_layer(sulci: float, lost: int, won: int) -> None:
    before, after = head(), older(head(), sulci=sulci)
    changed = before != after
    assert set(before[changed].tolist()) == {lost}
    assert set(after[changed].tolist()) == {won}
    assert changed.any((0, 1)).sum() == 1  # the layer at the border
    assert int(changed.sum()) == pytest.approx(0.5 * 32 * 32, rel=0.05)


@pytest.mark.parametrize("periventricular", [0.0, 50.0])
def test_lesions_lie_in_white_matter_and_near_ventricles(periventricular: float) -> None:
    before = head()
    after = older(before, lesions=0.05, periventricular=periventricular)
    ill = after == LESION
    assert set(before[ill].tolist()) == {WHITE}
    assert int(ill.sum()) == pytest.approx(0.05 * int(before.eq(WHITE).sum()), rel=0.1)
    away = torch.stack(torch.where(ill)).float().sub(15.5).abs().amax(0).mean()
    assert (away < 8) == (periventricular > 0)  # the largest of the three distances from its centre, voxels


def test_the_input_stays_and_a_seed_repeats() -> None:
    before = head()
    ageing = draw_ageing(np.random.default_rng(5))
    results = [aged(before, ageing, torch.Generator().manual_seed(1)) for _ in range(2)]
    assert torch.equal(before, head())
    assert torch.equal(*results)


def test_no_white_matter_in_sight() -> None:
    index = torch.full((8, 8, 8), SULCAL)
    assert torch.equal(older(index, ventricles=2, sulci=0.5, lesions=0.2), index)
