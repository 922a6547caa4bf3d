"""The commands around scans of the scanner, as a user calls them."""

from __future__ import annotations

import csv
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pydicom
import pytest
import torch

from bundlekit.errors import BundleError
from bundlekit.files import sha256_of
from bundlekit.images.writing import _SIGNATURE, WriteSegmentations
from bundlekit.preparation.dicom_series import Stack
from bundlekit.preparation.dicom_volumes import grid_of
from bundlekit.preparation.grids import Grid
from bundlekit.preparation.record import write_record
from bundlekit.preparation.scans import read_scan
from tests.bundlekit.preparation.dicom.conftest import SERIES, save, slices
from tests.conftest import Run, built, bundle_run, refusal
from tools.prepare import _of_folder, prepare, restore, segment

AFFINE = np.diag([-1.0, -1.0, 1.0, 1.0])


@pytest.fixture
def dicom_study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four series of one study."""
    folder = tmp_path_factory.mktemp("dicom")
    for name in SERIES:
        save(slices(name), folder / name)
    return folder


def test_restore_writes_masks_and_prints_volumes(run: Run, tmp_path: Path) -> None:
    grid = Grid((10, 10, 10), AFFINE)
    raw, mask = tmp_path / "scan_t1.nii.gz", tmp_path / "x_seg.nii.gz"
    nib.save(nib.Nifti1Image(np.random.default_rng(0).normal(size=grid.shape).astype(np.float32), AFFINE), raw)
    labels = np.zeros(grid.shape, np.uint8)
    labels[:, :5, :4] = 2
    nib.save(nib.Nifti1Image(labels, AFFINE), mask)
    entry = {
        "source": str(raw),
        "sha256": sha256_of(raw),
        "grid": grid.as_dict(),
        "to_prepared_ras": np.eye(4).tolist(),
    }
    write_record(tmp_path / "prepared", {"case": "x", "grid": grid.as_dict(), "modalities": {"T1": entry}})
    out = tmp_path / "out"
    done = run("-m", "tools", "restore", "--prepared", tmp_path / "prepared", "--mask", mask, "--out", out)
    assert "T1    label 2 0.2 ml" in done.stdout
    np.testing.assert_array_equal(np.asarray(nib.load(out / "x_seg_on_t1.nii.gz").dataobj), labels)
    assert json.loads((out / "x_volumes.json").read_text())["on"]["T1"] == {"2": 0.2}


def test_restore_leaves_out_probabilities_of_another_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A second run without --save_probabilities leaves those of the first, of other weights, beside its mask."""
    grid = Grid((10, 10, 10), AFFINE)
    thick = Grid((10, 10, 5), AFFINE @ np.diag([1, 1, 2, 1.0]))
    for place in (grid, thick):
        scan = np.random.default_rng(0).normal(size=place.shape).astype(np.float32)
        nib.save(nib.Nifti1Image(scan, place.affine), tmp_path / f"scan_{place.shape[2]}.nii.gz")
    raw = tmp_path / "scan_5.nii.gz"
    entry = {"source": str(raw), "sha256": sha256_of(raw), "grid": thick.as_dict()}
    entry["to_prepared_ras"] = np.eye(4).tolist()
    write_record(tmp_path / "prepared", {"case": "x", "grid": grid.as_dict(), "modalities": {"T1": entry}})
    labels = np.zeros((2, *grid.shape), np.uint8)
    labels[:, :, :5, :4] = 2  # ends within a thick slice
    labels[0, 0, 0, 0] = 0
    sure = np.where(labels[0] > 0, 0.99, 0.49).astype(np.float32)
    item = {"case": "x", "source": str(tmp_path / "scan_10.nii.gz"), "label_file": "", "label_values": [0, 1, 2, 4]}
    write = WriteSegmentations(str(tmp_path / "segmented"), written_by="brats_resunet")
    first, second = ({"pred": torch.from_numpy(one)[None]} for one in labels)
    first["probabilities"] = torch.from_numpy(np.stack([sure, 0 * sure, 0 * sure]))
    mask, back = str(tmp_path / "segmented" / "x_seg.nii.gz"), []
    for output in (first, second):
        write(SimpleNamespace(state=SimpleNamespace(batch=[item], output=[output])))  # type: ignore[arg-type]
        restore(str(tmp_path / "prepared"), str(tmp_path / "out"), mask)
        back.append(np.asarray(nib.load(tmp_path / "out" / "x_seg_on_t1.nii.gz").dataobj).copy())
        assert ("of another run than" in capsys.readouterr().out) == (output is second)
    assert back[0][5, 2, 2] == 2, "by its probabilities"
    assert back[1][5, 2, 2] == 0, "a quarter of the voxel, by the mask alone"


