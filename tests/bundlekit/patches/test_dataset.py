"""Tests of the cached patches: the same on any number of workers, and a cache that is right or made again."""

from __future__ import annotations

import errno
import json
import logging
import multiprocessing
import os
import pickle
import resource
import subprocess
import sys
import textwrap
from collections.abc import Callable, Hashable, Iterator, Mapping
from copy import deepcopy
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from ignite.engine import Engine, Events
from monai.transforms import (
    Affined,
    CastToTyped,
    Compose,
    CropForegroundd,
    Lambdad,
    NormalizeIntensityd,
    RandFlipd,
    RandScaleIntensityd,
    Transform,
)
from torch.utils.data import DataLoader

from bundlekit.brats.reading import LoadCased
from bundlekit.brats.sampling import TumourCentredCropd, TumourVoxelsd
from bundlekit.errors import BundleError, bundle_error_in
from bundlekit.patches.cache import default_cache_dir
from bundlekit.patches.dataset import EpochSeed, PatchDataset

torch.set_num_threads(1)

CACHES = ["disk", "memory", "none"]
PATCH = (6, 6, 6)


class Seen(Transform):
    """Passes cases on and notes which; `setting` stands for any argument of a transform."""

    cases: list[str] = []  # noqa: RUF012 (of the class, as transforms are copied)

    def __init__(self, setting: object = 0) -> None:
        self.setting = setting

    def __call__(self, data: Mapping[Hashable, Any]) -> Mapping[Hashable, Any]:
        self.cases.append(data["case"])
        return data


@pytest.fixture(autouse=True)
def seen() -> list[str]:
    Seen.cases.clear()
    return Seen.cases


