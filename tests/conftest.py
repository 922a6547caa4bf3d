"""What all tests share: the repository's root, virtual cases made once, and commands run as a user runs them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock

from bundlekit.virtual import brats, metastases, tissue
from tests.forked_commands import ForkedCommands
from tools.bundles import names

ROOT = Path(__file__).resolve().parents[1]
BUNDLE = ROOT / "bundles" / "brats_resunet"

# small enough for seconds: narrow network, small patches, no loader processes
SMALL = ["--channels", "[4,8,16,32]", "--patch_size", "[32,32,32]", "--num_workers", "0"]
TRAINING = ["--batch_size", "2", "--accumulation_steps", "1", "--learning_rate", "0.01"]

COMMANDS = ForkedCommands()

Run = Callable[..., "subprocess.CompletedProcess[str]"]


def pytest_configure(config: pytest.Config) -> None:
    """A warning from a bundle's own code is an error."""
    for name in names():
        config.addinivalue_line("filterwarnings", f"error:::{name}")


@pytest.fixture(scope="session")
def cohort(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """Five virtual gliomas of 48x48x36 voxels, shared by all test processes; read-only by convention."""
    return _made_once(brats, "cohort", tmp_path_factory, worker_id)


@pytest.fixture(scope="session")
def heads(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """Five virtual healthy heads of 48x48x36 voxels of 5 x 5 x 4.3 mm, as `cohort`."""
    return _made_once(tissue, "heads", tmp_path_factory, worker_id)


@pytest.fixture(scope="session", name="metastases")
def metastasis_cohort(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """Five virtual cases of metastases of 48x48x36 voxels, as `cohort`."""
    return _made_once(metastases, "metastases", tmp_path_factory, worker_id)


def _made_once(make: Callable[..., object], name: str, factory: pytest.TempPathFactory, worker_id: str) -> Path:
    base = factory.getbasetemp()
    base = base if worker_id == "master" else base.parent
    folder = base / name
    with FileLock(str(folder) + ".lock"):
        if not folder.is_dir():
            make(str(base / f"{name}.part"), cases=5, seed=3, shape=(48, 48, 36))
            (base / f"{name}.part").rename(folder)
    return folder


@pytest.fixture
def cases(cohort: Path, tmp_path: Path) -> Path:
    """A copy of the cohort that a test may spoil."""
    return Path(shutil.copytree(cohort, tmp_path / "cases"))


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Environment of a command: its own cache folder, one thread."""
    return {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}


@pytest.fixture
def run(environment: dict[str, str]) -> Run:
    """Run `python ...` to its end, by default from the repository's root; check the exit status where one is given."""

    def call(*arguments: str | Path, status: int | None = 0, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
        command = [str(argument) for argument in arguments]
        if command[:2] in (["-m", "monai.bundle"], ["-m", "tools"]):
            done = COMMANDS.run(command[1:], str(cwd), environment, timeout=300)
        else:
            done = subprocess.run(
                [sys.executable, *command],
                cwd=cwd,
                env=environment,
                capture_output=True,
                text=True,
                timeout=300,
                check=False,
            )
        assert status is None or done.returncode == status, done.stdout[-3000:] + done.stderr[-6000:]
        return done

    return call


def assert_equal(got: Any, expected: Any) -> None:
    """Bit for bit, however deeply the two are nested."""
    assert type(got) is type(expected)
    if isinstance(expected, dict):
        assert got.keys() == expected.keys()
        for key in expected:
            assert_equal(got[key], expected[key])
    elif isinstance(expected, (list, tuple)):
        assert len(got) == len(expected)
        for one, other in zip(got, expected, strict=True):
            assert_equal(one, other)
    elif isinstance(expected, torch.Tensor):
        assert torch.equal(got, expected)
    else:
        assert got == expected


def bundle_run(run_id: str, *configs: str, bundle: Path = BUNDLE) -> list[str]:
    """Arguments of `python` for a run of a bundle's configs."""
    files = [str(bundle / "configs" / name) for name in configs]
    one = files[0] if len(files) == 1 else str(files)
    return ["-m", "monai.bundle", "run", run_id, "--config_file", one]
