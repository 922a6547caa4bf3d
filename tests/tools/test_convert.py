"""NIfTI to HDF5 and back: nothing is lost, nothing is overwritten."""

from __future__ import annotations

import gzip
import shutil
from pathlib import Path

import h5py
import nibabel as nib
import numpy as np
import pytest

from brats_unet_h5 import LoadHDF5d, find_cases
from bundlekit.brats import LoadCased
from bundlekit.brats import find_cases as find_nifti_cases
from bundlekit.errors import BundleError
from bundlekit.images.writing import signed
from tests.brats_unet_h5.conftest import SHAPE as SHAPE_H5
from tests.brats_unet_h5.conftest import classes, image, write_file, write_slices
from tests.bundlekit.conftest import (
    LPS,
    NAMES_2023,
    SHAPE,
    scan,
    segmentation,
    write_case,
    write_decathlon,
    write_nifti,
)
from tests.conftest import Run
from tools.convert import to_h5, to_nifti


def inflated(path: Path) -> bytes:
    raw = path.read_bytes()
    return gzip.decompress(raw) if path.suffix == ".gz" else raw


def round_trip(source: Path, tmp_path: Path) -> list[Path]:
    """Convert there and back; the HDF5 files, after a check that every NIfTI file came back byte for byte."""
    written = to_h5(str(tmp_path / "h5"), **{"from": str(source)})
    to_nifti(str(tmp_path / "back"), **{"from": str(tmp_path / "h5")})
    originals = sorted(path for path in source.rglob("*.nii*"))
    assert originals
    for file in originals:
        assert inflated(tmp_path / "back" / file.relative_to(source)) == inflated(file), file.name
    assert len(list((tmp_path / "back").rglob("*.nii*"))) == len(originals)
    return [Path(path) for path in written]


def test_virtual_cases_through_the_command_line(run: Run, cohort: Path, tmp_path: Path) -> None:
    run("-m", "tools", "convert", "h5", "--from", cohort, "--to", tmp_path / "h5")
    to_nifti(str(tmp_path / "back"), **{"from": str(tmp_path / "h5")})
    for file in cohort.rglob("*.nii.gz"):
        assert inflated(tmp_path / "back" / file.relative_to(cohort)) == inflated(file)
    with h5py.File(tmp_path / "h5" / "VirtualGlioma_00000.h5") as file:
        original = nib.load(cohort / "VirtualGlioma_00000" / "VirtualGlioma_00000_t1ce.nii.gz")
        np.testing.assert_array_equal(file["image"][1], np.asarray(original.dataobj))
        np.testing.assert_array_equal(file.attrs["affine"], original.affine)
        assert (int(file.attrs["qform_code"]), int(file.attrs["sform_code"])) == (1, 1)
        assert (file["image"].compression, file["image"].shuffle, file["image"].chunks) == (
            "gzip",
            True,
            (1, 32, 32, 32),
        )
        assert file["mask"].attrs["label_values"].tolist() == [0, 1, 2, 4]
    with pytest.raises(ValueError, match="already there, nothing was written"):
        to_h5(str(tmp_path / "h5"), **{"from": str(cohort)})
    with pytest.raises(ValueError, match="--from DIR --to ANOTHER_DIR"):
        to_h5(str(tmp_path / "h5"))


def test_names_types_and_headers_come_back(tmp_path: Path) -> None:
    source = tmp_path / "nifti"
    write_case(source / "train" / "BraTS-GLI-00001-000", NAMES_2023, ".nii", (0, 1, 2, 3))
    folder = write_case(source / "other" / "BraTS-GLI-00002-000", NAMES_2023, values=None)
    affine = np.array([[0, -1.5, 0, 3], [1.5, 0, 0, -7], [0, 0, 2.5, 11], [0, 0, 0, 1]])
    for seed, (name, dtype) in enumerate(zip(NAMES_2023, ("<i2", ">f4", "<u1", ">i4"), strict=False)):
        volume = nib.Nifti1Image((scan(seed) % 200).astype(dtype), affine)
        volume.header.set_data_dtype(dtype)
        volume.set_qform(affine, 3)
        volume.set_sform(None, 0)
        volume.header["descrip"] = b"of a scanner"
        volume.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"kept"))
        nib.save(volume, folder / f"{folder.name}{name}.nii.gz")
    first, second = round_trip(source, tmp_path)
    with h5py.File(first) as file:
        assert file["image"].dtype == np.int16
        assert file["mask"].attrs["label_values"].tolist() == [0, 1, 2, 3]
    with h5py.File(second) as file:
        assert "mask" not in file
        assert int(file.attrs["qform_code"]) == 3
        assert file["image"].dtype == np.float64  # int32 beside float32 fits into nothing less
        np.testing.assert_allclose(file.attrs["affine"], affine, atol=1e-6)


