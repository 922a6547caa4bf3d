"""Prepared cases on disk: found again by what went into them, and never half-written."""

from __future__ import annotations

import errno
import json
import logging
import multiprocessing
import os
import pickle
import resource
import textwrap
import time
from collections.abc import Callable, Hashable, Iterator, Mapping
from copy import deepcopy
from functools import partial
from pathlib import Path
from pydoc import locate
from types import SimpleNamespace
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.transforms import Affined, Compose, Lambdad, Transform
from torch.utils.data import DataLoader

import bundlekit.patches.cache as cache_module
from bundlekit.brats.sampling import TumourVoxelsd
from bundlekit.files import default_cache_dir
from bundlekit.patches.dataset import PatchDataset
from bundlekit.version import bundle_version
from tests.bundlekit.patches.conftest import CACHES, PATCH, Seen, files_in, patches, prepare, same, volumes
from tests.conftest import Run


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


def test_a_new_process_finds_what_this_one_has_kept(
    shared_cases: list[dict[str, Any]], run: Run, tmp_path: Path
) -> None:
    expected = [item["image"].sum().item() for item in PatchDataset(shared_cases, patches(), "disk", str(tmp_path))]
    kept = files_in(tmp_path)
    # as in `patches`; decoding is made impossible, so that only the cache can help
    program = f"""
        import json, sys, torch
        from monai.transforms import (
            CastToTyped, Compose, CropForegroundd, NormalizeIntensityd, RandFlipd, RandScaleIntensityd
        )
        import bundlekit.brats.reading
        from bundlekit import PatchDataset
        from bundlekit.brats import LoadCased, TumourCentredCropd, TumourVoxelsd

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
    done = run("-c", textwrap.dedent(program), json.dumps(shared_cases), tmp_path)
    assert json.loads(done.stdout) == expected
    assert files_in(tmp_path) == kept


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
        (lambda: Lambdad("image", partial(scaled, factor=1)), lambda: Lambdad("image", partial(scaled, factor=2))),
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


def test_another_order_of_classes_is_another_key(case: dict[str, Any], tmp_path: Path, seen: list[str]) -> None:
    """It numbers them."""
    for classes in ({"liver": [1], "spleen": [2]}, {"spleen": [2], "liver": [1]}):
        PatchDataset([{**case, "classes": classes}], patches(Seen()), "disk", str(tmp_path / "cache"))[0]
    assert len(seen) == 2


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


def test_damage_in_the_middle_is_noticed_by_the_next_run(
    shared_cases: list[dict[str, Any]], tmp_path: Path, seen: list[str]
) -> None:
    expected = PatchDataset(shared_cases, patches(Seen()), "disk", str(tmp_path))[0]
    (name,) = files_in(tmp_path)
    content = bytearray((tmp_path / name).read_bytes())
    middle = len(content) // 2
    content[middle : middle + 200] = bytes(byte ^ 0x55 for byte in content[middle : middle + 200])
    (tmp_path / name).write_bytes(content)
    dataset = PatchDataset(shared_cases, patches(Seen()), "disk", str(tmp_path))
    assert same(dataset[0], expected)
    assert seen == ["case0", "case0"]


def test_checksums_are_compared_once_in_a_run(
    shared_cases: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    PatchDataset(shared_cases, patches(), "disk", str(tmp_path))[0]
    checked: list[Path] = []
    monkeypatch.setattr(cache_module, "_check", checked.append)
    dataset = PatchDataset(shared_cases, patches(), "disk", str(tmp_path))
    dataset[0], dataset[0]
    assert len(checked) == 1


def test_side_of_the_split_and_spelling_of_paths_are_nothing_of_the_case(
    case: dict[str, Any], tmp_path: Path, seen: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that a resumed run, which reads its own datalist, finds what was prepared at its start."""
    monkeypatch.chdir(tmp_path)
    relative = {**case, "image": [os.path.relpath(file) for file in case["image"]], "subset": "training"}
    relative["label"] = os.path.relpath(case["label"])
    for version in (case, relative, {**case, "subset": "validation"}):
        PatchDataset([version], patches(Seen()), "disk", str(tmp_path / "cache"))[0]
    assert seen == ["case0"]


def test_what_no_run_has_used_for_some_days_is_removed(shared_cases: list[dict[str, Any]], tmp_path: Path) -> None:
    def used(days: float) -> PatchDataset:
        dataset = PatchDataset(shared_cases, patches(), "disk", str(tmp_path), cache_days=30)
        dataset[0]
        for file in tmp_path.iterdir():
            os.utime(file, (time.time() - 86400 * days,) * 2)
        return dataset

    used(29)
    other = tmp_path / "other.pt"  # the folder may hold anything else
    other.touch()
    used(29)[1]  # the file is in use again
    assert len(files_in(tmp_path)) == 3
    used(31)
    (tmp_path / files_in(tmp_path)[0]).rename(tmp_path / f".{'0' * 128}.pt.1a2b3c4d.part")  # of a run that was killed
    PatchDataset(shared_cases, patches(), "disk", str(tmp_path))
    assert len(files_in(tmp_path)) == 3, "kept unless told"
    PatchDataset(shared_cases, patches(), "disk", str(tmp_path), cache_days=30)
    assert files_in(tmp_path) == ["other.pt"]


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


def test_another_version_of_the_bundle_prepares_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    step, _ = locate("bundlekit.NormaliseForegroundd")(), locate("brain_tissue_vnet")  # known once it is imported
    before = cache_module._transform_hash([step])
    assert bundle_version("brain_tissue_vnet.network").startswith("brain_tissue_vnet 0.")
    assert bundle_version("monai.transforms") == ""
    monkeypatch.setattr(cache_module, "bundle_version", lambda module: f"{module} 9")
    assert cache_module._transform_hash([step]) != before


def test_other_code_prepares_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a checkout that was updated, whose version is the same."""
    step = locate("bundlekit.NormaliseForegroundd")()
    before = cache_module._transform_hash([step])
    assert cache_module._transform_hash([step]) == before
    package = tmp_path / "bundlekit"
    (package / "images").mkdir(parents=True)
    (package / "images" / "a.py").write_text("1")
    monkeypatch.setattr(cache_module, "import_module", lambda name: SimpleNamespace(__file__=package / "__init__.py"))
    found = []
    for text in ("1", "2"):
        (package / "images" / "a.py").write_text(text)
        cache_module._code_of.cache_clear()
        found.append(cache_module._transform_hash([step]))
    cache_module._code_of.cache_clear()
    assert len({before, *found}) == 3
