"""Bundles as their users have them: zipped, and unpacked where they can import the packages that they name alone."""

from __future__ import annotations

import os
import subprocess
import venv
import zipfile
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.conftest import MadeOnce
from tests.forked_commands import RUN_LIBRARIES, ForkedCommands
from tools.bundles import names
from tools.pack import pack, requirements_of

Alone = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session")
def zips(made_once: MadeOnce) -> Path:
    """Folder of every bundle's zip, and of the unpacked ones in `unpacked/`."""

    def make(to: Path) -> None:
        for name in names():
            (path,) = pack(name, str(to))
            with zipfile.ZipFile(path) as content:
                content.extractall(to / "unpacked")

    return made_once("zips", make)


@pytest.fixture(scope="session")
def packed(zips: Path) -> dict[str, Path]:
    """Name -> folder of each bundle, unpacked."""
    return {name: zips / "unpacked" / name for name in names()}


def closure(packages: Sequence[str]) -> set[str]:
    """Distributions that an installation of these has, by name."""
    left, found = [canonicalize_name(package) for package in packages], set()
    while left:
        name = left.pop()
        if name in found:
            continue
        try:
            needed = metadata.requires(name) or []
        except metadata.PackageNotFoundError:  # what this build of a package does without, such as CUDA
            continue
        found.add(name)
        parts = [Requirement(text) for text in needed]
        left += [canonicalize_name(p.name) for p in parts if not p.marker or p.marker.evaluate({"extra": ""})]
    return found


def link_packages(site: Path, packages: Sequence[str]) -> Path:
    """Make only these packages, and what they depend on, importable from a folder: links into this environment."""
    site.mkdir(exist_ok=True)
    for name in closure(packages):
        distribution = metadata.distribution(name)
        for top in {file.parts[0] for file in distribution.files or ()} - {"..", "__pycache__", "."}:
            if not (site / top).exists():
                (site / top).symlink_to(str(distribution.locate_file(top)))
    return site


def environment_of(folder: Path, packages: Sequence[str]) -> Path:
    """A Python in which only these packages, and what they depend on, can be imported."""
    venv.create(folder, symlinks=True, with_pip=False)
    link_packages(next((folder / "lib").glob("python*")) / "site-packages", packages)
    return folder / "bin" / "python"


def packages_of(bundle: str) -> set[str]:
    return {line.split("==")[0] for line in requirements_of(bundle)}


@pytest.fixture(scope="session")
def alone(tmp_path_factory: pytest.TempPathFactory, made_once: MadeOnce) -> Iterator[Alone]:
    """Run a command without the checkout, with the packages that one or several bundles name.

    Those that all bundles name are imported once, where no other can be.
    """
    folder = tmp_path_factory.mktemp("alone")
    clean = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
    clean |= {"XDG_CACHE_HOME": str(folder / "cache"), "OMP_NUM_THREADS": "1"}
    shared = sorted(set.intersection(*map(packages_of, names())))
    python = made_once("alone_venv", lambda to: environment_of(to, shared)) / "bin" / "python"
    commands = ForkedCommands("alone", str(python), RUN_LIBRARIES, clean)

    def call(
        *arguments: str | Path, of: Sequence[str], cwd: Path, path: Sequence[Path] = (), **more: str
    ) -> subprocess.CompletedProcess[str]:
        site = link_packages(folder / "+".join(of), sorted(set.union(*map(packages_of, of))))
        environment = {**clean, "PYTHONPATH": os.pathsep.join(map(str, [*path, site])), **more}
        return commands.run([str(argument) for argument in arguments], str(cwd), environment, timeout=300)

    yield call
    commands.close()