@pytest.fixture(scope="module")
def shared_cases(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Three cases of 14x12x10 voxels with air around the brain; not to be changed."""
    return [write_case(tmp_path_factory.mktemp("cases"), number) for number in range(3)]


@pytest.fixture
def case(tmp_path: Path) -> dict[str, Any]:
    """One case that a test may change."""
    return write_case(tmp_path, 0)


def write_case(folder: Path, number: int) -> dict[str, Any]:
    rng = np.random.default_rng(number)
    label = np.zeros((14, 12, 10), np.uint8)
    label[4:8, 4:7, 3:6] = rng.choice([1, 2, 4], size=(4, 3, 3))
    files = []
    for name in ("t1", "t1ce", "t2", "flair", "seg"):
        volume = np.zeros(label.shape, np.int16)
        volume[2:13, 1:11, 1:9] = rng.integers(100, 1000, (11, 10, 8))
        volume = label if name == "seg" else volume
        files.append(str(folder / f"case{number}_{name}.nii.gz"))
        nib.save(nib.Nifti1Image(volume, np.eye(4)), files[-1])
    return {
        "case": f"case{number}",
        "patient": f"case{number}",
        "image": files[:4],
        "channels": [0, 1, 2, 3],
        "label": files[4],
        "label_values": [0, 1, 2, 4],
        "subset": "",
    }


def prepare(*further: Transform) -> list[Transform]:
    return [
        LoadCased(),
        CropForegroundd(keys=["image", "label"], source_key="image", allow_smaller=True),
        NormalizeIntensityd(keys="image", nonzero=True, channel_wise=True),
        CastToTyped(keys="image", dtype=torch.float16),
        *further,
    ]


def patches(*further: Transform) -> Compose:
    return Compose(
        [
            *prepare(*further),
            TumourVoxelsd(),
            TumourCentredCropd(PATCH),
            RandFlipd(keys=["image", "label"], prob=0.5, spatial_axis=0),
            RandScaleIntensityd(keys="image", prob=0.5, factors=0.1, channel_wise=True),
        ]
    )


def volumes(*further: Transform) -> Compose:
    return Compose(prepare(*further))


def same(first: Mapping[str, Any], second: Mapping[str, Any]) -> bool:
    assert set(first) == set(second)
    return all(
        torch.equal(torch.as_tensor(value), torch.as_tensor(second[key])) if torch.is_tensor(value) else True
        for key, value in first.items()
    )


def files_in(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


# --- patches ------------------------------------------------------------------------------------------------------


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


# --- epochs -------------------------------------------------------------------------------------------------------


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


# --- disk cache: kept ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cache", ["disk", "memory"])
def test_a_case_is_prepared_once(
    shared_cases: list[dict[str, Any]], cache: str, tmp_path: Path, seen: list[str]
) -> None:
    dataset = PatchDataset(shared_cases, patches(Seen()), cache, str(tmp_path), patches_per_case=3)
    for n in range(9):
        dataset[n]
    assert sorted(seen) == ["case0", "case1", "case2"]


def test_a_second_dataset_finds_what_the_first_has_kept(
    shared_cases: list[dict[str, Any]], tmp_path: Path, seen: list[str]
) -> None:
    first = [*PatchDataset(shared_cases, patches(Seen()), "disk", str(tmp_path))]
    assert len(files_in(tmp_path)) == len(seen) == 3
    again = PatchDataset(json.loads(json.dumps(shared_cases)), patches(Seen()), "disk", str(tmp_path))
    assert all(same(a, b) for a, b in zip(first, again, strict=True))
    # training and validation share what is prepared alike, whatever follows
    PatchDataset(shared_cases, Compose([*prepare(Seen()), TumourVoxelsd()]), "disk", str(tmp_path))[0]
    assert len(seen) == 3
    assert len(files_in(tmp_path)) == 3


def test_without_cache_a_case_is_prepared_every_time(
    shared_cases: list[dict[str, Any]], tmp_path: Path, seen: list[str]
) -> None:
    dataset = PatchDataset(shared_cases, patches(Seen()), "none", str(tmp_path))
    dataset[0], dataset[0]
    assert seen == ["case0", "case0"]
    assert files_in(tmp_path) == []


def test_half_precision_is_kept_as_plain_tensors(shared_cases: list[dict[str, Any]], tmp_path: Path) -> None:
    item = PatchDataset(shared_cases, patches(), "disk", str(tmp_path))[0]
    (name,) = files_in(tmp_path)
    kept = torch.load(tmp_path / name, weights_only=True)
    kinds = {key: kept[key].dtype for key in ("image", "label", "tumour_voxels")}
    assert kinds == {"image": torch.float16, "label": torch.uint8, "tumour_voxels": torch.int32}
    assert all(type(value) is torch.Tensor for value in kept.values() if torch.is_tensor(value))
    assert item["image"].dtype == torch.float32


def test_a_patch_can_be_changed_without_changing_the_cache(shared_cases: list[dict[str, Any]], tmp_path: Path) -> None:
    for cache in CACHES:
        dataset = PatchDataset(shared_cases, patches(), cache, str(tmp_path))
        first = dataset[0]
        kept = deepcopy(first)
        first["image"].zero_()
        first["label"].zero_()
        assert same(dataset[0], kept)


@pytest.mark.parametrize("variable", [True, False])
def test_default_folder(variable: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg") if variable else "")
    expected = tmp_path / "xdg" if variable else tmp_path / "home" / ".cache"
    assert default_cache_dir("brats_resunet") == str(expected / "brats_resunet")


def test_default_folder_is_made_and_used(
    shared_cases: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    PatchDataset(shared_cases, patches())[0]
    assert len(files_in(tmp_path / "xdg" / "bundlekit")) == 1


def test_a_new_process_finds_what_this_one_has_kept(shared_cases: list[dict[str, Any]], tmp_path: Path) -> None:
    expected = [item["image"].sum().item() for item in PatchDataset(shared_cases, patches(), "disk", str(tmp_path))]
    kept = files_in(tmp_path)
    # as in `patches`; decoding is made impossible, so that only the cache can help
    program = f"""
        import json, sys, torch
        from monai.transforms import (
            CastToTyped, Compose, CropForegroundd, NormalizeIntensityd, RandFlipd, RandScaleIntensityd
        )
        import bundlekit.brats.reading
        from brats_resunet import LoadCased, PatchDataset, TumourCentredCropd, TumourVoxelsd

        def fail(path):
            raise AssertionError("decoded " + path)

        bundlekit.brats.reading.read_array = fail
        transform = Compose([
            LoadCased(),
            CropForegroundd(keys=["image", "label"], source_key="image", allow_smaller=True),
            NormalizeIntensityd(keys="image", nonzero=True, channel_wise=True),
            CastToTyped(keys="image", dtype=torch.float16),
            TumourVoxelsd(),
            TumourCentredCropd({PATCH}),
            RandFlipd(keys=["image", "label"], prob=0.5, spatial_axis=0),
            RandScaleIntensityd(keys="image", prob=0.5, factors=0.1, channel_wise=True),
        ])
        torch.set_num_threads(1)
        dataset = PatchDataset(json.loads(sys.argv[1]), transform, "disk", sys.argv[2])
        print(json.dumps([item["image"].sum().item() for item in dataset]))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), json.dumps(shared_cases), str(tmp_path)],
        env={**os.environ, "PYTHONHASHSEED": "123", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == expected
    assert files_in(tmp_path) == kept


# --- disk cache: made again ---------------------------------------------------------------------------------------


def scaled(image: torch.Tensor, factor: float) -> torch.Tensor:
    return image * factor


def scaler(factor: float) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda image: image * factor


class Namesake:
    class Seen(Seen):
        """Of the same name."""


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (lambda: Seen(0), lambda: Seen(1)),
        (lambda: Seen(1), lambda: Seen("1")),
        (lambda: Seen((1, 2)), lambda: Seen((2, 1))),
        (lambda: Seen({"a": 1}), lambda: Seen({"a": 2})),
        (lambda: Seen({"a"}), lambda: Seen({"b"})),
        (lambda: Seen(torch.float16), lambda: Seen(torch.float32)),
        (lambda: Seen(np.arange(2000)), lambda: Seen(np.arange(2000) + (np.arange(2000) == 1000))),
        (lambda: Seen(torch.zeros(3)), lambda: Seen(torch.ones(3))),
        (lambda: Seen(Seen(0)), lambda: Seen(Seen(1))),
        (lambda: Seen(len), lambda: Seen(max)),
        (lambda: Seen(), lambda: Namesake.Seen()),
        (lambda: Affined("image", affine=torch.eye(4)), lambda: Affined("image", affine=2 * torch.eye(4))),
        (lambda: Lambdad("image", lambda x: x + 1), lambda: Lambdad("image", lambda x: x + 2)),
        (lambda: Lambdad("image", lambda x: x.abs()), lambda: Lambdad("image", lambda x: x.neg())),
        (lambda: Lambdad("image", lambda x: x + 1), lambda: Lambdad("image", lambda x: x - 1)),
        (lambda: Lambdad("image", lambda x, y=1: x + y), lambda: Lambdad("image", lambda x, y=2: x + y)),
        (lambda: Lambdad("image", scaler(1)), lambda: Lambdad("image", scaler(2))),
        (
            lambda: Lambdad("image", partial(scaled, factor=1)),
            lambda: Lambdad("image", partial(scaled, factor=2)),
        ),
    ],
)
def test_another_argument_of_a_transform_is_another_key(
    before: Callable[[], Transform], after: Callable[[], Transform], shared_cases: list[dict[str, Any]], tmp_path: Path
) -> None:
    hashes = [
        PatchDataset(shared_cases, patches(make()), "disk", str(tmp_path)).cases.transform_hash
        for make in (before, before, after)
    ]
    assert hashes[0] == hashes[1] != hashes[2]


