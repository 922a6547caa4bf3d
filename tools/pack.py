"""Bundles as zips that stand alone, in the form of MONAI's Model Zoo."""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
import zipfile
from pathlib import Path
from typing import Any

import yaml

from bundlekit.cases.datalist import TRAINED_ON
from bundlekit.files import write_whole
from bundlekit.weights.settings import SETTINGS
from bundlekit.weights.shipped import RECORD, check_shipped, shipped_files, shipped_folders
from tools.bundles import KIT, ROOT, folder_of, names

_KIT = (".py", ".json", ".html", ".css", ".js", ".txt")  # of bundlekit: modules, templates and viewer of reports
_PARTS = {"configs": (".yaml", ".json", ".conf"), "docs": (".md", ".png", ".txt", ".json")}
_LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")  # of Markdown: whether a picture, words, target
_RESULTS = ROOT.parent / "docs" / "results.md"  # what the columns and flags mean, for all bundles
_CORE = {"numpy": "numpy", "torch": "pytorch", "monai": "monai"}  # package -> its <key>_version in metadata.json


def pack(bundle: str, out: str) -> list[str]:
    """Write a bundle as `<name>_v<version>.zip`, which runs wherever it is unpacked, and return the zips written.

    In the folder `<name>/` lie the bundle's configs (each YAML file also as JSON, which `monai.bundle.load` and
    MONAI Label open), docs with what all bundles' results mean, shipped weights, licence and package; beside the
    package the whole of bundlekit, since the overlays reach nearly all of it and it has a fiftieth of the weights'
    size; `requirements.txt`; and `SHA256SUMS` of every other file (`sha256sum -c SHA256SUMS`). The same files give
    the same bytes: times, modes and order are fixed, and nothing is compressed, because another zlib would give
    other bytes and weights hardly shrink. Files are of 1 January 1980, the earliest that a zip can hold, at a time
    of day that comes from their content: `unzip` sets it, and Python takes a compiled module for current where size
    and time are those of its source.

    Example: python -m tools pack all --out DIR

    Args:
        bundle: name of a bundle, or "all".
        out: folder for the zips; one of the same name is replaced.

    Raises:
        ValueError: if there is no such bundle, or its weights are not those that it says it ships.
    """
    chosen = names() if bundle == "all" else [bundle]
    packed = {folder_of(name): _contents(name) for name in chosen}
    written = []
    for folder, files in packed.items():
        path = Path(out) / f"{folder.name}_v{_metadata(folder)['version']}.zip"
        write_whole(path, lambda file, folder=folder, files=files: _write(file, folder.name, files))  # type: ignore[misc]
        content = path.read_bytes()
        print(f"{path}: {len(content) / 2**20:.1f} MB, SHA-256 {hashlib.sha256(content).hexdigest()}", flush=True)
        written.append(str(path))
    return written


def requirements_of(bundle: str) -> list[str]:
    """What a bundle needs installed, as lines of a requirements.txt, from its metadata.json."""
    metadata = _metadata(folder_of(bundle))
    pins = {package: metadata[f"{key}_version"] for package, key in _CORE.items()}
    return [f"{package}=={version}" for package, version in (pins | metadata["required_packages_version"]).items()]


def _metadata(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "configs" / "metadata.json").read_text())


def _contents(bundle: str) -> dict[str, bytes]:
    """Path below the bundle's folder -> content of every file, in the order of the paths."""
    folder = folder_of(bundle)
    found = [folder / "LICENSE"]
    for part, endings in _PARTS.items():
        found += [file for file in (folder / part).iterdir() if file.suffix in endings]
    shipped = shipped_folders(folder / "models")  # what else lies there is of a run on this machine
    for models in shipped:
        for weights in shipped_files(models):
            check_shipped(weights)
            found.append(weights)
        found += [models / SETTINGS, models / RECORD]
        found += [file for file in [models / TRAINED_ON] if file.is_file()]
    if not shipped:
        print(f"{bundle}: ships no weights")
    found += (folder / bundle).rglob("*.py")
    placed = {file.resolve(): file.relative_to(folder).as_posix() for file in found}
    placed[_RESULTS.resolve()] = f"docs/{_RESULTS.name}"
    for picture in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", _RESULTS.read_text()):  # whose names others have, too
        placed[(_RESULTS.parent / picture).resolve()] = f"docs/{_RESULTS.stem}_{picture}"
    files = {path: file.read_bytes() for file, path in placed.items()}
    for file, path in placed.items():
        if file.suffix == ".md":
            files[path] = _with_links_inside(files[path].decode(), file, path, placed).encode()
    files |= {
        file.relative_to(KIT.parent).as_posix(): file.read_bytes() for file in KIT.rglob("*") if file.suffix in _KIT
    }
    for path in [path for path in files if path.endswith(".yaml")]:
        twin = json.dumps(yaml.safe_load(files[path]), indent=2, ensure_ascii=False)
        files[path.removesuffix(".yaml") + ".json"] = f"{twin}\n".encode()
    files["requirements.txt"] = "".join(f"{line}\n" for line in requirements_of(bundle)).encode()
    sums = "".join(f"{hashlib.sha256(files[path]).hexdigest()}  {path}\n" for path in sorted(files))
    files["SHA256SUMS"] = sums.encode()
    return dict(sorted(files.items()))


def _with_links_inside(text: str, file: Path, path: str, placed: dict[Path, str]) -> str:
    """Markdown in which links lead to where the files lie in the zip; of those that it lacks the words stay.

    Args:
        text: of `file`.
        file: in the checkout.
        path: in the zip.
        placed: file of the checkout -> path in the zip.
    """

    def link(found: re.Match[str]) -> str:
        picture, words, target = found.groups()
        name, hash_, anchor = target.partition("#")
        if not name or "://" in target:
            return found[0]
        there = placed.get((file.parent / name).resolve())
        if there is None:
            return "" if picture else words
        return f"{picture}[{words}]({os.path.relpath(there, os.path.dirname(path))}{hash_}{anchor})"

    return _LINK.sub(link, text)


def _write(file: Any, top: str, files: dict[str, bytes]) -> None:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as out:
        for path, content in files.items():
            entry = zipfile.ZipInfo(f"{top}/{path}", (1980, 1, 1, *_time_of_day(content)))
            entry.create_system = 3  # Unix, on any system: the modes are its
            entry.external_attr = (stat.S_IFREG | 0o644) << 16
            out.writestr(entry, content)


def _time_of_day(content: bytes) -> tuple[int, int, int]:
    """Hour, minute and second, which a zip has in steps of two."""
    seconds = 2 * (int(hashlib.sha256(content).hexdigest(), 16) % (12 * 3600))
    return seconds // 3600, seconds // 60 % 60, seconds % 60