def test_scaled_integers_hold_their_intensities(tmp_path: Path) -> None:
    folder = write_case(tmp_path / "nifti" / "Case_1")
    content = bytearray(nib.Nifti1Image(scan(0), np.diag([-1, -1, 1, 1.0])).to_bytes())
    content[112:120] = np.array([0.25, 10], "<f4").tobytes()
    (folder / "Case_1_t1.nii.gz").write_bytes(gzip.compress(bytes(content)))
    for name in ("_t1ce", "_t2", "_flair", "_seg"):
        old = nib.load(folder / f"Case_1{name}.nii.gz")
        write_nifti(folder / f"Case_1{name}.nii.gz", np.asarray(old.dataobj), np.diag([-1, -1, 1, 1.0]))
    (path,) = round_trip(tmp_path / "nifti", tmp_path)
    with h5py.File(path) as file:
        np.testing.assert_array_equal(file["image"][0], scan(0) * 0.25 + 10)


def test_4d_files_keep_their_channel_order_and_numbering(tmp_path: Path) -> None:
    write_decathlon(tmp_path / "nifti", ("BRATS_001", "BRATS_002"))
    first, _ = round_trip(tmp_path / "nifti", tmp_path)
    with h5py.File(first) as file:
        assert list(file["image"].attrs["modalities"]) == ["FLAIR", "T1", "T1ce", "T2"]
    case = find_cases(tmp_path / "h5")[0]
    assert case["channels"] == [1, 2, 3, 0]
    assert case["label_values"] == [0, 2, 1, 3]
    np.testing.assert_array_equal(LoadHDF5d()(case)["image"][3].numpy(), scan(1, (*SHAPE, 4))[..., 0])
    ed_is_1 = LoadHDF5d()(case)["label"][0].numpy() == 2
    np.testing.assert_array_equal(ed_is_1, segmentation((0, 1, 2, 3)) == 1)


def test_a_mask_without_its_folders_has_the_numbers_of_its_name(tmp_path: Path) -> None:
    write_decathlon(tmp_path / "nifti", ("BRATS_001", "BRATS_002"))
    (path, _) = to_h5(str(tmp_path / "h5"), **{"from": str(tmp_path / "nifti")})
    expected = LoadHDF5d()(find_cases(path)[0])["label"][0]
    with h5py.File(path, "r+") as file:
        del file["nifti"]
    to_nifti(str(tmp_path / "back"), **{"from": path})
    (case,) = find_nifti_cases(tmp_path / "back")
    assert case["label_values"] == [0, 1, 2, 4]
    np.testing.assert_array_equal(LoadCased()(case)["label"][0], expected)


def test_a_mask_drawn_for_a_4d_file_lies_where_it_is_looked_for(tmp_path: Path) -> None:
    write_decathlon(tmp_path / "nifti", ("BRATS_001",))
    shutil.rmtree(tmp_path / "nifti" / "labelsTr")
    [path] = to_h5(str(tmp_path / "h5"), **{"from": str(tmp_path / "nifti")})
    drawn = segmentation((0, 2, 1, 3))
    with h5py.File(path, "r+") as file:
        file["mask"] = drawn
    to_nifti(str(tmp_path / "back"), **{"from": path})
    np.testing.assert_array_equal(np.asarray(nib.load(tmp_path / "back/labelsTr/BRATS_001.nii.gz").dataobj), drawn)
    assert len(find_nifti_cases(tmp_path / "back")) == 1


def test_files_of_others_become_nifti(tmp_path: Path) -> None:
    write_slices(tmp_path / "data", 7)
    to_nifti(str(tmp_path / "out"), **{"from": str(tmp_path / "data"), "mask_channels": "classes"})
    mask = nib.load(tmp_path / "out" / "volume_7" / "volume_7_seg.nii.gz")
    np.testing.assert_array_equal(np.searchsorted([0, 1, 2, 4], np.asarray(mask.dataobj)), classes())
    np.testing.assert_array_equal(mask.affine, np.eye(4))
    assert len(list((tmp_path / "out").rglob("*.nii.gz"))) == 5


