"""Decoding one case, and what is refused in it."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from abdomen_ct_vnet.cases import find_cases
from abdomen_ct_vnet.reading import LoadCTd, check_hu, read_label
from bundlekit.errors import BundleError
from tests.abdomen_ct_vnet.conftest import hu, labels, write


def first(data: Path, **options: object) -> dict:
    return find_cases(data, **options)[0]  # type: ignore[arg-type]


def rewrite(file: str, change) -> None:
    image = nib.load(file)
    array = change(np.asarray(image.dataobj).copy())
    nib.save(nib.Nifti1Image(array, image.affine), file)


def test_a_case_holds_what_its_files_hold(abdomens: Path) -> None:
    case = first(abdomens)
    loaded = LoadCTd()(case)
    raw, label = nib.load(case["image"][0]), np.asarray(nib.load(case["label"]).dataobj)
    np.testing.assert_array_equal(loaded["image"][0], np.asarray(raw.dataobj))
    np.testing.assert_array_equal(loaded["image"].affine, raw.affine)
    expected = np.select([label == 1, (label == 2) | (label == 13), label == 3], [1, 2, 3])
    np.testing.assert_array_equal(loaded["label"][0], expected)
    assert tuple(loaded["native_shape"].tolist()) == raw.shape
    assert "label" not in LoadCTd(with_label=False)(case)


def test_parts_make_one_label(abdomens: Path, tmp_path: Path) -> None:
    case = first(abdomens)
    image, label = nib.load(case["image"][0]), np.asarray(nib.load(case["label"]).dataobj)
    nib.save(image, write(tmp_path / "s1" / "ct.nii.gz"))
    parts = {"liver": 1, "kidney_right": 2, "spleen": 3, "kidney_left": 13}
    for name, number in parts.items():
        write(tmp_path / "s1" / "segmentations" / f"{name}.nii.gz", (label == number).astype(np.uint8), image.affine)
    split_up = first(tmp_path)
    np.testing.assert_array_equal(read_label(split_up)[0], read_label(case)[0])
    rewrite(split_up["label_parts"][1], lambda a: a * 3)
    with pytest.raises(BundleError, match=r"kidney_right[\s\S]*a mask of 0 and 1"):
        read_label(split_up)


@pytest.mark.parametrize(
    ("image", "refused"),
    [
        (hu(), False),
        (np.clip(hu(), -160, 240), False),
        (np.clip(hu(), -160, 240) / 400.0, True),
        (hu() + 1024, True),
        (hu() - 1024, True),
        (np.random.default_rng(0).uniform(-1024, -600, (9, 9, 9)), True),
        (np.random.default_rng(0).integers(0, 256, (9, 9, 9)), True),
        (np.random.default_rng(0).normal(0, 1, (9, 9, 9)), True),
        (np.abs(np.random.default_rng(0).normal(0, 400, (9, 9, 9))), True),
        (np.random.default_rng(0).uniform(-20, 1500, (9, 9, 9)), True),
    ],
)
def test_only_hounsfield_units_pass(image: np.ndarray, refused: bool) -> None:
    findings = check_hu("f", np.asarray(image))
    assert bool(findings) == refused
    if refused:
        assert "Hounsfield" in findings[0].expected


def test_a_lost_intercept_is_named() -> None:
    (finding,) = check_hu("f", hu() + 1024)
    assert "subtract 1024" in finding.fix


def test_padding_is_no_fat() -> None:
    """What a scanner puts around its circle, far below air, is no sign of Hounsfield units."""
    lost = hu() + 1024
    lost[:, : lost.shape[1] // 4] = -2000
    (finding,) = check_hu("f", lost)
    assert "subtract 1024" in finding.fix
    sound = hu()
    sound[:, : sound.shape[1] // 4] = -3024
    assert check_hu("f", sound) == []
    assert check_hu("f", np.full((8, 8, 8), -3024.0))


def test_an_intercept_that_was_subtracted_twice_is_named() -> None:
    (finding,) = check_hu("f", hu() - 1024)
    assert "add 1024" in finding.fix
    assert "0.0% of the voxels above -30" in finding.found


def spoil_nan(case: dict) -> None:
    def change(array: np.ndarray) -> np.ndarray:
        array = array.astype(np.float32)
        array[3, 4, 5] = np.nan
        return array

    rewrite(case["image"][0], change)


def spoil_truncated(case: dict) -> None:
    file = Path(case["image"][0])
    file.write_bytes(file.read_bytes()[:-500])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (spoil_nan, "1 voxel\\(s\\) that are NaN"),
        (spoil_truncated, "cannot be decoded to its end"),
        (lambda case: rewrite(case["image"][0], lambda a: np.zeros_like(a)), "the value 0 in every voxel"),
        (lambda case: rewrite(case["image"][0], lambda a: np.clip(a + 1000, 0, 255)), "Hounsfield"),
        (lambda case: rewrite(case["label"], lambda a: np.where(a == 3, 99, a)), r"99 \("),
        (lambda case: rewrite(case["label"], lambda a: a * 0.5), "whole numbers"),
    ],
)
def test_bad_voxels(data: Path, spoil, message: str) -> None:
    case = first(data)
    spoil(case)
    with pytest.raises(BundleError, match=message):
        LoadCTd()(case)


@pytest.mark.parametrize(("axis", "word"), [(0, "right of"), (1, "in front of"), (2, "above")])
def test_flipped_voxels_are_noticed(data: Path, axis: int, word: str) -> None:
    """Voxels of CT and label turned round under an unchanged affine: the grids agree, the anatomy does not."""
    case = first(data)
    for file in (case["image"][0], case["label"]):
        rewrite(file, lambda a: np.flip(a, axis))
    with pytest.raises(BundleError, match=word):
        LoadCTd()(case)
    assert LoadCTd(check_orientation=False)(case)["label"].any()


@pytest.mark.parametrize("axes", ["RAS", "PIR", "SLA"])
def test_any_orientation_is_the_same_patient(data: Path, axes: str) -> None:
    case = first(data)
    before = LoadCTd()(case)
    for file in (case["image"][0], case["label"]):
        image = nib.load(file)
        turn = nib.orientations.ornt_transform(
            nib.orientations.io_orientation(image.affine), nib.orientations.axcodes2ornt(axes)
        )
        nib.save(image.as_reoriented(turn), file)
    (again,) = [c for c in find_cases(data) if c["case"] == case["case"]]
    after = LoadCTd()(again)
    assert after["label"].shape != before["label"].shape or axes == "RAS"
    np.testing.assert_array_equal(np.bincount(after["label"].ravel()), np.bincount(before["label"].ravel()))


def test_all_findings_of_a_case_come_together(tmp_path: Path) -> None:
    write(tmp_path / "imagesTr" / "amos_0001.nii.gz", np.full((12, 10, 8), 5, np.int16))
    write(tmp_path / "labelsTr" / "amos_0001.nii.gz", labels((0, 77)))
    with pytest.raises(BundleError) as caught:
        LoadCTd()(first(tmp_path))
    assert len(caught.value.findings) == 2


def test_a_served_path_is_decoded_too(abdomens: Path) -> None:
    case = first(abdomens)
    loaded = LoadCTd(with_label=False)({"image": case["image"][0], "device": "cpu"})
    assert (loaded["case"], loaded["device"]) == (case["case"], "cpu")
