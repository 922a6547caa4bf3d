"""Patches of virtual gliomas made while a network trains, on its device: nothing is stored, no patient is seen twice.

A patient is measured once on a coarse grid of the whole head (volumes, thresholds, intensity statistics), then seen in
patches of 1 mm alone, so that only what a network looks at is computed.
"""

from __future__ import annotations

import logging
import zlib
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.transforms import Randomizable, Transform
from tqdm import tqdm

from bundlekit.brats.missing import RandDropModalitiesd
from bundlekit.errors import BundleError, Finding
from bundlekit.files import default_cache_dir
from bundlekit.patches.cache import CaseCache
from bundlekit.virtual.acquisition import Scans, low_grade
from bundlekit.virtual.anatomy import MAPS_VERSION, grid, maps_of
from bundlekit.virtual.brats import patient
from bundlekit.virtual.cohorts import box_of
from bundlekit.virtual.fields import as_axes
from bundlekit.virtual.tumour import ENHANCING

_log = logging.getLogger(__name__)
_COARSE = (80, 80, 52)  # voxels of about 3 mm that cover the field of view
_CLASSES = 3  # NCR 1, ED 2, ET 3 (4 in the files of BraTS)


class DrawPatient(Randomizable, Transform):
    """A label map as a virtual patient: its file, and a seed from the random state of the sample."""

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """`head` (file of the label map) and `patient` (seed), which can be batched, in place of all of `data`."""
        return {"head": data["label"], "patient": int(self.R.randint(2**31 - 1))}


class Glioma:
    """One virtual patient, to be seen in patches.

    Args:
        seed: 0 or more; the same seed and maps give the same patient.
        maps: of the head, see `anatomy.maps_of`; everything is made on their device.
    """

    def __init__(self, seed: int, maps: torch.Tensor) -> None:
        self.head, self.tumour, rng = patient(seed, 0, maps=maps)
        axes, spacing = grid(_COARSE)
        _, axes = box_of(self.head, self.tumour.pushes, as_axes(axes, maps.device))
        anatomy = self.head.sample(axes, 1.0, self.tumour.pushes)
        self.extent = self.tumour.measure(anatomy, axes)
        lesion = self.tumour.label(anatomy, axes, self.extent)
        self.scans = Scans(rng, low_grade(lesion))
        brain = anatomy.brain.ravel().nonzero()[:, 0]
        clean = self.scans.clean(anatomy, lesion, axes, brain)
        images = self.scans.acquire(clean, brain, anatomy.brain.shape, spacing, noise_of_mm=1.0)
        inside = [image.ravel()[brain] for image in images.values()]
        found = torch.stack([torch.stack([signal.mean(), signal.std()]) for signal in inside]).tolist()
        # mean and standard deviation over the brain, by modality
        self.statistics = {name: (mean, max(std, 1e-6)) for name, (mean, std) in zip(images, found, strict=True)}
        self._rng = rng
        # places are looked up on the CPU: a GPU would be waited for at every one
        axes, labels = as_axes([axis.cpu() for axis in axes]), lesion.labels.cpu()
        where = anatomy.brain.cpu().nonzero()
        self._box = [
            (float(axis[part.min()]), float(axis[part.max()])) for axis, part in zip(axes, where.T, strict=True)
        ]
        self._brain = self._positions(where, axes)
        parts = [labels > 0, (labels > 0) & (labels != 2), labels == ENHANCING]  # WT, TC, ET
        self._regions = [self._positions(part.nonzero(), axes) for part in parts if part.any()]

    def patch(self, size: Sequence[int], tumour_probability: float) -> tuple[torch.Tensor, torch.Tensor]:
        """Another patch of `size` voxels of 1 mm at each call.

        Args:
            size: HWD.
            tumour_probability: of a patch centred on the tumour: on any voxel of WT, TC or ET, one as likely as the
                other; otherwise on any voxel of the brain. Patches are moved to hold brain rather than air.

        Returns:
            4HWD float32 (T1, T1ce, T2, FLAIR), about z-scores over the brain, 0 outside it; 1HWD uint8 (0, 1 NCR, 2 ED,
            3 ET).
        """
        centres = self._brain
        if self._regions and self._rng.random() < tumour_probability:
            centres = self._regions[int(self._rng.integers(len(self._regions)))]
        centre = centres[int(self._rng.integers(len(centres)))] + self._rng.uniform(-1.5, 1.5, 3)
        first = []
        for place, n, (low, high) in zip(centre, size, self._box, strict=True):
            start = place - (n - 1) / 2
            first.append(min(max(start, low), high - (n - 1)) if high - low > n - 1 else (low + high - (n - 1)) / 2)
        device = self.extent.cost.device
        axes = as_axes([start + np.arange(n) for start, n in zip(first, size, strict=True)], device)
        anatomy = self.head.sample(axes, 1.0, self.tumour.pushes)
        lesion = self.tumour.label(anatomy, axes, self.extent)
        brain = anatomy.brain.ravel().nonzero()[:, 0]
        clean = self.scans.clean(anatomy, lesion, axes, brain)
        image = torch.zeros((len(clean), *size), device=device)
        for channel, (name, scan) in zip(
            image, self.scans.acquire(clean, brain, tuple(size), (1.0, 1.0, 1.0)).items(), strict=True
        ):
            mean, deviation = self.statistics[name]
            channel.ravel()[brain] = (scan.ravel()[brain] - mean) / deviation
        return image, lesion.labels.clamp(max=_CLASSES)[None]

    @staticmethod
    def _positions(voxels: torch.Tensor, axes: Sequence[torch.Tensor]) -> np.ndarray:
        """Places (N, 3), mm, of `voxels` (N, 3)."""
        return torch.stack([axis[part] for axis, part in zip(axes, voxels.T, strict=True)], 1).numpy()