def test_masks_of_unknown_channels_are_asked_for(tmp_path: Path) -> None:
    empty = np.zeros((3, *SHAPE_H5), np.uint8)
    order = ["T1", "T1ce", "T2", "FLAIR"]
    write_file(tmp_path / "x" / "a.h5", {"image": image(), "mask": empty}, modalities=order)
    with pytest.raises(ValueError, match="--mask_channels"):
        to_nifti(str(tmp_path / "out"), **{"from": str(tmp_path / "x")})
    assert not (tmp_path / "out").exists()
    to_nifti(str(tmp_path / "out"), **{"from": str(tmp_path / "x"), "mask_channels": "regions"})
    assert (tmp_path / "out" / "a" / "a_seg.nii.gz").is_file()


def test_a_mask_that_cannot_be_read_is_not_left_out(tmp_path: Path) -> None:
    order = ["T1", "T1ce", "T2", "FLAIR"]
    write_file(tmp_path / "x" / "a.h5", {"image": image(), "mask": np.zeros((3, 3, 3), np.uint8)}, modalities=order)
    with pytest.raises(ValueError, match="a mask on the image's grid"):
        to_nifti(str(tmp_path / "out"), **{"from": str(tmp_path / "x")})
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_converted_is_refused(tmp_path: Path) -> None:
    folder = write_case(tmp_path / "nifti" / "Case_1")
    content = inflated(folder / "Case_1_t2.nii.gz")
    (folder / "Case_1_t2.nii.gz").write_bytes(gzip.compress(content + b"more"))
    with pytest.raises(ValueError, match=r"Case_1_t2.nii.gz: its voxels cannot be restored exactly"):
        to_h5(str(tmp_path / "h5"), **{"from": str(tmp_path / "nifti")})
    assert not [path for path in (tmp_path / "h5").rglob("*") if path.is_file()], "nothing half written"
    other = write_case(tmp_path / "nifti" / "Case_0")
    with pytest.raises(ValueError, match=r"restored exactly[\s\S]*1 before it are written to .*h5"):
        to_h5(str(tmp_path / "h5"), **{"from": str(tmp_path / "nifti")})
    shutil.rmtree(other)
    (folder / "Case_1_t2.nii.gz").unlink()
    with pytest.raises(ValueError, match="1 problem"):
        to_h5(str(tmp_path / "h5"), **{"from": str(tmp_path / "nifti")})
    write_case(tmp_path / "cut" / "Case_2")
    label = tmp_path / "cut" / "Case_2" / "Case_2_seg.nii.gz"
    whole = label.read_bytes()
    for rest, found in ((whole[:20], "1 problem"), (whole[:-8], "cannot be decoded to its end")):
        label.write_bytes(rest)
        with pytest.raises(ValueError, match=r"Case_2_seg\.nii\.gz[\s\S]*cannot be (read|decoded)") as caught:
            to_h5(str(tmp_path / "h5"), **{"from": str(tmp_path / "cut")})
        assert found in str(caught.value)
    assert [path.name for path in (tmp_path / "h5").rglob("*")] == ["Case_0.h5"], "of before"
    task = write_decathlon(tmp_path / "Task01_BrainTumour", ("BRATS_001",))
    (task / "labelsTr" / "BRATS_001.nii.gz").write_bytes(b"cut")
    with pytest.raises(ValueError, match=r"1 problem[\s\S]*labelsTr[\s\S]*cannot be read"):
        to_h5(str(tmp_path / "h5"), **{"from": str(task)})
    with pytest.raises(ValueError, match="no setting --speed"):
        to_h5(str(tmp_path / "h5"), **{"from": str(tmp_path / "nifti"), "speed": 1})
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="is a file"):
        to_nifti(str(tmp_path / "file"), **{"from": str(tmp_path / "nifti")})


def test_colours_are_no_intensities(tmp_path: Path) -> None:
    folder = write_case(tmp_path / "nifti" / "a")
    colours = np.zeros(SHAPE, [(name, "u1") for name in "RGB"])
    nib.save(nib.Nifti1Image(colours, LPS), folder / "a_t1.nii.gz")
    with pytest.raises(BundleError, match=r"a_t1\.nii\.gz[\s\S]*colours \(RGB\)"):
        to_h5(str(tmp_path / "h5"), **{"from": str(tmp_path / "nifti")})
    assert not list((tmp_path / "h5").rglob("*.h5"))


@pytest.mark.parametrize("name", ["../../t1.nii.gz", "/tmp/t1.nii.gz", "..\\t1.nii.gz", "a\nb.nii.gz", "t1.txt"])
def test_a_file_cannot_name_places_outside(tmp_path: Path, name: str) -> None:
    write_case(tmp_path / "nifti" / "Case_1")
    (path,) = to_h5(str(tmp_path / "h5"), **{"from": str(tmp_path / "nifti")})
    with h5py.File(path, "a") as file:
        file["nifti/t1"].attrs["file"] = name
    with pytest.raises(ValueError, match="below the folder"):
        to_nifti(str(tmp_path / "out"), **{"from": str(tmp_path / "h5")})


