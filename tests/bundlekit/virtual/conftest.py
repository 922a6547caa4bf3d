"""A label map of a person's head, made up."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from bundlekit.virtual.anatomy import Head, grid
from bundlekit.virtual.cohorts import affine_of
from tests.conftest import MadeOnce


@pytest.fixture(scope="session")
def label_map(made_once: MadeOnce) -> str:
    """The ICBM152 tissues as a label map with sides, turned, moved and scaled: what a person's may be."""
    return str(made_once("person", make_label_map) / "person.nii.gz")


def make_label_map(to: Path) -> None:
    axes, spacing = grid((80, 80, 52))
    seen = Head(np.random.default_rng(8)).sample(axes, max(spacing)).numpy()
    right = seen.side_mm > 0
    labels = np.select([~seen.brain, seen.csf > 0.5, seen.gm > seen.wm], [0, 24, 3], 2).astype(np.int16)
    labels[right & (labels == 2)], labels[right & (labels == 3)] = 41, 42
    deep = np.flatnonzero(((labels == 2) | (labels == 41)) & (seen.depth_mm > 25))
    for left, number in ((10, 49), (11, 50)):
        own = deep[:: 3 if left == 10 else 4]
        labels.ravel()[own] = np.where(right.ravel()[own], number, left)
    affine = affine_of(spacing)
    turn = nib.affines.from_matvec(Rotation.from_euler("xyz", [4, -8, 12], degrees=True).as_matrix(), [20, -10, 5])
    to.mkdir()
    nib.save(nib.Nifti1Image(labels, turn @ affine), to / "person.nii.gz")
