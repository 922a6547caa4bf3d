"""Names of cases become names of files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bundlekit.cases.case import check_names
from tools.bundles import names, scan_cases_of

EXPECTED = "4 different whole numbers, 0 to 255"


def case(name: str) -> dict[str, object]:
    return {"case": name, "image": ["", "scan.nii.gz"], "label": ""}


@pytest.mark.parametrize(
    "name",
    ["../x", "..", ".", "/tmp/x", "a/b", "a\\b", "C:\\x", "", " ", "a\0b", "a\nb", "\x1b[2J", "x" * 181, "ä" * 91],
)
def test_what_is_no_name_of_a_file_is_refused(name: str) -> None:
    (finding,) = check_names([case(name), case("b")], "list.json")
    assert finding.file == "list.json"
    assert "scan.nii.gz" in finding.found
    assert finding.found.isprintable()


@pytest.mark.parametrize("name", ["BraTS2021_00006", "sub-01_ses-1", "Müller, Anna (2)", "a..b", "x" * 180])
def test_other_names_are_taken(name: str) -> None:
    assert not check_names([case(name)], "list.json")


def test_two_of_one_name_are_refused() -> None:
    (finding,) = check_names([case("a"), case("b"), case("a")], "list.json")
    assert "case a more than once: scan.nii.gz, scan.nii.gz" in finding.found


@pytest.mark.parametrize("bundle", ["brats_resunet", "brain_tissue_vnet", "brats_unet_h5"])
def test_label_values_of_a_datalist_are_counted(bundle: str, tmp_path: Path) -> None:
    entry = {"image": [f"{n}.nii.gz" for n in range(4 if bundle == "brats_resunet" else 1)], "label_values": [0, 1]}
    (tmp_path / "list.json").write_text(json.dumps({"validation": [entry]}))
    _, findings = scan_cases_of(bundle)(tmp_path, datalist=tmp_path / "list.json", labelled=False)
    assert any((finding.found, finding.expected) == ("label_values: [0, 1]", EXPECTED) for finding in findings)


@pytest.mark.parametrize("bundle", names())
def test_a_datalist_of_any_bundle_names_no_other_folder(bundle: str, tmp_path: Path) -> None:
    count = 4 if bundle in ("brats_resunet", "brain_metastasis_attention_unet") else 1
    entry = {"image": [f"{n}.nii.gz" for n in range(count)], "case": "../elsewhere"}
    (tmp_path / "list.json").write_text(json.dumps({"validation": [entry]}))
    _, findings = scan_cases_of(bundle)(tmp_path, datalist=tmp_path / "list.json", labelled=False)
    assert any("'../elsewhere'" in finding.found for finding in findings)
