"""Tiny hand-made data sets in the layouts that users have, and a disk that is full."""

from __future__ import annotations

import logging
import os
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from ignite.engine import Engine
from monai.data import MetaTensor
from scipy.spatial.transform import Rotation
from torch.utils._python_dispatch import TorchDispatchMode

from bundlekit.cases.case import Case
from bundlekit.errors import BundleError, Finding

SHAPE = (12, 10, 8)
LPS = np.array([[-1, 0, 0, 0], [0, -1, 0, 239], [0, 0, 1, 0], [0, 0, 0, 1]], float)  # the affine of BraTS

OBLIQUE = np.eye(4)
OBLIQUE[:3, :3] = Rotation.from_euler("xyz", [10, -25, 40], degrees=True).as_matrix() @ np.diag([-0.9, 1.1, 2.5])
OBLIQUE[:3, 3] = [88.5, -120.25, 7]

# T1, T1ce, T2, FLAIR, label
NAMES_2018 = ("_t1", "_t1ce", "_t2", "_flair", "_seg")
NAMES_2023 = ("-t1n", "-t1c", "-t2w", "-t2f", "-seg")


def scan(seed: int = 0, shape: Sequence[int] = SHAPE) -> np.ndarray:
    """Voxels that are all different, int16, so that any mistake of axis or order shows."""
    count = int(np.prod(shape))
    return np.random.default_rng(seed).permutation(count).astype(np.int16).reshape(shape) + 1


def segmentation(values: Sequence[float] = (0, 1, 2, 4), shape: Sequence[int] = SHAPE) -> np.ndarray:
    """A label map of uint8 in which each of the values has some voxels."""
    return np.resize(np.asarray(values, np.uint8), int(np.prod(shape))).reshape(shape)


def ball(size: int = 40, radius: float = 14.0, air: float = 0.0, seed: int = 0) -> np.ndarray:
    """A head: noise around 100 in a ball, noise around `air` outside (exactly 0 if that is 0)."""
    rng = np.random.default_rng(seed)
    axes = np.ogrid[:size, :size, :size]
    inside = sum((a - (size - 1) / 2) ** 2 for a in axes) <= radius**2
    outside = np.abs(rng.normal(0, air, (size,) * 3)) + 0.01 if air else np.zeros((size,) * 3)
    return np.where(inside, rng.normal(100, 10, (size,) * 3), outside).astype(np.float32)


def write_nifti(path: Path, array: np.ndarray, affine: np.ndarray = LPS) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, affine), path)
    return path


def write_case(
    folder: Path,
    names: Sequence[str] = NAMES_2018,
    suffix: str = ".nii.gz",
    values: Sequence[float] | None = (0, 1, 2, 4),
    shape: Sequence[int] = SHAPE,
) -> Path:
    """A case in a folder of its own, named as the folder: four modalities and, unless `values` is None, a label."""
    for position, name in enumerate(names):
        if position < 4:
            write_nifti(folder / f"{folder.name}{name}{suffix}", scan(position, shape))
        elif values is not None:
            write_nifti(folder / f"{folder.name}{name}{suffix}", segmentation(values, shape))
    return folder


def write_decathlon(root: Path, training: Sequence[str] = ("BRATS_001",), test: Sequence[str] = ()) -> Path:
    """Task01 of the Medical Segmentation Decathlon: 4-D images FLAIR, T1, T1ce, T2; labels ED 1, NCR 2, ET 3."""
    for name in training:
        write_nifti(root / "imagesTr" / f"{name}.nii.gz", scan(1, (*SHAPE, 4)))
        write_nifti(root / "labelsTr" / f"{name}.nii.gz", segmentation((0, 1, 2, 3)))
    for name in test:
        write_nifti(root / "imagesTs" / f"{name}.nii.gz", scan(2, (*SHAPE, 4)))
    return root


