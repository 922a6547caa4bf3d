"""Whether the probabilities of a bundle are right: reliability diagram, and the temperature that would help."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import nibabel as nib
import numpy as np
import torch
from monai.bundle import ConfigParser
from monai.metrics.calibration import calibration_binning
from nibabel.affines import voxel_sizes
from scipy import ndimage
from scipy.optimize import minimize_scalar

from bundlekit.brats.regions import REGIONS
from bundlekit.files import write_result
from bundlekit.images.drawing import require_matplotlib
from tools.bench.folds import evaluated, rows_of
from tools.bundles import module_of, reader_of

BINS = 20
NEAR_MM = 10.0
_SAMPLE = 20_000  # voxels of a case by which a temperature is fitted
_FLOOR = 1e-6  # of a probability, whose logarithm is taken


def calibration(
    dataset_dir: str,
    checkpoint: str | None = None,
    out: str | None = None,
    cv_dir: str | None = None,
    bundle: str = "brats_resunet",
    **settings: Any,
) -> None:
    """Expected calibration error of WT, TC and ET, and with `cv_dir` what a temperature does to it.

    Voxels in the reference tumour and up to 10 mm around it count; elsewhere nearly all probabilities are 0. The
    temperature that divides the logits is fitted to the cases of the other folds, by the negative log-likelihood, and
    tried on those of each fold (Guo et al., On Calibration of Modern Neural Networks, ICML 2017).

    Args:
        dataset_dir: folder of labelled cases that did not train the network.
        checkpoint: of the bundle; None: the weights that it comes with, which have seen most public gliomas here.
        out: folder for masks, probabilities, scores and `reliability.png`; None: they are not kept.
        cv_dir: folder of `python -m tools cv`, in place of a checkpoint: each fold's last network on its own cases.
        bundle: `brats_resunet`, or `brats_unet_h5`, whose cases are HDF5.
        settings: of the bundle's `inference.yaml`.
    """
    labels: dict[str, Any] = {}  # cases by name, each with what reads its label by the settings that were given

    def note(parser: ConfigParser) -> None:
        cases = parser.get_parsed_content("dataset").data
        reading = module_of(reader_of(bundle))
        read = reading.label_reader(cases) if hasattr(reading, "label_reader") else reading.read_label
        labels.update({str(case["case"]): (case, read) for case in cases})

    with evaluated(
        dataset_dir, checkpoint, out, cv_dir, {**settings, "save_probabilities": True}, note, bundle
    ) as folders:
        folds: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
        scored = [(folder, row["case"]) for folder in folders for row in rows_of([folder], "scores.csv")]
        for folder, name in scored:  # probabilities that lie beside them may be of another call
            path, (case, read) = folder / f"{name}_probabilities.nii.gz", labels[name]
            label, affine = read(str(case["label"]), case["label_values"])
            probabilities = np.moveaxis(np.asarray(nib.load(path).dataobj, np.float32), -1, 0)  # type: ignore[attr-defined]
            folds.setdefault(folder.name, []).append(near_tumour(probabilities, label, voxel_sizes(affine)))
        found = {"as they are": reliability([case for cases in folds.values() for case in cases])}
        if len(folds) > 1:
            fitted = {
                name: temperature([case for other, cases in folds.items() if other != name for case in cases])
                for name in folds
            }
            scaled = [(warmed(p, fitted[name]), label) for name, cases in folds.items() for p, label in cases]
            shown = ", ".join(f"{value:.2f}" for value in fitted.values())
            found[f"with a temperature of the other folds ({shown})"] = reliability(scaled)
        if out:
            write_result(Path(out) / "reliability.png", lambda file: draw(found, file), "out")
    n = sum(map(len, folds.values()))
    print(f"expected calibration error of {n} cases, in the tumour and {NEAR_MM:g} mm around")
    print("".join(f"{region:>8}" for region in REGIONS))
    for name, bins in found.items():
        print("".join(f"{expected_error(*bins[region]):>8.4f}" for region in REGIONS) + f"   {name}")


def near_tumour(
    probabilities: np.ndarray, label: np.ndarray, spacing_mm: Sequence[float]
) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities of background, NCR, ED and ET (4N), and classes (N), in the tumour and up to 10 mm around it.

    Args:
        probabilities: of WT, TC and ET, 3HWD, 0 to 1.
        label: classes HWD, 0 to 3.
        spacing_mm: voxel size along H, W and D.
    """
    wt, tc, et = probabilities
    where = ndimage.distance_transform_edt(label == 0, sampling=spacing_mm) <= NEAR_MM if label.any() else wt > 0.05
    exclusive = np.stack([1 - wt, tc - et, wt - tc, et])[:, where]
    return np.clip(exclusive, 0, 1), label[where]


