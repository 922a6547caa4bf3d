"""What a case was computed from, beside its results: whether it is done, or must be computed again."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any
from uuid import uuid4

from isal import igzip

from bundlekit.cases.case import Case, unsafe_name
from bundlekit.errors import BundleError
from bundlekit.files import sha256_of, write_content
from bundlekit.images.nifti import read_array
from bundlekit.images.writing import remark_in, written_by
from bundlekit.report.table import COLUMNS

_log = logging.getLogger(__name__)
FOLDER = "records"
MISSING, DAMAGED, DONE = "missing", "damaged", ""
CORRECTED, UNREADABLE = "corrected", "unreadable"
KEPT = (CORRECTED, UNREADABLE)  # what `why` begins with where the mask is or may be somebody's, who has to see to it
ASIDE = ".damaged"  # end of the name of what was put aside
# of a case, what its mask does not depend on; `image` is compared file by file
_NO_MATTER = {
    *("case", "image", "patient", "subset", "notice"),
    *("label", "label_parts", "part_organs", "numbering"),  # `label_values` are what is written
}


class Records:
    """The folder `records` of an output folder: a JSON file for each case, written when its results are whole.

    A record holds `case`; `bundle`, `version` and `bundlekit`, the versions; `weights_sha256`; `settings` that were
    given and `config_sha256` of all of them; `inputs`, in the order of the network's channels, null for one that is
    not there, and `outputs`, the mask first, each file with its SHA-256, bytes and time of modification, and the mask
    with the remark of its header, which holds the CRC-32 of its voxels, and the SHA-256 of what is packed in it;
    `read_as`, what else of the case decides, such as `label_values`; `volumes`, the rows of `volumes.csv`;
    `computed_by`, `seconds`, `host` and `finished`.

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

    def write(
        self, case: Case, outputs: list[Path], inputs: list[dict[str, Any] | None], told: Mapping[str, Any]
    ) -> None:
        """Write the record of a case whose results are there.

        Args:
            case: as `find_cases` gives it.
            outputs: files of its results, the mask first.
            inputs: as `inputs_of` gives them, from before they were read.
            told: everything else.

        Raises:
            BundleError: if it cannot be written.
        """
        files = [_describe(path, path.relative_to(self.output_dir).as_posix()) for path in outputs]
        files[0] |= {"remark": remark_in(outputs[0]), "content_sha256": _content_sha256(outputs[0])}
        content = {"case": case["case"], **told, "read_as": _read_as(case), "inputs": inputs, "outputs": files}
        text = json.dumps(content, indent=1) + "\n"
        write_content(self.path(case["case"]), text, "output_dir")

    def why(self, case: Case, made_from: Mapping[str, Any]) -> str:
        """Why a case has to be computed: "missing", "damaged", or "changed: " and what; "" if it is done.

        The mask decides: other results may be gone, or may have been changed. A mask that somebody corrected is done;
        where what it was made from has changed, the answer begins with "corrected", and the case cannot be computed,
        nor can one whose mask cannot be read ("unreadable"). A file whose path, size and time of modification are those
        in the record is taken for the same; any other is hashed.

        Args:
            case: as `find_cases` gives it.
            made_from: what the record must hold, see `bundlekit.cohort.pipeline.Plan.made_from`.
        """
        record = self.read(case["case"])
        mask = MISSING if record is None else self.mask_of(record)
        if record is None or mask in (MISSING, DAMAGED) or mask.startswith(UNREADABLE):
            return mask
        changed = self.changed(record, made_from, case)
        if mask == CORRECTED and changed:
            return f"{CORRECTED}: the mask stays, and {', '.join(changed)} changed; to compute it again, move it away"
        changed += ["mask"] if mask == "changed" else []
        return f"changed: {', '.join(changed)}" if changed else DONE

    def changed(self, record: Mapping[str, Any], made_from: Mapping[str, Any], case: Case | None = None) -> list[str]:
        """What a record was made from and is another now: names of settings and files.

        Args:
            record: of a case.
            made_from: as for `why`.
            case: as `find_cases` gives it now; None: it is not found. Its files are looked for where they were then; if
                none is left there, they were moved, or are no longer of the data set, and nothing is told of them.
        """
        changed = [name for name, value in made_from.items() if record.get(name) != value]
        recorded = record["inputs"]
        if case is not None:
            changed += ["read_as"] if record.get("read_as") != _read_as(case) else []
            files = case["image"]
        else:
            files = [entry["file"] if entry else "" for entry in recorded]
            if not any(map(os.path.exists, files)):
                return changed
        if len(files) != len(recorded):
            changed.append(f"{len(files)} files, {len(recorded)} before")
        for file, entry in zip(files, recorded, strict=False):
            if not _same_input(file, entry):
                changed.append(Path(file or entry["file"]).name)
        return changed

    def put_aside(self, case: Case) -> None:
        """Rename the mask of a case if it is damaged, so that it can be written again; the log says so."""
        record = self.read(case["case"])
        if record is None or self.mask_of(record) != DAMAGED:
            return
        path = self.output_dir / record["outputs"][0]["file"]
        if not self._is_within(path):
            return
        # a name that no other file has, and that is not taken for a scan's
        aside = path.with_name(f"{path.name.removesuffix('.nii.gz')}.{uuid4().hex[:8]}{ASIDE}")
        try:
            path.rename(aside)
            _log.warning("%s: the mask was cut off; it is kept as %s, and computed again", case["case"], aside)
        except OSError as error:  # the mask stays, and the case is refused
            _log.warning("%s: the mask was cut off, and cannot be put aside (%s)", case["case"], error)

    def remove_others(self, case: Case, kept: Collection[Path]) -> None:
        """Remove what the record of a case lists beside `kept`: an earlier run wrote it, with other settings.

        A file that was changed since then stays.
        """
        for entry in (self.read(case["case"]) or {"outputs": []})["outputs"]:
            path = self.output_dir / entry["file"]
            if path not in kept and _same(path, entry) and self._is_within(path):
                path.unlink()

    def mask_of(self, record: Mapping[str, Any]) -> str:
        """What became of the mask of a record.

        "", "missing", "damaged", "corrected" by somebody, "changed", or "unreadable: " and why.

        A mask with other voxels than the record's, and as inference has written it, is of another run: of one that was
        killed before it wrote its record, or of one without records. One with the same voxels has another header, which
        somebody repaired, or is only packed in another way, which is no change. Only what inference wrote can be
        damaged: a file that has its remark, and was cut off.
        """
        entry = record["outputs"][0]
        path = self.output_dir / entry["file"]
        try:
            path.stat()
        except (FileNotFoundError, NotADirectoryError):
            return MISSING
        except OSError as error:
            return _unreadable(path, f"cannot be looked at ({type(error).__name__}: {error})")
        if _same(path, entry):
            return ""
        bundle, untouched = written_by(path)
        if untouched:
            remark = remark_in(path)
            if remark != entry.get("remark", remark):
                return "changed"
            return "" if _content_sha256(path) == entry.get("content_sha256") else CORRECTED
        try:
            read_array(str(path))
            return CORRECTED
        except BundleError as error:
            return DAMAGED if bundle and _is_cut_off(error) else _unreadable(path, error.findings[0].found)

    def _is_within(self, path: Path) -> bool:
        """Whether a result lies in the output folder, without a link that leads elsewhere."""
        return path.parent.resolve().is_relative_to(self.output_dir.resolve())