class PaintGliomas:
    """MONAI `prepare_batch`: virtual patients come from the loader as seeds, their patches are made on the device.

    Label maps are prepared first, all of them: about 10 s each, once; 70 MB each in the cache.

    Args:
        heads: cases with the `label` maps that batches may name, as from `bundlekit.label_maps.find_label_maps`.
        patch_size: HWD, voxels of 1 mm.
        patches_per_case: of every patient in a batch.
        tumour_probability: see `Glioma.patch`.
        flip_probability: of mirroring a patch along each axis, 0 to 1.
        cache_dir: folder for prepared label maps; None: `bundlekit` in the user's cache folder.
        modality_dropout: probability of a patch without one or two of its modalities, see `RandDropModalitiesd`.

    Raises:
        BundleError: all label maps that cannot be used at once, or if the cache cannot.
        ValueError: for a number out of range.
    """

    def __init__(
        self,
        heads: Sequence[Mapping[str, Any]],
        patch_size: Sequence[int],
        patches_per_case: int = 1,
        tumour_probability: float = 0.7,
        flip_probability: float = 0.5,
        cache_dir: str | None = None,
        modality_dropout: float = 0.0,
    ) -> None:
        if patches_per_case < 1:
            raise ValueError(f"patches_per_case must be 1 or more, got {patches_per_case}.")
        if len(patch_size) != 3 or min(patch_size) < 1:
            raise ValueError(f"patch_size must be three numbers of voxels, 1 or more, got {list(patch_size)}.")
        for name, share in (("tumour_probability", tumour_probability), ("flip_probability", flip_probability)):
            if not 0 <= share <= 1:
                raise ValueError(f"{name} must be from 0 to 1, got {share}.")
        self.patch_size = tuple(int(n) for n in patch_size)
        self.patches_per_case = int(patches_per_case)
        self.tumour_probability = tumour_probability
        self.flip_probability = flip_probability
        self._drop = RandDropModalitiesd(modality_dropout)
        self._maps = _prepared([head["label"] for head in heads], cache_dir) if heads else {}

    def __call__(
        self, batch: Mapping[str, Any], device: torch.device | str | None = None, non_blocking: bool = False, **_: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Images B4HWD float32 and labels B1HWD uint8, where B counts patches.

        Args:
            batch: `head` (files of label maps) and `patient` (seeds), one of each per patient.
            device: to make them on.
            non_blocking: without use here; MONAI gives it.
        """
        images, labels = [], []
        for file, seed in zip(batch["head"], batch["patient"].tolist(), strict=True):
            rng = np.random.default_rng([seed, 1])
            self._drop.set_random_state(seed=seed)
            glioma = Glioma(seed, self._maps[file].to(device).float())
            for _number in range(self.patches_per_case):
                image, label = glioma.patch(self.patch_size, self.tumour_probability)
                self._drop.randomize(range(len(image)))
                if self._drop.dropped:
                    image[list(self._drop.dropped)] = 0
                mirrored = [axis for axis in (1, 2, 3) if rng.random() < self.flip_probability]
                images.append(image.flip(mirrored))
                labels.append(label.flip(mirrored))
        return torch.stack(images), torch.stack(labels)


def _prepared(files: Sequence[str], cache_dir: str | None) -> dict[str, torch.Tensor]:
    """Maps of each head in half precision, memory-mapped."""
    folder = cache_dir or default_cache_dir("bundlekit")
    cases = [{"case": file, "image": [], "label": file, "version": MAPS_VERSION} for file in files]
    try:
        cache = CaseCache(cases, _HalfMaps(), folder)
    except OSError as error:
        fix = "set --cache_dir to a folder to write to"
        raise BundleError(
            Finding(folder, f"cannot be used ({error})", "a folder for prepared label maps", fix)
        ) from error
    _log.info("%d label maps, prepared in %s where they are not yet", len(files), folder)
    maps, wrong = {}, []
    for number, file in enumerate(tqdm(files, desc="label maps", disable=None)):
        try:
            maps[file] = cache[number]["maps"]
        except RuntimeError as error:  # how MONAI passes on what a transform raises
            cause = error.__cause__
            if not isinstance(cause, (ValueError, EOFError, OSError, zlib.error)):
                raise
            wrong.append(str(cause) if file in str(cause) else f"{file}: cannot be read ({cause})")
    if wrong:
        raise BundleError("\n".join(wrong))
    return maps


class _HalfMaps(Transform):
    """What is kept of a label map; a transform, since MONAI's caches keep what those give."""

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[str, torch.Tensor]:
        return {"maps": maps_of(data["label"]).half()}
