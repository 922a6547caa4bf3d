"""`volumes.csv`: a row for each class and region of each case, and `volumes.json`, which says what the columns are."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bundlekit.errors import BundleError, Finding
from bundlekit.files import write_content

try:
    import fcntl
except ImportError:  # not a POSIX system
    fcntl = None  # type: ignore[assignment]

TABLE, DICTIONARY = "volumes.csv", "volumes.json"
NOW = "volumes_now.csv"  # of corrected masks as they are now
MASK_CORRECTED = {"mask_corrected": "The mask was corrected after this row was written"}  # a flag, and its sentence

COLUMNS: dict[str, dict[str, Any]] = {
    "case": {"Description": "Name of the case, as in the name of its mask"},
    "name": {"Description": "Class of the mask, or region made of classes"},
    "kind": {"Description": "Which of the two", "Levels": {"class": "one value", "region": "several values"}},
    "ml": {"Description": "Volume on the scan's own grid", "Units": "mL"},
    "components": {"Description": "Number of 26-connected components"},
    "largest_ml": {"Description": "Volume of the largest component", "Units": "mL"},
    "confidence": {
        "Description": "Soft Dice of the network's mask with its own probabilities, before the mask is cleaned, from 0 "
        "to 1; empty where the class is nowhere in it"
    },
    "x_mm": {"Description": "Centroid, from left to right, by the scan's affine (RAS+)", "Units": "mm"},
    "y_mm": {"Description": "Centroid, from posterior to anterior", "Units": "mm"},
    "z_mm": {"Description": "Centroid, from inferior to superior", "Units": "mm"},
    "hemisphere": {
        "Description": "Side of the brain's middle; empty where the bundle does not know the brain",
        "Levels": {"left": "at least 90 %", "right": "at least 90 %", "both": "at least 10 % on either side"},
    },
    "brain_ml": {"Description": "Volume of the brain; empty where the bundle does not know it", "Units": "mL"},
    "flags": {"Description": "Checks that found a reason to look at the case, with semicolons between them"},
    "reasons": {"Description": "What each of them found, a sentence each, with | between them"},
    "bundle": {"Description": "Bundle that segmented the case"},
    "version": {"Description": "Version of the bundle"},
    "settings": {
        "Description": "What was given beside the bundle's defaults: configs but inference.yaml, and values; no paths"
    },
    "weights_sha256": {"Description": "SHA-256 of its weights; of several, with semicolons between them"},
    "computed_by": {"Description": "Runtime, precision and threads"},
}


class VolumeTable:
    """The table of an output folder, to which each case is added when it is done.

    A case's rows are written at once, so that a run that is killed leaves whole cases; a row that was cut off is
    dropped by the next run. The rows of a case that is segmented again take the place of its old ones. Several
    processes may write to one table at a time, each its own cases, where the file system has locks.

    Args:
        folder: the output folder, made if missing.
        shard: "3/8" writes `volumes_3of8.csv`, so that several processes do not write to one file; None: `volumes.csv`.
        name: of the file of the whole data set.
    """

    def __init__(self, folder: str | os.PathLike, shard: str | None = None, name: str = TABLE) -> None:
        self.path = Path(folder) / (name if shard is None else f"volumes_{shard.replace('/', 'of')}.csv")
        self._cases: set[str] = set()

    def begin(self, keeps: Callable[[str], bool] = lambda case: True) -> None:
        """Make table and dictionary ready; whole rows of an earlier run stay.

        Args:
            keeps: whether the rows of a case stay.

        Raises:
            BundleError: if there is another table of that name, or it cannot be written.
        """
        with self._alone():
            rows = [row for row in self.rows() if keeps(row["case"])] if self.path.is_file() else []
            text = _csv_text(rows)
            if not self.path.is_file() or self.path.read_bytes() != text:
                write_content(self.path, text, "output_dir")
        dictionary = (json.dumps(COLUMNS, indent=2) + "\n").encode()
        write_content(self.path.with_name(DICTIONARY), dictionary, "output_dir")

    def rows(self) -> list[dict[str, str]]:
        """The whole rows of the table; of a case that was segmented again, those of the last time.

        Raises:
            BundleError: if it has other columns.
        """
        text = self.path.read_bytes().decode(errors="replace")
        whole = text[: text.rfind("\n") + 1]  # what follows was cut off
        lines = list(csv.reader(io.StringIO(whole)))
        if lines and lines[0] != list(COLUMNS):
            raise BundleError(
                Finding(
                    str(self.path),
                    f"a table with the columns {', '.join(lines[0])}",
                    f"the columns {', '.join(COLUMNS)}",
                    "move it away, or set --output_dir to another folder",
                )
            )
        rows = [dict(zip(COLUMNS, line, strict=True)) for line in lines[1:] if len(line) == len(COLUMNS)]
        last = {(row["case"], row["name"], row["kind"]): row for row in rows}
        return [row for row in rows if last[row["case"], row["name"], row["kind"]] is row]

    def rewrite(self, change: Callable[[list[dict[str, str]]], Sequence[Mapping[str, Any]]]) -> None:
        """Write the whole table anew; no other process adds to it meanwhile.

        Args:
            change: from the rows that the table has, none if there is no table, to those that it gets.

        Raises:
            BundleError: if it cannot be written; the earlier one is intact then.
        """
        with self._alone():
            text = _csv_text(change(self.rows() if self.path.is_file() else []))
            write_content(self.path, text, "output_dir")
        self._cases = set()

    def add(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Add the rows of a case, at once, in place of those that it has.

        Raises:
            BundleError: if they cannot be written.
        """
        again = {str(row["case"]) for row in rows}
        with self._alone():
            if again & self._known():
                kept = _csv_text([*(row for row in self.rows() if row["case"] not in again), *rows])
                write_content(self.path, kept, "output_dir")
                return
            self._append(rows)
        self._cases |= again

    def append(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Add the rows of a case, at once, behind those that it may have, of which `rows` gives the last.

        Raises:
            BundleError: if they cannot be written.
        """
        with self._alone():
            self._append(rows)

    def _append(self, rows: Sequence[Mapping[str, Any]]) -> None:
        text = _csv_text(rows, header=False)
        try:
            with self.path.open("ab") as file:
                size = file.tell()
                try:
                    file.write(text)
                    file.flush()
                    os.fsync(file.fileno())
                except OSError:
                    os.truncate(self.path, size)  # no half of a row, to which the next case would be glued
                    raise
        except OSError as error:
            fix = "free some space, or set --output_dir to another folder"
            raise BundleError(Finding(str(self.path), f"cannot be written ({error})", "room for it", fix)) from error

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Other processes that write to a table of the folder wait: what one adds while another replaces is lost."""
        with contextlib.ExitStack() as stack:
            if fcntl is not None:
                with contextlib.suppress(OSError):  # there is no folder yet, or no lock, as on some network drives
                    folder = os.open(self.path.parent, os.O_RDONLY)  # a lock file would be left among the results
                    stack.callback(os.close, folder)
                    fcntl.flock(folder, fcntl.LOCK_EX)
            yield

    def _known(self) -> set[str]:
        if not self._cases:
            self._cases = {row["case"] for row in self.rows()}
        return self._cases


def flagged(row: Mapping[str, Any], flags: Mapping[str, str]) -> dict[str, Any]:
    """A row with flags, each with its sentence, beside those that it has."""
    return {
        **row,
        "flags": ";".join(filter(None, (row.get("flags"), *flags))),
        "reasons": " | ".join(filter(None, (row.get("reasons"), *flags.values()))),
    }


def _csv_text(rows: Sequence[Mapping[str, Any]], header: bool = True) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(COLUMNS), lineterminator="\n")
    if header:
        writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()
