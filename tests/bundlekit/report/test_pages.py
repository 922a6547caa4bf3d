"""The pages: what they tell, what they draw, that names are only shown, and that a browser finds them whole."""

from __future__ import annotations

import base64
import gzip
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import axe_core_python
import nibabel as nib
import numpy as np
import pytest

from bundlekit.errors import BundleError
from bundlekit.images.nifti import read_array, without_rounding
from bundlekit.images.writing import signed
from bundlekit.report import view
from bundlekit.report.pages import write_report
from bundlekit.report.scans import Scan
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
    image = nib.Nifti1Image(mask(), AFFINE)
    image.header["descrip"] = signed("segmented by brats_resunet", mask())
    for case in ("a", "b"):
        nib.save(image, out / f"{case}_seg.nii.gz")
    return out


def scan_of(case: str) -> Scan | None:
    return None if case == NASTY else Scan({"T1": voxels(), "FLAIR": 2 * voxels()}, AFFINE, "FLAIR")


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


@pytest.mark.parametrize("kept", [True, False])
def test_volumes_of_before_a_correction_are_told(results: Path, kept: bool) -> None:
    """Whether the program that it was corrected with keeps the remark in the header or not."""
    image = nib.load(results / "a_seg.nii.gz")
    labels = mask()
    labels[6, 6, 4] = 0
    nib.save(nib.Nifti1Image(labels, AFFINE, image.header if kept else None), results / "a_seg.nii.gz")
    index = write_report(results, scan_of, names_of_classes)
    assert "mask corrected" in Links(index).words
    page = Links(index.with_name("a.html")).words
    assert page.count("The mask was corrected after this row was written") == 1
    assert "corrected" not in Links(index.with_name("b.html")).words


def test_a_name_is_only_shown(results: Path) -> None:
    index = write_report(results, scan_of, names_of_classes)
    (page,) = (page for page in index.parent.glob("*.html") if page.name not in ("index.html", "a.html", "b.html"))
    assert re.fullmatch(r"[A-Za-z0-9._-]+-[0-9a-f]{8}\.html", page.name)
    found = Links(page)
    assert found.scripts == 0, "without a scan there is no view"
    assert NASTY in found.words
    assert "the scan was not found or was refused" in found.words
    assert Links(index).scripts == 1, "the page's own"


def test_a_mask_that_was_saved_with_a_slope_keeps_its_classes(results: Path) -> None:
    """nibabel writes floats into the 8 bits of the mask's header by a slope: 4 comes back as 3.9999998 or 1.0039."""
    image = nib.load(results / "a_seg.nii.gz")
    nib.save(nib.Nifti1Image(mask().astype(np.float64), AFFINE, image.header), results / "a_seg.nii.gz")
    assert nib.load(results / "a_seg.nii.gz").dataobj.slope != 1
    index = write_report(results, scan_of, names_of_classes)
    kept = {float(value) for value in np.unique(mask())}
    assert set(np.unique(without_rounding(read_array(str(results / "a_seg.nii.gz"))))) == kept
    assert (index.parent / "a_planes.png").is_file()
    broken = np.where(mask() > 0, np.nan, 0.0)
    nib.save(nib.Nifti1Image(broken, AFFINE), results / "a_seg.nii.gz")
    write_report(results, scan_of, names_of_classes)
    text = Links(index.parent / "a.html").words
    assert "No picture" in text
    assert "not whole numbers" in text


def test_a_mask_that_a_viewer_saved_in_another_order_is_drawn_where_it_was(results: Path) -> None:
    index = write_report(results, scan_of, names_of_classes)
    drawn = (index.parent / "a_planes.png").read_bytes()
    turned = nib.load(results / "a_seg.nii.gz").as_reoriented([[1, 1], [0, -1], [2, 1]])
    (index.parent / "a_planes.png").unlink()
    nib.save(turned, results / "a_seg.nii.gz")
    write_report(results, scan_of, names_of_classes)
    assert (index.parent / "a_planes.png").read_bytes() == drawn


def test_a_mask_of_another_scan_is_refused(results: Path) -> None:
    with pytest.raises(BundleError, match="on another grid than the scan of a"):
        write_report(results, lambda case: Scan({"scan 1": voxels()[:-1]}, AFFINE, "scan 1"))


def test_a_mask_that_cannot_be_read_costs_no_other_page(results: Path) -> None:
    (results / "a_seg.nii.gz").write_bytes((results / "a_seg.nii.gz").read_bytes()[:-20])
    index = write_report(results, scan_of, names_of_classes)
    assert (index.parent / "b_planes.png").is_file()
    assert not (index.parent / "a_planes.png").exists()
    assert "No picture" in (index.parent / "a.html").read_text()
    assert "2 to be looked at" in Links(index).words


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
return { before, up, down, shown, broken };
"""
    found = in_browser(index, probe)
    assert found["before"] == ["3.00", "0.10", "0.10"]
    assert (found["up"], found["down"]) == (["0.10", "0.10", "3.00"], ["3.00", "0.10", "0.10"])
    assert (found["shown"], found["broken"]) == (1, 0)


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
def test_a_browser_shows_scan_and_mask_in_three_dimensions(results: Path) -> None:
    page = write_report(results, scan_of, names_of_classes).with_name("a.html")
    probe = """
