"""The 3-D view of a case's page: its scans and its mask, for NiiVue.

A page that is opened from a folder may not fetch a file, but may run a script that lies there. So a volume is a script
in which the NIfTI file stands in base64, and is read when the view is opened. NiiVue's own file lies in `niivue/`, as
it is published, with its licence.
"""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Mapping
from pathlib import Path

import nibabel as nib
import numpy as np

from bundlekit.errors import BundleError, Finding
from bundlekit.files import sha256_of, write_content
from bundlekit.images.drawing import COLOURS, box_around, window_of
from bundlekit.report.scans import Scan

VIEWER = "niivue.umd.js"
_NIIVUE = Path(__file__).parent / "niivue"


def write_viewer(out: Path) -> None:
    """NiiVue and its licence, once for all pages of the folder `out`.

    Raises:
        BundleError: if NiiVue's file is not the published one, or cannot be written.
    """
    for line in (_NIIVUE / "SHA256SUMS.txt").read_text().splitlines():
        wanted, name = line.split()
        source, to = _NIIVUE / name, out / ("niivue_license.txt" if name == "LICENSE.txt" else name)
        if not source.is_file() or sha256_of(source) != wanted:
            raise BundleError(
                Finding(str(source), "another file than was published", f"SHA-256 {wanted}", "install again")
            )
        if not to.is_file() or sha256_of(to) != wanted:
            write_content(to, source.read_bytes(), "output_dir")


def write_volumes(out: Path, stem: str, scan: Scan, labels: np.ndarray, names: Mapping[int, str]) -> None:
    """Write `<stem>_view.js` (what there is to see, and the mask) and `<stem>_view_<n>.js` (channel n of the scan).

    The volumes hold the box around body and mask; a scan has 256 shades of grey in its window.

    Args:
        out: folder of the pages.
        stem: of the page's file name.
        scan: see `Scan`.
        labels: whole numbers HWD on the scan's grid, 0 outside.
        names: value -> name of the class, in the order of the colours in pictures.

    Raises:
        BundleError: if a file cannot be written.
    """
    windows = {name: scan.window or window_of(voxels) for name, voxels in scan.channels.items()}
    low = windows[scan.shown][0]
    box = box_around((scan.voxels > low) | (labels != 0))
    affine = scan.affine.copy()
    affine[:3, 3] += affine[:3, :3] @ [part.start or 0 for part in box]
    classes = np.zeros(max(int(labels.max()), *names, 0) + 1, np.uint8)  # value -> place among the names, from 1
    classes[list(names)] = 1 + np.arange(len(names))
    channels = []
    for number, (name, voxels) in enumerate(scan.channels.items()):
        black, white = windows[name]
        grey = np.clip((voxels[box] - black) * (255 / max(white - black, 1e-6)), 0, 255).astype(np.uint8)
        file = f"{stem}_view_{number}.js"
        write_content(out / file, _script(file, {"nifti": _nifti(grey, affine)}), "output_dir")
        channels.append({"name": name, "file": file})
    inside = np.argwhere(labels if labels.any() else scan.voxels > low)
    place = inside[len(inside) // 2] if len(inside) else np.array(labels.shape) // 2  # a voxel that is in it
    seen = {
        "centre_mm": (scan.affine @ [*place, 1.0])[:3].round(2).tolist(),
        "sides": scan.sides_known,
        "channels": channels,
        "shown": list(scan.channels).index(scan.shown),
        "classes": [{"name": name, "colour": COLOURS[i % len(COLOURS)]} for i, name in enumerate(names.values())],
        "nifti": _nifti(classes[labels[box].astype(int)], affine),
    }
    write_content(
        out / f"{stem}_view.js", _script("mask", seen), "output_dir"
    )  # last: it tells that the others are there


def _nifti(voxels: np.ndarray, affine: np.ndarray) -> str:
    """A .nii.gz in base64; the same bytes for the same voxels."""
    image = nib.Nifti1Image(voxels, affine)  # type: ignore[no-untyped-call]
    return base64.b64encode(gzip.compress(image.to_bytes(), 6, mtime=0)).decode()


def _script(key: str, value: object) -> bytes:
    # "<" cannot end the script element of a page that takes the script in
    content = json.dumps(value).replace("<", "\\u003c")
    return f"(window.volumes ??= {{}})[{json.dumps(key)}] = {content};\n".encode()
