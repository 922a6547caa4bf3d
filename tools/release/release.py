"""The command: zips, and around them what each place where they are offered wants."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import zipfile
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

from bundlekit.version import __version__
from tools.bundles import ROOT
from tools.pack import pack
from tools.release.hub import model_card
from tools.release.sbom import sbom

PROJECT = ROOT.parent
_NEEDED = ("build", "hatchling", "twine", "cyclonedx")  # of the extra `release`
_EARLIEST = 315532800  # 1 January 1980, the time of the files in the zips


def release(out: str, bundle: str = "all", url: str = "") -> None:
    """Write what a release consists of into a new folder, from the files of this checkout.

    - `<name>_v<version>.zip` of every bundle, as `pack` writes it, and `<name>_v<version>.cdx.json`, what is in it as
      a CycloneDX SBOM: the bundle, its weights, and the packages that it names, not those that they bring;
    - `huggingface/<name>/`, a folder to upload to a model repository of the Hugging Face Hub: the unpacked zip and a
      model card that the Hub reads;
    - `model_info.json`, the entries of the Model Zoo's file of that name;
    - a wheel and an sdist of the Python packages, without configs and weights;
    - `SHA256SUMS` of the files beside it.

    The same files give the same bytes. Times in it are that of the last commit, or SOURCE_DATE_EPOCH. Needs the extra
    `release`: `pip install -e '.[release]'`. CONTRIBUTING.md has the steps before and after.

    Example: python -m tools release --out dist --url https://example.org/v0.3.0

    Args:
        out: folder to write, new or empty.
        bundle: name of a bundle, or "all".
        url: where the zips will be offered, for `model_info.json`: the address without the file's name.

    Raises:
        ValueError: if the folder is not empty, a package is missing, there is no such bundle, or its weights are not
            those that it says it ships.
        OSError: if the wheel or the sdist cannot be built, or PyPI would not take it.
    """
    folder = Path(out)
    missing = [package for package in _NEEDED if find_spec(package) is None]
    if missing:
        raise ValueError(f"{', '.join(missing)} missing; pip install -e '.[release]' has what a release needs.")
    if folder.exists() and next(folder.iterdir(), None):
        raise ValueError(f"{folder}: is not empty; give a new folder, so that nothing of another release is in this.")
    _warn()
    when = _time()
    entries = {}
    for path in map(Path, pack(bundle, out)):
        content = path.read_bytes()
        unpacked = _unpack(path, folder / "huggingface")
        metadata = json.loads((unpacked / "configs" / "metadata.json").read_text())
        (unpacked / "README.md").write_text(model_card(unpacked, metadata))
        (folder / f"{path.stem}.cdx.json").write_text(sbom(unpacked, metadata, content, when))
        source = f"{url.rstrip('/')}/{path.name}" if url else path.name
        entries[path.stem] = {"checksum": hashlib.sha1(content).hexdigest(), "source": source}  # SHA-1, as the Zoo has
    (folder / "model_info.json").write_text(json.dumps(entries, indent=4) + "\n")
    _build(folder, when)
    files = sorted(file for file in folder.iterdir() if file.is_file())  # Hub folders have sums of their own
    sums = [f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.name}" for file in files]
    (folder / "SHA256SUMS").write_text("".join(f"{line}\n" for line in sums))
    print(f"{folder}: {len(files)} files, of {__version__}")


def _unpack(path: Path, to: Path) -> Path:
    """The zip's folder below `to`."""
    with zipfile.ZipFile(path) as content:
        content.extractall(to)
        return to / content.namelist()[0].partition("/")[0]


def _git(*arguments: str) -> str:
    """What git prints, "" where there is no repository."""
    done = subprocess.run(["git", *arguments], cwd=PROJECT, capture_output=True, text=True, check=False)
    return done.stdout.strip()


def _time() -> int:
    """Seconds since 1970 that stand for the time of the release, whenever it is made."""
    return int(os.environ.get("SOURCE_DATE_EPOCH") or _git("log", "-1", "--format=%ct") or _EARLIEST)


def _warn() -> None:
    """Say what a release should not have."""
    newest = re.search(r"^## \[(.+?)\] - (.+)$", (PROJECT / "CHANGELOG.md").read_text(), re.MULTILINE)
    if newest is None or newest[1] != __version__ or newest[2] == "unreleased":
        print(f"WARNING: CHANGELOG.md begins with {newest and newest[0]!r}; expected {__version__} and its date.")
    if _git("status", "--porcelain"):
        print("WARNING: files are not committed; nobody can make this release again.")


def _build(folder: Path, when: int) -> None:
    """Wheel and sdist, by the build backend of this environment."""
    from build import BuildBackendException, ProjectBuilder
    from twine.commands.check import check

    def run(cmd: Sequence[str], cwd: str | None = None, extra_environ: Mapping[str, str] | None = None) -> None:
        environment = {**os.environ, **(extra_environ or {}), "SOURCE_DATE_EPOCH": str(when)}
        subprocess.run(cmd, cwd=cwd, env=environment, check=True, capture_output=True, text=True)

    try:
        builder = ProjectBuilder(PROJECT, runner=run)
        built = [builder.build(kind, folder) for kind in ("sdist", "wheel")]
    except BuildBackendException as error:
        said = getattr(error.exception, "stderr", "")
        raise OSError(f"{PROJECT / 'pyproject.toml'}: {error} {said}") from error
    if check(built, strict=True):
        raise OSError(f"{PROJECT / 'README.md'}: PyPI cannot show it; what is wrong stands above.")
