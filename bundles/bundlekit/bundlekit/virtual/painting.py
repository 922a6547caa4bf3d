"""Images painted from label maps alone, of any contrast, so that a network learns anatomy rather than a scanner.

The idea is that of SynthSeg (Billot et al., Medical Image Analysis 86, 2023, doi:10.1016/j.media.2023.102789): every
structure of a label map gets a random intensity, then the image is degraded as scanners do. What is drawn, and how, is
this project's own.

TorchIO's `RandomLabelsToImage` gives every structure a mean and a deviation and leaves the rest to other transforms, on
the processor. cornucopia's `SynthFromLabelTransform` degrades too, on any device, but knows no T1 among its contrasts
and no rim that skull stripping leaves. Neither normalises a patch by the statistics of the whole head that it is a part
of, as inference does, and neither gives a label that ends where the skull stripping has cut.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from monai.transforms import GibbsNoise
from monai.utils import convert_to_tensor

from bundlekit.images.intensities import check_method, foreground, normalise, statistics
from bundlekit.label_maps.numberings import DEEP_GM, DEEP_GREY, EXTRA_CEREBRAL, STRUCTURES, TISSUE_OF_STRUCTURE
from bundlekit.virtual.ageing import Ageing, aged, draw_ageing
from bundlekit.virtual.contrast import draw_t1_means
from bundlekit.virtual.filters import blur, resample, shift, smooth, smooth_noise

_SAMPLE = 4096  # voxels drawn to foresee an image's statistics
_BLURRED = 0.5  # what partial volume leaves of the deviation within a structure
_PARTIAL = 0.89  # and of that between the structures of a brain, measured on painted label maps
_RINGING = (0.3, 0.5)  # cuts k-space at 0.7 to 1 times its largest frequency along an axis
RIMS = 6  # skull stripping leaves up to 5 voxels around the brain
_UNEVEN, _UNEVEN_DEEP = 0.06, 0.2  # at most, of a structure's intensity; in a T1 each part of deep grey has its own
_PATCHINESS = 8  # voxels between the control points of what is uneven within structures
_INSIDE = [k not in EXTRA_CEREBRAL for k in range(len(STRUCTURES))]
# the brain proper, without the fluid around it
BRAIN = [inside and structure.name != "sulcal CSF" for inside, structure in zip(_INSIDE, STRUCTURES, strict=True)]
_TARGETS = {  # class of each structure
    "tissue": TISSUE_OF_STRUCTURE,
    "tissue_deep_grey": [DEEP_GM if k in DEEP_GREY else tissue for k, tissue in enumerate(TISSUE_OF_STRUCTURE)],
    "brain": [int(inside) for inside in _INSIDE],
}


@dataclass(frozen=True)
class Lesion:
    """What is not in the map: tumour, oedema, infarct or cavity, anywhere in the brain."""

    share: float  # of the brain in the patch, 0 to 1
    mean: float
    deviation: float
    size: int  # voxels between the control points of its border


@dataclass(frozen=True)
class Cut:
    """A field of view that ends within the head: what lies beyond is air, or the border repeated."""

    axis: int
    first: float  # where it begins and ends, as fractions of the patch
    last: float
    air: bool


@dataclass(frozen=True)
class Paint:
    """How one image is made from its structures; drawn by `LabelPainter.draw`.

    Intensities are in units of white matter's in a T1 (or of the largest, in a random contrast), lengths in voxels.
    """

    means: np.ndarray  # of each structure
    deviations: np.ndarray
    unevenness: np.ndarray  # of slow changes within each structure, of control points
    stripped: bool
    clean_air: bool  # of a whole head: whether the air around it was set to 0
    rim: int  # what is left around the brain when the skull is stripped
    rests: bool  # whether that holds bits of dura and skull, or fluid alone
    blur: float  # partial volume, standard deviation
    bias: np.ndarray  # 4 x 4 x 4 control points of the logarithm of the bias field
    gamma: float
    noise: float
    slices: tuple[float, float, float]  # voxel size of the acquisition along each axis
    offset: float  # of the normalisation
    scale: float
    seed: int  # of what is drawn for each voxel
    lesion: Lesion | None = None
    cut: Cut | None = None
    ageing: Ageing | None = None
    shift: tuple[float, float, float] = (0.0, 0.0, 0.0)  # of the grid, so that border voxels hold two tissues
    ringing: float = 0.0  # of Gibbs, 0 to 1: `alpha` of MONAI's GibbsNoise


class LabelPainter:
    """Paint an image for a map of structures: contrast, skull, partial volume, bias field, resolution, noise.

    Args:
        t1_probability: of a T1-like contrast, 0 to 1; otherwise every structure has any intensity.
        strip_probability: of a skull-stripped image, 0 to 1; otherwise the whole head is seen.
        method: normalisation, "zscore" or "percentile", as of `intensities.statistics`. Its statistics are those of the
            whole head or brain, from the structures' volumes, so that a patch looks as it does in a whole normalised
            image.
        low_resolution_probability: of thick slices (up to 5 voxels) or large voxels (up to 2.5).
        lesion_probability: of a lesion of any intensity, up to a sixth of the brain.
        cut_probability: of a field of view that ends within the head.
        ageing_probability: of larger ventricles, wider or narrower sulci and lesions of the white matter.
        shift_probability: of a grid that is moved by up to half a voxel, so that a voxel at a border holds both
            tissues, as in a scan; the label is what it holds more of.
        ringing_probability: of Gibbs ringing, as after a cut in k-space.
        target: what the label tells: "tissue", classes as in `numberings`; "tissue_deep_grey", the same with 4 for
            thalamus, basal ganglia, hippocampus and amygdala; "brain", 1 in the brain and the fluid around it, brain
            stem included.

    Raises:
        ValueError: for a probability outside 0 to 1, an unknown normalisation or an unknown target.
    """

    def __init__(
        self,
        t1_probability: float = 0.5,
        strip_probability: float = 0.5,
        method: str = "zscore",
        low_resolution_probability: float = 0.3,
        lesion_probability: float = 0.0,
        cut_probability: float = 0.0,
        ageing_probability: float = 0.0,
        shift_probability: float = 0.0,
        ringing_probability: float = 0.0,
        target: str = "tissue",
    ) -> None:
        probabilities = {
            "t1_probability": t1_probability,
            "strip_probability": strip_probability,
            "low_resolution_probability": low_resolution_probability,
            "lesion_probability": lesion_probability,
            "cut_probability": cut_probability,
            "ageing_probability": ageing_probability,
            "shift_probability": shift_probability,
            "ringing_probability": ringing_probability,
        }
        for name, value in probabilities.items():
            if not 0 <= value <= 1:
                raise ValueError(f"{name} must be from 0 to 1, got {value}.")
        check_method(method)
        if target not in _TARGETS:
            raise ValueError(f"target must be one of {', '.join(_TARGETS)}, got {target!r}.")
        self.t1_probability = t1_probability
        self.strip_probability = strip_probability
        self.low_resolution_probability = low_resolution_probability
        self.lesion_probability = lesion_probability
        self.cut_probability = cut_probability
        self.ageing_probability = ageing_probability
        self.shift_probability = shift_probability
        self.ringing_probability = ringing_probability
        self.target = target
        self.method = method

    def draw(self, counts: np.ndarray, seed: int) -> Paint:
        """Everything about an image that is not drawn for each voxel.

        Args:
            counts: voxels of each structure in what is seen, as of `StructureCountsd`, RK.
            seed: the same seed gives the same image.
        """
        rng = np.random.default_rng(seed)
        t1 = rng.random() < self.t1_probability
        stripped = rng.random() < self.strip_probability
        means = draw_t1_means(rng) if t1 else rng.uniform(0, 1, len(STRUCTURES))
        deviations = rng.uniform(0.01, 0.06, len(STRUCTURES)) * (1 if t1 else 1.5)
        outside = np.asarray(EXTRA_CEREBRAL)
        if not t1 and rng.random() < 0.7:  # air is dark in any contrast, but for odd scalings
            means[0] = 0
        if t1 or means[0] == 0:
            means[0], deviations[0] = rng.uniform(0, 0.06), rng.uniform(0.005, 0.03)
        gamma = float(np.exp(rng.normal(0, 0.12 if t1 else 0.3)))
        slices = [1.0, 1.0, 1.0]
        if rng.random() < self.low_resolution_probability:
            if rng.random() < 0.5:
                slices[int(rng.integers(3))] = float(rng.uniform(1.5, 5))
            else:
                slices = [float(rng.uniform(1, 2.5))] * 3
        clean_air = bool(rng.random() < 0.4)
        rim, rests = int(rng.integers(RIMS)), bool(rng.random() < 0.2)
        seen = np.array(counts[rim if stripped else -1], float)
        if stripped and not rests:
            seen[outside] = 0
        elif not stripped and clean_air:
            seen[0] = 0
        sampled = rng.choice(len(seen), _SAMPLE, p=seen / seen.sum()) if seen.sum() else np.zeros(_SAMPLE, int)
        noise = float(rng.uniform(0, 0.05))
        unevenness = np.full(len(STRUCTURES), rng.uniform(0, _UNEVEN))
        if t1:
            unevenness[list(DEEP_GREY)] = rng.uniform(0, _UNEVEN_DEEP, len(DEEP_GREY))
        spread = np.sqrt((deviations[sampled] * _BLURRED) ** 2 + noise**2 + ((unevenness * means)[sampled]) ** 2)
        expected = means[sampled]
        if stripped and self.method == "zscore":  # percentiles are of what is pure
            expected += (1 - _PARTIAL) * (expected.mean() - expected)
        values = _gamma(expected + spread * rng.standard_normal(_SAMPLE), gamma)
        if not (stripped or clean_air):  # what preprocessing takes for the head where the air is noise
            values = values[foreground(values)]
        offset, scale = statistics(values, self.method)
        return Paint(
            means=means,
            deviations=deviations,
            unevenness=unevenness,
            stripped=stripped,
            clean_air=clean_air,
            rim=rim,
            rests=rests,
            blur=float(rng.uniform(0.3, 0.8)),
            bias=rng.normal(0, rng.uniform(0, 0.25), (4, 4, 4)),
            gamma=gamma,
            noise=noise,
            slices=(slices[0], slices[1], slices[2]),
            offset=offset + float(rng.normal(0, 0.2)) * scale,
            scale=scale * float(np.exp(rng.normal(0, 0.1))),
            seed=seed,
            lesion=self._draw_lesion(rng),
            cut=self._draw_cut(rng),
            ageing=draw_ageing(rng) if _happens(rng, self.ageing_probability) else None,
            shift=self._draw_shift(rng),
            ringing=float(rng.uniform(*_RINGING)) if _happens(rng, self.ringing_probability) else 0.0,
        )

    def _draw_lesion(self, rng: np.random.Generator) -> Lesion | None:
        if not _happens(rng, self.lesion_probability):
            return None
        share = float(rng.uniform(0.05, 0.4)) ** 2
        return Lesion(share, float(rng.uniform(0, 1.3)), float(rng.uniform(0.01, 0.15)), int(rng.integers(5, 20)))

    def _draw_cut(self, rng: np.random.Generator) -> Cut | None:
        if not _happens(rng, self.cut_probability):
            return None
        first, last = (float(rng.uniform(0, 0.4)) if rng.random() < 0.6 else 0.0 for _ in range(2))
        return Cut(int(rng.integers(3)), first, 1 - last, bool(rng.random() < 0.5))

    def _draw_shift(self, rng: np.random.Generator) -> tuple[float, float, float]:
        x, y, z = rng.uniform(-0.5, 0.5, 3) if _happens(rng, self.shift_probability) else (0.0, 0.0, 0.0)
        scale = min(1.0, 0.5 / max(abs(x) + abs(y) + abs(z), 1e-9))  # so that most of a voxel stays its own
        return float(scale * x), float(scale * y), float(scale * z)

    def paint(self, structures: torch.Tensor, paint: Paint) -> tuple[torch.Tensor, torch.Tensor]:
        """Image and label of a patch, on its device.

        Args:
            structures: 1HWD, indices of `STRUCTURES`.
            paint: from `draw`.

        Returns:
            1HWD float32, normalised; 1HWD uint8 classes, see `target`, background where the skull stripping has cut.
        """
        device = structures.device
        index = structures[0].long()
        if paint.cut is not None and not paint.cut.air:
            index = _repeated(index, paint.cut)
        generator = torch.Generator(device).manual_seed(paint.seed)
        if paint.ageing is not None:
            index = aged(index, paint.ageing, generator)
        label = _table(_TARGETS[self.target], torch.uint8, device)[index]
        kept = _kept(index, paint) if paint.stripped else index != 0 if paint.clean_air else None

        def normal() -> torch.Tensor:
            return torch.randn(index.shape, generator=generator, device=device)

        image = _table(paint.means, torch.float32, device)[index]
        if paint.unevenness.any():
            uneven = smooth_noise(index.shape, _PATCHINESS, generator)
            image *= 1 + _table(paint.unevenness, torch.float32, device)[index] * uneven
        image += _table(paint.deviations, torch.float32, device)[index] * normal()
        if paint.lesion is not None:
            field = smooth_noise(index.shape, paint.lesion.size, generator)
            brain = _table(_INSIDE, torch.bool, device)[index]
            count = int(paint.lesion.share * float(brain.sum()))
            if count:
                ill = brain & (field >= field[brain].topk(count).values[-1])
                image = torch.where(ill, paint.lesion.mean + paint.lesion.deviation * normal(), image)
        if any(paint.shift):
            image = shift(image, paint.shift)
        image = resample(blur(image, (paint.blur,) * 3), paint.slices)
        bias = torch.from_numpy(paint.bias.astype(np.float32)).to(device)
        image *= torch.exp(smooth(bias, index.shape))
        image += paint.noise * normal()
        if paint.ringing:
            image = convert_to_tensor(GibbsNoise(paint.ringing)(image[None]), track_meta=False)[0]
        image = _gamma(image, paint.gamma)
        if paint.cut is not None and paint.cut.air:
            seen = _seen(index.shape, paint.cut, device)
            kept = seen if kept is None else kept & seen
        if kept is not None:
            image = image * kept
            label = label * kept
        return normalise(image, paint.offset, paint.scale, self.method)[None], label[None]


def _happens(rng: np.random.Generator, probability: float) -> bool:
    """Whether what has this probability happens; what never does draws no number, so that seeds stay what they were."""
    return bool(probability) and rng.random() < probability


def _kept(index: torch.Tensor, paint: Paint) -> torch.Tensor:
    """What skull stripping leaves: the brain, and within `rim` voxels the fluid around it (with `rests`, anything)."""
    brain = _table(BRAIN, torch.bool, index.device)[index]
    near = brain.float()[None, None]
    if paint.rim:
        for axis in range(3):  # a cube's dilation is three lines'
            size = [1, 1, 1]
            size[axis] = 2 * paint.rim + 1
            near = F.max_pool3d(near, size, stride=1, padding=[n // 2 for n in size])
    kept = near[0, 0] > 0
    if not paint.rests:
        kept &= _table(_INSIDE, torch.bool, index.device)[index]
    return kept


def _ends(n: int, cut: Cut) -> tuple[int, int]:
    """First and last voxel of the field of view along its axis of n voxels."""
    first = min(int(cut.first * n), n - 1)
    return first, max(min(int(cut.last * n), n) - 1, first)


def _repeated(index: torch.Tensor, cut: Cut) -> torch.Tensor:
    """The border of the field of view in place of what lies beyond it, as windows repeat it."""
    n = index.shape[cut.axis]
    places = torch.arange(n, device=index.device).clamp(*_ends(n, cut))
    return index.index_select(cut.axis, places)


def _seen(shape: torch.Size, cut: Cut, device: torch.device) -> torch.Tensor:
    """Whether a voxel lies in the field of view, bool."""
    first, last = _ends(shape[cut.axis], cut)
    seen = torch.zeros(shape, dtype=torch.bool, device=device)
    seen.narrow(cut.axis, first, last - first + 1).fill_(True)
    return seen


def _gamma(values: Any, gamma: float) -> Any:
    return abs(values) ** gamma  # magnitudes: noise around 0 does not become 0


def _table(values: Any, kind: torch.dtype, device: torch.device) -> torch.Tensor:
    return torch.as_tensor(np.asarray(values)).to(device, kind)
