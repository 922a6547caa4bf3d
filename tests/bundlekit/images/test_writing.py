"""Tests of the writer: geometry and values of what it writes, and what it must never do to a file."""

from __future__ import annotations

import errno
import gzip
import itertools
import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import itk
import nibabel as nib
import numpy as np
import pytest
import torch
from ignite.engine import Engine, Events
from monai.data import Dataset, MetaTensor, decollate_batch, list_data_collate
from torch.utils.data import DataLoader

from bundlekit.brats.cases import find_cases
from bundlekit.brats.reading import LoadCased
from bundlekit.errors import BundleError
from bundlekit.images.nifti import read_array
from bundlekit.images.writing import WriteSegmentations, are_of
from tests.bundlekit.conftest import (
    LPS,
    NAMES_2018,
    NAMES_2023,
    OBLIQUE,
    SHAPE,
    leftovers,
    scan,
    segmentation,
    write_case,
    write_decathlon,
    write_nifti,
)
from tools.convert import _geometry

SHEARED = OBLIQUE @ np.array([[1, 0.2, 0, 0], [0, 1, 0.1, 0], [0, 0, 1, 0], [0, 0, 0, 1]])


def item_of(source: Path, case: str = "case", label: Path | str = "", values: Sequence[int] = (0, 1, 2, 4)) -> dict:
    return {"case": case, "source": str(source), "label_file": str(label), "label_values": torch.tensor(values)}


def write(folder: Path, item: dict[str, Any], **output: Any) -> None:
    state = SimpleNamespace(batch=[item], output=[output])
    WriteSegmentations(str(folder))(SimpleNamespace(state=state))  # type: ignore[arg-type]


def classes(shape: Sequence[int] = SHAPE) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(5).integers(0, 4, (1, *shape)).astype(np.uint8))


# --- geometry ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("affine", [LPS, OBLIQUE, SHEARED], ids=["brats", "oblique", "sheared"])
@pytest.mark.parametrize("codes", list(itertools.product([0, 1, 4], [0, 1, 2])), ids=str)
def test_geometry_is_that_of_the_source(tmp_path: Path, codes: tuple[int, int], affine: np.ndarray) -> None:
    qform_code, sform_code = codes
    image = nib.Nifti1Image(scan(), affine)
    image.set_qform(affine, qform_code)
    shifted = affine.copy()
    shifted[:3, 3] += 1  # so that the two forms differ and neither can stand for the other
    image.set_sform(shifted, sform_code)
    image.header.set_xyzt_units("mm", "sec")
    nib.save(image, tmp_path / "case_t1.nii.gz")
    original = nib.load(tmp_path / "case_t1.nii.gz")
    probabilities = torch.rand(3, *SHAPE)
    write(tmp_path / "out", item_of(tmp_path / "case_t1.nii.gz"), pred=classes(), probabilities=probabilities)
    for name in ("case_seg.nii.gz", "case_probabilities.nii.gz"):
        written = nib.load(tmp_path / "out" / name)
        np.testing.assert_array_equal(written.affine, original.affine)
        for form in ("qform", "sform"):
            assert int(written.header[f"{form}_code"]) == int(original.header[f"{form}_code"])
            expected, code = getattr(original, f"get_{form}")(coded=True)
            got, _ = getattr(written, f"get_{form}")(coded=True)
            if code:
                np.testing.assert_array_equal(got, expected)
            else:
                assert got is None
        np.testing.assert_array_equal(written.header.get_zooms()[:3], original.header.get_zooms()[:3])
        assert written.header.get_xyzt_units() == ("mm", "sec")


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
def test_nifti_1_and_2_as_sources(tmp_path: Path, kind: type) -> None:
    nib.save(kind(scan(), OBLIQUE), tmp_path / "case_t1.nii.gz")
    write(tmp_path / "out", item_of(tmp_path / "case_t1.nii.gz"), pred=classes())
    written = nib.load(tmp_path / "out" / "case_seg.nii.gz")
    np.testing.assert_allclose(written.affine, OBLIQUE, atol=1e-5)
    np.testing.assert_array_equal(np.asarray(written.dataobj), np.array([0, 1, 2, 4])[classes()[0]])


