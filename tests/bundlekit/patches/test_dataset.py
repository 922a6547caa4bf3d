"""Patches: the same for the same seed, on any number of workers and from every cache."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ignite.engine import Engine, Events
from torch.utils.data import DataLoader

from bundlekit.brats.sampling import TumourCentredCropd
from bundlekit.errors import BundleError, bundle_error_in
from bundlekit.patches.dataset import EpochSeed, PatchDataset
from tests.bundlekit.patches.conftest import CACHES, PATCH, patches, same, volumes


@pytest.mark.parametrize("cache", CACHES)
def test_a_patch_is_what_the_transforms_make_of_the_case(
    shared_cases: list[dict[str, Any]], cache: str, tmp_path: Path
) -> None:
    case = shared_cases[1]
    whole = volumes()(case)
    item = PatchDataset(shared_cases, patches(), cache, str(tmp_path), seed=1)[1]
    assert item["case"] == "case1"
    assert item["image"].shape == (4, *PATCH)
    assert item["label"].shape == (1, *PATCH)
    assert item["image"].dtype == torch.float32
    assert item["label"].dtype == torch.uint8
    assert not [key for key in item if str(key).startswith("tumour")]
    crop = TumourCentredCropd(PATCH)
    found = [
        torch.equal(crop.crop(torch.as_tensor(whole["label"]), (i, j, k)).flip((1,) * turned), item["label"])
        for i in range(3, 9)
        for j in range(3, 8)
        for k in range(3, 6)
        for turned in (0, 1)
    ]
    assert any(found)


@pytest.mark.parametrize("cache", CACHES)
def test_a_case_that_is_listed_twice_is_kept_once_and_drawn_twice(
    shared_cases: list[dict[str, Any]], cache: str, tmp_path: Path
) -> None:
    dataset = PatchDataset([*shared_cases, shared_cases[0]], patches(), cache, str(tmp_path), seed=3)
    last = len(shared_cases)
    assert len(dataset) == last + 1
    for _ in range(2):  # the second time from what the first has kept
        assert dataset[last]["case"] == dataset[0]["case"] == "case0"
        assert not same(dataset[last], dataset[0])
        assert same(dataset[1], PatchDataset(shared_cases, patches(), "none", seed=3)[1])
    if cache == "disk":
        assert len(list(tmp_path.glob("*.pt"))) == 2  # of case0 and case1
    if cache == "memory":
        assert len(dataset.cases._cache) == len(shared_cases)  # type: ignore[attr-defined]


@pytest.mark.parametrize("epoch", [0, 3])
def test_the_same_patches_from_every_cache(shared_cases: list[dict[str, Any]], epoch: int, tmp_path: Path) -> None:
    datasets = [PatchDataset(shared_cases, patches(), c, str(tmp_path), 5, patches_per_case=2) for c in CACHES]
    for dataset in datasets:
        dataset.epoch = epoch
    for _ in range(2):  # the second time from what the first has kept
        for items in zip(*datasets, strict=True):
            assert same(items[0], items[1])
            assert same(items[0], items[2])


@pytest.mark.parametrize("cache", ["disk", "memory"])
def test_the_same_patches_on_any_number_of_workers(
    shared_cases: list[dict[str, Any]], cache: str, tmp_path: Path
) -> None:
    dataset = PatchDataset(shared_cases, patches(), cache, str(tmp_path), patches_per_case=2)
    epochs = []
    for workers in (0, 2):
        dataset.epoch = 4
        epochs.append(list(DataLoader(dataset, batch_size=None, num_workers=workers)))
    assert len(epochs[0]) == len(epochs[1]) == 6
    assert all(same(a, b) for a, b in zip(*epochs, strict=True))


def test_the_same_patches_in_any_order(shared_cases: list[dict[str, Any]]) -> None:
    first, second = (PatchDataset(shared_cases, patches(), "memory", patches_per_case=2) for _ in range(2))
    forwards = [first[n] for n in range(6)]
    torch.manual_seed(7)  # neither global state plays a part
    np.random.seed(7)
    backwards = [second[n] for n in reversed(range(6))]
    assert all(same(a, b) for a, b in zip(forwards, reversed(backwards), strict=True))


@pytest.mark.parametrize("change", ["seed", "epoch", "index"])
def test_other_seeds_epochs_and_indices_give_other_patches(shared_cases: list[dict[str, Any]], change: str) -> None:
    items = []
    for number in range(8):
        dataset = PatchDataset(shared_cases[:1], patches(), "memory", patches_per_case=8)
        if change != "index":
            setattr(dataset, change, number)
        items.append(dataset[number if change == "index" else 0])
    different = {item["image"].numpy().tobytes() for item in items}
    assert len(different) >= 7


def test_seed_and_epoch_are_not_interchangeable(shared_cases: list[dict[str, Any]]) -> None:
    items = []
    for seed, epoch in ((1, 0), (0, 1)):
        dataset = PatchDataset(shared_cases, patches(), "none", seed=seed)
        dataset.epoch = epoch
        items.append(dataset[0])
    assert not same(*items)


@pytest.mark.parametrize("per_case", [1, 3])
def test_each_case_is_seen_so_often_in_an_epoch(shared_cases: list[dict[str, Any]], per_case: int) -> None:
    dataset = PatchDataset(shared_cases, patches(), "memory", patches_per_case=per_case)
    assert len(dataset) == 3 * per_case
    assert [dataset[n]["case"] for n in range(len(dataset))] == ["case0", "case1", "case2"] * per_case


@pytest.mark.parametrize("index", [6, 7, 100, -1])
def test_an_index_outside_ends_a_loop(shared_cases: list[dict[str, Any]], index: int) -> None:
    dataset = PatchDataset(shared_cases, patches(), "memory", patches_per_case=2)
    with pytest.raises(IndexError, match=str(index)):
        dataset[index]


@pytest.mark.parametrize("cache", CACHES)
def test_without_random_transforms_whole_volumes(
    shared_cases: list[dict[str, Any]], cache: str, tmp_path: Path
) -> None:
    dataset = PatchDataset(shared_cases, volumes(), cache, str(tmp_path))
    for n, case in enumerate(shared_cases):
        expected = volumes()(case)
        for _ in range(2):
            item = dataset[n]
            assert item["image"].shape == (4, 11, 10, 8)
            assert item["image"].dtype == torch.float32
            assert torch.equal(item["image"], expected["image"].as_tensor().float())
            assert torch.equal(item["label"], expected["label"].as_tensor())


@pytest.mark.parametrize("cache", CACHES)
def test_a_damaged_case_is_named(case: dict[str, Any], cache: str, tmp_path: Path) -> None:
    Path(case["image"][2]).write_bytes(Path(case["image"][2]).read_bytes()[:-20])

    def first_patch() -> object:
        return PatchDataset([case], patches(), cache, str(tmp_path / "cache"))[0]

    # the memory is filled by MONAI at once, and it wraps what goes wrong
    with pytest.raises(RuntimeError if cache == "memory" else BundleError) as error:
        first_patch()
    assert case["image"][2] in (bundle_error_in(error.value) or "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"cache": "ram"}, "cache must be"),
        ({"cache": None}, "cache must be"),
        ({"patches_per_case": 0}, "patches_per_case must be"),
        ({"patches_per_case": -1}, "patches_per_case must be"),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PatchDataset([], patches(), **arguments)


@pytest.mark.parametrize("workers", [0, 1])
def test_each_epoch_of_a_trainer_sees_its_own_patches(shared_cases: list[dict[str, Any]], workers: int) -> None:
    dataset, direct = (PatchDataset(shared_cases[:2], patches(), "memory") for _ in range(2))
    got: list[torch.Tensor] = []
    trainer = Engine(lambda engine, batch: got.append(torch.as_tensor(batch["image"]).clone()))
    EpochSeed(dataset).attach(trainer)
    epochs: list[int] = []
    trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda: epochs.append(dataset.epoch))
    trainer.run(DataLoader(dataset, batch_size=None, num_workers=workers), max_epochs=3)
    assert epochs == [1, 2, 3]
    expected = []
    for epoch in epochs:
        direct.epoch = epoch
        expected += [direct[n]["image"] for n in range(2)]
    assert len(got) == len(expected) == 6
    assert all(torch.equal(a, torch.as_tensor(b)) for a, b in zip(got, expected, strict=True))
    assert not any(torch.equal(a, b) for a, b in pairwise(got[::2]))