def test_segment_brings_the_mask_of_the_bundle_back(
    run: Run, cohort: Path, trained: Callable[[str], Path], tmp_path: Path
) -> None:
    """Scans that are prepared already, of which the mask is that of the bundle's own run."""
    source, scans = cohort / "VirtualGlioma_00000", tmp_path / "scans"
    scans.mkdir()
    for file in source.glob("*.nii.gz"):
        if not file.name.endswith("_seg.nii.gz"):  # with voxels of 1 mm
            nib.save(nib.Nifti1Image(np.asarray(nib.load(file).dataobj), AFFINE), scans / file.name)
    weights = ["--ckpt_dir", trained("brats_resunet")]
    out = tmp_path / "out"
    small = ["--accept_doubtful", "True"]  # a head of 15 ml
    done = run("-m", "tools", "segment", "brats_resunet", scans, "--out", out, *small, *weights, "--overlap", "0.25")
    assert "rotated by 0.0 degrees" in done.stdout
    own = ["--dataset_dir", scans, "--output_dir", tmp_path / "own", "--num_workers", "0", *weights]
    run(*bundle_run("inferring", "inference.yaml"), *own, "--overlap", "0.25")
    expected = np.asarray(nib.load(tmp_path / "own" / f"{source.name}_seg.nii.gz").dataobj)
    assert expected.any()
    for modality in ("t1", "t1ce", "t2", "flair"):
        back = nib.load(out / f"{source.name}_seg_on_{modality}.nii.gz")
        np.testing.assert_array_equal(np.asarray(back.dataobj), expected)
        np.testing.assert_array_equal(back.affine, AFFINE)
    told = json.loads((out / f"{source.name}_volumes.json").read_text())
    with (out / "segmented" / "volumes.csv").open() as table:
        assert {row["settings"] for row in csv.DictReader(table)} == {"--overlap 0.25"}
    assert sum(told["prepared"].values()) == pytest.approx((expected > 0).sum() / 1000, abs=0.01)


def test_a_missing_modality_is_told(run: Run, cohort: Path, tmp_path: Path) -> None:
    """By `segment` as by the bundle's own run, and whether the network was trained for it."""
    source, scans, models = cohort / "VirtualGlioma_00000", tmp_path / "scans", tmp_path / "models"
    scans.mkdir()
    models.mkdir()
    for modality in ("t1", "t1ce", "flair"):
        file = source / f"{source.name}_{modality}.nii.gz"
        nib.save(nib.Nifti1Image(np.asarray(nib.load(file).dataobj)[12:36, 12:36, 10:26], AFFINE), scans / file.name)
    network = built("brats_resunet", "network_def", "train.yaml", channels=[2, 4, 8, 16])
    torch.save(network.state_dict(), models / "model.pt")
    (models / "settings.json").write_text(
        json.dumps({"channels": [2, 4, 8, 16], "patch_size": [16, 16, 16], "modality_dropout": 0.0})
    )
    settings = {"dataset_dir": str(scans), "output_dir": str(tmp_path / "out"), "ckpt_dir": str(models),
                "device": "cpu", "num_workers": 0, "runtime": "torch"}  # fmt: skip
    done = run("-c", f"from tools.prepare import _infer; _infer('brats_resunet', {settings}, {{}}, True)")
    assert f"{source.name} has no T2: zeros in its place; the network was NOT trained for that" in done.stderr
    assert (tmp_path / "out" / f"{source.name}_seg.nii.gz").is_file()
    refused = run("-c", f"from tools.prepare import _infer; _infer('brats_resunet', {settings}, {{}}, False)", status=1)
    assert "ERROR: 1 problem(s) in the data set" in refused.stderr


