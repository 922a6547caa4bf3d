"""When a case is done, and why it is not."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from bundlekit.cohort.records import Records, describe, inputs_of
from bundlekit.cohort.running import collect_volumes
from bundlekit.errors import BundleError
from bundlekit.report.table import COLUMNS, VolumeTable

FROM = {"bundle": "a", "version": "1", "weights_sha256": ["0"], "settings": {}}


@pytest.fixture
def case(tmp_path: Path) -> dict[str, Any]:
    files = [tmp_path / "data" / name for name in ("a_t1.nii.gz", "a_t2.nii.gz")]
    files[0].parent.mkdir()
    for file in files:
        file.write_bytes(file.name.encode())
    return {"case": "a", "image": [str(files[0]), "", str(files[1])]}


@pytest.fixture
def records(case: dict[str, Any], tmp_path: Path) -> Records:
    """With the case done."""
    out = Records(tmp_path / "out")
    mask = out.output_dir / "a_seg.nii.gz"
    out.output_dir.mkdir()
    nib.save(nib.Nifti1Image(np.arange(8, dtype=np.uint8).reshape(2, 2, 2), np.eye(4)), mask)
    out.write(case, [mask], [describe(Path(file)) for file in inputs_of(case)], FROM)
    return out


def test_a_case_is_done_by_its_mask_and_its_record(records: Records, case: dict[str, Any]) -> None:
    assert records.why(case, FROM) == ""
    assert records.why({**case, "case": "b"}, FROM) == "missing"
    record = records.path("a")
    text = record.read_text()
    record.write_text(text[: len(text) // 2])  # by another program: ours are whole
    assert records.why(case, FROM) == "missing"
    record.write_text(text)
    (records.output_dir / "a_seg.nii.gz").unlink()
    assert records.why(case, FROM) == "missing"


@pytest.mark.parametrize("absolute", [False, True])
def test_a_record_that_leads_elsewhere_removes_nothing(records: Records, case: dict[str, Any], absolute: bool) -> None:
    """As one of a stranger may: what it names is gone neither as damaged nor as of an earlier run."""
    outside = records.output_dir.parent / "precious.txt"
    outside.write_text("mine")
    record = json.loads(records.path("a").read_text())
    name = str(outside) if absolute else "../precious.txt"
    for entry in ({**describe(outside), "file": name}, {**describe(outside), "file": name, "bytes": 10**6}):
        records.path("a").write_text(json.dumps({**record, "outputs": [*record["outputs"], entry]}))
        assert records.why(case, FROM) == "missing"
        records.forget(case)
        records.remove_others(case, [])
        assert outside.read_text() == "mine"


@pytest.mark.parametrize("name", sorted(FROM))
def test_what_it_was_made_from_is_compared(records: Records, case: dict[str, Any], name: str) -> None:
    assert records.why(case, {**FROM, name: "other"}) == f"changed: {name}"


def test_a_file_that_was_touched_is_hashed(records: Records, case: dict[str, Any]) -> None:
    file = Path(case["image"][0])
    os.utime(file, (1, 1))
    assert records.why(case, FROM) == ""
    file.write_bytes(b"A" + file.read_bytes()[1:])  # as many bytes
    assert records.why(case, FROM) == "changed: a_t1.nii.gz"


def test_files_that_come_and_go_are_noticed(records: Records, case: dict[str, Any]) -> None:
    more = shutil.copy(case["image"][0], Path(case["image"][0]).with_name("a_flair.nii.gz"))
    assert records.why({**case, "image": [*case["image"], str(more)]}, FROM) == "changed: a_flair.nii.gz"
    assert records.why({**case, "image": case["image"][:1]}, FROM) == "changed: 1 files, 2 before"


def test_a_corrected_mask_stays_and_a_damaged_one_goes(records: Records, case: dict[str, Any]) -> None:
    mask = records.output_dir / "a_seg.nii.gz"
    nib.save(nib.Nifti1Image(np.ones((2, 2, 2), np.uint8), np.eye(4)), mask)
    assert records.why(case, FROM) == ""
    records.forget(case)
    assert mask.is_file()
    mask.write_bytes(mask.read_bytes()[:-9])
    assert records.why(case, FROM) == "damaged: a_seg.nii.gz"
    records.forget(case)
    assert not mask.exists()
    assert json.loads(records.path("a").read_text())["case"] == "a"


def test_rows_of_a_corrected_mask_are_flagged(records: Records) -> None:
    mask = records.output_dir / "a_seg.nii.gz"
    row = {**dict.fromkeys(COLUMNS, ""), "case": "a", "name": "WT", "flags": "removed", "reasons": "Much."}
    records.write({"case": "a"}, [mask], [], {"volumes": [row]})
    os.utime(mask, (1, 1))
    for flags in ("removed", "removed;mask_corrected", "removed;mask_corrected"):
        collect_volumes(records.output_dir)
        assert [row["flags"] for row in VolumeTable(records.output_dir).rows()] == [flags]
        nib.save(nib.Nifti1Image(np.ones((2, 2, 2), np.uint8), np.eye(4)), mask)


@pytest.mark.parametrize("name", ["../evil", "a/b", "..", ""])
def test_a_name_that_is_no_files_has_no_record(records: Records, case: dict[str, Any], name: str) -> None:
    with pytest.raises(BundleError, match="expected the name of a file"):
        records.why({**case, "case": name}, FROM)


def test_other_files_are_damaged_if_they_are_shorter(records: Records, case: dict[str, Any]) -> None:
    files = [records.output_dir / "a_seg.nii.gz", records.output_dir / "a.tsv"]
    files[1].write_text("index\tname\n")
    records.write(case, files, [describe(Path(file)) for file in inputs_of(case)], FROM)
    files[1].write_text("index\tname\n0\tair\n")
    assert records.why(case, FROM) == ""
    files[1].write_text("index")
    assert records.why(case, FROM) == "damaged: a.tsv"


def test_files_of_an_earlier_run_go_with_its_record(records: Records, case: dict[str, Any]) -> None:
    mask, *others = [records.output_dir / name for name in ("a_seg.nii.gz", "a.tsv", "changed.tsv", "not_ours.tsv")]
    for file in others:
        file.write_text("text")
    records.write(case, [mask, *others[:2]], [], FROM)
    others[1].write_text("other text")
    records.remove_others(case, [mask])
    assert [file.is_file() for file in (mask, *others)] == [True, False, True, True]
