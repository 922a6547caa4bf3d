"""Label maps as the structures that are painted."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from bundlekit.errors import BundleError
from bundlekit.label_maps import LoadStructuresd, find_label_maps
from bundlekit.label_maps.numberings import STRUCTURES
from bundlekit.label_maps.reading import read_structures
from tests.bundlekit.label_maps.conftest import GRID, SHAPE, numbers, write
from tests.conftest import ROOT

SHARED = Path(os.environ.get("BRAIN_DATA", ROOT.parent / "shared" / "data"))


@pytest.mark.parametrize("suffix", [".nii.gz", ".mgz"])
def test_label_map(tmp_path: Path, suffix: str) -> None:
    ids = (0, 2, 41, 3, 24, 507, 515)
    write(tmp_path / f"map{suffix}", numbers(ids))
    (case,) = find_label_maps(tmp_path)
    got = LoadStructuresd()(case)
    assert set(got) == {"structures", "case", "source", "label_file"}
    structures = got["structures"]
    assert isinstance(structures, MetaTensor)
    assert structures.dtype == torch.uint8
    assert structures.shape == (1, *SHAPE)
    np.testing.assert_allclose(structures.affine, GRID)
    for number in ids:
        (index,) = np.unique(structures[0][numbers(ids) == number])
        assert number in STRUCTURES[index].ids
    assert (got["case"], got["source"], got["label_file"]) == ("map", case["label"], case["label"])


def test_label_map_of_unknown_numbers_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "map.nii.gz", numbers((0, 2, 99)))
    with pytest.raises(BundleError) as caught:
        read_structures(str(path))
    assert caught.value.findings[0].file == str(path)
    assert "99 (40 voxels)" in caught.value.findings[0].found


@pytest.mark.parametrize("ids", [(0, 1, 2, 3), range(9)])  # tissues, MRBrainS
def test_a_map_of_tissues_is_refused(tmp_path: Path, ids: tuple[int, ...]) -> None:
    path = write(tmp_path / "map.nii.gz", numbers(ids))
    with pytest.raises(BundleError, match=r"map\.nii\.gz[\s\S]*a map of tissues cannot be painted"):
        read_structures(str(path))


def test_an_empty_label_map_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "map.nii.gz", numbers((0,)))
    with pytest.raises(BundleError, match=r"map\.nii\.gz[\s\S]*0 in every voxel"):
        read_structures(str(path))


@pytest.mark.skipif(not (SHARED / "tissue_labelmaps").is_dir(), reason="no real data")
def test_label_maps_of_synthseg() -> None:
    cases = find_label_maps(SHARED / "tissue_labelmaps")
    assert len(cases) == 20
    structures = LoadStructuresd()(cases[0])["structures"]
    assert structures.shape == (1, 256, 256, 256)
    assert len(torch.unique(structures)) > 25