def test_what_is_missing_ends_with_one_message(run: Run, tmp_path: Path) -> None:
    done = run("-m", "tools", "prepare", "--t1", "a.nii.gz", "--t1ce", "b.nii.gz", "--flair", "c.nii.gz",
               "--out", tmp_path / "out", status=1)  # fmt: skip
    assert "ERROR: " in done.stderr
    assert "no T2" in done.stderr
    assert "--fill_missing True" in done.stderr
    assert refusal(done) or "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_arguments_that_cannot_be_are_refused(tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    with pytest.raises(ValueError, match="takes no BraTS-like cases; expected brats_resunet or"):
        segment("brain_tissue_vnet", t1="a", out=out)
    with pytest.raises(ValueError, match="no setting --flip of brats_resunet"):
        segment("brats_resunet", t1="a", out=out, flip=True)
    for name, value in {"flips": "false", "whole_brain": "no", "overlap": 2}.items():
        with pytest.raises(ValueError, match=f"--{name} is {value!r}; expected"):
            segment("brats_resunet", t1="a", out=out, **{name: value})
    with pytest.raises(ValueError, match="--out is missing"):
        prepare(t1="a")
    with pytest.raises(ValueError, match="no scan is given"):
        prepare(out=out)
    with pytest.raises(ValueError, match="which holds no DICOM file; expected files alone"):
        prepare(str(tmp_path), out=out, t1="a")
    with pytest.raises(ValueError, match="studdy: no such folder"):
        prepare(str(tmp_path / "studdy"), out=out, t1="601")
    (tmp_path / "study.zip").touch()
    with pytest.raises(ValueError, match=r"study\.zip[\s\S]*a file[\s\S]*unpack it"):
        prepare(str(tmp_path / "study.zip"), out=out)
    (tmp_path / "study.zip").unlink()
    with pytest.raises(
        ValueError, match=r"no scan with such a name[\s\S]*--t1 FILE --t1ce FILE --t2 FILE --flair FILE"
    ):
        prepare(str(tmp_path), out=out)
    with pytest.raises(ValueError, match="--device is 'cuda:99'; expected one of cpu"):
        prepare(t1="a", t1ce="b", t2="c", flair="d", out=out, device="cuda:99")
    with pytest.raises(ValueError, match=r"--checks::brain_volume is 'x'|no setting --chekcs::brain_volume"):
        segment("brats_resunet", t1="a", out=out, **{"chekcs::brain_volume": "x"})
    with pytest.raises(ValueError, match="no scan is given"):
        segment("brats_resunet", out=out, **{"checks::brain_volume": "$None"})  # a setting of the bundle
    with pytest.raises(ValueError, match="--n4 is 'yes'; expected True or False"):
        prepare(t1="a", out=out, n4="yes")  # type: ignore[arg-type]


def test_a_dicom_study_is_told_and_what_is_open_is_asked_for(run: Run, dicom_study: Path, tmp_path: Path) -> None:
    study, out = dicom_study, tmp_path / "out"
    shutil.rmtree(study / "T1ce")
    done = run("-m", "tools", "segment", "brats_resunet", study, "--out", out, "--fill_missing", "True", status=1)
    assert "t2_flair" in done.stdout
    assert "give --t1 2 or --t1ce 2" in done.stderr
    assert "Traceback" not in done.stderr
    assert not out.exists()


def test_a_dicom_study_with_a_file_for_one_modality(dicom_study: Path, tmp_path: Path) -> None:
    file = tmp_path / "x_t1.nii.gz"
    file.write_bytes(b"")
    case, files = _of_folder(str(dicom_study), {"T1": str(file), "FLAIR": "4"}, None, None, False)
    assert case.startswith("study-")
    assert files["T1"] == str(file)
    assert [files[modality].number for modality in ("T1ce", "T2", "FLAIR")] == ["5", "3", "4"]
    assert _of_folder(str(dicom_study), {}, "mine", None, False)[0] == "mine"
    one, other = dicom_study / "T1", next((dicom_study / "T2").iterdir())
    for given, found in ((one, "a folder"), (other, "one file of DICOM")):
        with pytest.raises(ValueError, match=rf"{found}[\s\S]*give the folder of the DICOM study first"):
            prepare(out=str(tmp_path / "out"), t1=str(given), t1ce="a", t2="b", flair="c")
    with pytest.raises(ValueError, match="--study is given without a folder"):
        prepare(t1="a", study="1.2", out="out")
    shutil.copy(file, dicom_study / "T1" / "old_t1.nii.gz")
    with pytest.raises(ValueError, match="holds both NIfTI scans and DICOM files"):
        _of_folder(str(dicom_study), {}, None, None, False)
    (dicom_study / "T1" / "old_t1.nii.gz").unlink()
    shutil.copy(file, tmp_path / "x_t2.nii.gz")
    with pytest.raises(ValueError, match="holds no DICOM"):
        _of_folder(str(tmp_path), {}, None, "1.2", False)


