"""Pictures of results: the segmentation over the CT, beside the reference where there is one."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from ignite.engine import Engine, Events
from monai.utils import convert_to_numpy

from bundlekit.cases.case import Case
from bundlekit.errors import BundleError, Finding
from bundlekit.files import write_result
from bundlekit.images.nifti import read_array

from .reading import read_label

_log = logging.getLogger(__name__)

_COLOURS = (
    "#e76f51", "#2a9d8f", "#ffd166", "#8338ec", "#ef233c", "#3a86ff", "#fb8500", "#80ed99", "#06d6a0", "#bc6c25",
    "#c77dff", "#f15bb5", "#90e0ef",
)  # fmt: skip


class WriteOverlays:
    """MONAI handler: write `<case>_overlay.png`, an axial and a coronal slice through the segmentation.

    The slices are those with the most voxels of the reference, of the prediction where there is none. Drawn as
    radiologists look at it: the patient's right is on the left. Needs matplotlib.

    Args:
        output_dir: folder, made if missing.
        cases: as `cases.find_cases` gives them.
        window: HU shown as black and as white.

    Raises:
        BundleError: if matplotlib is not installed.
    """

    def __init__(self, output_dir: str, cases: Sequence[Case], window: Sequence[float] = (-160.0, 240.0)) -> None:
        if importlib.util.find_spec("matplotlib") is None:
            raise BundleError(
                Finding(
                    "--overlays",
                    "True, but matplotlib is not installed",
                    "matplotlib, which draws the pictures",
                    "pip install matplotlib, or leave --overlays out",
                )
            )
        self.output_dir = Path(output_dir)
        self.window = [float(hu) for hu in window]
        self._cases = {case["case"]: case for case in cases}

    def attach(self, engine: Engine) -> None:
        """Register with an evaluator whose batch and output are decollated."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Draw the cases of this iteration."""
        batch: Any = engine.state.batch
        outputs: Any = engine.state.output
        for item, output in zip(batch, outputs, strict=True):
            case = self._cases[str(item["case"])]
            pred = convert_to_numpy(output["pred"])[0]
            truth = read_label(case)[0] if case["label"] else None
            affine = np.asarray(convert_to_numpy(item["native_affine"]), float)
            figure = draw(read_array(str(item["source"])), pred, truth, affine, list(case["classes"]), self.window)
            figure.suptitle(case["case"], color="white", fontsize=9, x=0.01, y=0.995, ha="left", va="top")
            path = self.output_dir / f"{case['case']}_overlay.png"
            save = partial(figure.savefig, dpi=110, facecolor="black")
            write_result(path, save, "output_dir")
            _log.info("drew %s", path)


def draw(
    image: np.ndarray,
    pred: np.ndarray,
    truth: np.ndarray | None,
    affine: np.ndarray,
    names: Sequence[str],
    window: Sequence[float],
) -> Any:
    """A matplotlib figure of the CT, the reference if there is one, and the prediction, axial above and coronal below.

    Args:
        image: HU, HWD.
        pred: class indices, HWD.
        truth: class indices, HWD, or None.
        affine: 4x4, voxel to mm, RAS+.
        names: of the classes from 1.
        window: HU shown as black and as white.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.colors import ListedColormap
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    turn = nib.orientations.ornt_transform(
        nib.orientations.io_orientation(affine), nib.orientations.axcodes2ornt("LAS")
    )
    image = image[..., 0] if image.ndim == 4 else image
    volumes: dict[str, np.ndarray | None] = {"CT": None, "reference": truth, "prediction": pred}
    turned = {
        name: None if v is None else nib.orientations.apply_orientation(v, turn)
        for name, v in volumes.items()
        if name == "CT" or v is not None
    }
    ct = nib.orientations.apply_orientation(image, turn)
    steps = np.linalg.norm(affine[:3, :3], axis=0)
    sizes = [float(steps[int(axis)]) for axis in np.argsort(turn[:, 0])]
    shown = turned["reference" if truth is not None and truth.any() else "prediction"]
    assert shown is not None
    figure = Figure(figsize=(3.4 * len(turned), 5.6), facecolor="black")
    FigureCanvasAgg(figure)
    colours = [_COLOURS[i % len(_COLOURS)] for i in range(len(names))]
    for row, axis in enumerate((2, 1)):
        counts = (shown > 0).sum(axis=tuple({0, 1, 2} - {axis}))
        position = int(counts.argmax()) if counts.any() else len(counts) // 2
        aspect = sizes[2 if axis == 1 else 1] / sizes[0]
        for column, (name, mask) in enumerate(turned.items()):
            panel = figure.add_subplot(2, len(turned), row * len(turned) + column + 1)
            low, high = window
            panel.imshow(ct.take(position, axis).T, cmap="gray", vmin=low, vmax=high, origin="lower", aspect=aspect)
            if mask is not None:
                flat = mask.take(position, axis).T.astype(float)
                flat[flat == 0] = np.nan
                panel.imshow(
                    flat, cmap=ListedColormap(colours), vmin=0.5, vmax=len(names) + 0.5, origin="lower", alpha=0.5,
                    aspect=aspect, interpolation="nearest",
                )  # fmt: skip
            if not row:
                panel.set_title(name, color="white", fontsize=9)
            panel.set_axis_off()
            for side, x, anchor in (("R", 0.02, "left"), ("L", 0.98, "right")):
                panel.text(x, 0.5, side, color="white", fontsize=8, ha=anchor, va="center", transform=panel.transAxes)
    handles = [Patch(color=colour, label=name) for colour, name in zip(colours, names, strict=True)]
    figure.legend(
        handles=handles, loc="lower center", ncols=min(len(names), 5), fontsize=7, labelcolor="white", frameon=False
    )
    figure.subplots_adjust(
        left=0.01, right=0.99, top=0.94, bottom=0.06 + 0.03 * ((len(names) + 4) // 5), wspace=0.02, hspace=0.04
    )
    return figure
