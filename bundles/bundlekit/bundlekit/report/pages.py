"""Pages to look at: one for all cases, one for each, from `volumes.csv`, masks and scans. No server, no network.

A page opens from its folder. A content security policy lets it load pictures and scripts of its own folder alone, the
latter for the 3-D view. Jinja2 fills the templates and escapes what it puts in.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from bundlekit.errors import BundleError, Finding
from bundlekit.files import write_content, write_result
from bundlekit.images.drawing import box_plot, draw, draw_slices, require_matplotlib
from bundlekit.images.nifti import on_axes_of, read_affine, read_volume, same_places, whole_numbers
from bundlekit.images.writing import left_as_segmented
from bundlekit.report.scans import Scan
from bundlekit.report.table import MASK_CORRECTED, TABLE, VolumeTable, flagged
from bundlekit.report.view import VIEWER, write_viewer, write_volumes

FOLDER = "report"
_log = logging.getLogger(__name__)
_TEMPLATES = Path(__file__).parent / "templates"
_PLAIN = re.compile(r"[A-Za-z0-9._-]{1,100}")

ScanOf = Callable[[str], "Scan | None"]


@dataclass
class CaseOnPage:
    """What the pages tell of a case."""

    name: str
    rows: list[dict[str, str]]
    page: str = ""
    ml: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.page = f"{_file_name(self.name)}.html"
        self.ml = {row["name"]: float(row["ml"]) for row in self.rows}

    @property
    def common(self) -> dict[str, str]:
        """What is one for the whole case, and so stands in each of its rows."""
        return self.rows[0]

    @property
    def flags(self) -> list[str]:
        """Names of the checks that found something."""
        return [flag for flag in self.common["flags"].split(";") if flag]

    @property
    def reasons(self) -> list[str]:
        """Their sentences."""
        return [reason for reason in self.common["reasons"].split(" | ") if reason]

    @property
    def mask(self) -> str:
        """File name of its mask."""
        return f"{self.name}_seg.nii.gz"


def write_report(
    folder: str | Path,
    scan_of: ScanOf,
    names: Callable[[str], Mapping[int, str] | None] = lambda _: None,
    title: str = "Segmentations",
    progress: Callable[[Sequence[CaseOnPage]], Any] | None = None,
) -> Path:
    """Write `report/` into a folder of results: index.html, a page and pictures for each case.

    A case whose mask is not as inference wrote it has one more flag, `mask_corrected`: its volumes are of before. One
    whose mask cannot be read, or is on another grid than its scan, has the flag `mask_not_drawn` and no picture.

    Args:
        folder: with `volumes.csv` and the masks.
        scan_of: name of a case -> its scan; None where there is none: the page has no picture then.
        names: name of a case -> value in its mask -> name of the class, for the legends; None: values.
        title: of the index.
        progress: wraps the cases while their pages are made, e.g. tqdm.

    Returns:
        index.html.

    Raises:
        BundleError: if there is no table, matplotlib is not installed, no mask can be drawn, or a file cannot
            be written.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    require_matplotlib("the report")
    folder = Path(folder)
    table = VolumeTable(folder)
    if not table.path.is_file():
        fix = "give the --output_dir of an inference; those of earlier versions have no table: run it again"
        if (folder / "dataset_description.json").is_file():
            fix = "a BIDS derivative has no pages: run inference on the scans in question, with --report True"
        raise BundleError(Finding(str(folder), f"no {TABLE}", "a folder of results", fix))
    cases = _cases(table, folder)
    if not cases:
        raise BundleError(Finding(str(table.path), "no case", "the rows of at least one", "run the inference first"))
    out = folder / FOLDER
    site = Environment(
        loader=FileSystemLoader(_TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    site.filters["volume"] = _volume
    inline = {
        key: Markup((_TEMPLATES / file).read_text())
        for key, file in (("style", "style.css"), ("sort", "sort.js"), ("view", "view.js"))
    }
    write_viewer(out)
    drawn, undrawn = 0, []
    for place, case in enumerate(progress(cases) if progress else cases):
        try:
            drawn += _draw(case, folder, out, scan_of(case.name), names(case.name))
        except BundleError as error:  # of a mask: the others have their pages
            undrawn.append(error)
            _log.warning("%s: no picture: %s", case.name, error)
            told = {"mask_not_drawn": f"No picture: {' '.join(str(error).split())}"}
            case.rows = [flagged(row, told) for row in case.rows]
        view = _made_for(case, folder, [out / f"{_file_name(case.name)}_view.js"])
        page = site.get_template("case.html").render(
            title=case.name,
            case=case,
            pictures=_pictures(case, folder, out),
            view=view[0].name if view else "",
            viewer=VIEWER,
            before=cases[place - 1] if place else None,
            after=cases[place + 1] if place + 1 < len(cases) else None,
            style=inline["style"],
            script=inline["view"] if view else "",
        )
        write_content(out / case.page, page.encode(), "output_dir")
    if undrawn and not drawn:  # the scans of another data set
        raise undrawn[0]
    shown = list(dict.fromkeys(row["name"] for case in cases for row in case.rows))
    if len(cases) > 1:
        values = {name: [case.ml.get(name, np.nan) for case in cases] for name in shown}
        write_result(out / "volumes.png", box_plot(values, "", "ml", None), "output_dir")
    index = site.get_template("index.html").render(
        title=title,
        cases=sorted(cases, key=lambda case: not case.flags),
        names=shown,
        bundles=sorted({case.common["bundle"] for case in cases}),
        flagged=sum(bool(case.flags) for case in cases),
        plot=len(cases) > 1,
        style=inline["style"],
        script=inline["sort"],
    )
    write_content(out / "index.html", index.encode(), "output_dir")
    return out / "index.html"


def _cases(table: VolumeTable, folder: Path) -> list[CaseOnPage]:
    rows: dict[str, list[dict[str, str]]] = {}
    for row in table.rows():
        rows.setdefault(row["case"], []).append(row)
    cases = [CaseOnPage(name, rows[name]) for name in sorted(rows)]
    for case in cases:
        mask = folder / case.mask
        if mask.is_file() and not left_as_segmented(mask) and not set(MASK_CORRECTED) & set(case.flags):
            case.rows = [flagged(row, MASK_CORRECTED) for row in case.rows]
    return cases


def _draw(case: CaseOnPage, folder: Path, out: Path, scan: Scan | None, names: Mapping[int, str] | None) -> bool:
    """Pictures and volumes of a case whose scan is there; whether it is."""
    mask = folder / case.mask
    if scan is None or not mask.is_file():
        return False
    labels = whole_numbers(read_volume(str(mask)), str(mask))
    labels, affine = on_axes_of(labels, read_affine(str(mask)), scan.affine)  # a viewer may save them in another order
    if labels.shape != scan.voxels.shape or not same_places(affine, scan.affine, labels.shape):
        found = f"a mask on another grid than the scan of {case.name}"
        fix = "give the --dataset_dir of these"
        raise BundleError(Finding(str(mask), found, "masks and scans of one data set", fix))
    values = [int(value) for value in np.unique(labels) if value]
    called = dict(sorted({**{value: str(value) for value in values}, **(names or {})}.items()))
    stem = _file_name(case.name)
    planes = out / f"{stem}_planes.png"
    seen = (scan.voxels, scan.affine)
    title = scan.shown if len(scan.channels) > 1 else ""
    draw(seen, labels, planes, names=called, window=scan.window, title=title, sides=scan.sides_known)
    slices = out / f"{stem}_slices.png"
    if values:
        draw_slices((scan.voxels, scan.affine), labels, slices, names=called, window=scan.window)
    else:
        slices.unlink(missing_ok=True)  # of an earlier mask
    write_volumes(out, stem, scan, labels, called)
    return True


def _pictures(case: CaseOnPage, folder: Path, out: Path) -> list[dict[str, str]]:
    stem = _file_name(case.name)
    told = {
        out / f"{stem}_planes.png": (
            f"{case.name} in three planes, below with the outlines of the mask",
            "The planes in which the mask is largest. R, where it is known: the patient's right.",
        ),
        out / f"{stem}_slices.png": (
            f"{case.name} in axial slices from the lowest to the highest of the mask",
            "Axial slices through the mask, from below.",
        ),
    }
    return [
        {"file": file.name, "alt": told[file][0], "caption": told[file][1]} for file in _made_for(case, folder, told)
    ]


def _made_for(case: CaseOnPage, folder: Path, files: Iterable[Path]) -> list[Path]:
    """Those of the files that are there and not older than the mask: of an earlier run they stay."""
    mask = folder / case.mask
    made_ns = mask.stat().st_mtime_ns if mask.is_file() else 0
    return [file for file in files if file.is_file() and file.stat().st_mtime_ns >= made_ns]


def _file_name(case: str) -> str:
    """A file name that any system takes: the case's name where it is plain, else what is plain of it and a hash."""
    if _PLAIN.fullmatch(case) and case not in ("index", ".", ".."):
        return case
    plain = "".join(_PLAIN.findall(case))[:60]
    return f"{plain}-{hashlib.sha256(case.encode()).hexdigest()[:8]}"


def _volume(ml: str | float) -> str:
    value = float(ml)
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"
