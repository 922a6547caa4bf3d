"""Versions of the package and of a bundle, which caches are keyed by; and what a bundle asks of the package."""

from __future__ import annotations

import glob
import json
import logging
import os
import re
import sys
import zipfile
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path

from bundlekit.errors import BundleError, show_clear_errors

__version__ = "0.3.0"

_log = logging.getLogger(__name__)
_roots: list[Path] = []  # of the bundles that this process has imported


def require(package: str | os.PathLike) -> None:
    """Refuse a bundle that came with another minor version of bundlekit than the one that this process has loaded.

    A packed bundle has its own bundlekit beside its package. Python loads one of that name in a process, whichever is
    asked for first, so that two packed bundles of different releases would mix. In a checkout no bundle has one of its
    own: nothing is asked there.

    Args:
        package: `__file__` of the bundle's package.

    Raises:
        BundleError: with both folders, both versions and what to do.
        SystemExit: as `require_exporter` does.
    """
    require_exporter(sys.argv)
    root = Path(package).resolve().parents[1]
    _roots.append(root)
    _require_same(root)


def _require_same(root: Path) -> None:
    own = root / "bundlekit" / "version.py"
    found = re.search(r'^__version__ = "(.+)"', own.read_text(), re.MULTILINE) if own.is_file() else None
    if found is None or found[1].split(".")[:2] == __version__.split(".")[:2]:
        return
    loaded = Path(__file__).resolve().parents[1]
    raise _refusal(
        f"{root.name} ({root}) came with bundlekit {found[1]}, but this process has loaded bundlekit {__version__} of "
        f"{loaded.name} ({loaded}). Run each in a process of its own, or take both from one release."
    )


def _refusal(message: str) -> BundleError:
    """An error that a command of monai.bundle ends with alone, although its run is not prepared yet."""
    if _is_monai_bundle(sys.argv):
        show_clear_errors()
    return BundleError(message)


def _is_monai_bundle(arguments: Sequence[str]) -> bool:
    return bool(arguments) and Path(arguments[0]).parent.match("monai/bundle")


def root_of(package: str | os.PathLike) -> str:
    """Folder of the bundle that a package lies in, whatever the working directory.

    Args:
        package: `__file__` of the bundle's package.

    Raises:
        BundleError: if the bundle's configs are not there, as where pip has installed the package alone.
    """
    folder = Path(package).resolve().parent
    if not _metadata(folder.parent).is_file():
        raise _refusal(
            f"{folder} has no configs and weights beside it: it was installed without them. Run from the root of the "
            f"bundle's unpacked zip, or give that folder as --bundle_root."
        )
    return str(folder.parent)


def tell_versions(bundle_root: str | os.PathLike[str] | None = None) -> None:
    """Log which bundle runs, and warn where its folder seems not to be the version that somebody wanted.

    One that came with another minor version of bundlekit is refused.

    MONAI's download neither replaces a zip of the same name nor unpacks over a folder that is there, and says so in
    passing; `unzip` and the Hugging Face Hub leave files of the version before.

    Args:
        bundle_root: folder of the bundle, where its package may lie elsewhere.

    Raises:
        BundleError: as `require` does.
    """
    named = [Path(bundle_root).resolve()] if bundle_root is not None else []
    for root in filter(lambda root: _metadata(root).is_file(), dict.fromkeys([*named, *_roots])):
        _require_same(root)
        version = json.loads(_metadata(root).read_text())["version"]
        _log.info("%s %s with bundlekit %s, in %s", root.name, version, __version__, root)
        if not (root / "SHA256SUMS").is_file():  # a checkout
            continue
        for path, other in _zips_beside(root):
            if _numbers(other) > _numbers(version):
                _log.warning(
                    "%s holds version %s, but the folder %s is still version %s: MONAI does not unpack over a folder "
                    "that is there. Move the folder away and download again.", path, other, root, version,
                )  # fmt: skip
        listed = {line.split("  ", 1)[-1] for line in (root / "SHA256SUMS").read_text().splitlines()}
        found = {file.relative_to(root).as_posix() for part in (root.name, "bundlekit")
                 for file in (root / part).rglob("*.py")}  # fmt: skip
        if left := sorted(found - listed):
            _log.warning(
                "%s: %d Python files are not of version %s, such as %s: it was unpacked over another version. Unpack "
                "it into an empty folder.", root, len(left), version, left[0],
            )  # fmt: skip


def _zips_beside(root: Path) -> Iterator[tuple[Path, str]]:
    """Zips of a bundle in the folder that it lies in, and their versions."""
    for path in sorted(root.parent.glob(f"{glob.escape(root.name)}*.zip")):
        try:
            with zipfile.ZipFile(path) as content:
                yield path, json.loads(content.read(f"{root.name}/configs/metadata.json"))["version"]
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, zipfile.BadZipFile):
            continue  # of something else, or still being written


def _numbers(version: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", version)]


def _metadata(root: Path) -> Path:
    return root / "configs" / "metadata.json"


def bundle_version(module: str) -> str:
    """Name and version of the bundle that a module is of; "" for any other module, MONAI's among them.

    Args:
        module: its name, e.g. `__module__` of a class.
    """
    package = module.partition(".")[0]
    file = getattr(sys.modules.get(package), "__file__", None)
    metadata = _metadata(Path(file).resolve().parents[1]) if file else Path()
    return f"{package} {json.loads(metadata.read_text())['version']}" if metadata.is_file() else ""


def require_exporter(arguments: Sequence[str]) -> None:
    """End a `monai.bundle onnx_export` at once where a package that it needs is missing, with the way to get it.

    Args:
        arguments: the command line.

    Raises:
        SystemExit: with that one line; MONAI's configs go on after other errors of an import.
    """
    if list(arguments[1:2]) != ["onnx_export"] or not _is_monai_bundle(arguments):
        return
    missing = [package for package in ("onnx", "onnxscript") if find_spec(package) is None]
    if missing:
        raise SystemExit(f"ERROR: onnx_export needs {' and '.join(missing)}: pip install {' '.join(missing)}")