def test_scaling_window_and_remarks_of_the_source_are_not_the_masks(tmp_path: Path) -> None:
    image = nib.Nifti1Image(scan(), LPS)
    image.header.set_slope_inter(0.5, 10)
    image.header["cal_min"], image.header["cal_max"] = 100, 900
    image.header["descrip"] = b"T1 weighted"
    image.header["db_name"], image.header["intent_name"], image.header["aux_file"] = b"Doe^Jane", b"Doe", b"jane.dcm"
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"Doe^Jane 19700101"))
    nib.save(image, tmp_path / "case_t1.nii.gz")
    write(tmp_path / "out", item_of(tmp_path / "case_t1.nii.gz"), pred=classes())
    written = nib.load(tmp_path / "out" / "case_seg.nii.gz")
    assert (written.dataobj.slope, written.dataobj.inter) == (1, 0)
    assert (float(written.header["cal_min"]), float(written.header["cal_max"])) == (0, 0)
    assert bytes(written.header["descrip"].item()) == b""
    assert not written.header.extensions
    assert b"Doe" not in written.header.binaryblock
    assert b"jane" not in written.header.binaryblock
    np.testing.assert_array_equal(np.asarray(written.dataobj), np.array([0, 1, 2, 4])[classes()[0]])


# --- values -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("values", [(0, 1, 2, 4), (0, 1, 2, 3), (0, 2, 1, 3)], ids=str)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.float32])
@pytest.mark.parametrize("wrap", [torch.clone, MetaTensor, torch.Tensor.numpy], ids=["tensor", "MetaTensor", "numpy"])
def test_mask_holds_the_data_sets_own_values(
    tmp_path: Path, values: tuple[int, ...], dtype: torch.dtype, wrap: Callable
) -> None:
    source = write_nifti(tmp_path / "case_t1.nii.gz", scan(), OBLIQUE)
    write(tmp_path / "out", item_of(source, values=values), pred=wrap(classes().to(dtype)))
    file = tmp_path / "out" / "case_seg.nii.gz"
    expected = np.array(values)[classes()[0]]
    written = nib.load(file)
    assert written.get_data_dtype() == np.uint8
    assert written.shape == SHAPE
    np.testing.assert_array_equal(np.asarray(written.dataobj), expected)
    by_itk = itk.imread(str(file))
    np.testing.assert_array_equal(itk.array_from_image(by_itk).T, expected)
    np.testing.assert_allclose(by_itk.GetOrigin(), (np.diag([-1, -1, 1, 1]) @ OBLIQUE)[:3, 3], atol=1e-4)
    np.testing.assert_allclose(by_itk.GetSpacing(), np.linalg.norm(OBLIQUE[:3, :3], axis=0), atol=1e-5)


def test_probabilities_are_one_4d_file_with_a_channel_for_each_region(tmp_path: Path) -> None:
    source = write_nifti(tmp_path / "case_t1.nii.gz", scan())
    probabilities = torch.rand(3, *SHAPE, generator=torch.Generator().manual_seed(0))
    write(tmp_path / "out", item_of(source), pred=classes(), probabilities=MetaTensor(probabilities))
    file = tmp_path / "out" / "case_probabilities.nii.gz"
    written = nib.load(file)
    assert written.get_data_dtype() == np.float32
    assert written.shape == (*SHAPE, 3)
    for channel in range(3):
        np.testing.assert_array_equal(np.asarray(written.dataobj)[..., channel], probabilities[channel])
    np.testing.assert_array_equal(itk.array_from_image(itk.imread(str(file))).T, np.asarray(written.dataobj))


def test_without_probabilities_there_is_one_file(tmp_path: Path) -> None:
    write(tmp_path / "out", item_of(write_nifti(tmp_path / "case_t1.nii.gz", scan())), pred=classes())
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["case_seg.nii.gz"]


