"""A network that computes a case in a moment, and a data set of which something can be changed."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.bundlekit.cohort.killing import write_model
from tests.conftest import ROOT

Planned = Callable[..., "tuple[Any, list[Any], list[Any]]"]


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of the narrowest network, as they are before training: its masks are noise, and always the same."""
    folder = tmp_path_factory.mktemp("tiny")
    write_model(folder)
    return folder


@pytest.fixture
def cases(cohort: Path, tmp_path: Path) -> Path:
    """Three of the virtual gliomas, which a test may spoil."""
    for folder in sorted(cohort.iterdir())[:3]:
        shutil.copytree(folder, tmp_path / "cases" / folder.name)
    return tmp_path / "cases"


@pytest.fixture
def planned(cases: Path, tiny_model: Path, tmp_path: Path) -> Planned:
    """What `plan_cohort` gives for the three cases."""
    from bundlekit.cohort.starting import plan_cohort

    def plan(dataset: Path = cases, out: Path = tmp_path / "out", **settings: Any) -> tuple[Any, list[Any], list[Any]]:
        given = {"ckpt_dir": str(tiny_model), "runtime": "torch", **settings}
        return plan_cohort(ROOT / "bundles" / "brats_resunet", str(dataset), str(out), ["inference.yaml"], given, 1)

    return plan
