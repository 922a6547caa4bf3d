"""Labelled gliomas as they are and in damaged copies: how many bad masks are flagged, what a missing modality costs."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from monai.transforms import RandBiasField, Transform
from scipy import ndimage

from bundlekit.brats.naming import MODALITIES
from bundlekit.brats.regions import REGIONS
from bundlekit.cases.patients import patient_of
from bundlekit.files import write_result
from tools.bench.flagged import draw, masks_in, tell
from tools.bench.folds import evaluated, rows_of

Damage = Callable[[np.ndarray, np.random.Generator], np.ndarray]
"""From the intensities of T1, T1ce, T2 and FLAIR (4HWD float32, 0 is air) and a generator to damaged ones."""

_BETWEEN = "-damage-"  # the name of a case, and of what was done to it


def _inside(change: Callable[[np.ndarray, np.ndarray, np.random.Generator], np.ndarray], *which: int) -> Damage:
    """Change intensities where there is tissue; `which`: modalities, none: all."""

    def damage(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        out = image.copy()
        for number in which or range(len(image)):
            tissue = image[number] != 0
            out[number] = np.where(tissue, change(image[number], tissue, rng), 0)
        return out

    return damage


def _noise(share: float) -> Damage:
    """Gaussian noise, by the standard deviation of the tissue."""
    return _inside(lambda scan, tissue, rng: scan + share * scan[tissue].std() * rng.standard_normal(scan.shape))


def _bias(coefficient: float) -> Damage:
    """MONAI's bias field of degree 3, all of whose coefficients are this."""

    def change(scan: np.ndarray, tissue: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        field = RandBiasField(prob=1, degree=3, coeff_range=(coefficient, coefficient))
        field.set_random_state(int(rng.integers(10**6)))
        return np.asarray(field(scan[None])[0])

    return _inside(change)


def _inverted(*which: int) -> Damage:
    return _inside(lambda scan, tissue, rng: scan[tissue].max() + scan[tissue].min() - scan, *which)


def _exchanged(one: int, other: int) -> Damage:
    order = list(range(len(MODALITIES)))
    order[one], order[other] = other, one
    return lambda image, rng: image[order]


def _missing(*which: int) -> Damage:
    return lambda image, rng: np.stack([0 * scan if n in which else scan for n, scan in enumerate(image)])


def _eroded(voxels: int) -> Damage:
    """A brain mask that is too small."""
    return lambda image, rng: image * ndimage.binary_erosion((image != 0).any(0), iterations=voxels)


def _cut_off(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Without the uppermost 30 % of the brain's slices."""
    slices = np.flatnonzero((image != 0).any((0, 1, 2)))
    out = image.copy()
    out[..., slices[0] + int(0.7 * len(slices)) :] = 0
    return out


def _moved(number: int, voxels: float) -> Damage:
    """One modality beside the others, in a random direction."""

    def damage(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        way = rng.standard_normal(3)
        out = image.copy()
        out[number] = ndimage.shift(image[number], voxels * way / np.linalg.norm(way), order=1)
        return out

    return damage


def _thick(factor: int) -> Damage:
    """Slices as thick as that many voxels."""

    def change(scan: np.ndarray, tissue: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        thick = ndimage.zoom(scan, (1, 1, 1 / factor), order=1)
        return ndimage.zoom(thick, np.array(scan.shape) / np.array(thick.shape), order=1)

    return _inside(change)


DAMAGES: dict[str, Damage] = {
    "none": lambda image, rng: image,
    "noise_0.5": _noise(0.5),
    "noise_1": _noise(1.0),
    "bias_0.6": _bias(0.6),
    "bias_1.2": _bias(1.2),
    "T1_and_T1ce_exchanged": _exchanged(0, 1),
    "T1ce_and_FLAIR_exchanged": _exchanged(1, 3),
    "T2_and_FLAIR_exchanged": _exchanged(2, 3),
    "T1_and_T2_exchanged": _exchanged(0, 2),
    "no_T1ce": _missing(1),
    "no_FLAIR": _missing(3),
    "no_T2_and_FLAIR": _missing(2, 3),
    "FLAIR_inverted": _inverted(3),
    "all_inverted": _inverted(),
    "eroded_6": _eroded(6),
    "eroded_12": _eroded(12),
    "cut_off": _cut_off,
    "FLAIR_moved_10": _moved(3, 10),
    "T1ce_moved_10": _moved(1, 10),
    "slices_of_5": _thick(5),
    "blurred_2": _inside(lambda scan, tissue, rng: ndimage.gaussian_filter(scan, 2.0)),
}


MISSING: dict[str, Damage] = {
    "none": DAMAGES["none"],
    "no_T1": _missing(0),
    "no_T1ce": _missing(1),
    "no_T2": _missing(2),
    "no_FLAIR": _missing(3),
    "no_T1_and_T2": _missing(0, 2),
}


class DamageCased(Transform):
    """Do to `image` what the name of the case says, the same for every case of a data set."""

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Damage one case, as the bundle's reader gives it."""
        image, name = data["image"], str(data["case"]).rpartition(_BETWEEN)[2]
        damages = DAMAGES | MISSING
        rng = np.random.default_rng([7, list(damages).index(name)])
        made = damages[name](image.numpy(), rng).astype(np.float32)
        return {**data, "image": MetaTensor(torch.from_numpy(np.ascontiguousarray(made)), affine=image.affine)}


def flags(
    dataset_dir: str,
    checkpoint: str | None = None,
    out: str | None = None,
    cv_dir: str | None = None,
    bundle: str = "brats_resunet",
    **settings: Any,
) -> None:
    """Masks with a Dice of the whole tumour below 0.7, and how many of them and of the others each check flags.

    Every case is segmented as it is and in 20 damaged copies: noise, bias fields, exchanged, missing, inverted and
    moved modalities, a brain mask that is too small or cut off, thick slices, blur. The area under the curve is that of
    the confidence of the whole tumour; where nothing is found it is 0. A limit for it is taken from the good masks of
    all other folds (of all other patients, where there is one network), below which 5 % of them lie, and tried on each.

    Args:
        dataset_dir: folder of labelled cases that did not train the network.
        checkpoint: of the bundle; None: the weights that it comes with, which have seen most public gliomas here.
        out: folder for `scores.csv`, `volumes.csv`, the masks and `flags.png`, the curve; None: they are not kept.
        cv_dir: folder of `python -m tools cv`, in place of a checkpoint: each fold's last network on its own cases.
        bundle: `brats_resunet`, or `brats_unet_h5`, whose cases are HDF5.
        settings: of the bundle's `inference.yaml`.
    """
    with evaluated(dataset_dir, checkpoint, out, cv_dir, settings, _damaging(DAMAGES), bundle) as folders:
        masks = masks_in(folders, lambda case: patient_of(case.rpartition(_BETWEEN)[0]))
        tell(masks)
        if out and len({mask.bad for mask in masks}) == 2:
            write_result(Path(out) / "flags.png", lambda file: draw(masks, file), "out")


def missing(
    dataset_dir: str,
    checkpoint: str | None = None,
    out: str | None = None,
    cv_dir: str | None = None,
    bundle: str = "brats_resunet",
    **settings: Any,
) -> None:
    """Mean Dice of each region with all modalities, without each of them, and with T1ce and FLAIR alone.

    A missing modality is zeros, as with `--fill_missing True`.

    Args:
        dataset_dir: folder of labelled cases that did not train the network.
        checkpoint: of the bundle; None: the weights that it comes with, which have seen most public gliomas here.
        out: folder for `scores.csv`, `volumes.csv` and the masks; None: they are not kept.
        cv_dir: folder of `python -m tools cv`, in place of a checkpoint: each fold's last network on its own cases.
        bundle: `brats_resunet`, or `brats_unet_h5`, whose cases are HDF5.
        settings: of the bundle's `inference.yaml`.
    """
    with evaluated(dataset_dir, checkpoint, out, cv_dir, settings, _damaging(MISSING), bundle) as folders:
        rows = rows_of(folders, "scores.csv")
    print(f"{'missing':<16}{'cases':>6}" + "".join(f"{region:>8}" for region in REGIONS) + "   mean Dice")
    for name in MISSING:
        own = [row for row in rows if row["case"].rpartition(_BETWEEN)[2] == name]
        means = [np.mean([float(row[f"dice_{region}"]) for row in own]) for region in REGIONS]
        print(f"{name:<16}{len(own):>6}" + "".join(f"{mean:>8.3f}" for mean in means))


def _damaging(names: Iterable[str]) -> Callable[[ConfigParser], None]:
    """Change a parsed bundle so that it evaluates every case with each of the damages."""

    def change(parser: ConfigParser) -> None:
        parser["preprocessing"]["transforms"].insert(1, {"_target_": f"{__name__}.DamageCased"})
        cases = parser.get_parsed_content("dataset").data
        cases[:] = [{**case, "case": f"{case['case']}{_BETWEEN}{name}"} for case in cases for name in names]

    return change