def test_output_that_is_still_on_the_device(tmp_path: Path) -> None:
    class OnDevice(torch.Tensor):
        """Like a tensor on a GPU: NumPy cannot look at it before it is copied."""

        def cpu(self, *_: object, **__: object) -> torch.Tensor:
            return self.as_subclass(torch.Tensor)

        to = cpu

        def __array__(self, dtype: Any = None) -> np.ndarray:
            raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first.")

        def numpy(self, **_: object) -> np.ndarray:
            return self.__array__()

    source = write_nifti(tmp_path / "case_t1.nii.gz", scan())
    probabilities = torch.rand(3, *SHAPE)
    write(
        tmp_path / "out",
        item_of(source),
        pred=classes().as_subclass(OnDevice),
        probabilities=probabilities.as_subclass(OnDevice),
    )
    np.testing.assert_array_equal(
        read_array(str(tmp_path / "out" / "case_seg.nii.gz")), np.array([0, 1, 2, 4])[classes()[0]]
    )
    np.testing.assert_array_equal(
        np.moveaxis(read_array(str(tmp_path / "out" / "case_probabilities.nii.gz")), -1, 0), probabilities
    )


@pytest.mark.parametrize("layout", ["2018", "2023", "decathlon"])
def test_label_that_is_read_and_written_is_the_same(tmp_path: Path, layout: str) -> None:
    """Through collation, an engine's events and decollation, as an evaluator does it."""
    data = tmp_path / "data"
    if layout == "decathlon":
        write_decathlon(data)
    else:
        new = layout == "2023"
        write_case(data / "a", NAMES_2023 if new else NAMES_2018, values=(0, 1, 2, 3) if new else (0, 1, 2, 4))
    (case,) = find_cases(data)
    loaded = LoadCased()(case)

    def step(engine: Engine, batch: list[dict]) -> list[dict]:
        engine.state.batch = decollate_batch(list_data_collate(batch))
        return [{"pred": item["label"]} for item in engine.state.batch]

    engine = Engine(step)
    WriteSegmentations(str(tmp_path / "out")).attach(engine)
    engine.run([[loaded]])
    written = tmp_path / "out" / f"{case['case']}_seg.nii.gz"
    np.testing.assert_array_equal(read_array(str(written)), read_array(case["label"]))
    np.testing.assert_array_equal(nib.load(written).affine, nib.load(case["label"]).affine)


def test_all_cases_of_an_iteration_are_written(tmp_path: Path) -> None:
    source = write_nifti(tmp_path / "case_t1.nii.gz", scan())
    engine = Engine(lambda engine, batch: [{"pred": torch.full((1, *SHAPE), n)} for n in range(3)])
    engine.add_event_handler(
        Events.ITERATION_STARTED, lambda e: setattr(e.state, "batch", [item_of(source, f"case{n}") for n in range(3)])
    )
    WriteSegmentations(str(tmp_path / "new" / "folder")).attach(engine)
    engine.run([0])
    for n in range(3):
        written = read_array(str(tmp_path / "new" / "folder" / f"case{n}_seg.nii.gz"))
        np.testing.assert_array_equal(written, np.full(SHAPE, n))


def test_a_scan_whose_quaternion_is_none_gets_its_mask(tmp_path: Path) -> None:
    """Its sform is sound, and what is computed is not lost at the end: the qform becomes that of the affine."""
    image = nib.Nifti1Image(scan(), OBLIQUE)
    image.set_sform(OBLIQUE, 1)
    image.header["qform_code"] = 1
    for name, value in zip("bcd", (0.9, 0.6, 0.3), strict=True):
        image.header[f"quatern_{name}"] = value
    with pytest.raises(ValueError, match="w2 should be positive"):
        image.get_qform()
    source = tmp_path / "case_t1.nii.gz"
    source.write_bytes(gzip.compress(image.to_bytes()))
    write(tmp_path / "out", item_of(source), pred=classes())
    mask = nib.load(tmp_path / "out" / "case_seg.nii.gz")
    np.testing.assert_allclose(mask.affine, OBLIQUE, atol=1e-4)
    np.testing.assert_allclose(mask.get_qform(), OBLIQUE, atol=1e-4)
    assert (int(mask.header["qform_code"]), int(mask.header["sform_code"])) == (1, 1)
    found = _geometry(nib.load(source))
    np.testing.assert_allclose(found["qform"], OBLIQUE, atol=1e-4)
    assert found["qform_code"] == 1


