"""Prepared cases on disk: memory-mapped, written whole, found again by what went into them."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import re
import time
import zipfile
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from importlib import import_module, metadata
from pathlib import Path
from pickle import UnpicklingError
from types import CodeType, FunctionType
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor, PersistentDataset
from monai.data.utils import json_hashing

from bundlekit.files import write_whole
from bundlekit.version import __version__, bundle_version

_log = logging.getLogger(__name__)
_KEPT = re.compile(r"[0-9a-f]{128}\.pt|\.[0-9a-f]{128}\.pt\..*\.part")  # names that this module gives, and no others
_FILES = ("image", "label", "label_parts")  # of a case
_OWN = __name__.partition(".")[0]
_PARTS = ("brats", "images", "label_maps", "cases", "virtual")  # of bundlekit: what reads and prepares a case
# what reads and prepares a case, too
_LIBRARIES = ("monai", "torch", "scipy", "nibabel", "scikit-image", "SimpleITK", "connected-components-3d")
_UNREADABLE = (UnpicklingError, RuntimeError, EOFError, OSError, ValueError, zipfile.BadZipFile)


class CaseCache(PersistentDataset):
    """MONAI's `PersistentDataset` with files that are memory-mapped on reading and cannot be left half-written.

    MONAI's own writes to the system's temporary folder and moves the file across, which is a copy where that is
    another disk, and fails on every later read of a file cut off by that. Keys are the case, the size and time of its
    files, the transforms, and the source of what they are made of. Where the disk is full the case is used without
    being kept. Speed is that of MONAI's (`python -m tools bench loader`); mapping saves the memory of a whole volume
    per worker.

    Checksums of a file are compared when a run uses it for the first time, in whichever of its loader processes, since
    mapping alone would not notice a damaged one: 0.07 s for the 36 MB of a case of BraTS, and reading it once.

    Args:
        data: cases.
        transform: deterministic transforms.
        cache_dir: folder, made if missing.
    """

    def __init__(self, data: Sequence[dict[str, Any]], transform: Callable, cache_dir: str) -> None:
        super().__init__(data, transform, cache_dir=cache_dir, hash_func=_case_hash, hash_transform=_transform_hash)
        self._position = {case["case"]: position for position, case in enumerate(data)}
        self._checked = torch.zeros(len(data), dtype=torch.bool).share_memory_()  # by any loader process

    def _cachecheck(self, item_transformed: dict[str, Any]) -> dict[str, Any]:
        assert self.cache_dir is not None
        file = self.cache_dir / f"{self.hash_func(item_transformed).decode()}{self.transform_hash}.pt"
        position = self._position[item_transformed["case"]]
        if file.is_file():
            try:
                if not self._checked[position]:
                    _check(file)
                    self._checked[position] = True
                return torch.load(file, weights_only=True, mmap=True)
            except _UNREADABLE:
                _log.warning("%s is damaged: preparing %s again", file, item_transformed["case"])
        prepared = plain_tensors(self._pre_transform(dict(item_transformed)))
        try:
            write_whole(file, lambda out: torch.save(prepared, out))
        except OSError as error:
            _log.warning("cannot keep %s in %s (%s): going on without", item_transformed["case"], file.parent, error)
            return prepared
        return torch.load(file, weights_only=True, mmap=True)


def remove_unused(cache_dir: str | os.PathLike, days: float) -> int:
    """Remove prepared cases that no run has used for some time; files of other names stay. Returns how many.

    Args:
        cache_dir: folder of a `CaseCache`; need not be there.
        days: since a run used a file for the first time.
    """
    before, removed = time.time() - 86400 * days, 0
    for file in Path(cache_dir).glob("*"):
        with contextlib.suppress(OSError):  # another run was faster, or the folder is somebody else's
            if _KEPT.fullmatch(file.name) and file.stat().st_mtime < before:
                file.unlink()
                removed += 1
    if removed:
        _log.info("%s: %d prepared cases that were not used for %g days are removed", cache_dir, removed, days)
    return removed


def _check(file: Path) -> None:
    """Raise what `_UNREADABLE` lists if a checksum in the file is wrong; note that the file is in use."""
    with zipfile.ZipFile(file) as parts:
        damaged = parts.testzip()
    if damaged is not None:
        raise ValueError(damaged)
    with contextlib.suppress(OSError):  # of a folder that may only be read
        os.utime(file)


def plain_tensors(case: Mapping[Any, Any]) -> dict[Any, Any]:
    """A copy of `case` with arrays of any kind as plain tensors.

    `MetaTensor`'s geometry has no use in training and costs time; NumPy arrays do not load with `weights_only=True`.
    """
    return {
        key: value.as_tensor()
        if isinstance(value, MetaTensor)
        else torch.as_tensor(value)
        if isinstance(value, np.ndarray)
        else value
        for key, value in case.items()
    }


def _case_hash(case: dict[str, Any]) -> bytes:
    stats = [os.stat(f) for f in (*case["image"], *(case.get("label_parts") or [case["label"]])) if f]
    # which side of a split it is on, and how its files were named, is nothing of the case
    known = {key: _absolute(value) if key in _FILES else value for key, value in case.items() if key != "subset"}
    # an order may matter: of abdominal organs it numbers the classes
    known = {key: list(value.items()) if isinstance(value, Mapping) else value for key, value in known.items()}
    # not pickled: that tells equal cases apart by which of their strings are one object
    return json_hashing([_describe(known), [(s.st_size, s.st_mtime_ns) for s in stats]])


def _absolute(files: Any) -> Any:
    if isinstance(files, str):
        return os.path.abspath(files) if files else ""
    return [_absolute(file) for file in files]


def _transform_hash(transforms: Sequence[object]) -> bytes:
    versions = sorted({bundle_version(type(t).__module__) for t in transforms})
    code = [_code_of(package) for package in (_OWN, *(version.partition(" ")[0] for version in versions if version))]
    libraries = [_version(library) for library in _LIBRARIES]
    return json_hashing([__version__, versions, code, libraries, [_describe(t) for t in transforms]])


def _version(library: str) -> str:
    try:
        return metadata.version(library)
    except metadata.PackageNotFoundError:  # a bundle that needs it not
        return ""


@cache
def _code_of(package: str) -> str:
    """Hash of a package's source: what it does to a case may change without its version; of bundlekit, of `_PARTS`."""
    root = Path(str(import_module(package).__file__)).parent
    folders = [root / part for part in _PARTS] if package == _OWN else [root]
    digest = hashlib.sha256()
    for file in sorted(file for folder in folders for file in folder.rglob("*.py")):
        digest.update(f"{file.relative_to(root)}\n".encode() + file.read_bytes())
    return digest.hexdigest()


