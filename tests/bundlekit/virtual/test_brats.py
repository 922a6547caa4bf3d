"""The virtual BraTS cohort: its format, its repeatability and what it says about anatomy."""

from multiprocessing import get_context
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from scipy import ndimage

from bundlekit.virtual import brats, cohorts, make_case, metastases
from bundlekit.virtual.anatomy import Head, grid, maps_of
from bundlekit.virtual.cohorts import heads_of, make_cohort
from bundlekit.virtual.fields import Push, SmoothField
from bundlekit.virtual.tumour import LOW_GRADE_SHARE, NODULE_SHARE, VOLUME_ML, Tumour

SHAPE = (64, 64, 48)
SCANS = ("t1", "t1ce", "t2", "flair")
CASES = 6


@pytest.fixture(scope="module")
def cohort():
    return [make_case(0, index, SHAPE) for index in range(CASES)]


def test_full_shape_has_the_affine_of_brats():
    axes, spacing = grid((240, 240, 155))
    assert spacing == (1.0, 1.0, 1.0)
    np.testing.assert_allclose(axes[0], np.arange(240))
    # The corner of the field of view is the same for every shape.
    affine = make_case(0, 0, SHAPE)["affine"]
    np.testing.assert_allclose(affine @ [-0.5, -0.5, -0.5, 1], [0.5, 239.5, -0.5, 1])


def test_background_is_zero_and_the_same_in_all_scans(cohort):
    for case in cohort:
        brain = case["tissue"] > 0
        for scan in SCANS:
            assert case[scan].dtype == np.int16
            np.testing.assert_array_equal(case[scan] > 0, brain)
        volume = brain.sum() * abs(np.linalg.det(case["affine"][:3, :3])) / 1e6
        assert 1.0 < volume < 1.9  # litres
        _, count = ndimage.label(brain)
        assert ndimage.sum(brain, ndimage.label(brain)[0], range(1, count + 1)).max() > 0.99 * brain.sum()


def test_labels_lie_in_grey_and_white_matter(cohort):
    for case in cohort:
        seg = case["seg"]
        assert seg.dtype == np.uint8
        assert set(np.unique(seg)) <= {0, 1, 2, 4}
        assert 2 in seg
        assert (seg == 1).any() or (seg == 4).any()
        assert not (seg[case["tissue"] == 0]).any()
        assert (case["tissue"][seg > 0] == 1).mean() < 0.02


def test_volumes_are_in_the_stated_range(cohort):
    for case in cohort:
        millilitres = (case["seg"] > 0).sum() * abs(np.linalg.det(case["affine"][:3, :3])) / 1000
        assert VOLUME_ML[0] * 0.98 < millilitres < VOLUME_ML[1] * 1.02


def test_kinds_of_tumours(cohort):
    head = Head(np.random.default_rng(0))
    tumours = [Tumour(np.random.default_rng([0, index]), head) for index in range(36)]
    share, expected = np.mean([not tumour.enhancing for tumour in tumours]), LOW_GRADE_SHARE * (1 - NODULE_SHARE)
    assert abs(share - expected) < 3 * np.sqrt(expected * (1 - expected) / len(tumours))
    assert {len(tumour.foci) for tumour in tumours} == {1, 2, 3}
    assert min(tumour.core_ml / tumour.volume_ml for tumour in tumours) < 0.1


def test_contrasts(cohort):
    for case in cohort:
        seg, tissue = case["seg"], case["tissue"]
        far = ndimage.distance_transform_edt(seg == 0) > 2
        fluid, grey, white = (far & (tissue == number) for number in (1, 2, 3))
        assert case["t1"][white].mean() > case["t1"][grey].mean() > case["t1"][fluid].mean()
        assert case["t2"][fluid].mean() > case["t2"][grey].mean() > case["t2"][white].mean()
        assert case["flair"][fluid].mean() < case["flair"][grey].mean()
        assert case["flair"][seg > 0].mean() > 1.15 * case["flair"][far & (tissue > 1)].mean()
        assert case["t2"][seg == 2].mean() > case["t2"][grey].mean()
        if (seg == 4).any() and (seg == 1).any():
            assert case["t1ce"][seg == 4].mean() > 1.2 * case["t1ce"][seg == 1].mean()


def test_a_push_moves_the_midline_but_not_the_surface():
    axes, _ = grid(SHAPE)
    head = Head(np.random.default_rng(3))
    centre = np.array([90.0, 120.0, 85.0])  # right hemisphere: x grows to the left
    before = head.sample(axes, 3.75).numpy()
    after = head.sample(axes, 3.75, (Push(centre, 25.0, 8.0),)).numpy()
    row = (slice(None), int(np.argmin(np.abs(axes[1] - 120))), int(np.argmin(np.abs(axes[2] - 85))))
    middle = [np.interp(0.0, -seen.side_mm[row], axes[0]) for seen in (before, after)]
    assert 3 < middle[1] - middle[0] < 9
    assert (before.brain != after.brain).sum() < 0.01 * before.brain.sum()