@pytest.mark.parametrize("factor", [1, 2])
def test_changed_transform_is_applied(factor: int, shared_cases: list[dict[str, Any]], tmp_path: Path) -> None:
    for number in (3, factor):
        item = PatchDataset(shared_cases, volumes(Lambdad("image", scaler(number))), "disk", str(tmp_path))[0]
    expected = volumes()(shared_cases[0])["image"].as_tensor() * factor
    assert torch.equal(item["image"], expected.float())
    assert len(files_in(tmp_path)) == 2


@pytest.mark.parametrize("position", [0, 3, 4])
@pytest.mark.parametrize("change", ["time", "content"])
def test_changed_file_is_prepared_again(
    case: dict[str, Any], position: int, change: str, tmp_path: Path, seen: list[str]
) -> None:
    def dataset() -> PatchDataset:
        return PatchDataset([case], volumes(Seen()), "disk", str(tmp_path / "cache"))

    before = dataset()[0]
    path = [*case["image"], case["label"]][position]
    stat = os.stat(path)
    if change == "content":
        volume = nib.load(path).get_fdata().astype(np.int16)
        volume[5, 5, 4] = 4 if position == 4 else 7
        volume[7, 6, 5] = 0 if position == 4 else 900
        nib.save(nib.Nifti1Image(volume, np.eye(4)), path)
        size = Path(path).stat().st_size
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + (size == stat.st_size)))
    else:
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    after = dataset()[0]
    assert len(seen) == 2
    assert same(before, after) == (change == "time")
    dataset()[0]
    assert len(seen) == 2