def _describe(value: object) -> object:
    """A transform and its settings as plain values that are equal in every run (an object's repr holds its address)."""
    if isinstance(value, Mapping):
        return sorted((str(k), _describe(v)) for k, v in value.items())
    if isinstance(value, (list, tuple)):
        return [_describe(v) for v in value]
    if isinstance(value, (set, frozenset)):
        return sorted(str(v) for v in value)
    if torch.is_tensor(value) or isinstance(value, np.ndarray):
        return [str(value.dtype), repr(value.tolist())]
    if isinstance(value, partial):
        return [_describe(part) for part in (value.func, value.args, value.keywords)]
    if isinstance(value, FunctionType):  # with its code: every lambda has the same name
        cells = [cell.cell_contents for cell in value.__closure__ or ()]
        parts = (value.__code__, value.__defaults__, value.__kwdefaults__, [v for v in cells if v is not value])
        return [f"{value.__module__}.{value.__qualname__}", *(_describe(part) for part in parts)]
    if isinstance(value, CodeType):
        return [value.co_code.hex(), _describe(value.co_names), _describe(value.co_consts)]
    if callable(value) and hasattr(value, "__qualname__"):
        return f"{value.__module__}.{value.__qualname__}"
    if hasattr(value, "__dict__"):
        kind = type(value)
        return [f"{kind.__module__}.{kind.__qualname__}", _describe({k: v for k, v in vars(value).items() if k != "R"})]
    return repr(value)
