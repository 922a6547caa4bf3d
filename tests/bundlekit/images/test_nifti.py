"""Files that are no scans, and intensities that cannot be computed with."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from bundlekit.cases.headers import check_headers
from bundlekit.errors import BundleError
from bundlekit.images.nifti import check_voxels, read_array, same_places, without_rounding
from tests.bundlekit.conftest import scan, write_nifti

RGB = np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])


@pytest.mark.parametrize("ending", ["hdr", "img"])
@pytest.mark.parametrize("kind", [nib.Nifti1Pair, nib.AnalyzeImage])
def test_a_pair_of_header_and_image_is_refused_by_its_header(tmp_path: Path, kind: type, ending: str) -> None:
    nib.save(kind(scan(), np.eye(4)), tmp_path / "x.hdr")
    file = str(tmp_path / f"x.{ending}")
    ((finding,),) = check_headers([{"case": "x", "image": [file], "label": ""}])
    assert finding.file == file
    assert "pair of .hdr and .img" in finding.found


@pytest.mark.parametrize(
    ("voxels", "found"), [(np.zeros((4, 4, 4), RGB), "colours"), (np.ones((4, 4, 4), np.complex64), "complex")]
)
def test_voxels_that_are_no_single_number_are_refused(tmp_path: Path, voxels: np.ndarray, found: str) -> None:
    file = write_nifti(tmp_path / "x.nii.gz", voxels)
    with pytest.raises(BundleError, match=rf"x\.nii\.gz[\s\S]*{found}[\s\S]*one real number"):
        read_array(str(file))


def intensities(factor: float = 1.0, spike: float = 0.0) -> np.ndarray:
    voxels = np.zeros((20, 20, 20))
    voxels[5:15] = np.linspace(1, 100, 4000).reshape(10, 20, 20)
    voxels[10, 10, 10] += spike
    return voxels * factor


@pytest.mark.parametrize(
    ("voxels", "found"),
    [
        (intensities(1e300), "0 to 1e+302"),
        (intensities(-1e300), "from -1e+302"),
        (intensities(1e-300), "1e-298"),
        (intensities(spike=1e30), "a voxel of 1e+30"),
        (intensities(spike=-1e30), "a voxel of -1e+30"),
        (intensities(spike=1e5), "a voxel of 100056"),
    ],
)
def test_numbers_that_cannot_be_computed_with_are_refused(voxels: np.ndarray, found: str) -> None:
    (finding,) = check_voxels("x.nii.gz", voxels)
    assert finding.file == "x.nii.gz"
    assert found in finding.found


@pytest.mark.parametrize("factor", [1.0, 1e-9, 1e30, -1.0])
@pytest.mark.parametrize("spike", [0.0, 1e4])  # a bright vessel, a defect of a coil
def test_other_numbers_are_not(factor: float, spike: float) -> None:
    assert not check_voxels("x.nii.gz", intensities(factor, spike))


def test_the_largest_integers_are_not_refused() -> None:
    assert not check_voxels("x.nii.gz", intensities(600).astype(np.uint16))
    assert not check_voxels("x.nii.gz", np.where(intensities() > 50, np.iinfo(np.int64).max, 0))


@pytest.mark.parametrize(("largest", "kind"), [(4, np.uint8), (13, np.uint8), (4, np.int16), (2035, np.int16)])
def test_labels_that_nibabel_saved_with_a_slope_are_whole(tmp_path: Path, largest: int, kind: type) -> None:
    labels = np.rint(np.linspace(0, largest, 4 * 5 * 6)).reshape(4, 5, 6)
    image = nib.Nifti1Image(labels.astype(kind) if largest < 256 or kind is np.int16 else labels, np.eye(4))
    nib.save(nib.Nifti1Image(labels, np.eye(4), image.header), tmp_path / "slope.nii.gz")
    read = read_array(str(tmp_path / "slope.nii.gz"))
    assert read.dtype.kind == "f"
    np.testing.assert_array_equal(without_rounding(read), labels)
    assert (without_rounding(np.array([0.5, 1.2, np.nan, 4])) != np.array([0.5, 1.2, 7, 4])).tolist() == [0, 0, 1, 0]


def test_places_are_compared_where_voxels_lie() -> None:
    """Half a degree changes no number of an affine by more than 0.01, and moves the corner of a head by millimetres."""
    shape, angle = (240, 240, 155), np.deg2rad(0.55)
    turned = np.eye(4)
    turned[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    assert np.abs(turned - np.eye(4)).max() < 0.01
    assert not same_places(np.eye(4), turned, shape)
    moved = np.eye(4)
    moved[:3, 3] = 0.05
    assert same_places(np.eye(4), moved, shape)
    assert not same_places(np.eye(4), moved + 0.1 * (moved - np.eye(4) > 0), shape)
    assert not same_places(np.diag([0.1, 0.1, 0.1, 1]), np.diag([0.1, 0.1, 0.1, 1]) + moved - np.eye(4), shape)
