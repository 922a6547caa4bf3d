"""When a case is done, and why it is not."""

from __future__ import annotations

import errno
import gzip
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from bundlekit.cohort.records import Records, inputs_of
from bundlekit.cohort.running import collect_volumes
from bundlekit.errors import BundleError
from bundlekit.images.writing import signed
from bundlekit.report.table import COLUMNS, VolumeTable

FROM = {"bundle": "a", "version": "1", "weights_sha256": ["0"], "settings": {}}
ROW = {**dict.fromkeys(COLUMNS, ""), "case": "a", "name": "WT"}
TOLD = {**FROM, "volumes": [ROW]}
Change = Callable[[dict[str, Any]], Any]
Caplog = pytest.LogCaptureFixture


@pytest.fixture
def case(tmp_path: Path) -> dict[str, Any]:
    files = [tmp_path / "data" / name for name in ("a_t1.nii.gz", "a_t2.nii.gz")]
    files[0].parent.mkdir()
    for file in files:
        file.write_bytes(file.name.encode())
        os.utime(file, (1, 1))  # as unpacked: both have one size and one time
    return {"case": "a", "image": [str(files[0]), "", str(files[1])], "label_values": (0, 1), "patient": "a"}


@pytest.fixture
def records(case: dict[str, Any], tmp_path: Path) -> Records:
    """With the case done."""
    out = Records(tmp_path / "out")
    mask = out.output_dir / "a_seg.nii.gz"
    out.output_dir.mkdir()
    save(mask, np.arange(8))
    out.write(case, [mask], inputs_of(case), TOLD)
    return out


def save(mask: Path, values: Any, signature: str = "") -> None:
    """A mask; with a signature, as inference writes it."""
    array = np.asarray(values, np.uint8).reshape(2, 2, -1)
    image = nib.Nifti1Image(array, np.eye(4))
    image.header["descrip"] = signed(signature, array) if signature else b""
    nib.save(image, mask)


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


@pytest.mark.parametrize("name", ["{root}/a_mine.txt", "../a_mine.txt", "b_seg.nii.gz", "link/a_mine.txt"])
def test_a_record_that_leads_elsewhere_removes_nothing(records: Records, case: dict[str, Any], name: str) -> None:
    """As one of a stranger may: what it names goes neither as damaged nor as of an earlier run."""
    (records.output_dir / "link").symlink_to(records.output_dir.parent)
    name = name.format(root=records.output_dir.parent)
    other = records.output_dir / name
    other.write_text("mine")
    record = json.loads(records.path("a").read_text())
    same = {"file": name, "bytes": 4, "mtime_ns": other.stat().st_mtime_ns, "sha256": ""}
    for outputs in ([*record["outputs"], same], [{**same, "bytes": 10**6}]):
        records.path("a").write_text(json.dumps({**record, "outputs": outputs}))
        records.put_aside(case)
        records.remove_others(case, [])
        assert other.read_text() == "mine"


@pytest.mark.parametrize(
    "spoil",
    [
        lambda record: record.pop("volumes"),
        lambda record: record.pop("case"),
        lambda record: record["volumes"][0].pop("ml"),
        lambda record: record["outputs"][0].pop("bytes"),
        lambda record: record["outputs"].clear(),
        lambda record: record["inputs"][0].pop("sha256"),
        lambda record: record.update(inputs="none"),
    ],
)
def test_a_record_that_lacks_something_is_none(records: Records, case: dict[str, Any], spoil: Change) -> None:
    record = json.loads(records.path("a").read_text())
    spoil(record)
    records.path("a").write_text(json.dumps(record))
    assert records.why(case, FROM) == "missing"
    assert not list(records.all())
    collect_volumes(records.output_dir)


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
    filled = [case["image"][0], str(more), case["image"][2]]
    assert records.why({**case, "image": filled}, FROM) == "changed: a_flair.nii.gz"
    assert records.why({**case, "image": ["", *case["image"][1:]]}, FROM) == "changed: a_t1.nii.gz"
    assert records.why({**case, "image": case["image"][:1]}, FROM) == "changed: 1 files, 3 before"


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda case: case.update(image=case["image"][::-1]), "changed: a_t2.nii.gz, a_t1.nii.gz"),
        (lambda case: case.update(image=[case["image"][0], case["image"][2], ""]), "changed: a_t2.nii.gz, a_t2.nii.gz"),
        (lambda case: case.update(label_values=(0, 2)), "changed: read_as"),
        (lambda case: case.update(channels=[1, 0]), "changed: read_as"),
        (lambda case: case.update(label="a_label.nii.gz", patient="p", subset="training"), ""),
    ],
)
def test_how_a_case_is_read_is_compared(records: Records, case: dict[str, Any], change: Change, why: str) -> None:
    change(case)
    assert records.why(case, FROM) == why


def test_data_that_moved_are_the_same(records: Records, case: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "data").rename(tmp_path / "moved")
    case["image"] = [file.replace("/data/", "/moved/") for file in case["image"]]
    assert records.why(case, FROM) == ""