def temperature(cases: Sequence[tuple[np.ndarray, np.ndarray]]) -> float:
    """What the logits are to be divided by so that the labels are likeliest; each case counts alike.

    Args:
        cases: probabilities (4N) and classes (N) of each.
    """
    rng = np.random.default_rng(0)
    parts = []
    for p, label in (case for case in cases if case[1].size):
        chosen = rng.permutation(label.size)[:_SAMPLE]
        logits = torch.from_numpy(np.log(np.maximum(p[:, chosen], _FLOOR)).T)
        parts.append((logits, torch.from_numpy(label[chosen].astype(np.int64))))

    def loss(value: float) -> float:
        losses = [torch.nn.functional.cross_entropy(logits / value, label) for logits, label in parts]
        return float(torch.stack(losses).mean())

    return float(minimize_scalar(loss, bounds=(0.2, 5), method="bounded").x)


def warmed(p: np.ndarray, value: float) -> np.ndarray:
    """Probabilities 4N after their logits were divided by a temperature."""
    logits = torch.from_numpy(np.log(np.maximum(p, _FLOOR)))
    return (logits / value).softmax(0).numpy()


def reliability(
    cases: Sequence[tuple[np.ndarray, np.ndarray]],
) -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """For each region and 20 bins the mean probability, the share of voxels that are of the region, and their number.

    Args:
        cases: probabilities (4N) and classes (N) of each.
    """
    found = {}
    for region, classes in REGIONS.items():
        sums = np.zeros((3, BINS))
        for p, label in cases:
            inside = torch.from_numpy(np.isin(label, classes).astype(np.float32))
            chance = torch.from_numpy(p[list(classes)].sum(0)).float().clamp(0, 1)
            binned = calibration_binning(chance[None, None], inside[None, None], BINS)
            mean_p, mean_label, n = (values[0, 0].double().numpy() for values in binned)
            sums += np.nan_to_num(np.stack([mean_p * n, mean_label * n, n]))
        with np.errstate(invalid="ignore"):
            found[region] = (sums[0] / sums[2], sums[1] / sums[2], sums[2])
    return found


def expected_error(mean_p: np.ndarray, mean_label: np.ndarray, n: np.ndarray) -> float:
    """Mean distance of probability and share over all voxels, from what `reliability` gives of a region."""
    return float(np.nansum(np.abs(mean_p - mean_label) * n) / n.sum())


def draw(found: Mapping[str, Mapping[str, tuple[np.ndarray, np.ndarray, np.ndarray]]], file: BinaryIO) -> None:
    """Write the reliability diagram as PNG: a panel for each region, a line for each of what `reliability` gave."""
    require_matplotlib("the picture")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4.2), layout="constrained")
    panels = figure.subplots(1, len(REGIONS), sharey=True)
    for axes, region in zip(panels, REGIONS, strict=True):
        axes.plot([0, 1], [0, 1], color="0.7", linewidth=1)
        for name, bins in found.items():
            mean_p, mean_label, _ = bins[region]
            axes.plot(mean_p, mean_label, marker="o", markersize=3, label=name.partition(" (")[0])
            axes.set_title(region)
        axes.set_xlabel("probability of the network")
        axes.set_aspect("equal")
    panels[0].set_ylabel("share of voxels in the reference")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
    figure.savefig(file, format="png", dpi=120)