def test_files_of_one_name_are_refused(tmp_path: Path) -> None:
    """Each case alone is sound; both hold Case_1/Case_1_t1.nii.gz and so on."""
    sources = []
    for site in ("site1", "site2"):
        write_case(tmp_path / site / "nifti" / "Case_1")
        (path,) = to_h5(str(tmp_path / site / "h5"), **{"from": str(tmp_path / site / "nifti")})
        sources.append(Path(path).rename(tmp_path / site / "h5" / f"{site}.h5"))
    with pytest.raises(ValueError, match=r"both hold a file Case_1/Case_1_flair\.nii\.gz") as error:
        to_nifti(str(tmp_path / "out"), **{"from": str(tmp_path)})
    assert all(str(source) in str(error.value) for source in sources)
    assert not (tmp_path / "out").exists(), "nothing was written"
    for source in sources:
        to_nifti(str(tmp_path / "out" / source.stem), **{"from": str(source)})
    assert len(list((tmp_path / "out").rglob("*.nii.gz"))) == 10


def test_a_case_without_two_modalities_goes_there_and_back(tmp_path: Path) -> None:
    write_case(tmp_path / "nifti" / "Case_1")
    for name in ("t1", "t2"):
        (tmp_path / "nifti" / "Case_1" / f"Case_1_{name}.nii.gz").unlink()
    with pytest.raises(ValueError, match="--fill_missing True"):
        to_h5(str(tmp_path / "h5"), **{"from": str(tmp_path / "nifti")})
    (path,) = to_h5(str(tmp_path / "h5"), **{"from": str(tmp_path / "nifti"), "fill_missing": True})
    with h5py.File(path, "r+") as file:
        assert list(file["image"].attrs["modalities"]) == ["T1ce", "FLAIR"]
        assert len(file["image"]) == 2
    to_nifti(str(tmp_path / "back"), **{"from": str(tmp_path / "h5"), "fill_missing": True})
    for made in (tmp_path / "nifti" / "Case_1").iterdir():
        again = tmp_path / "back" / "Case_1" / made.name
        assert gzip.decompress(again.read_bytes()) == gzip.decompress(made.read_bytes())
    assert len(list((tmp_path / "back" / "Case_1").iterdir())) == 3
    with h5py.File(path, "r+") as file:  # of other origin
        del file["nifti"]
    to_nifti(str(tmp_path / "plain"), **{"from": str(tmp_path / "h5"), "fill_missing": True})
    names = {made.name for made in (tmp_path / "plain" / "Case_1").iterdir()}
    assert names == {f"Case_1_{role}.nii.gz" for role in ("t1ce", "flair", "seg")}


def test_a_file_that_was_changed_since_is_followed_or_refused(tmp_path: Path) -> None:
    write_case(tmp_path / "nifti" / "Case_1")
    (path,) = to_h5(str(tmp_path / "h5"), **{"from": str(tmp_path / "nifti")})
    with h5py.File(path, "r+") as file:  # other order
        file["image"][...] = file["image"][()][[3, 0, 1, 2]]
        file["image"].attrs["modalities"] = ["FLAIR", "T1", "T1ce", "T2"]
    to_nifti(str(tmp_path / "back"), **{"from": path})
    for made in (tmp_path / "nifti" / "Case_1").iterdir():
        assert inflated(tmp_path / "back" / "Case_1" / made.name) == inflated(made)
    with h5py.File(path, "r+") as file:
        image = file["image"][()]
        del file["image"]
        file["image"] = image / 7  # no whole numbers, as the header has them
        file["image"].attrs["modalities"] = ["FLAIR", "T1", "T1ce", "T2"]
    with pytest.raises(ValueError, match=r"Case_1\.h5 \(\w+\): what it holds has changed.*remove the group `nifti`"):
        to_nifti(str(tmp_path / "changed"), **{"from": path})
    with h5py.File(path, "r+") as file:
        del file["image"], file["mask"]
        file["image"], file["mask"] = image[:3, 1:], np.zeros((image.shape[1] - 1, *image.shape[2:]), np.uint8)
        file["image"].attrs["modalities"] = ["FLAIR", "T1", "T1ce"]
    with pytest.raises(ValueError, match=r"Case_1\.h5 \(\w+\): what it holds has changed"):
        to_nifti(str(tmp_path / "changed"), **{"from": path, "fill_missing": True})