@pytest.mark.parametrize(
    "copy", [deepcopy, lambda case: json.loads(json.dumps(case)), lambda case: pickle.loads(pickle.dumps(case))]
)
def test_an_equal_case_is_the_same_case(
    copy: Callable[[dict[str, Any]], dict[str, Any]], case: dict[str, Any], tmp_path: Path, seen: list[str]
) -> None:
    name = case["case"]
    case["patient"] = name  # one string in two places, which a copy does not have
    for version in (case, copy(case), dict(reversed(case.items()))):
        PatchDataset([version], patches(Seen()), "disk", str(tmp_path / "cache"))[0]
    assert seen == ["case0"]


@pytest.mark.parametrize("key", ["label_values", "channels", "case"])
def test_another_case_is_another_key(key: str, case: dict[str, Any], tmp_path: Path, seen: list[str]) -> None:
    other = {**case, key: "other" if key == "case" else [0, 2, 1, 4]}
    for version in (case, other):
        PatchDataset([version], patches(Seen()), "disk", str(tmp_path / "cache"))[0]
    assert len(seen) == 2


def cut(share: float) -> Callable[[bytes], bytes]:
    return lambda content: content[: int(len(content) * share)]


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(cut(0), id="empty"),
        pytest.param(cut(0.001), id="some bytes"),
        pytest.param(cut(0.5), id="half"),
        pytest.param(cut(0.99), id="all but the end"),
        pytest.param(lambda content: content[:-1], id="all but a byte"),
        pytest.param(lambda content: bytes(len(content)), id="zeros"),
        pytest.param(lambda content: b"not a checkpoint\n" * 100, id="text"),
        pytest.param(lambda content: pickle.dumps({"image": Path("x")}), id="another pickle"),
    ],
)
def test_damaged_file_is_made_again_with_a_warning(
    damage: Callable[[bytes], bytes],
    shared_cases: list[dict[str, Any]],
    tmp_path: Path,
    seen: list[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    dataset = PatchDataset(shared_cases, patches(Seen()), "disk", str(tmp_path))
    expected = dataset[0]
    (name,) = files_in(tmp_path)
    file = tmp_path / name
    content = file.read_bytes()
    assert caplog.records == []
    file.unlink()  # what is mapped stays as it is
    file.write_bytes(damage(content))
    assert same(dataset[0], expected)
    assert [(r.levelname, str(file) in r.getMessage(), "case0" in r.getMessage()) for r in caplog.records] == [
        ("WARNING", True, True)
    ]
    assert seen == ["case0", "case0"]
    assert file.read_bytes() == content
    assert same(dataset[0], expected)
    assert len(seen) == 2


def test_folder_may_be_emptied_at_any_time(shared_cases: list[dict[str, Any]], tmp_path: Path, seen: list[str]) -> None:
    folder = tmp_path / "cache"
    dataset = PatchDataset(shared_cases, patches(Seen()), "disk", str(folder))
    expected = dataset[0]
    (name,) = files_in(folder)
    (folder / name).unlink()
    folder.rmdir()
    assert same(dataset[0], expected)
    assert files_in(folder) == [name]
    assert len(seen) == 2


# --- disk cache: two at once, and no room -------------------------------------------------------------------------

_MEETING: list[Any] = []  # a barrier that the workers inherit


class Meet(Transform):
    """Waits until both processes are preparing the case."""

    def __call__(self, data: Mapping[Hashable, Any]) -> Mapping[Hashable, Any]:
        _MEETING[0].wait(60)
        return data


def test_two_processes_that_write_at_once_leave_a_good_file(
    shared_cases: list[dict[str, Any]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    context = multiprocessing.get_context("fork")
    _MEETING[:] = [context.Barrier(2)]
    dataset = PatchDataset(shared_cases[:1], patches(Meet()), "disk", str(tmp_path), patches_per_case=2)
    loader = DataLoader(dataset, batch_size=None, num_workers=2, multiprocessing_context=context)
    items = list(loader)
    (name,) = files_in(tmp_path)
    assert name.endswith(".pt")
    # had one of them found the other's file, the meeting would have failed; here it would wait in vain
    _MEETING[:] = [context.Barrier(1)]
    _MEETING[0].abort()
    plain = PatchDataset(shared_cases[:1], patches(), "none", patches_per_case=2)
    for n, item in enumerate(items):
        assert same(item, plain[n])
        assert same(dataset[n], plain[n])
    assert caplog.records == []


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EDQUOT])
def test_without_room_for_the_cache_the_work_goes_on(
    number: int,
    shared_cases: list[dict[str, Any]],
    tmp_path: Path,
    seen: list[str],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    expected = PatchDataset(shared_cases, patches(), "none")[0]

    def full(path: str, write: Callable) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("bundlekit.patches.cache.write_whole", full)
    dataset = PatchDataset(shared_cases, patches(Seen()), "disk", str(tmp_path))
    for _ in range(2):
        assert same(dataset[0], expected)
    assert seen == ["case0", "case0"]
    assert files_in(tmp_path) == []
    warnings = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert len(warnings) == 2
    assert all(os.strerror(number) in text and "case0" in text and str(tmp_path) in text for text in warnings)


@pytest.fixture
def small_files_only() -> Iterator[None]:
    """The system refuses to write beyond 8 kB of any file, as a full disk would."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.usefixtures("small_files_only")
def test_a_write_that_stops_halfway_leaves_nothing_behind(
    shared_cases: list[dict[str, Any]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    expected = PatchDataset(shared_cases, patches(), "none")[0]
    assert same(PatchDataset(shared_cases, patches(), "disk", str(tmp_path))[0], expected)
    assert files_in(tmp_path) == []
    assert ["going on without" in r.getMessage() for r in caplog.records] == [True]


def test_what_is_no_matter_of_room_is_raised(
    shared_cases: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(path: str, write: Callable) -> None:
        raise TypeError("broken")

    monkeypatch.setattr("bundlekit.patches.cache.write_whole", broken)
    with pytest.raises(TypeError, match="broken"):
        PatchDataset(shared_cases, patches(), "disk", str(tmp_path))[0]
