"""What the MONAI Label app takes from a request, before it becomes a path, a file or a setting."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from bundlekit.errors import BundleError
from tests.conftest import ROOT
from tools.bundles import names, parse
from tools.label.app.lib.bundles import tell_missing
from tools.label.app.lib.checks import (
    check_address,
    check_image,
    check_label,
    inside,
    listed,
    plain_name,
    training_settings,
)

AFFINE = np.diag([1.0, 1.0, 2.0, 1.0])


@pytest.mark.parametrize(
    "value", ["../x", "a/b", "/etc/passwd", "..", ".", ".hidden", "", "a\\b", "a\0b", "a\nb", "x" * 201, None, 3, ["a"]]
)
def test_paths_are_no_names(value: Any) -> None:
    with pytest.raises(BundleError, match="tag is "):
        plain_name(value, "tag")


@pytest.mark.parametrize("value", ["final", "BraTS2021_00006", "sub-01_T1w", "Fall Müller (2)", "1.2.840.10008"])
def test_names_pass(value: str) -> None:
    assert plain_name(value, "image") == value


@pytest.mark.parametrize(
    ("path", "query"),
    [
        ("/datastore/image", "image=../labelapp/main"),
        ("/datastore/label", "image=a&tag=final&tag=..%2F..%2Fx"),
        ("/datastore/", "id=/etc/x"),
        ("/infer/brats_resunet", "session_id=../../x"),
        ("/session/..", ""),
        ("/session/", "uncompress=true"),
        ("/session/", "uncompress=on"),
        ("/ohif/../../x", ""),
    ],
)
def test_addresses_that_lead_elsewhere_are_refused(path: str, query: str) -> None:
    with pytest.raises(BundleError):
        check_address(path, query)


@pytest.mark.parametrize(
    ("path", "query"),
    [
        ("/datastore/label", "image=BraTS2021_00006&tag=final"),
        ("/infer/brats_resunet", "image=%2Fdata%2Fa.nii.gz&session_id=&output=json"),
        ("/session/980a45e4-eb2c-11f1-9e58-02fc00000001", "image=true"),
        ("/session/", "uncompress=False&expiry=10"),
    ],
)
def test_addresses_of_viewers_pass(path: str, query: str) -> None:
    check_address(path, query)


def test_paths_stay_in_their_folders(tmp_path: Path) -> None:
    studies, other = tmp_path / "studies", tmp_path / "studies2"
    other.mkdir()
    (studies / "sub").mkdir(parents=True)
    (studies / "link").symlink_to(other)
    (tmp_path / "name").symlink_to(studies)
    folders = [str(studies)]
    assert inside(f"{studies}/sub/../a.nii", folders) == f"{studies}/a.nii"
    assert inside(f"{studies}/link/a.nii", folders) == f"{studies}/link/a.nii", "whoever owns the studies put it there"
    assert inside(f"{tmp_path}/name/a.nii", folders) == f"{studies}/a.nii"
    for outside in (f"{other}/a.nii", f"{studies}/../a.nii", "/etc/passwd", f"{studies}/a\0/../../../etc"):
        assert inside(outside, folders) is None
    assert inside(f"{studies}/link/../a.nii", folders) == f"{studies}/a.nii", "not what lies beside the link's target"


def test_long_lists_are_cut() -> None:
    assert listed([]) == "0"
    assert listed(["b", "a"]) == "2: a, b"
    assert listed(map(str, range(12))) == "12: 0, 1, 10, 11, 2, 3, 4, 5, 6, 7, ... (2 more)"


@pytest.mark.parametrize("name", names())
def test_a_request_sets_settings_alone(name: str) -> None:
    config = parse(name, "train.yaml").config
    assert isinstance(config, dict)
    given = {
        "max_epochs": 3,
        "learning_rate": 1e-4,
        "amp": False,
        "patches_per_case": 2,
        "seed": 1,
        "num_workers": 0,
        "device": "cpu",
        "model": name,
    }
    found = training_settings(given, config)
    assert found == {key: given[key] for key in ("learning_rate", "amp", "patches_per_case", "seed", "num_workers")}
    refused: list[dict[str, Any]] = [
        {"learning_rate": "$__import__('os').system('x')"},
        {"learning_rate": {"_target_": "os.system"}},
        {"learning_rate": {"a": 1}},
        {"output_dir": "/somewhere"},
        {"cache_dir": "/somewhere"},
        {"ckpt_dir": "/somewhere"},
        {"dataset_dir": "/somewhere"},
        {"imports": ["os"]},
        {"training": []},
        {"loss": 1},
        {"train": {}},
        {"batch_size": 0},
        {"learning_rate": "abc"},
        {"deterministic": "false"},
        {"epochs": None},
    ]
    for values in refused:
        with pytest.raises(BundleError, match=r"the request: .*(; expected|cannot be set)"):
            training_settings(values, config)


def write(path: Path, voxels: np.ndarray, affine: np.ndarray = AFFINE) -> str:
    nib.save(nib.Nifti1Image(voxels, affine), path)  # type: ignore[attr-defined]
    return str(path)


@pytest.fixture
def scan(tmp_path: Path) -> str:
    return write(tmp_path / "scan.nii.gz", np.ones((4, 5, 6), np.float32))


def test_labels_on_the_grid_of_the_scan_pass(tmp_path: Path, scan: str) -> None:
    zeros = np.zeros((4, 5, 6), np.uint8)
    check_label(write(tmp_path / "a.nii.gz", zeros), [scan], "A")
    check_label(write(tmp_path / "b.nii", zeros[..., None].astype(np.float32)), [scan], "A")
    check_label(write(tmp_path / "slope.nii.gz", zeros + 1.0001), [scan], "A")  # as a slope in the header leaves it
    check_label(write(tmp_path / "c.nii.gz", zeros[:3]), [scan, str(tmp_path / "case.h5")], "A")


def test_labels_are_compared_with_freesurfers_scans_too(tmp_path: Path) -> None:
    scan = tmp_path / "scan.mgz"
    nib.save(nib.MGHImage(np.ones((4, 5, 6), np.float32), AFFINE), scan)
    label = write(tmp_path / "a.nii.gz", np.zeros((4, 5, 6), np.uint8))
    check_label(label, [str(scan)], "A")
    with pytest.raises(BundleError, match=r"the grid of scan\.mgz"):
        check_label(write(tmp_path / "b.nii.gz", np.zeros((4, 5, 7), np.uint8)), [str(scan)], "A")


@pytest.mark.parametrize(
    ("voxels", "affine", "message"),
    [
        (np.zeros((4, 5, 7), np.uint8), AFFINE, "4x5x7 voxels"),
        (np.zeros((4, 5, 6), np.uint8), np.eye(4), r"the grid of scan\.nii\.gz"),
        (np.zeros((4, 5, 6, 2), np.uint8), AFFINE, "4x5x6x2 voxels"),
        (np.full((4, 5, 6), 0.5, np.float32), AFFINE, "whole numbers from 0 on"),
        (np.full((4, 5, 6), -1, np.int16), AFFINE, "whole numbers from 0 on"),
        (np.full((4, 5, 6), np.nan, np.float32), AFFINE, "whole numbers from 0 on"),
    ],
)
def test_other_labels_are_refused(
    tmp_path: Path, scan: str, voxels: np.ndarray, affine: np.ndarray, message: str
) -> None:
    with pytest.raises(BundleError, match=message):
        check_label(write(tmp_path / "label.nii.gz", voxels, affine), [scan], "A")


def test_what_is_no_nifti_is_refused(tmp_path: Path, scan: str) -> None:
    letter = tmp_path / "letter.nii.gz"
    letter.write_bytes(b"print('hello')")
    script = tmp_path / "script.py"
    script.write_bytes(Path(scan).read_bytes())
    cut = tmp_path / "cut.nii"
    nib.save(nib.load(scan), cut)  # type: ignore[attr-defined]
    os.truncate(cut, 400)
    for file in (letter, script):
        with pytest.raises(BundleError, match=r"image sent for A\n.*no NIfTI"):
            check_image(str(file), "A")
        with pytest.raises(BundleError, match=r"label sent for A\n.*no NIfTI"):
            check_label(str(file), [scan], "A")
    with pytest.raises(BundleError, match="cannot be decoded"):
        check_label(str(cut), [scan], "A")
    check_image(scan, "A")


@pytest.mark.parametrize("bundle", ["brats_resunet", "brain_metastasis_attention_unet"])
def test_what_a_case_lacks_is_told(bundle: str, caplog: pytest.LogCaptureFixture) -> None:
    tell_missing(str(ROOT / "bundles" / bundle), {"case": "a", "image": ["t1", "t1ce", "t2", "flair"]})
    assert not caplog.text
    tell_missing(str(ROOT / "bundles" / bundle), {"case": "a", "image": ["t1", "t1ce", "", "flair"]})
    assert "a has no T2: zeros in its place; the network was" in caplog.text
