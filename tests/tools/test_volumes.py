"""`python -m tools volumes`: corrected masks are measured as they are now, all others stay as the table has them."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from bundlekit.images.writing import signed
from bundlekit.report.table import COLUMNS, VolumeTable
from tests.bundlekit.conftest import LPS, SHAPE, write_case
from tools.volumes import volumes

_VOXEL_ML = abs(float(np.linalg.det(LPS[:3, :3]))) / 1000
_LOOSE = {"allow_unprepared": True}  # the cases are noise without air


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """Results of two cases: the mask of `a` is as it was written, that of `b` was corrected, to one voxel of ET."""
    out = tmp_path / "out"
    table = VolumeTable(out)
    out.mkdir()
    table.begin()
    for case in "ab":
        write_case(tmp_path / "data" / case, values=None)
        mask = np.zeros(SHAPE, np.uint8)
        mask[1, 2, 3] = 4
        image = nib.Nifti1Image(mask, LPS)
        image.header["descrip"] = signed("segmented by brats_resunet", mask if case == "a" else mask + 1)
        nib.save(image, out / f"{case}_seg.nii.gz")
        told = {"case": case, "bundle": "brats_resunet", "weights_sha256": "0", "confidence": 0.5, "x_mm": 1}
        names = [
            ("NCR", "class"),
            ("ED", "class"),
            ("ET", "class"),
            ("WT", "region"),
            ("TC", "region"),
            ("ET", "region"),
        ]
        table.add([
            {**dict.fromkeys(COLUMNS, ""), **told, "name": name, "kind": kind, "ml": 7, "largest_ml": 7, "flags": "x"}
            for name, kind in names
        ])  # fmt: skip
    return out


def test_corrected_masks_are_measured(results: Path) -> None:
    before = (results / "volumes.csv").read_bytes()
    path = volumes(str(results), str(results.parent / "data"), **_LOOSE)
    rows = VolumeTable(results, name=Path(path).name).rows()
    assert [row for row in rows if row["case"] == "a"] == VolumeTable(results).rows()[:6]
    corrected = {(row["name"], row["kind"]): row for row in rows if row["case"] == "b"}
    assert len(corrected) == 6
    ml = {name: float(row["ml"]) for name, row in corrected.items()}
    assert ml["NCR", "class"] == ml["ED", "class"] == 0
    assert ml["ET", "class"] == ml["WT", "region"] == ml["TC", "region"] == pytest.approx(_VOXEL_ML)
    where = [float(corrected["ET", "class"][f"{axis}_mm"]) for axis in "xyz"]
    assert where == pytest.approx((LPS @ [1, 2, 3, 1])[:3], abs=0.05)
    for row in corrected.values():
        assert (row["flags"], row["confidence"], row["computed_by"]) == ("", "", "corrected by hand")
        assert float(row["brain_ml"]) == pytest.approx(np.prod(SHAPE) * _VOXEL_ML)
    assert corrected["ET", "class"]["hemisphere"] in ("left", "right")
    assert (results / "volumes.csv").read_bytes() == before


def test_places_are_told_only_where_the_grid_is_known(results: Path) -> None:
    for file in sorted((results.parent / "data" / "b").glob("*.nii*")):
        image = nib.load(file)
        image.header.set_sform(None, 0)
        image.header.set_qform(None, 0)
        plain = nib.Nifti1Image(np.asarray(image.dataobj), None, image.header)
        plain.header["sform_code"] = plain.header["qform_code"] = 0
        nib.save(plain, file)
    grid = nib.load(file).affine
    mask = np.zeros(SHAPE, np.uint8)
    mask[1, 2, 3] = 4
    nib.save(nib.Nifti1Image(mask, grid), results / "b_seg.nii.gz")
    table = VolumeTable(results)
    table.rewrite(lambda rows: [{**row, "ml": 0, "x_mm": ""} for row in rows])  # the network had found nothing
    volumes(str(results), str(results.parent / "data"), **_LOOSE)
    rows = [row for row in VolumeTable(results, name="volumes_now.csv").rows() if row["case"] == "b"]
    assert {row["computed_by"] for row in rows} == {"corrected by hand"}
    assert {(row["x_mm"], row["hemisphere"]) for row in rows} == {("", "")}


def test_a_mask_on_another_grid_than_its_scan_is_refused(results: Path) -> None:
    mask = np.zeros(SHAPE, np.uint8)
    mask[1, 2, 3] = 4
    turned = nib.Nifti1Image(mask, LPS).as_reoriented([[1, 1], [0, -1], [2, 1]])
    nib.save(turned, results / "b_seg.nii.gz")  # the same places in another order
    volumes(str(results), str(results.parent / "data"), **_LOOSE)
    (results / "volumes_now.csv").unlink()
    for affine, shape in ((LPS * [2, 2, 2, 1], SHAPE), (LPS, (*SHAPE[:2], SHAPE[2] - 1))):
        nib.save(nib.Nifti1Image(mask[..., : shape[2]], affine), results / "b_seg.nii.gz")
        with pytest.raises(ValueError, match=r"b_seg\.nii\.gz is on another grid than its scan"):
            volumes(str(results), str(results.parent / "data"), **_LOOSE)
    assert not (results / "volumes_now.csv").exists()


def test_a_number_of_no_class_is_named(results: Path) -> None:
    nib.save(nib.Nifti1Image(np.full(SHAPE, 3, np.uint8), LPS), results / "b_seg.nii.gz")
    with pytest.raises(ValueError, match=r"b_seg\.nii\.gz holds 3; expected 0, 1 NCR, 2 ED, 4 ET"):
        volumes(str(results), str(results.parent / "data"), **_LOOSE)
    assert not (results / "volumes_now.csv").exists()


def test_a_mask_of_several_layers_is_refused(results: Path) -> None:
    nib.save(nib.Nifti1Image(np.zeros((*SHAPE, 2), np.uint8), LPS), results / "b_seg.nii.gz")
    with pytest.raises(ValueError, match=r"(?s)b_seg\.nii\.gz.*a 3-D volume"):
        volumes(str(results), str(results.parent / "data"), **_LOOSE)


def test_what_is_missing_is_named(results: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no data set; expected"):
        volumes(str(results))
    with pytest.raises(ValueError, match=r"no volumes\.csv in"):
        volumes(str(tmp_path), str(tmp_path / "data"))
    (tmp_path / "data" / "b").rename(tmp_path / "data_b")
    with pytest.raises(ValueError, match="b: a corrected mask, and no such case"):
        volumes(str(results), str(tmp_path / "data"), **_LOOSE)
    (results / "a_seg.nii.gz").unlink()
    with pytest.raises(ValueError, match=r"a_seg\.nii\.gz: no such file"):
        volumes(str(results), str(tmp_path / "data"), **_LOOSE)
