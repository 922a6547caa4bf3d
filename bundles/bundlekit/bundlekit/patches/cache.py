"""Prepared cases on disk: memory-mapped, written whole, found again by what went into them."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from pickle import UnpicklingError
from types import CodeType, FunctionType
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor, PersistentDataset
from monai.data.utils import json_hashing

from bundlekit.files import write_whole
from bundlekit.version import __version__

_log = logging.getLogger(__name__)


class CaseCache(PersistentDataset):
    """MONAI's `PersistentDataset` with files that are memory-mapped on reading and cannot be left half-written.

    MONAI's own writes to the system's temporary folder and moves the file across, which is a copy where that is
    another disk, and fails on every later read of a file cut off by that. Keys are the case, the size and time of its
    files, and the transforms. Where the disk is full the case is used without being kept. Speed is that of MONAI's
    (`python -m tools bench loader`); mapping saves the memory of a whole volume per worker.

    Args:
        data: cases.
        transform: deterministic transforms.
        cache_dir: folder, made if missing.
    """

    def __init__(self, data: Sequence[dict[str, Any]], transform: Callable, cache_dir: str) -> None:
        super().__init__(data, transform, cache_dir=cache_dir, hash_func=_case_hash, hash_transform=_transform_hash)

    def _cachecheck(self, item_transformed: dict[str, Any]) -> dict[str, Any]:
        assert self.cache_dir is not None
        file = self.cache_dir / f"{self.hash_func(item_transformed).decode()}{self.transform_hash}.pt"
        if file.is_file():
            try:
                return torch.load(file, weights_only=True, mmap=True)
            except (UnpicklingError, RuntimeError, EOFError, OSError, ValueError):
                _log.warning("cannot read %s: preparing %s again", file, item_transformed["case"])
        prepared = plain_tensors(self._pre_transform(dict(item_transformed)))
        try:
            write_whole(file, lambda out: torch.save(prepared, out))
        except OSError as error:
            _log.warning("cannot keep %s in %s (%s): going on without", item_transformed["case"], file.parent, error)
            return prepared
        return torch.load(file, weights_only=True, mmap=True)


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
    # not pickled: that tells equal cases apart by which of their strings are one object
    return json_hashing([_describe(case), [(s.st_size, s.st_mtime_ns) for s in stats]])


def _transform_hash(transforms: Sequence[object]) -> bytes:
    versions = sorted({_version_of(type(t).__module__.partition(".")[0]) for t in transforms})
    return json_hashing([__version__, versions, [_describe(t) for t in transforms]])


def _version_of(package: str) -> str:
    """Name and version of the bundle that a package is of; "" for any other package, MONAI's among them."""
    file = getattr(sys.modules.get(package), "__file__", None)
    metadata = Path(file).resolve().parents[1] / "configs" / "metadata.json" if file else Path()
    return f"{package} {json.loads(metadata.read_text())['version']}" if metadata.is_file() else ""


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
