"""Virtual abdominal CT: format, repeatability, anatomy."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from abdomen_ct_vnet import LoadCTd, find_cases
from bundlekit.virtual.ct import ORGANS, ct, make_ct, spacing_of


@pytest.fixture(scope="module")
def case() -> dict[str, np.ndarray]:
    return make_ct(0, 0, (96, 96, 64))


def centre(case: dict[str, np.ndarray], organ: str) -> np.ndarray:
    return nib.affines.apply_affine(case["affine"], np.argwhere(case["label"] == ORGANS[organ]).mean(0))


def test_every_organ_is_there_in_its_place(case: dict[str, np.ndarray]) -> None:
    assert set(np.unique(case["label"]).tolist()) == set(range(14))
    voxel_ml = abs(np.linalg.det(case["affine"][:3, :3])) / 1000
    ml = {organ: float((case["label"] == number).sum()) * voxel_ml for organ, number in ORGANS.items()}
    assert 700 < ml["liver"] < 2500
    assert 60 < ml["spleen"] < 400
    for side in ("right", "left"):
        assert 80 < ml[f"{side} kidney"] < 350
        assert 0.2 < ml[f"{side} adrenal gland"] < 15
    right, front, up = np.eye(3)
    for axis, more, less in (
        (right, "liver", "spleen"),
        (right, "right kidney", "left kidney"),
        (right, "inferior vena cava", "aorta"),
        (front, "pancreas", "aorta"),
        (front, "stomach", "left kidney"),
        (up, "liver", "right kidney"),
        (up, "left adrenal gland", "left kidney"),
        (up, "esophagus", "duodenum"),
    ):
        assert axis @ (centre(case, more) - centre(case, less)) > 0, (more, less)


def test_tissue_is_in_hounsfield_units(case: dict[str, np.ndarray]) -> None:
    image, label = case["image"], case["label"]
    assert image.dtype == np.int16
    corner = image[:4, :4]
    assert corner.min() >= -1024
    assert corner.mean() < -950
    for organ in ("liver", "spleen", "aorta"):
        assert 30 < np.median(image[label == ORGANS[organ]]) < 400
    assert ((image > -130) & (image < -70)).mean() > 0.05, "fat"
    assert (image > 300).mean() > 0.003, "bone"
    assert ((image > -900) & (image < -700)).mean() > 0.002, "lung, couch"


def test_the_label_of_a_kidney_holds_its_sinus(case: dict[str, np.ndarray]) -> None:
    kidney = case["label"] == ORGANS["right kidney"]
    inner = ndimage.binary_erosion(kidney, iterations=2)
    assert (case["image"][inner] < -30).mean() > 0.03, "fat in the middle"
    np.testing.assert_array_equal(ndimage.binary_fill_holes(kidney), kidney)


def test_the_seed_decides_and_cases_differ() -> None:
    one, again, other = (make_ct(5, index, (40, 40, 32)) for index in (0, 0, 1))
    for key in ("image", "label"):
        np.testing.assert_array_equal(one[key], again[key])
        assert (one[key] != other[key]).mean() > 0.02


def test_the_same_patient_on_a_coarser_grid() -> None:
    fine, coarse = (make_ct(2, 0, shape, spacing)["label"] for shape, spacing in (
        ((120, 99, 60), (3, 3, 4)), ((40, 33, 60), (9, 9, 4)),
    ))  # fmt: skip
    middle = fine[1::3, 1::3]
    assert (middle == coarse).mean() > 0.985


def test_the_folder_is_a_flare22_data_set(tmp_path: Path) -> None:
    files = ct(str(tmp_path), cases=2, seed=1, shape=(40, 36, 32), spacing=(9, 9, 8))
    assert [Path(file).name for file in files] == ["FLARE22_Tr_0001_0000.nii.gz", "FLARE22_Tr_0002_0000.nii.gz"]
    cases = find_cases(tmp_path, organs="flare22")
    assert [case["image"][0] for case in cases] == files
    for case in cases:
        LoadCTd()(case)
    image = nib.load(files[0])
    assert nib.aff2axcodes(image.affine) == ("L", "P", "S")
    np.testing.assert_allclose(image.header.get_zooms(), (9, 9, 8))
    more = ct(str(tmp_path / "more"), cases=1, seed=1, shape=(40, 36, 32), spacing=(9, 9, 8))
    assert Path(more[0]).read_bytes() == Path(files[0]).read_bytes(), "case 1 does not depend on how many follow"


@pytest.mark.parametrize("spacing", [(1, 2), (0, 1, 1), "abc", (1, 1, 60)])
def test_bad_arguments(spacing: object) -> None:
    with pytest.raises(ValueError, match="three lengths in mm"):
        spacing_of(spacing, (40, 40, 40))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="from 32 to 1024"):
        ct("unused", shape=(8, 8, 8))