def inputs_of(case: Case) -> list[dict[str, Any] | None]:
    """Files that a case is computed from, for its record; None for one that is not there.

    Raises:
        OSError: if one cannot be read.
    """
    return [_describe(Path(file), str(Path(file).absolute())) if file else None for file in case["image"]]


def _unreadable(path: Path, found: str) -> str:
    fix = "mend it; or move it away, and it is computed again"
    return f"{UNREADABLE}: {path} stays: found {found}; expected a mask that can be read; {fix}"


def _is_cut_off(error: BundleError) -> bool:
    """Whether `read_array` failed by what is in a file: neither by the system nor by colours."""
    cause = error.__cause__
    of_system = isinstance(cause, MemoryError) or (isinstance(cause, OSError) and cause.errno is not None)
    return cause is not None and not of_system


def _content_sha256(path: Path) -> str:
    """Of a file as it is unpacked; it can be read."""
    content = path.read_bytes()
    return hashlib.sha256(igzip.decompress(content) if content[:2] == b"\x1f\x8b" else content).hexdigest()


def _describe(path: Path, name: str) -> dict[str, Any]:
    seen = path.stat()
    return {"file": name, "sha256": sha256_of(path), "bytes": seen.st_size, "mtime_ns": seen.st_mtime_ns}


def _read_as(case: Case) -> dict[str, Any]:
    """What of a case decides beside its files, as JSON has it."""
    return dict(json.loads(json.dumps({key: value for key, value in case.items() if key not in _NO_MATTER})))


def _read(path: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_text())
        if not _is_record(content, path.stem):
            return None
        # of an earlier version, whose tables had fewer columns
        return {**content, "volumes": [{**dict.fromkeys(COLUMNS, ""), **row} for row in content["volumes"]]}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _is_record(content: Any, case: str) -> bool:
    """Whether all is there that is read from a record; what is wrong may also end in an error."""
    files = [*content["outputs"], *filter(None, content["inputs"])]
    described = all({"file", "sha256", "bytes", "mtime_ns"} <= entry.keys() for entry in files)
    rows = all({"case", "name", "kind", "ml"} <= row.keys() <= COLUMNS.keys() for row in content["volumes"])
    # files of these names are removed: a record of a stranger may not lead out of its folder, nor to another case
    own = all(_stays(Path(entry["file"]), case) for entry in content["outputs"])
    return content["case"] == case and bool(content["outputs"]) and described and rows and own


def _stays(path: Path, case: str) -> bool:
    """Whether a path is one within the folder that it starts from, of a file with the case's name."""
    return not path.is_absolute() and ".." not in path.parts and path.name.startswith(f"{case}_")


def _same_input(file: str, entry: Mapping[str, Any] | None) -> bool:
    """Whether a file of a case is the recorded one, wherever it lies now."""
    if not file or entry is None:
        return not file and entry is None
    moved = str(Path(file).absolute()) != entry["file"]
    return _same(Path(file), {**entry, "mtime_ns": None} if moved else entry)


def _same(path: Path, entry: Mapping[str, Any]) -> bool:
    try:
        seen = path.stat()
        if (seen.st_size, seen.st_mtime_ns) == (entry["bytes"], entry["mtime_ns"]):
            return True
        return seen.st_size == entry["bytes"] and sha256_of(path) == entry["sha256"]
    except OSError:
        return False
