"""A mask comes back to the scans: by hand, and with their headers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from bundlekit.brats.cases import find_cases
from bundlekit.brats.naming import role_of
from bundlekit.errors import BundleError
from bundlekit.files import sha256_of
from bundlekit.preparation.grids import Grid
from bundlekit.preparation.record import read_record, write_record
from bundlekit.preparation.restoring import restore_case

AFFINE = np.diag([-1.0, -1.0, 1.0, 1.0])


def save(path: Path, array: np.ndarray, affine: np.ndarray, code: int = 1) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(array, affine)
    image.set_sform(affine, code)
    image.set_qform(affine, code)
    nib.save(image, path)
    return path


@pytest.fixture
def prepared(tmp_path: Path) -> Path:
    """Record of a T1 on the prepared grid, and a FLAIR of slices of 3 mm that lies 2 mm further to the right."""
    cube = np.arange(12 * 12 * 12, dtype=np.float32).reshape(12, 12, 12)
    t1 = save(tmp_path / "raw" / "x_t1.nii.gz", cube, AFFINE, 2)
    thick = np.diag([-1.0, -1.0, 3.0, 1.0])
    thick[:3, 3] = (2, 0, 1)
    flair = save(tmp_path / "raw" / "x_flair.nii.gz", cube[:, :, :4], thick)
    back = np.eye(4)
    back[0, 3] = -2
    entries = {}
    for name, file, move in (("T1", t1, np.eye(4)), ("FLAIR", flair, back)):
        image = nib.load(file)
        entries[name] = {
            "source": str(file),
            "sha256": sha256_of(file),
            "grid": Grid(image.shape, image.affine).as_dict(),
            "to_prepared_ras": move.tolist(),
        }
    grid = Grid((12, 12, 12), AFFINE).as_dict()
    write_record(tmp_path / "prepared", {"case": "x", "grid": grid, "modalities": entries})
    return tmp_path / "prepared"


@pytest.fixture
def mask(tmp_path: Path) -> Path:
    labels = np.zeros((12, 12, 12), np.uint8)
    labels[3:7, 4:8, 3:9] = 2
    labels[4:6, 5:7, 3:6] = 4
    return save(tmp_path / "x_seg.nii.gz", labels, AFFINE)


def test_where_nothing_was_moved_the_mask_is_the_same(prepared: Path, mask: Path, tmp_path: Path) -> None:
    restore_case(prepared, mask, tmp_path / "out")
    back = nib.load(tmp_path / "out" / "x_seg_on_t1.nii.gz")
    np.testing.assert_array_equal(np.asarray(back.dataobj), np.asarray(nib.load(mask).dataobj))
    source = nib.load(tmp_path / "raw" / "x_t1.nii.gz").header
    for field in ("sform_code", "qform_code", "pixdim", "srow_x", "srow_y", "srow_z", "quatern_b", "xyzt_units"):
        np.testing.assert_array_equal(back.header[field], source[field])
    assert back.get_data_dtype() == np.uint8


def test_thick_slices_take_what_fills_most_of_them(prepared: Path, mask: Path, tmp_path: Path) -> None:
    volumes = restore_case(prepared, mask, tmp_path / "out")
    back = np.asarray(nib.load(tmp_path / "out" / "x_seg_on_flair.nii.gz").dataobj)
    labels = np.asarray(nib.load(mask).dataobj)
    np.testing.assert_array_equal(back, labels[:, :, 1::3])  # slices 0-2, 3-5, 6-8, 9-11 of the prepared grid
    assert volumes["prepared"] == {"2": 0.084, "4": 0.012}
    assert volumes["on"] == {"T1": volumes["prepared"], "FLAIR": volumes["prepared"]}
    assert json.loads((tmp_path / "out" / "x_volumes.json").read_text()) == volumes


def test_probabilities_decide_at_borders_and_the_cleaned_mask_inside(
    prepared: Path, mask: Path, tmp_path: Path
) -> None:
    labels = np.asarray(nib.load(mask).dataobj)
    whole = np.where(labels > 0, 0.9, 0.1).astype(np.float32)
    core = np.where(labels == 4, 0.8, 0.0).astype(np.float32)
    whole[0, 0, 0], core[0, 0, 0] = 0.9, 0.8  # removed from the mask by cleaning
    probabilities = save(tmp_path / "x_probabilities.nii.gz", np.stack([whole, core, core], -1), AFFINE)
    restore_case(prepared, mask, tmp_path / "out", probabilities)
    back = np.asarray(nib.load(tmp_path / "out" / "x_seg_on_t1.nii.gz").dataobj)
    np.testing.assert_array_equal(back, labels)


def test_a_mask_of_regions_is_restored_by_its_regions(prepared: Path, tmp_path: Path) -> None:
    """A voxel whose classes are each less likely than the background is tumour all the same; its neighbour is not."""
    labels = np.zeros((12, 12, 12), np.uint8)
    labels[3:7, 4:8, :] = 2
    labels[3:7, 4:8, 2:9] = 4
    inside = labels > 0
    whole = np.where(inside, 0.55, 0.1).astype(np.float32)
    core = np.where(inside, 0.3, 0.0).astype(np.float32)
    core[labels == 4] = 0.52
    enhancing = np.where(labels == 4, 0.51, 0.0).astype(np.float32)
    whole[7, 4:8, :] = 0.48  # argmax decides for the background, and so do the regions
    probabilities = save(tmp_path / "x_probabilities.nii.gz", np.stack([whole, core, enhancing], -1), AFFINE)
    mask = save(tmp_path / "x_seg.nii.gz", labels, AFFINE)
    restore_case(prepared, mask, tmp_path / "out", probabilities)
    np.testing.assert_array_equal(np.asarray(nib.load(tmp_path / "out" / "x_seg_on_t1.nii.gz").dataobj), labels)
    on_flair = np.asarray(nib.load(tmp_path / "out" / "x_seg_on_flair.nii.gz").dataobj)
    np.testing.assert_array_equal(on_flair[3:7, 4:8], np.broadcast_to([2, 4, 4, 2], (4, 4, 4)))
    assert np.count_nonzero(on_flair) == 4 * 4 * 4, "nothing beside it becomes tumour"
    assert 1 not in on_flair, "the mask has no NCR"

    labels[0:2, 0:3, :] = 7  # which somebody drew
    labels[4, 5, 4] = 3  # by the numbers of another year
    restore_case(prepared, save(mask, labels, AFFINE), tmp_path / "drawn", probabilities)
    back = np.asarray(nib.load(tmp_path / "drawn" / "x_seg_on_t1.nii.gz").dataobj)
    np.testing.assert_array_equal(back, labels)


def test_an_empty_mask_comes_back_empty(prepared: Path, tmp_path: Path) -> None:
    empty = save(tmp_path / "empty.nii.gz", np.zeros((12, 12, 12), np.uint8), AFFINE)
    volumes = restore_case(prepared, empty, tmp_path / "out")
    assert volumes["on"] == {"T1": {}, "FLAIR": {}}
    assert not np.asarray(nib.load(tmp_path / "out" / "x_seg_on_flair.nii.gz").dataobj).any()


def test_a_mask_that_somebody_corrected_stays(prepared: Path, mask: Path, tmp_path: Path) -> None:
    restore_case(prepared, mask, tmp_path / "out")
    restore_case(prepared, mask, tmp_path / "out")  # as it was written: again
    file = tmp_path / "out" / "x_seg_on_t1.nii.gz"
    image = nib.load(file)
    corrected = np.asarray(image.dataobj).copy()
    corrected[0, 0, 0] = 1
    nib.save(nib.Nifti1Image(corrected, image.affine, image.header), file)
    with pytest.raises(BundleError, match=r"x_seg_on_t1[\s\S]*somebody corrected it"):
        restore_case(prepared, mask, tmp_path / "out")
    np.testing.assert_array_equal(np.asarray(nib.load(file).dataobj), corrected)


def test_a_mask_of_a_scan_that_is_no_longer_there_goes(prepared: Path, mask: Path, tmp_path: Path) -> None:
    restore_case(prepared, mask, tmp_path / "out")
    record = json.loads((prepared / "prepared.json").read_text())
    del record["modalities"]["FLAIR"]
    (prepared / "prepared.json").write_text(json.dumps(record))
    stale = tmp_path / "out" / "x_seg_on_flair.nii.gz"
    image = nib.load(stale)
    corrected = nib.Nifti1Image(np.ones_like(np.asarray(image.dataobj)), image.affine, image.header)
    restore_case(prepared, mask, tmp_path / "out")
    assert not stale.exists()
    nib.save(corrected, stale)
    restore_case(prepared, mask, tmp_path / "out")
    assert stale.exists(), "somebody's own"


def test_masks_on_scans_are_no_scans(prepared: Path, mask: Path, tmp_path: Path) -> None:
    restore_case(prepared, mask, tmp_path / "out")
    assert role_of("x_seg_on_t1.nii.gz") is None
    with pytest.raises(BundleError, match="no case"):
        find_cases(tmp_path / "out", labelled=False)


@pytest.mark.parametrize("kind", [np.uint8, np.int16])
def test_a_mask_that_was_saved_with_a_slope_is_a_mask(prepared: Path, mask: Path, tmp_path: Path, kind: type) -> None:
    labels = np.asarray(nib.load(mask).dataobj)
    image = nib.Nifti1Image(labels.astype(kind), AFFINE)
    nib.save(nib.Nifti1Image(labels.astype(np.float64), AFFINE, image.header), tmp_path / "slope.nii.gz")
    assert set(np.unique(nib.load(tmp_path / "slope.nii.gz").get_fdata())) != set(np.unique(labels))
    restore_case(prepared, tmp_path / "slope.nii.gz", tmp_path / "out")
    back = np.asarray(nib.load(tmp_path / "out" / "x_seg_on_t1.nii.gz").dataobj)
    np.testing.assert_array_equal(back, labels)


def test_a_mask_that_a_viewer_saved_in_another_order_comes_back(prepared: Path, mask: Path, tmp_path: Path) -> None:
    restore_case(prepared, mask, tmp_path / "out")
    turned = nib.load(mask).as_reoriented(np.array([[2, 1], [0, -1], [1, 1]]))
    nib.save(turned, tmp_path / "turned.nii.gz")
    assert nib.aff2axcodes(turned.affine) != nib.aff2axcodes(AFFINE)
    restore_case(prepared, tmp_path / "turned.nii.gz", tmp_path / "again")
    for name in ("x_seg_on_t1.nii.gz", "x_seg_on_flair.nii.gz"):
        one, other = (np.asarray(nib.load(tmp_path / place / name).dataobj) for place in ("out", "again"))
        np.testing.assert_array_equal(one, other)


def test_masks_of_another_patient_are_not_replaced(prepared: Path, mask: Path, tmp_path: Path) -> None:
    restore_case(prepared, mask, tmp_path / "out")
    restore_case(prepared, mask, tmp_path / "out")  # the same one's are
    record = json.loads((prepared / "prepared.json").read_text())
    cube = np.arange(12 * 12 * 12, dtype=np.float32)[::-1].reshape(12, 12, 12)
    other = save(tmp_path / "b" / "x_t1.nii.gz", cube, AFFINE, 2)
    entry = {**record["modalities"]["T1"], "source": str(other), "sha256": sha256_of(other)}
    write_record(tmp_path / "prepared_b", {**record, "modalities": {"T1": entry}})
    with pytest.raises(BundleError, match="masks of another patient under the name x"):
        restore_case(tmp_path / "prepared_b", mask, tmp_path / "out")
    restore_case(tmp_path / "prepared_b", mask, tmp_path / "out_b")


def test_what_does_not_belong_together_is_refused(prepared: Path, mask: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    labels = np.asarray(nib.load(mask).dataobj)
    other = save(tmp_path / "other.nii.gz", labels, np.diag([-1.0, -1.0, 1.1, 1.0]))
    with pytest.raises(BundleError, match=r"other\.nii\.gz[\s\S]*expected: the prepared grid: 12x12x12"):
        restore_case(prepared, other, out)
    with pytest.raises(BundleError, match="whole numbers from 0 to 255"):
        restore_case(prepared, save(tmp_path / "f.nii.gz", labels + np.float32(0.5), AFFINE), out)
    with pytest.raises(BundleError, match=r"prepared\.json[\s\S]*no such file"):
        restore_case(tmp_path, mask, out)
    with pytest.raises(BundleError, match=r"none\.nii[\s\S]*segment the prepared case first"):
        restore_case(prepared, tmp_path / "none.nii", out)
    with pytest.raises(BundleError, match="the probabilities of WT, TC, ET"):
        restore_case(prepared, mask, out, mask)
    assert not out.exists()


def test_scans_that_were_moved_are_found_by_their_contents(prepared: Path, mask: Path, tmp_path: Path) -> None:
    shutil.move(tmp_path / "raw", tmp_path / "archive")
    with pytest.raises(BundleError, match=r"no such file[\s\S]*--sources DIR"):
        restore_case(prepared, mask, tmp_path / "out")
    (tmp_path / "archive" / "sub").mkdir()
    (tmp_path / "archive" / "x_t1.nii.gz").rename(tmp_path / "archive" / "sub" / "renamed.nii.gz")
    restore_case(prepared, mask, tmp_path / "out", sources=tmp_path / "archive")
    assert (tmp_path / "out" / "x_seg_on_t1.nii.gz").is_file()
    (tmp_path / "raw").mkdir()
    save(tmp_path / "raw" / "x_t1.nii.gz", np.ones((12, 12, 12), np.float32), AFFINE)
    with pytest.raises(BundleError, match="another file than the one that was prepared"):
        restore_case(prepared, mask, tmp_path / "out")


def test_a_freesurfer_scan_that_was_moved_is_found_too(prepared: Path, mask: Path, tmp_path: Path) -> None:
    (tmp_path / "archive" / "sub").mkdir(parents=True)
    scan = tmp_path / "archive" / "sub" / "renamed.mgz"
    nib.save(nib.MGHImage(np.asarray(nib.load(tmp_path / "raw" / "x_t1.nii.gz").dataobj, np.float32), AFFINE), scan)
    record = json.loads((prepared / "prepared.json").read_text())
    record["modalities"] = {"T1": record["modalities"]["T1"]}
    record["modalities"]["T1"] |= {"source": "/gone/T1.mgz", "sha256": sha256_of(scan)}
    (prepared / "prepared.json").write_text(json.dumps(record))
    restore_case(prepared, mask, tmp_path / "out", sources=tmp_path / "archive")
    assert nib.load(tmp_path / "out" / "x_seg_on_t1.nii.gz").shape == (12, 12, 12)


@pytest.mark.parametrize(
    "changes",
    [
        {"case": "../../x"},
        {"case": ""},
        {"modalities": {"T1": {"prepared": "/etc/x_t1.nii.gz"}}},
        {"modalities": {"../T1": {}}},
        {"modalities": {"T1": {"dicom": {}, "source": "../thesis.docx"}}},
        {"modalities": ["T1"]},
    ],
)
def test_a_record_of_a_stranger_leads_nowhere_else(changes: dict[str, Any], tmp_path: Path) -> None:
    """Its names are those of files that are written, and removed by the next run."""
    good = {"case": "x", "modalities": {"T1": {"prepared": "x_t1.nii.gz", "dicom": {}, "source": "source/T1.nii.gz"}}}
    write_record(tmp_path, good)
    assert read_record(tmp_path)["case"] == "x"
    write_record(tmp_path, {**good, **changes})
    with pytest.raises(BundleError, match="names that lead elsewhere"):
        read_record(tmp_path)