def test_tumours_push_without_folding_space():
    for index in range(CASES):
        head = Head(np.random.default_rng([0, index, 0]))
        tumour = Tumour(np.random.default_rng([0, index, 1]), head)
        for push in tumour.pushes:
            assert 0.15 * push.radius_mm < push.peak_mm < 0.5 * push.radius_mm


def test_a_push_is_strongest_at_its_radius():
    push = Push(np.zeros(3), 20.0, 6.0, reach_mm=1e6)
    points = torch.zeros((3, 4))
    points[0] = torch.tensor([0, 10, 20, 40])
    np.testing.assert_allclose(push.sources(points)[0], [0, -4.8, -6, -4.8], rtol=1e-4)


def test_a_field_does_not_depend_on_the_grid():
    field = SmoothField.draw(np.random.default_rng(0), 12.0)
    fine, coarse = torch.arange(0, 150, 1.0), torch.arange(0, 150, 5.0)
    full = field.at((fine, fine, fine))
    np.testing.assert_allclose(full[::5, ::5, ::5], field.at((coarse, coarse, coarse)), atol=1e-4)
    assert 0.7 < full.std() < 1.3


def test_a_label_map_gives_the_head_of_that_person(label_map):
    template, own = maps_of(label_map), maps_of()
    a, b = ((maps[0, 0] + maps[0, 1]).numpy() > 0.5 for maps in (template, own))
    assert 2 * (a & b).sum() / (a.sum() + b.sum()) > 0.8, "the same brain in the same place, though it lay elsewhere"
    white = [maps[0, 1].numpy() > 0.5 for maps in (template, own)]
    assert 2 * (white[0] & white[1]).sum() / (white[0].sum() + white[1].sum()) > 0.5
    case = make_case(0, 0, (64, 64, 48), label_map)
    assert case["seg"].any()
    assert 900 < (case["t1"] > 0).sum() * abs(np.linalg.det(case["affine"][:3, :3])) / 1000 < 2200
    other = make_case(0, 0, (64, 64, 48))
    assert not np.array_equal(case["t1"], other["t1"])


def _named(index, head):
    return f"{index} {head}"


def test_cases_keep_their_order_and_their_heads():
    assert make_cohort(_named, ["a", "b", "b", "c", "a"], 1, "cases") == ["0 a", "1 b", "2 b", "3 c", "4 a"]


def test_heads_are_those_of_the_label_maps_in_their_order(tmp_path):
    files = [str(tmp_path / f"{name}.nii.gz") for name in "abc"]
    for file in reversed(files):
        nib.save(nib.Nifti1Image(np.zeros((4, 4, 4), np.uint8), np.eye(4)), file)
    a, b, c = files
    assert heads_of(str(tmp_path), (0, 1, 1, 2, 3)) == [a, b, b, c, a]
    assert heads_of(None, (3, 4)) == [None, None]


def test_several_processes_make_the_same_cases_in_the_same_order(tmp_path, monkeypatch):
    started = []  # as forks, which import nothing anew
    monkeypatch.setattr(cohorts, "get_context", lambda method: started.append(method) or get_context("fork"))
    made = [metastases(str(tmp_path / str(jobs)), 3, 5, (48, 48, 36), None, jobs) for jobs in (1, 2)]
    for one, two in zip(*made, strict=True):
        assert Path(one).name == Path(two).name
        for file in Path(one).iterdir():
            assert file.read_bytes() == (Path(two) / file.name).read_bytes()
    assert started == ["spawn"]


def test_other_numbers_are_refused(tmp_path):
    nib.save(nib.Nifti1Image(np.full((40, 40, 40), 999, np.int16), np.eye(4)), tmp_path / "a.nii.gz")
    with pytest.raises(ValueError, match=r"a\.nii\.gz: the numbers \[999\] are not FreeSurfer's"):
        brats(str(tmp_path / "out"), 1, 0, (40, 40, 40), str(tmp_path))
    for number, found in (
        (3.4, "not whole numbers"),
        (70_003, r"the numbers \[70003\] are not"),
    ):  # 70003 wraps to 4467
        dtype = np.float32 if number < 4 else np.int32
        nib.save(nib.Nifti1Image(np.full((40, 40, 40), number, dtype), np.eye(4)), tmp_path / "a.nii.gz")
        with pytest.raises(ValueError, match=found):
            brats(str(tmp_path / "out"), 1, 0, (40, 40, 40), str(tmp_path))
    with pytest.raises(ValueError, match=r"label maps, \.nii"):
        brats(str(tmp_path / "out"), 1, 0, (40, 40, 40), str(tmp_path / "out"))