document.getElementById("canvas").getContext("webgl2", { preserveDrawingBuffer: true });
document.getElementById("open").click();
const wait = () => new Promise((done) => setTimeout(done, 100));
while (!document.getElementById("view").dataset.ready && told.textContent === "Reading ...") await wait();
const colours = () => {
  const drawn = document.createElement("canvas");
  [drawn.width, drawn.height] = [canvas.width, canvas.height];
  const context = drawn.getContext("2d");
  context.drawImage(canvas, 0, 0);
  const { data } = context.getImageData(0, 0, drawn.width, drawn.height);
  let [grey, green] = [0, 0];
  for (let n = 0; n < data.length; n += 4) {
    const [r, g, b] = data.subarray(n, n + 3);
    grey += r > 60 && r === g && g === b;
    green += g > r + 40 && g > b;
  }
  return { grey: grey > 100, green: green > 100 };
};
const both = colours();
const mask = document.getElementById("opacity");
mask.value = 0; mask.dispatchEvent(new Event("input")); await wait();
const without = colours();
const asked = [...document.scripts].map((script) => script.src.split("/").pop());
const scans = [...scan.options].map((option) => option.textContent + (option.selected ? "*" : ""));
return { told: told.textContent, both, without, scans, asked };
"""
    found = in_browser(page, probe, "--use-angle=swiftshader", "--enable-unsafe-swiftshader")
    assert found["told"] == ""
    assert found["both"] == {"grey": True, "green": True}
    assert found["without"] == {"grey": True, "green": False}
    assert found["scans"] == ["T1", "FLAIR*"]
    assert [one for one in found["asked"] if one] == ["niivue.umd.js", "a_view.js", "a_view_1.js"]


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
def test_a_browser_without_webgl_says_so_and_shows_the_rest(results: Path) -> None:
    page = write_report(results, scan_of, names_of_classes).with_name("a.html")
    probe = """
document.getElementById("open").click();
return { told: told.textContent, broken: [...document.images].filter((image) => !image.naturalWidth).length };
"""
    found = in_browser(page, probe, "--disable-3d-apis")
    assert "no WebGL 2" in found["told"]
    assert found["broken"] == 0


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
@pytest.mark.parametrize(("name", "scheme"), [("index.html", "dark"), ("b.html", "light")])
def test_axe_finds_nothing(results: Path, name: str, scheme: str) -> None:
    """Contrast, names of what can be operated, order of headings, tables: the checks of axe-core, all that it has."""
    page = write_report(results, scan_of, names_of_classes).with_name(name)
    axe = Path(axe_core_python.__file__).with_name("axe.min.js").read_text()
    probe = f"""{axe};
const found = await axe.run(document);
const seen = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
return {{ seen, passed: found.passes.length, violations: found.violations.map((one) => [one.id, one.nodes[0].html]) }};
"""
    dark = f"--blink-settings=preferredColorScheme={int(scheme == 'light')}"
    found = in_browser(page, probe, "--disable-gpu", dark)
    assert found["seen"] == scheme
    assert found["passed"] > 30
    assert found["violations"] == []


def test_volumes_of_the_view_hold_the_scan_and_the_mask(results: Path) -> None:
    folder = write_report(results, scan_of, names_of_classes).parent
    seen = script(folder / "a_view.js")["mask"]
    assert [one["name"] for one in seen["classes"]] == ["NCR", "ED"]
    assert seen["channels"][seen["shown"]] == {"name": "FLAIR", "file": "a_view_1.js"}
    labels, grey = (nifti(one["nifti"]) for one in (seen, script(folder / "a_view_1.js")["a_view_1.js"]))
    assert labels.shape == grey.shape
    assert np.array_equal(labels.affine, grey.affine)
    first = np.rint(np.linalg.solve(AFFINE, labels.affine[:, 3]))[:3].astype(int)
    box = tuple(slice(start, start + n) for start, n in zip(first, labels.shape, strict=True))
    assert np.array_equal(np.asarray(labels.dataobj), mask()[box])
    assert int(np.asarray(labels.dataobj).astype(bool).sum()) == int(mask().astype(bool).sum())
    assert np.corrcoef(np.asarray(grey.dataobj).ravel(), voxels()[box].ravel())[0, 1] > 0.95


def test_a_changed_viewer_is_refused(results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(view._NIIVUE, tmp_path / "niivue")
    monkeypatch.setattr(view, "_NIIVUE", tmp_path / "niivue")
    (tmp_path / "niivue" / view.VIEWER).write_text("alert(1)")
    with pytest.raises(BundleError, match="another file than was published"):
        write_report(results, scan_of, names_of_classes)


def script(path: Path) -> dict[str, Any]:
    """Key and content of a volume's script."""
    found = re.fullmatch(r"\(window\.volumes \?\?= \{\}\)\[(.*?)\] = (.*);\n", path.read_text())
    assert found is not None
    return {json.loads(found[1]): json.loads(found[2])}


def nifti(content: str) -> nib.Nifti1Image:
    return nib.Nifti1Image.from_bytes(gzip.decompress(base64.b64decode(content)))


def in_browser(page: Path, probe: str, *options: str) -> dict[str, Any]:
    """What the body of an async function returns in a page that is loaded.

    The console must stay silent: there the browser would say, too, what the page's policy has kept from being loaded.
    """
    told = 'document.body.textContent = "PROBE" + JSON.stringify(await probe()) + "PROBE";'
    code = f"<script>const probe = async () => {{{probe}}};addEventListener('load', async () => {{{told}}})</script>"
    probed = page.with_name("probed.html")
    probed.write_text(page.read_text().replace("</body>", f"{code}</body>"))
    usual = ["--headless", "--no-sandbox", "--enable-logging=stderr", "--virtual-time-budget=20000", "--dump-dom"]
    command = [str(CHROMIUM), *(options or ["--disable-gpu"]), *usual, "--window-size=420,420", probed.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=True)
    assert "CONSOLE" not in done.stderr
    return json.loads(re.search("PROBE(.*)PROBE", done.stdout)[1])  # type: ignore[index]
