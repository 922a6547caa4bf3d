"""A case named by one path, as MONAI Label does, is the case that the bundle's own search finds."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from bundlekit.brats.cases import find_cases
from bundlekit.brats.reading import LoadCased
from bundlekit.errors import BundleError
from tests.bundlekit.conftest import NAMES_2018, NAMES_2023, SHAPE, scan, write_case, write_nifti

LOAD = LoadCased(with_label=False)


@pytest.mark.parametrize("names", [NAMES_2018, NAMES_2023])
def test_any_file_or_the_folder_names_the_case(tmp_path: Path, names: tuple[str, ...]) -> None:
    folder = write_case(tmp_path / "case", names, values=None)
    expected = LOAD(find_cases(folder, labelled=False)[0])
    for path in (folder, *sorted(folder.iterdir())):
        served = LOAD({"image": str(path), "device": "cpu"})
        torch.testing.assert_close(served["image"], expected["image"], rtol=0, atol=0)
        assert served["source"] == expected["source"]
        assert served["label_values"].tolist() == expected["label_values"].tolist()
        assert served["device"] == "cpu", "what the server needs afterwards is kept"


def test_the_case_among_others_in_one_folder(tmp_path: Path) -> None:
    for name in ("a", "b"):
        for file in write_case(tmp_path / name, values=None).iterdir():
            shutil.move(file, tmp_path / file.name)
    assert LOAD({"image": tmp_path / "b_t2.nii.gz"})["case"] == "b"
    with pytest.raises(BundleError, match=r"2 cases \(a, b\)"):
        LOAD({"image": tmp_path})


def test_only_the_folder_of_a_named_file_is_searched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A data set may be large, and a request names one file of it."""
    for file in write_case(tmp_path / "a", values=None).iterdir():
        shutil.move(file, tmp_path / file.name)
        (tmp_path / "below").mkdir(exist_ok=True)
        shutil.copy(tmp_path / file.name, tmp_path / "below" / file.name)
    listed: list[str] = []
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: listed.append(os.fspath(path)) or scandir(path))
    assert LOAD({"image": tmp_path / "a_t2.nii.gz"})["case"] == "a"
    assert set(listed) == {str(tmp_path)}


def test_four_dimensions_in_the_order_that_is_asked_for(tmp_path: Path) -> None:
    volume = scan(0, (*SHAPE, 4))
    path = write_nifti(tmp_path / "all.nii.gz", volume)
    served = LOAD({"image": str(path), "channel_order": [1, 2, 3, 0]})
    np.testing.assert_array_equal(served["image"].numpy(), np.moveaxis(volume[..., [1, 2, 3, 0]], -1, 0))


def test_settings_of_the_search_are_followed(tmp_path: Path) -> None:
    folder = write_case(tmp_path / "case", values=None)
    assert LOAD({"image": folder, "et_label": 3})["label_values"].tolist() == [0, 1, 2, 3]


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    folder = write_case(tmp_path / "case", values=None)
    (folder / "case_flair.nii.gz").unlink()
    with pytest.raises(BundleError, match=r"case_flair\.nii\.gz \(FLAIR\)"):
        LOAD({"image": str(folder / "case_t1.nii.gz")})


@pytest.mark.parametrize("name", ["letter.nii.gz", "nothing.nii.gz"])
def test_what_is_no_image_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "letter.nii.gz").write_bytes(b"not an image")
    with pytest.raises(BundleError, match=name):
        LOAD({"image": str(tmp_path / name)})


def test_a_single_scan_is_no_case(tmp_path: Path) -> None:
    path = write_nifti(tmp_path / "brain.nii.gz", scan())
    with pytest.raises(BundleError, match="one 4-D image with a channel for each modality"):
        LOAD({"image": str(path)})
