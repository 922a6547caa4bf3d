"""What a case was computed from, beside its results: whether it is done, or must be computed again."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from bundlekit.cases.case import Case, unsafe_name
from bundlekit.errors import BundleError
from bundlekit.files import sha256_of, write_result
from bundlekit.images.nifti import read_array

FOLDER = "records"
MISSING, DONE = "missing", ""


class Records:
    """The folder `records` of an output folder: a JSON file for each case, written when its results are whole.

    A record holds `case`; `bundle`, `version` and `bundlekit`, the versions; `weights_sha256`; `settings` that were
    given and `config_sha256` of all of them; `inputs` and `outputs`, each file with its SHA-256, bytes and time of
    modification; `volumes`, the rows of `volumes.csv`; `computed_by`, `seconds`, `host` and `finished`.

    Args:
        output_dir: folder of the results.
    """

    def __init__(self, output_dir: str | Path) -> None:
        self.output_dir = Path(output_dir)

    def path(self, case: str) -> Path:
        """The file of a case.

        Raises:
            BundleError: for a name that is no file's.
        """
        if reason := unsafe_name(case):
            raise BundleError(f"the case name {case[:80]!r} {reason}; expected the name of a file, without folders.")
        return self.output_dir / FOLDER / f"{case}.json"

    def read(self, case: str) -> dict[str, Any] | None:
        """The record of a case; None if there is none that can be read."""
        return _read(self.path(case))

    def all(self) -> Iterator[dict[str, Any]]:
        """The records of all cases that can be read, by name."""
        for path in sorted((self.output_dir / FOLDER).glob("*.json")):
            record = _read(path)
            if record is not None:
                yield record

    def write(self, case: Case, outputs: list[Path], inputs: list[dict[str, Any]], told: Mapping[str, Any]) -> None:
        """Write the record of a case whose results are there.

        Args:
            case: as `find_cases` gives it.
            outputs: files of its results, the mask first.
            inputs: as `describe` gives them, from before they were read.
            told: everything else.

        Raises:
            BundleError: if it cannot be written.
        """
        files = [describe(path, path.relative_to(self.output_dir).as_posix()) for path in outputs]
        content = {"case": case["case"], **told, "inputs": inputs, "outputs": files}
        text = json.dumps(content, indent=1) + "\n"
        write_result(self.path(case["case"]), lambda file: file.write(text.encode()), "output_dir")

    def why(self, case: Case, made_from: Mapping[str, Any]) -> str:
        """Why a case has to be computed: "missing", or "changed: " and what; "" if it is done.

        A mask that somebody corrected is done. A file whose size and time of modification are those in the record is
        taken for the same; any other is hashed.

        Args:
            case: as `find_cases` gives it.
            made_from: what the record must hold, see `bundlekit.cohort.pipeline.Plan.made_from`.
        """
        record = self.read(case["case"])
        if record is None or not record["outputs"]:
            return MISSING
        paths = [self.output_dir / entry["file"] for entry in record["outputs"]]
        if not all(path.is_file() for path in paths):
            return MISSING
        changed = [name for name, value in made_from.items() if record.get(name) != value]
        recorded = {entry["file"]: entry for entry in record["inputs"]}
        files = inputs_of(case)
        changed += [Path(file).name for file in files if file not in recorded or not _same(Path(file), recorded[file])]
        if len(recorded) > len(files):
            changed.append(f"{len(files)} files, {len(recorded)} before")
        if changed:
            return f"changed: {', '.join(changed)}"
        damaged = [
            path.name
            for path, entry in zip(paths, record["outputs"], strict=True)
            if not _same(path, entry) and not _readable(path, entry)
        ]
        return f"damaged: {', '.join(damaged)}" if damaged else DONE

    def forget(self, case: Case) -> None:
        """Remove what is damaged of the results of a case, so that it can be written again."""
        record = self.read(case["case"]) or {"outputs": []}
        for entry in record["outputs"]:
            path = self.output_dir / entry["file"]
            if path.is_file() and not _same(path, entry) and not _readable(path, entry):
                path.unlink()

    def remove_others(self, case: Case, kept: Collection[Path]) -> None:
        """Remove what the record of a case lists beside `kept`: an earlier run wrote it, with other settings.

        A file that was changed since then stays.
        """
        for entry in (self.read(case["case"]) or {"outputs": []})["outputs"]:
            path = self.output_dir / entry["file"]
            if path not in kept and _same(path, entry):
                path.unlink()

    def corrected(self, record: Mapping[str, Any]) -> bool:
        """Whether somebody has changed the mask of a record since it was written."""
        masks = [(self.output_dir / entry["file"], entry) for entry in record["outputs"][:1]]
        return any(path.is_file() and not _same(path, entry) for path, entry in masks)


def inputs_of(case: Case) -> list[str]:
    """Files that a case is computed from, absolute."""
    return [str(Path(file).absolute()) for file in case["image"] if file]


def describe(path: Path, name: str | None = None) -> dict[str, Any]:
    """A file for a record.

    Raises:
        OSError: if it cannot be read.
    """
    seen = path.stat()
    return {
        "file": str(path) if name is None else name,
        "sha256": sha256_of(path),
        "bytes": seen.st_size,
        "mtime_ns": seen.st_mtime_ns,
    }


def _read(path: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_text())
        whole = isinstance(content, dict) and all(isinstance(content[key], list) for key in ("inputs", "outputs"))
        # files of these names are removed: a record of a stranger may not lead out of its folder
        return content if whole and all(_stays(Path(entry["file"])) for entry in content["outputs"]) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _stays(path: Path) -> bool:
    """Whether a path is one within the folder that it starts from."""
    return not path.is_absolute() and ".." not in path.parts


def _same(path: Path, entry: Mapping[str, Any]) -> bool:
    try:
        seen = path.stat()
        if (seen.st_size, seen.st_mtime_ns) == (entry["bytes"], entry["mtime_ns"]):
            return True
        return seen.st_size == entry["bytes"] and sha256_of(path) == entry["sha256"]
    except OSError:
        return False


def _readable(path: Path, entry: Mapping[str, Any]) -> bool:
    """Whether a file that is no longer as it was written is whole: somebody may have corrected it.

    A NIfTI file is decoded; any other must have at least the bytes that it had.
    """
    if not path.name.endswith((".nii.gz", ".nii")):
        return path.stat().st_size >= entry["bytes"]
    try:
        read_array(str(path))
        return True
    except BundleError:
        return False
