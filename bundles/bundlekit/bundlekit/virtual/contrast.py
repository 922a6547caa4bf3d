"""The contrast of a T1: how bright each structure of a label map is, drawn at random."""

from __future__ import annotations

import numpy as np

from bundlekit.label_maps.numberings import CSF, EXTRA_CEREBRAL, STRUCTURES, WM

# T1 intensity of a structure as its place between grey (0) and white matter (1), where that is not simply its tissue's;
# ranges, since iron grows with age and nuclei and white matter share voxels
_T1_PLACE = {
    "thalamus": (0.35, 1.05), "caudate": (0.0, 0.45), "putamen": (0.15, 0.85), "pallidum": (0.75, 1.25),
    "accumbens": (0.0, 0.35), "hippocampus": (-0.15, 0.25), "amygdala": (-0.15, 0.25), "brain stem": (0.55, 0.95),
    "ventral DC": (0.55, 0.95), "optic chiasm": (0.5, 0.9),
}  # fmt: skip
_T1_RANGE = {  # relative to white matter, for what is neither grey nor white
    "choroid plexus": (0.35, 0.7),
    "vessel": (0.2, 1.3),
    "white matter lesion": (0.6, 0.95),
}
# soft tissue, skin and fat, skull, marrow and dura
_T1_OUTSIDE = {507: (0.3, 0.8), 511: (0.8, 1.8), 515: (0.05, 0.35), 516: (0.4, 1.5)}
_SULCAL = 0.3  # up to how far from ventricle to grey matter: sulci are thin, with pia and vessels in them


def draw_t1_means(rng: np.random.Generator) -> np.ndarray:
    """T1 intensities of all `STRUCTURES`, white matter about 1: (K,)."""
    grey, fluid = rng.uniform(0.55, 0.88), rng.uniform(0.1, 0.42)
    means = np.empty(len(STRUCTURES))
    for k, structure in enumerate(STRUCTURES):
        outside = next((_T1_OUTSIDE[i] for i in structure.ids if i in _T1_OUTSIDE), (0.1, 1.3))
        if structure.name in _T1_PLACE:
            means[k] = grey + rng.uniform(*_T1_PLACE[structure.name]) * (1 - grey)
        elif structure.name in _T1_RANGE:
            means[k] = rng.uniform(*_T1_RANGE[structure.name])
        elif k in EXTRA_CEREBRAL:
            means[k] = rng.uniform(*outside)
        elif structure.name == "sulcal CSF":
            means[k] = fluid + rng.uniform(0, _SULCAL) * (grey - fluid)
        elif structure.tissue == CSF:
            means[k] = fluid
        else:
            means[k] = 1.0 if structure.tissue == WM else grey
    inside = np.ones(len(means), bool)
    inside[list(EXTRA_CEREBRAL)] = False
    means[inside] *= np.exp(rng.normal(0, 0.04, int(inside.sum())))
    return means