# --- files that were there --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["label", "label by a link", "folder by a link", "image"])
def test_an_input_is_never_replaced(tmp_path: Path, way: str) -> None:
    folder = write_case(tmp_path / "case")
    label, out = folder / "case_seg.nii.gz", folder
    item = item_of(folder / "case_t1.nii.gz", label=label)
    if way == "label by a link":
        out = tmp_path / "out"
        out.mkdir()
        (out / "case_seg.nii.gz").symlink_to(label)
    elif way == "folder by a link":
        out = tmp_path / "out"
        out.symlink_to(folder)
    elif way == "image":
        label = label.rename(folder / "elsewhere.nii.gz")
        image = (folder / "case_t1.nii.gz").rename(folder / "case_seg.nii.gz")
        item = item_of(image, label=label)
    before = {file: file.read_bytes() for file in folder.iterdir()}
    with pytest.raises(BundleError, match="--output_dir") as caught:
        write(out, item, pred=classes())
    assert caught.value.findings[0].file == str(out / "case_seg.nii.gz")
    assert {file: file.read_bytes() for file in folder.iterdir()} == before


def test_a_mask_of_an_earlier_run_is_replaced(tmp_path: Path) -> None:
    folder = write_case(tmp_path / "case")
    item = item_of(folder / "case_t1.nii.gz", label=folder / "case_seg.nii.gz")
    for value in (0, 3):
        write(tmp_path / "out", item, pred=torch.full((1, *SHAPE), value))
    assert (read_array(str(tmp_path / "out" / "case_seg.nii.gz")) == 4).all()
    assert (read_array(str(folder / "case_seg.nii.gz")) == segmentation()).all()


@pytest.fixture
def run(tmp_path: Path) -> Callable[[str], list[str]]:
    """Segment the cases a, b and c into `out` by a bundle of some name; the cases computed so far."""
    source = write_nifti(tmp_path / "case_t1.nii.gz", scan())
    cases = [{"case": name, "image": [str(source)]} for name in ("a", "b", "c")]
    computed: list[str] = []

    def run(bundle: str) -> list[str]:
        def step(engine: Engine, case: dict[str, Any]) -> list[dict[str, Any]]:
            computed.append(case["case"])
            engine.state.batch = [item_of(source, case["case"])]  # type: ignore[assignment]
            return [{"pred": classes()}]

        engine = Engine(step)
        engine.logger.disabled = True
        WriteSegmentations(str(tmp_path / "out"), written_by=bundle).attach(engine)
        engine.run(DataLoader(Dataset(cases), batch_size=None))
        return computed

    return run


def test_only_masks_of_the_same_bundle_are_replaced(tmp_path: Path, run: Callable[[str], list[str]]) -> None:
    run("one")
    computed = run("one")
    assert computed == ["a", "b", "c"] * 2
    assert nib.load(tmp_path / "out" / "a_seg.nii.gz").header["descrip"].item().startswith(b"segmented by one, CRC-32 ")
    (tmp_path / "out" / "b_seg.nii.gz").write_bytes(b"")  # nobody's
    (tmp_path / "out" / "c_seg.nii.gz").unlink()
    before = (tmp_path / "out" / "a_seg.nii.gz").read_bytes()
    with pytest.raises(BundleError, match=r"a_seg[\s\S]*segmented by one[\s\S]*b_seg[\s\S]*--output_dir"):
        run("two")
    assert computed == ["a", "b", "c"] * 2
    assert (tmp_path / "out" / "a_seg.nii.gz").read_bytes() == before