def leftovers(folder: Path) -> list[str]:
    """Temporary files that a write has left behind."""
    return [path.name for path in folder.rglob("*") if path.name.endswith(".part")]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """A file system of 1 MiB: call it with the KiB that are to stay free, again and again, to get its folder."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(folder)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("cannot mount a file system")

    def leave(free_kib: int) -> Path:
        filler = folder / "filler"
        filler.unlink(missing_ok=True)
        space = os.statvfs(folder)
        filler.write_bytes(bytes(max(space.f_bavail * space.f_frsize - free_kib * 1024, 0)))
        return folder

    yield leave
    subprocess.run(["umount", str(folder)], check=True)


def names(cases: Sequence[Case]) -> list[str]:
    return [case["case"] for case in cases]


def findings_by(
    scan_cases: Callable[..., Any], find_cases: Callable[..., Any], *args: Any, **kwargs: Any
) -> list[Finding]:
    """Findings of a data set that `find_cases` must refuse with all of them in its message."""
    _, findings = scan_cases(*args, **kwargs)
    with pytest.raises(BundleError) as caught:
        find_cases(*args, **kwargs)
    for finding in findings:
        assert str(finding) in str(caught.value)
        assert finding.file
        assert finding.found
        assert finding.expected
        assert finding.fix
    assert str(caught.value).startswith(f"{len(findings)} problem(s)")
    return findings


def with_box(shape: Sequence[int], start: Sequence[int], size: int | Sequence[int], value: int) -> np.ndarray:
    """Class indices of 0 but for a box."""
    volume = np.zeros(shape, np.uint8)
    sizes = [size] * 3 if isinstance(size, int) else size
    volume[tuple(slice(a, a + n) for a, n in zip(start, sizes, strict=True))] = value
    return volume


class Scored:
    """Cases of one box of enhancing tumour, as evaluation hands them to a handler that scores them."""

    affine = np.array([[-2.0, 0, 0, 10], [0, -1, 0, 20], [0, 0, 3, -5], [0, 0, 0, 1]])  # 2 x 1 x 3 mm, flipped axes

    def __init__(self, shape: Sequence[int], label_values: Sequence[int]) -> None:
        self.shape, self.label_values = shape, list(label_values)

    def read_label(self, path: str, label_values: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Stand-in for the bundle's reader: the path names the class."""
        assert list(label_values) == self.label_values
        if "missing" in path:
            raise FileNotFoundError(path)
        return with_box(self.shape, (1, 1, 1), 3, 0 if "healthy" in path else 3), self.affine

    def item(self, case: str, file: str = "") -> dict[str, Any]:
        return {"case": case, "label_file": file or f"/data/{case}.nii.gz", "label_values": self.label_values}

    def output(self, start: int) -> dict[str, Any]:
        return {"pred": MetaTensor(torch.as_tensor(with_box(self.shape, (start, 1, 1), 3, 3))[None])}

    def run(self, handler: Any, pairs: Sequence[tuple[dict[str, Any], dict[str, Any]]]) -> Engine:
        """A fake evaluator: every pair is a batch that arrives decollated."""

        def step(engine: Engine, pair: Any) -> list[Any]:
            engine.state.batch = [pair[0]]  # type: ignore[assignment]
            return [pair[1]]

        engine = Engine(step)
        engine.logger.setLevel(logging.CRITICAL)
        handler.attach(engine)
        engine.run(pairs)
        return engine


class Waits(TorchDispatchMode):
    """Counts the operations at which a program would wait for a GPU.

    `numbers`: values that are read; `places`: searches for what is True, as by `volume[mask]`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.numbers = self.places = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._overloadpacket.__name__
        by_mask = name.startswith("index") and any(
            torch.is_tensor(one) and one.dtype == torch.bool for one in (args[1] if isinstance(args[1], list) else [])
        )
        if by_mask and "put" in name:
            by_mask = args[2].numel() > 1  # one value for all is filled in without a search
        self.places += by_mask or name == "nonzero"
        self.numbers += name in ("_local_scalar_dense", "equal")
        return func(*args, **(kwargs or {}))


@pytest.fixture
def waits() -> type[Waits]:
    """A context that counts how often a GPU would be waited for in it."""
    return Waits
