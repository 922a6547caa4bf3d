"""The pages: what they tell, what they draw, that names are only shown, and that a browser finds them whole."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import nibabel as nib
import numpy as np
import pytest

from bundlekit.errors import BundleError
from bundlekit.report.pages import write_report
from bundlekit.report.table import COLUMNS, VolumeTable

NASTY = "<script>alert(\"x\")</script> & '\u00e9'"


def names_of_classes(_: str) -> dict[int, str]:
    return {1: "NCR", 2: "ED"}


AFFINE = np.diag([-1.0, -1.0, 1.0, 1.0])
CHROMIUM = shutil.which("chromium")


def voxels() -> np.ndarray:
    scan = np.zeros((20, 22, 12))
    scan[2:-2, 2:-2, 2:-2] = 50 + np.arange(16)[:, None, None]
    return scan


def mask() -> np.ndarray:
    labels = np.zeros((20, 22, 12), np.uint8)
    labels[6:10, 6:12, 4:8] = 2
    labels[7, 8, 5] = 1
    return labels


def rows(case: str, flags: str = "", reasons: str = "", ml: float = 0.096) -> list[dict[str, Any]]:
    common = {**dict.fromkeys(COLUMNS, ""), "case": case, "flags": flags, "reasons": reasons, "bundle": "brats_resunet"}
    return [
        {
            **common,
            "name": name,
            "kind": "class",
            "ml": ml,
            "components": 1,
            "largest_ml": ml,
            "x_mm": 1,
            "y_mm": 2,
            "z_mm": 3,
        }
        for name in ("NCR", "ED")
    ]


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """A sound case, one that is flagged, and one whose name is an attack and which has no scan."""
    out = tmp_path / "out"
    table = VolumeTable(out)
    table.begin()
    table.add(rows("a"))
    table.add(rows("b", "removed;largest_part", "1 ml removed. | Two pieces.", ml=3.0))
    table.add(rows(NASTY))
    for case in ("a", "b"):
        nib.save(nib.Nifti1Image(mask(), AFFINE), out / f"{case}_seg.nii.gz")
    return out


def scan_of(case: str) -> Any:
    return None if case == NASTY else (voxels(), AFFINE, None)


class Links(HTMLParser):
    """Addresses in a page, its scripts, and its text."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.targets: list[str] = []
        self.scripts = 0
        self.words = ""
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.targets += [value for name, value in attrs if name in ("href", "src") and value]
        self.scripts += tag == "script"

    def handle_data(self, data: str) -> None:
        self.words += data


def test_pages_tell_what_the_table_holds_and_link_to_each_other(results: Path) -> None:
    index = write_report(results, scan_of, names_of_classes, title="mine")
    pages = {page.name: Links(page) for page in index.parent.glob("*.html")}
    assert len(pages) == 4
    for name, page in pages.items():
        for target in page.targets:
            assert not re.match("[a-z]+:", target), f"{name} leaves its folder: {target}"
            if not target.endswith("_seg.nii.gz"):
                assert (index.parent / unquote(target)).exists(), f"{name} links to {target}"
    text = pages["index.html"].words
    assert "3 cases by brats_resunet" in " ".join(text.split())
    assert "1 to be looked at" in text
    assert text.index("removed, largest part") < text.index("0.10"), "flagged cases first"
    assert all(reason in pages["b.html"].words for reason in ("1 ml removed.", "Two pieces."))
    assert "To be looked at" not in pages["a.html"].words
    assert {"a_planes.png", "a_slices.png"} <= set(pages["a.html"].targets)


def test_a_name_is_only_shown(results: Path) -> None:
    index = write_report(results, scan_of, names_of_classes)
    (page,) = (page for page in index.parent.glob("*.html") if page.name not in ("index.html", "a.html", "b.html"))
    assert re.fullmatch(r"[A-Za-z0-9._-]+-[0-9a-f]{8}\.html", page.name)
    found = Links(page)
    assert found.scripts == 0
    assert NASTY in found.words
    assert "No picture: the scan was not found" in found.words
    assert Links(index).scripts == 1, "the page's own"


def test_a_mask_of_another_scan_is_refused(results: Path) -> None:
    with pytest.raises(BundleError, match="on another grid than the scan of a"):
        write_report(results, lambda case: (voxels()[:-1], AFFINE, None))


def test_a_folder_without_results(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"no volumes\.csv"):
        write_report(tmp_path, scan_of)


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
def test_a_browser_sorts_and_searches_and_complains_of_nothing(results: Path) -> None:
    index = write_report(results, scan_of, names_of_classes)
    probe = """
const cells = (n) => [...document.querySelectorAll("#cases tbody tr")].map((row) => row.cells[n].textContent.trim());
const before = cells(1);
const heads = document.querySelectorAll("#cases thead button");
heads[1].click(); const up = cells(1);
heads[1].click(); const down = cells(1);
const box = document.getElementById("search");
box.value = "REMOVED"; box.dispatchEvent(new Event("input"));
const shown = [...document.querySelectorAll("#cases tbody tr")].filter((row) => !row.hidden).length;
const broken = [...document.images].filter((image) => !image.naturalWidth).length;
const asked = performance.getEntriesByType("resource").map((entry) => entry.name);
document.body.innerHTML = "";
document.body.textContent = "PROBE" + JSON.stringify({ before, up, down, shown, broken, asked }) + "PROBE";
"""
    script = f"<script>addEventListener('load', () => {{{probe}}})</script>"
    probed = index.with_name("probed.html")
    probed.write_text(index.read_text().replace("</body>", f"{script}</body>"))
    done = subprocess.run(
        [
            str(CHROMIUM),
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--enable-logging=stderr",
            "--dump-dom",
            probed.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert "CONSOLE" not in done.stderr
    found = json.loads(re.search("PROBE(.*)PROBE", done.stdout)[1])  # type: ignore[index]
    assert found["before"] == ["3.00", "0.10", "0.10"]
    assert (found["up"], found["down"]) == (["0.10", "0.10", "3.00"], ["3.00", "0.10", "0.10"])
    assert (found["shown"], found["broken"]) == (1, 0)
    assert all(one.startswith(index.parent.as_uri()) for one in found["asked"])