def test_a_folder_of_scans_is_refused_before_anything_is_computed(
    tmp_path: Path, run: Callable[[str], list[str]]
) -> None:
    (tmp_path / "out").symlink_to(tmp_path)  # where the scan of all three lies
    with pytest.raises(BundleError, match=r"the folder of the scan itself[\s\S]*--output_dir"):
        run("one")
    (tmp_path / "out").unlink()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "b_seg.nii.gz").symlink_to(tmp_path / "case_t1.nii.gz")
    with pytest.raises(BundleError, match=r"b_seg[\s\S]*an input of the data set"):
        run("one")
    (tmp_path / "out" / "b_seg.nii.gz").unlink()
    assert run("one") == ["a", "b", "c"], "the first that is computed at all"


def test_probabilities_are_known_as_those_of_their_mask(tmp_path: Path) -> None:
    item = item_of(write_nifti(tmp_path / "case_t1.nii.gz", scan()))
    writer = WriteSegmentations(str(tmp_path / "out"), written_by="one")
    output = {"pred": classes(), "probabilities": torch.zeros(3, *SHAPE)}
    writer(SimpleNamespace(state=SimpleNamespace(batch=[item], output=[output])))  # type: ignore[arg-type]
    mask, probabilities = writer.files_of("case")
    assert are_of(probabilities, mask)
    assert are_of(write_nifti(tmp_path / "unsigned.nii.gz", scan()), mask)
    output = {"pred": classes() // 2}
    writer(SimpleNamespace(state=SimpleNamespace(batch=[item], output=[output])))  # type: ignore[arg-type]
    assert not are_of(probabilities, mask)


@pytest.mark.parametrize("way", ["nibabel", "itk", "of an earlier version", "cut off"])
def test_a_mask_that_somebody_corrected_stays(tmp_path: Path, run: Callable[[str], list[str]], way: str) -> None:
    """With the header kept, as tools do that open a mask, paint, and save it."""
    run("one")
    file = tmp_path / "out" / "b_seg.nii.gz"
    if way == "itk":
        image = itk.imread(str(file))
        image[2, 2, 2] = 1 if image[2, 2, 2] != 1 else 2
        itk.imwrite(image, str(file))
    elif way == "cut off":
        file.write_bytes(file.read_bytes()[:-20])
    else:
        mask = nib.load(file)
        voxels = np.array(mask.dataobj)
        voxels[2, 2, 2] = 1 if voxels[2, 2, 2] != 1 else 2
        if way == "of an earlier version":
            mask.header["descrip"] = b"segmented by one"
        nib.save(nib.Nifti1Image(voxels, mask.affine, mask.header), file)
    before = file.read_bytes()
    with pytest.raises(BundleError, match=r"b_seg[\s\S]*corrected[\s\S]*--output_dir") as caught:
        run("one")
    assert len(caught.value.findings) == 1
    file.replace(tmp_path / "mine.nii.gz")
    assert (tmp_path / "mine.nii.gz").read_bytes() == before
    assert run("one") == ["a", "b", "c"] * 2, "nothing was computed in between"


def test_a_mask_that_is_corrected_while_others_are_computed_stays(tmp_path: Path) -> None:
    source = write_nifti(tmp_path / "case_t1.nii.gz", scan())
    file = tmp_path / "out" / "b_seg.nii.gz"

    def step(engine: Engine, case: dict[str, Any]) -> list[dict[str, Any]]:
        engine.state.batch = [item_of(source, case["case"])]  # type: ignore[assignment]
        if case["case"] == "b":
            write_nifti(file, scan())
        return [{"pred": classes()}]

    engine = Engine(step)
    engine.logger.disabled = True
    WriteSegmentations(str(tmp_path / "out"), written_by="one").attach(engine)
    cases = [{"case": name, "image": [str(source)]} for name in ("a", "b")]
    with pytest.raises(BundleError, match=r"b_seg[\s\S]*no bundle has put its name to[\s\S]*move the file away"):
        engine.run(DataLoader(Dataset(cases), batch_size=None))
    assert (tmp_path / "out" / "a_seg.nii.gz").is_file()
    assert nib.load(file).get_data_dtype() == nib.load(source).get_data_dtype()


def test_a_mask_that_was_only_saved_again_is_replaced(tmp_path: Path, run: Callable[[str], list[str]]) -> None:
    run("one")
    mask = nib.load(tmp_path / "out" / "b_seg.nii.gz")
    nib.save(nib.Nifti1Image(np.asarray(mask.dataobj), mask.affine, mask.header), tmp_path / "out" / "b_seg.nii.gz")
    assert len(run("one")) == 6


def test_a_link_to_another_file_is_replaced_not_followed(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_bytes(b"precious")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "case_seg.nii.gz").symlink_to(precious)
    write(tmp_path / "out", item_of(write_nifti(tmp_path / "case_t1.nii.gz", scan())), pred=classes())
    assert precious.read_bytes() == b"precious"
    assert not (tmp_path / "out" / "case_seg.nii.gz").is_symlink()


@pytest.mark.parametrize("shape", [(10, 12, 8), (12, 10, 7), (11, 10, 8)])
def test_another_grid_is_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    source = write_nifti(tmp_path / "case_t1.nii.gz", scan())
    with pytest.raises(RuntimeError, match=r"not on the input's grid"):
        write(tmp_path / "out", item_of(source), pred=classes(shape))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_failed_write_leaves_the_earlier_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    out, item = tmp_path / "out", item_of(write_nifti(tmp_path / "case_t1.nii.gz", scan()))
    write(out, item, pred=classes())
    before = (out / "case_seg.nii.gz").read_bytes()

    def fail(_: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("bundlekit.files.os.fsync", fail)
    with pytest.raises(BundleError, match=os.strerror(code)) as caught:
        write(out, item, pred=torch.zeros(1, *SHAPE))
    assert caught.value.findings[0].file == str(out / "case_seg.nii.gz")
    assert [path.name for path in out.iterdir()] == ["case_seg.nii.gz"]
    assert (out / "case_seg.nii.gz").read_bytes() == before


@pytest.mark.parametrize("free_kib", [0, 4, 64])
def test_full_disk(tmp_path: Path, small_disk: Callable[[int], Path], free_kib: int) -> None:
    shape = (64, 64, 64)
    item = item_of(write_nifti(tmp_path / "case_t1.nii.gz", scan(shape=shape)))
    out = small_disk(1024)
    write(out, item, pred=torch.ones(1, *shape))
    small_disk(free_kib)
    with pytest.raises(BundleError, match="No space left"):
        write(out, item, pred=classes(shape), probabilities=torch.rand(3, *shape))
    assert leftovers(out) == []
    np.testing.assert_array_equal(read_array(str(out / "case_seg.nii.gz")), np.ones(shape))


def test_output_dir_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "out").write_bytes(b"")
    with pytest.raises(BundleError, match="--output_dir"):
        write(tmp_path / "out", item_of(write_nifti(tmp_path / "case_t1.nii.gz", scan())), pred=classes())


def test_volume_of_each_class_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = write_nifti(tmp_path / "case_t1.nii.gz", scan(), np.diag([2.0, 2.0, 2.5, 1.0]))
    pred = torch.zeros(1, *SHAPE, dtype=torch.uint8)
    pred[0, 0, 0, :5], pred[0, 1] = 1, 3
    row = SHAPE[1] * SHAPE[2] / 100  # of voxels of 0.01 ml
    state = SimpleNamespace(batch=[item_of(source)], output=[{"pred": pred}])
    told = []
    for names in ((), ("NCR", "ED", "ET")):
        caplog.clear()
        with caplog.at_level(logging.INFO):
            WriteSegmentations(str(tmp_path / "out"), classes=names)(SimpleNamespace(state=state))  # type: ignore[arg-type]
        told.append(caplog.messages[0])
    et = f"{row:.{1 if row >= 1 else 2}f}"
    assert told[0].endswith(f"case_seg.nii.gz: label 1 0.05 ml, label 2 0.00 ml, label 4 {et} ml")
    assert told[1].endswith(f"case_seg.nii.gz: NCR 0.05 ml, ED 0.00 ml, ET {et} ml")