def cut_off(mask: Path) -> bytes:
    """What is left of a file whose end is lost."""
    whole = mask.read_bytes()
    mask.write_bytes(whole[: len(whole) // 2])
    return mask.read_bytes()


def test_a_corrected_mask_stays(records: Records, case: dict[str, Any]) -> None:
    mask = records.output_dir / "a_seg.nii.gz"
    save(mask, np.ones(8))
    assert records.why(case, FROM) == ""
    assert records.why(case, {**FROM, "version": "2"}).startswith("corrected: the mask stays, and version changed;")
    records.put_aside(case)
    assert mask.is_file()


def test_a_mask_of_ours_that_was_cut_off_is_put_aside(records: Records, case: dict[str, Any], caplog: Caplog) -> None:
    """It may be somebody's correction that is saved right now: nothing is removed, nor is what was put aside before."""
    mask = records.output_dir / "a_seg.nii.gz"
    lost = []
    for seed in (1, 2):
        save(mask, np.random.default_rng(seed).integers(0, 4, 32**3), "segmented by a")
        lost.append(cut_off(mask))
        assert records.why(case, FROM) == "damaged"
        records.put_aside(case)
        assert records.why(case, FROM) == "missing"
    aside = [path for path in records.output_dir.iterdir() if path.suffix == ".damaged"]
    assert sorted(path.read_bytes() for path in aside) == sorted(lost)
    assert all(".nii" not in path.name and path.name in caplog.text for path in aside)


def as_nii(mask: Path) -> None:
    """Uncompressed, under a name that says it is not."""
    mask.write_bytes(gzip.decompress(mask.read_bytes()))


def as_colours(mask: Path) -> None:
    header = nib.load(mask).header
    colours = np.zeros((2, 2, 2), [(channel, "u1") for channel in "RGB"])
    image = nib.Nifti1Image(colours, np.eye(4))
    image.header["descrip"] = header["descrip"]
    nib.save(image, mask)


def as_unsigned_half(mask: Path) -> None:
    save(mask, np.random.default_rng(1).integers(0, 4, 32**3))
    cut_off(mask)


@pytest.mark.parametrize("spoil", [as_nii, as_colours, as_unsigned_half])
def test_a_mask_that_is_none_of_ours_is_a_failure_and_stays(
    records: Records, case: dict[str, Any], spoil: Callable[[Path], None]
) -> None:
    mask = records.output_dir / "a_seg.nii.gz"
    save(mask, np.ones(8), "segmented by a")
    spoil(mask)
    before = mask.read_bytes()
    why = records.why(case, FROM)
    assert why.startswith(f"unreadable: {mask} stays: found ")
    assert "; expected " in why
    records.put_aside(case)
    assert mask.read_bytes() == before


@pytest.mark.parametrize("error", [PermissionError(errno.EACCES, "denied"), OSError(errno.EIO, "disk"), MemoryError()])
def test_a_mask_that_cannot_be_read_is_a_failure_and_stays(
    records: Records, case: dict[str, Any], error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    mask = records.output_dir / "a_seg.nii.gz"
    save(mask, np.ones(8), "segmented by a")

    def fail(path: Path) -> bytes:
        raise error

    monkeypatch.setattr(Path, "read_bytes", fail)
    assert records.why(case, FROM).startswith(f"unreadable: {mask} stays: found ")
    assert type(error).__name__ in records.why(case, FROM)
    records.put_aside(case)
    assert mask.is_file()


def test_a_folder_that_cannot_be_looked_into_is_a_failure_of_the_case(
    records: Records, case: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    mask, stat = records.output_dir / "a_seg.nii.gz", Path.stat

    def stale(path: Path, **more: Any) -> os.stat_result:
        if path == mask:
            raise OSError(errno.ESTALE, "Stale file handle")
        return stat(path, **more)

    monkeypatch.setattr(Path, "stat", stale)
    assert records.why(case, FROM).startswith(f"unreadable: {mask} stays: found ")


def test_a_mask_whose_header_was_repaired_is_corrected(records: Records, case: dict[str, Any]) -> None:
    """Its voxels are still those that were written."""
    mask = records.output_dir / "a_seg.nii.gz"
    save(mask, np.ones(8), "segmented by a")
    records.write(case, [mask], inputs_of(case), TOLD)
    image = nib.load(mask)
    affine = np.diag([-1.0, 1, 1, 1])
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj), affine, image.header), mask)
    assert records.why(case, FROM) == ""
    assert records.why(case, {**FROM, "version": "2"}).startswith("corrected: the mask stays")
    collect_volumes(records.output_dir)
    assert [row["flags"] for row in VolumeTable(records.output_dir).rows()] == ["mask_corrected"]


def test_a_mask_of_another_run_is_computed_again(records: Records, case: dict[str, Any]) -> None:
    """Of one that was killed before it wrote its record, or of one without records."""
    save(records.output_dir / "a_seg.nii.gz", np.ones(8), "segmented by a")
    assert records.why(case, FROM) == "changed: mask"
    theirs = {**ROW, "ml": "1"}
    VolumeTable(records.output_dir).rewrite(lambda _: [theirs])
    collect_volumes(records.output_dir)
    assert VolumeTable(records.output_dir).rows() == [theirs]


def test_rows_of_a_corrected_mask_are_flagged(records: Records) -> None:
    mask = records.output_dir / "a_seg.nii.gz"
    row = {**ROW, "flags": "removed", "reasons": "Much."}
    records.write({"case": "a"}, [mask], [], {"volumes": [row]})
    os.utime(mask, (1, 1))
    for flags in ("removed", "removed;mask_corrected", "removed;mask_corrected"):
        collect_volumes(records.output_dir)
        assert [row["flags"] for row in VolumeTable(records.output_dir).rows()] == [flags]
        save(mask, np.ones(8))


def flags_after(records: Records) -> list[str]:
    collect_volumes(records.output_dir)
    return [row["flags"] for row in VolumeTable(records.output_dir).rows()]


def test_rows_of_a_mask_that_is_gone_or_cannot_be_read_are_flagged(records: Records, caplog: Caplog) -> None:
    mask = records.output_dir / "a_seg.nii.gz"
    mask.write_bytes(b"no mask")
    assert flags_after(records) == ["mask_unreadable"]
    mask.unlink()
    assert flags_after(records) == ["mask_missing"]
    assert "1 case(s) with the flag mask_missing: a" in caplog.text


def test_rows_of_scans_that_changed_are_flagged(records: Records, case: dict[str, Any]) -> None:
    first, _, second = map(Path, case["image"])
    assert flags_after(records) == [""]
    whole = first.read_bytes()
    first.write_bytes(b"cut off")
    assert flags_after(records) == ["outdated"]
    (row,) = VolumeTable(records.output_dir).rows()
    assert row["reasons"] == "Changed since this row was written: a_t1.nii.gz"
    first.write_bytes(whole)
    assert flags_after(records) == [""]
    first.unlink()
    assert flags_after(records) == ["outdated"]
    second.unlink()  # none is left: the data were moved, or the case is no longer of the data set
    assert flags_after(records) == [""]


@pytest.mark.parametrize("name", ["../evil", "a/b", "..", ""])
def test_a_name_that_is_no_files_has_no_record(records: Records, case: dict[str, Any], name: str) -> None:
    with pytest.raises(BundleError, match="expected the name of a file"):
        records.why({**case, "case": name}, FROM)


@pytest.mark.parametrize("corrected", [False, True])
def test_the_mask_alone_decides(records: Records, case: dict[str, Any], corrected: bool) -> None:
    mask, sidecar, gone = [records.output_dir / f"a_{end}" for end in ("seg.nii.gz", "seg.json", "probseg.nii.gz")]
    sidecar.write_text('{"Manual": false}')
    gone.write_text("")
    records.write(case, [mask, sidecar, gone], inputs_of(case), TOLD)
    gone.unlink()
    sidecar.write_text('{"Manual": true}')  # shorter
    if corrected:
        save(mask, np.ones(8))
    assert records.why(case, FROM) == ""
    records.put_aside(case)
    assert json.loads(sidecar.read_text())["Manual"]


def test_files_of_an_earlier_run_go_with_its_record(records: Records, case: dict[str, Any]) -> None:
    mask, *others = [records.output_dir / name for name in ("a_seg.nii.gz", "a_1.tsv", "a_changed.tsv", "a_own.tsv")]
    for file in others:
        file.write_text("text")
    records.write(case, [mask, *others[:2]], [], TOLD)
    others[1].write_text("other text")
    records.remove_others(case, [mask])
    assert [file.is_file() for file in (mask, *others)] == [True, False, True, True]


def test_a_mask_that_was_packed_again_is_no_correction(records: Records, case: dict[str, Any]) -> None:
    mask = records.output_dir / "a_seg.nii.gz"
    save(mask, np.arange(8), "segmented by a")
    records.write(case, [mask], inputs_of(case), TOLD)
    mask.write_bytes(gzip.compress(gzip.decompress(mask.read_bytes()), 1, mtime=7))
    assert records.why(case, FROM) == ""
    assert records.mask_of(records.read("a") or {}) == ""


def test_a_record_of_an_earlier_version_is_one(records: Records, case: dict[str, Any]) -> None:
    mask = records.output_dir / "a_seg.nii.gz"
    save(mask, np.arange(8), "segmented by a")
    records.write(case, [mask], inputs_of(case), TOLD)
    file = records.path("a")
    content = json.loads(file.read_text())
    del content["volumes"][0]["confidence"], content["outputs"][0]["remark"], content["outputs"][0]["content_sha256"]
    file.write_text(json.dumps(content))
    assert records.why(case, FROM) == ""
    assert (records.read("a") or {})["volumes"] == [ROW]
    image = nib.load(mask)
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj), 2 * image.affine, image.header), mask)
    assert records.mask_of(records.read("a") or {}) == "corrected"