@pytest.mark.parametrize("name", ["dataset_dir", "datalist", "output_dir", "save_probabilities"])
def test_what_segment_chooses_cannot_be_given(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"--{name} cannot be given"):
        segment("brats_resunet", t1="a", out=str(tmp_path / "out"), **{name: False})
    assert not (tmp_path / "out").exists()


def test_without_pydicom_the_package_is_named(
    dicom_study: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in [name for name in sys.modules if name.startswith("bundlekit.preparation.dicom")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(ValueError, match=r"pydicom is not installed, which DICOM needs: python .* -e '\.\[dicom\]'"):
        prepare(str(dicom_study), out=str(tmp_path / "out"))


def test_without_dicomweb_client_the_package_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delitem(sys.modules, "bundlekit.preparation.dicomweb", raising=False)
    monkeypatch.setitem(sys.modules, "dicomweb_client.web", None)
    with pytest.raises(ValueError, match=r"dicomweb_client\.web is not installed, which DICOM needs: python -m pip"):
        prepare(out=str(tmp_path / "out"), dicomweb="http://127.0.0.1/dicom-web", study="1.2.3")


def test_options_of_a_server_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    out, url = str(tmp_path / "out"), "http://127.0.0.1:1/dicom-web"
    with pytest.raises(ValueError, match="--study is missing; give the UID of the study on http"):
        prepare(out=out, dicomweb=url)
    with pytest.raises(ValueError, match="--dicomweb_user is given without a server"):
        prepare("x", out=out, dicomweb_user="me")
    with pytest.raises(ValueError, match="--store True needs the server"):
        segment("brats_resunet", "x", out=out, store=True)
    with pytest.raises(ValueError, match="--store True and --seg_on none"):
        segment("brats_resunet", out=out, dicomweb=url, study="1.2.3", store=True, seg_on="none")
    with pytest.raises(ValueError, match="--store True sends the DICOM-SEG"):
        restore("x", out, "m", dicomweb=url)


def test_without_a_dicom_seg_nothing_can_be_stored(tmp_path: Path) -> None:
    grid = Grid((4, 4, 4), AFFINE).as_dict()
    entry = {"source": "a.nii.gz", "sha256": "", "grid": grid, "to_prepared_ras": np.eye(4).tolist()}
    write_record(tmp_path, {"case": "x", "reference": "T1", "grid": grid, "modalities": {"T1": entry}})
    with pytest.raises(ValueError, match="the reference was a NIfTI file"):
        restore(str(tmp_path), str(tmp_path / "out"), "m", dicomweb="http://127.0.0.1:1/x", store=True)


def prepare_t1ce(stack: Stack, folder: Path, mask: Path) -> np.ndarray:
    """Write the record of a case x of one DICOM series, as it came, and a mask of it, whose labels are returned."""
    grid = grid_of(stack)
    labels = np.zeros(grid.shape, np.uint8)
    labels[4:8, 4:8, 2:5] = 4
    source = folder / "source" / "T1ce.nii.gz"
    source.parent.mkdir(parents=True)
    for path in (source, mask):
        nib.save(nib.Nifti1Image(labels, grid.affine), path)
    entry = {
        "source": "source/T1ce.nii.gz",
        "sha256": sha256_of(source),
        "grid": grid.as_dict(),
        "to_prepared_ras": np.eye(4).tolist(),
        "dicom": {"folder": stack.root, "series": stack.key, "slices": 8, "digest": stack.digest},
    }
    modalities = {"T1ce": entry}
    write_record(
        folder, {"case": "x", "reference": "T1ce", "missing": [], "grid": grid.as_dict(), "modalities": modalities}
    )
    return labels


def test_restore_writes_a_dicom_seg(dicom_study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stack = _of_folder(str(dicom_study), {}, None, None, False)[1]["T1ce"]
    source, mask = tmp_path / "prepared" / "source" / "T1ce.nii.gz", tmp_path / "x_seg.nii.gz"
    labels = prepare_t1ce(stack, tmp_path / "prepared", mask)
    with pytest.raises(ValueError, match="leave out --weights: a mask of unknown origin is called manual"):
        restore(str(tmp_path / "prepared"), str(tmp_path / "out"), str(mask), weights=str(source))
    restore(str(tmp_path / "prepared"), str(tmp_path / "out"), str(mask))
    seg = pydicom.dcmread(tmp_path / "out" / "x_seg_on_t1ce.dcm")
    assert seg.pixel_array.sum() == (labels > 0).sum()
    assert seg.SegmentSequence[0].SegmentAlgorithmType == "MANUAL"  # no bundle has put its name to the mask
    assert "holds the patient's name" in capsys.readouterr().out
    assert seg.SeriesDescription == "Tumour, by hand"
    restore(str(tmp_path / "prepared"), str(tmp_path / "out"), str(mask))  # its own files are replaced
    signed = nib.Nifti1Image(np.stack([labels > 0] * 3, axis=-1).astype(np.float32), nib.load(mask).affine)
    signed.header["descrip"] = f"{_SIGNATURE}brats_resunet"
    nib.save(signed, tmp_path / "x_probabilities.nii.gz")
    restore(str(tmp_path / "prepared"), str(tmp_path / "told"), str(mask), weights=str(source))
    told = pydicom.dcmread(tmp_path / "told" / "x_seg_on_t1ce.dcm").SegmentSequence[0]
    assert (told.SegmentAlgorithmType, told.SegmentAlgorithmName) == ("SEMIAUTOMATIC", "brats_resunet")
    (tmp_path / "x_probabilities.nii.gz").unlink()
    seg.Manufacturer = "a viewer"
    seg.save_as(tmp_path / "out" / "x_seg_on_t1ce.dcm")
    with pytest.raises(ValueError, match="a file of another program a viewer"):
        restore(str(tmp_path / "prepared"), str(tmp_path / "out"), str(mask))
    restore(str(tmp_path / "prepared"), str(tmp_path / "none"), str(mask), seg_on=None)  # Fire's of "None"
    restore(str(tmp_path / "prepared"), str(tmp_path / "none"), str(mask), seg_on="none")
    assert not list((tmp_path / "none").glob("*.dcm"))
    with pytest.raises(ValueError, match="--seg_on is 'T3'; expected reference, all, none or one of T1ce"):
        restore(str(tmp_path / "prepared"), str(tmp_path / "out"), str(mask), seg_on="T3")


def test_another_study_does_not_replace_what_a_corrected_mask_lies_on(dicom_study: Path, tmp_path: Path) -> None:
    stack = _of_folder(str(dicom_study), {}, None, None, False)[1]["T1ce"]
    mask = tmp_path / "out" / "segmented" / "x_seg.nii.gz"
    mask.parent.mkdir(parents=True)
    prepare_t1ce(stack, tmp_path / "out" / "prepared", mask)  # a mask that no bundle has put its name to
    before = (tmp_path / "out" / "prepared" / "prepared.json").read_bytes()
    with pytest.raises(ValueError, match=r"x_seg.nii.gz is not as it was written[\s\S]*tools restore"):
        segment("brats_resunet", str(dicom_study), out=str(tmp_path / "out"), reference="T2")
    assert (tmp_path / "out" / "prepared" / "prepared.json").read_bytes() == before


def test_a_scan_that_does_not_tell_how_the_head_lies(tmp_path: Path) -> None:
    image = nib.Nifti1Image(np.random.default_rng(0).random((8, 8, 8), np.float32), AFFINE)
    nib.save(image, tmp_path / "told.nii.gz")
    assert read_scan("T1", tmp_path / "told.nii.gz").grid.axes
    image.set_sform(None, 0)
    image.set_qform(None, 0)
    nib.save(image, tmp_path / "untold.nii.gz")
    with pytest.raises(BundleError, match=r"untold.nii.gz[\s\S]*sform_code and qform_code are 0"):
        read_scan("T1", tmp_path / "untold.nii.gz")
