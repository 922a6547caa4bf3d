"""Pictures of segmentations."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bundlekit.images.drawing import draw
from bundlekit.images.nifti import read_affine, read_array, same_places, without_rounding


def picture(
    scan: str, mask: str, out: str, reference: str | None = None, names: str | Sequence[str] | None = None
) -> None:
    """Draw a mask over its scan, in three planes through the mask; the patient's right is on the left.

    Example: python -m tools picture --scan T1.nii.gz --mask T1_seg.nii.gz --out T1.png --names CSF,GM,WM

    Args:
        scan: NIfTI file, e.g. the FLAIR of a glioma; of a 4-D file its first channel.
        mask: label map on the scan's grid.
        out: PNG to write; its folder is made.
        reference: another label map on that grid, drawn above the mask; it then chooses the planes.
        names: of the labels, in the order of their values, with commas between them; None: the values.

    Raises:
        ValueError: if a file cannot be read, a label map is on another grid or not of whole numbers, or `names` are not
            as many as there are labels.
        OSError: if a file is missing or cannot be written.
    """
    labels: set[int] = set()
    for file in (scan, mask, *([] if reference is None else [reference])):
        if not Path(file).is_file():
            raise FileNotFoundError(f"{file}: no such file")
        if Path(out).exists() and Path(out).samefile(file):
            raise ValueError(f"--out is {out}, one of the files to be drawn; expected another one, a PNG.")
    if Path(out).suffix.lower() != ".png":
        raise ValueError(f"--out is {out}; expected the name of a PNG, such as mask.png.")
    shape = read_array(scan).shape  # or it is told what is wrong with it
    affine = read_affine(scan)
    for file in [mask] if reference is None else [mask, reference]:
        values = np.unique(without_rounding(read_array(file)))
        if not same_places(read_affine(file), affine, shape):
            raise ValueError(f"{file}: lies elsewhere than {scan} by its affine; expected a label map on that grid.")
        if len(values) > 256 or not np.equal(values, np.round(values)).all():
            raise ValueError(f"{file}: holds {len(values)} different values; expected whole numbers of a label map.")
        labels |= {int(value) for value in values if value}
    given = [name.strip() for name in names.split(",")] if isinstance(names, str) else names
    called = [str(label) for label in sorted(labels)] if given is None else [str(name) for name in given]
    if len(called) != len(labels):
        raise ValueError(f"--names has {len(called)} name(s); the labels are {sorted(labels)}.")
    draw(scan, mask, out, reference, dict(zip(sorted(labels), called, strict=True)), title=Path(scan).name)
    print(out)
