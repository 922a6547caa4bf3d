"""`python -m tools check` on sound and on spoilt data."""

from __future__ import annotations

import inspect
import shutil
from collections.abc import Callable
from pathlib import Path

import h5py
import nibabel as nib
import numpy as np
import pytest

from tests.conftest import Run
from tools.bundles import find_cases_of, load_case_of, names
from tools.check import check
from tools.weights import weights


def test_a_sound_data_set_has_no_finding(cohort: Path, capsys: pytest.CaptureFixture[str]) -> None:
    check("brats_resunet", str(cohort))
    assert "5 complete case(s), files, headers and voxels checked: 0 finding(s)." in capsys.readouterr().out


def test_header_and_voxel_findings_come_together(cases: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (cases / "VirtualGlioma_00000" / "VirtualGlioma_00000_t1.nii.gz").unlink()
    constant = cases / "VirtualGlioma_00002" / "VirtualGlioma_00002_t2.nii.gz"
    image = nib.load(constant)
    nib.save(nib.Nifti1Image(np.full(image.shape, 7, np.int16), image.affine), constant)
    with pytest.raises(SystemExit) as stop:
        check("brats_resunet", str(cases))
    assert stop.value.code == 1
    out = capsys.readouterr().out
    assert "VirtualGlioma_00000_t1.nii.gz (T1)" in out
    assert f"{constant}\n    found:    the value 7 in every voxel" in out
    assert "4 complete case(s)" in out
    assert "2 finding(s)" in out


def test_headers_alone_read_no_voxel(cases: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = cases / "VirtualGlioma_00001" / "VirtualGlioma_00001_flair.nii.gz"
    file.write_bytes(file.read_bytes()[:-100])
    check("brats_resunet", str(cases), voxels=False)
    assert "files and headers checked: 0 finding(s)." in capsys.readouterr().out
    with pytest.raises(SystemExit):
        check("brats_resunet", str(cases))


def test_cases_to_be_segmented_need_no_label(cases: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (cases / "VirtualGlioma_00003" / "VirtualGlioma_00003_seg.nii.gz").unlink()
    check("brats_resunet", str(cases), labelled=False)
    assert "0 finding(s)" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        check("brats_resunet", str(cases))


def test_an_unknown_bundle_is_named_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"no bundle named 'brats'; there are: .*brats_resunet"):
        find_cases_of("brats")
    assert "brats_resunet" in names()


def test_no_data_set_is_refused() -> None:
    with pytest.raises(ValueError, match="--dataset_dir"):
        check("brats_resunet")


def test_a_misspelt_setting_is_named(run: Run, cohort: Path) -> None:
    done = run("-m", "tools", "check", "brats_resunet", "--dataset_dir", cohort, "--et_lable", "3", status=1)
    assert "no setting --et_lable" in done.stderr
    assert "et_label" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_setting_that_cannot_be_is_named() -> None:
    with pytest.raises(ValueError, match="--fill_missing is 'false'; expected True or False, with a capital letter"):
        check("brats_resunet", "no folder", fill_missing="false")


def test_a_channel_of_one_value_is_missing_on_demand(
    h5_cohort: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    case = Path(shutil.copy(min(h5_cohort.iterdir()), tmp_path))
    with h5py.File(case, "r+") as file:
        file["image"][2] = 0
    with pytest.raises(SystemExit):
        check("brats_unet_h5", str(tmp_path))
    assert "--fill_missing True" in capsys.readouterr().out
    check("brats_unet_h5", str(tmp_path), fill_missing=True)
    assert "0 finding(s)" in capsys.readouterr().out


def test_weights_are_for_losses_that_take_them(heads: Path) -> None:
    with pytest.raises(ValueError, match="brain_tissue_vnet's loss has no class weights; those of abdomen_ct_vnet, "):
        weights("brain_tissue_vnet", str(heads))


def test_a_bundle_whose_scans_are_read_without_labels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scan = np.random.default_rng(0).integers(1, 99, (9, 8, 7)).astype(np.uint8)
    for name, voxels in (("head.nii.gz", scan), ("head_mask.nii.gz", (scan > 50).astype(np.uint8))):
        nib.save(nib.Nifti1Image(voxels, np.eye(4)), tmp_path / name)
    check("brain_mask_unet", str(tmp_path))
    assert "1 complete case(s), files, headers and voxels checked: 0 finding(s)." in capsys.readouterr().out


def test_label_maps_alone(run: Run, heads: Path) -> None:
    done = run(
        "-m",
        "tools",
        "check",
        "brain_tissue_vnet",
        "--dataset_dir",
        heads / "derivatives" / "labels",
        "--label_maps",
        "True",
    )
    assert "5 complete case(s), files, headers and voxels checked: 0 finding(s)." in done.stdout


def test_unprepared_scans_are_a_matter_of_some_bundles() -> None:
    assert load_case_of("brats_resunet", allow_unprepared=True).allow_unprepared  # type: ignore[attr-defined]
    for bundle in ("brain_tissue_vnet", "abdomen_ct_vnet"):
        with pytest.raises(ValueError, match=f"no setting --allow_unprepared of {bundle}'s data"):
            load_case_of(bundle, allow_unprepared=True)
        load_case_of(bundle, with_label=True)


@pytest.mark.parametrize("tool", [check, weights])
def test_unprepared_scans_are_refused_before_anything_is_read(tool: Callable[..., None]) -> None:
    with pytest.raises(ValueError, match="no setting --allow_unprepared"):
        tool("abdomen_ct_vnet", "no folder", allow_unprepared=True)
    assert "allow_unprepared" in inspect.signature(tool).parameters