def test_label_values_stay_with_a_case_that_has_no_mask(tmp_path: Path) -> None:
    write_case(tmp_path / "nifti" / "Case_1", NAMES_2023, values=None)
    (path,) = to_h5(str(tmp_path / "h5"), **{"from": str(tmp_path / "nifti")})
    assert find_cases(path, labelled=False)[0]["label_values"] == [0, 1, 2, 3]


def test_an_enhancing_label_that_the_names_contradict_is_asked_for(tmp_path: Path) -> None:
    write_case(tmp_path / "nifti" / "BraTS-GLI-00001-000", NAMES_2023, values=(0, 1, 2, 4))
    with pytest.raises(ValueError, match="--et_label"):
        to_h5(str(tmp_path / "h5"), **{"from": str(tmp_path / "nifti")})
    assert not (tmp_path / "h5").exists()
    (path,) = to_h5(str(tmp_path / "h5"), **{"from": str(tmp_path / "nifti"), "et_label": 4})
    assert find_cases(path)[0]["label_values"] == [0, 1, 2, 4]


def test_a_word_is_no_yes(tmp_path: Path) -> None:
    write_case(tmp_path / "nifti" / "Case_1")
    with pytest.raises(ValueError, match="--fill_missing is 'false'; expected True or False"):
        to_h5(str(tmp_path / "h5"), **{"from": str(tmp_path / "nifti"), "fill_missing": "false"})


def test_what_training_was_told_is_no_setting(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no setting --trained_order"):
        to_nifti(str(tmp_path / "out"), **{"from": str(tmp_path / "nifti"), "trained_order": "[flair,t1,t1ce,t2]"})


def test_a_case_without_mask_becomes_four_files(tmp_path: Path) -> None:
    write_file(tmp_path / "x" / "a.h5", {"image": image()}, modalities=["T1", "T1ce", "T2", "FLAIR"])
    to_nifti(str(tmp_path / "out"), **{"from": str(tmp_path / "x")})
    names = sorted(path.name for path in (tmp_path / "out" / "a").iterdir())
    assert names == [f"a_{role}.nii.gz" for role in ("flair", "t1", "t1ce", "t2")]
    np.testing.assert_array_equal(np.asarray(nib.load(tmp_path / "out" / "a" / "a_t2.nii.gz").dataobj), image()[2])


def test_a_mask_that_was_drawn_since_comes_along(tmp_path: Path) -> None:
    case = write_case(tmp_path / "a" / "case", values=None)
    [path] = to_h5(str(tmp_path / "h5"), **{"from": str(case.parent)})
    with h5py.File(path, "r+") as file:
        file["mask"] = segmentation()
    to_nifti(str(tmp_path / "back"), **{"from": str(tmp_path / "h5")})
    mask = nib.load(tmp_path / "back" / "case" / "case_seg.nii.gz")
    np.testing.assert_array_equal(np.asarray(mask.dataobj), segmentation())
    np.testing.assert_array_equal(mask.affine, LPS)
    assert len(list((tmp_path / "back").rglob("*.nii.gz"))) == 5


def test_a_mask_of_another_name_comes_along(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    order = ["T1", "T1ce", "T2", "FLAIR"]
    write_file(tmp_path / "x" / "a.h5", {"image": image(), "tumour": segmentation(shape=SHAPE_H5)}, modalities=order)
    write_file(tmp_path / "x" / "b.h5", {"image": image()}, modalities=order)
    to_nifti(str(tmp_path / "out"), **{"from": str(tmp_path / "x")})
    mask = nib.load(tmp_path / "out" / "a" / "a_seg.nii.gz")
    np.testing.assert_array_equal(np.asarray(mask.dataobj), segmentation(shape=SHAPE_H5))
    assert not (tmp_path / "out" / "b" / "b_seg.nii.gz").exists()
    assert "no mask in 1 case(s): b (" in caplog.text
    assert f"{tmp_path / 'x' / 'b.h5'}: " in caplog.text


def test_a_mask_as_inference_wrote_it_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    case = write_case(tmp_path / "a" / "case", values=None)
    written = nib.Nifti1Image(segmentation(), LPS)
    written.header["descrip"] = signed("segmented by brats_resunet", segmentation())
    nib.save(written, case / "case_seg.nii.gz")
    [path] = to_h5(str(tmp_path / "h5"), **{"from": str(case.parent)})
    assert "1 mask(s) are left out" in caplog.text
    assert str(case / "case_seg.nii.gz") in caplog.text
    with h5py.File(path) as file:
        assert "mask" not in file
