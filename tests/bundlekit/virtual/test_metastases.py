"""The virtual BraTS-METS cohort: its format, its repeatability and what its lesions look like."""

import dataclasses
import itertools

import numpy as np
import pytest
from scipy import ndimage

from bundlekit.virtual.anatomy import Anatomy, Head
from bundlekit.virtual.fields import as_axes
from bundlekit.virtual.lesions import ET, MOST_LESIONS, NETC, SNFH, Metastases
from bundlekit.virtual.metastases import SECOND_VISIT_SHARE, case_name, make_case
from bundlekit.virtual.metastasis import DIAMETER_MM, PUSH_FROM_MM, SCANS

SHAPE = (64, 64, 48)
CASES = 4  # of seed 0: patients 1, 2, 2 again, 3
AGAIN = 2


@pytest.fixture(scope="module")
def cohort():
    return [make_case(0, index, SHAPE) for index in range(CASES)]


@pytest.fixture(scope="module")
def head():
    return Head(np.random.default_rng(0))


@pytest.fixture(scope="module")
def patients(head):
    return [Metastases(np.random.default_rng([0, index]), head) for index in range(18)]


def block(lesion, spacing_mm, count):
    """Axes of a cube around a lesion, within the field of view."""
    return tuple(centre + spacing_mm * (np.arange(count) - (count - 1) / 2) for centre in lesion.centre)


def white_matter(axes):
    """A brain of white matter that fills the grid, so that geometry can be told from anatomy."""
    shape = tuple(len(axis) for axis in axes)
    values = {"wm": 1.0, "depth_mm": 40.0, "side_mm": 40.0}
    maps = {
        field.name: np.full(shape, values.get(field.name, 0.0), np.float32) for field in dataclasses.fields(Anatomy)
    }
    return Anatomy(**(maps | {"brain": np.ones(shape, bool)}))


def all_lesions(patients):
    return [(patient, lesion) for patient in patients for lesion in patient.visits[0]]


def test_patients_are_counted_and_visits_follow_each_other():
    names = [case_name(0, index) for index in range(200)]
    pairs = [(int(name[10:15]), int(name[16:])) for name in names]
    assert pairs[0] == (90001, 0), "which no real case is called"
    for (before, visit), (patient, again) in itertools.pairwise(pairs):
        assert (patient, again) in {(before + 1, 0), (before, visit + 1)}
    firsts = sum(visit == 0 for _, visit in pairs)
    seconds = sum(visit == 1 for _, visit in pairs)
    assert firsts + seconds == len(pairs)
    assert abs(seconds / firsts - SECOND_VISIT_SHARE) < 3 * np.sqrt(SECOND_VISIT_SHARE * 0.75 / firsts)


def test_number_and_size_of_lesions(patients):
    counts = [len(lesions) for patient in patients for lesions in patient.visits]
    assert min(counts) == 1
    assert 6 < max(counts) <= MOST_LESIONS
    assert 2.5 < np.mean(counts) < 7
    diameters = 2 * np.array([lesion.radius_mm for patient in patients for visit in patient.visits for lesion in visit])
    assert DIAMETER_MM[0] <= diameters.min() < 4
    assert 20 < diameters.max() <= DIAMETER_MM[1]
    assert 0.55 < (diameters < 10).mean() < 0.8


def test_large_lesions_have_rims_and_oedema_more_often_than_small_ones(patients):
    lesions = [lesion for _, lesion in all_lesions(patients)]
    small = [lesion for lesion in lesions if lesion.radius_mm < 3.5]
    large = [lesion for lesion in lesions if lesion.radius_mm > 7]
    assert all(np.isinf(lesion.rim_mm) for lesion in small)
    assert np.mean([np.isfinite(lesion.rim_mm) for lesion in large]) > 0.5
    assert np.mean([lesion.oedema_mm > 0 for lesion in small]) < 0.4
    assert np.mean([lesion.oedema_mm > 0 for lesion in large]) > 0.6
    for lesion in lesions:
        assert (lesion.push is not None) == (2 * lesion.radius_mm > PUSH_FROM_MM)
        if lesion.push:
            assert 0.05 * lesion.push.radius_mm < lesion.push.peak_mm < 0.5 * lesion.push.radius_mm


def test_lesions_keep_their_distance(patients):
    for patient in patients:
        for lesions in patient.visits:
            for number, one in enumerate(lesions):
                for two in lesions[:number]:
                    assert np.linalg.norm(one.centre - two.centre) > 1.3 * (one.radius_mm + two.radius_mm)


def test_labels_lie_in_the_brain_and_lesions_are_apart(cohort):
    for case in cohort:
        seg, instances = case["seg"], case["instances"]
        assert seg.dtype == np.uint8
        assert set(np.unique(seg)) <= {0, NETC, SNFH, ET}
        assert not (seg[case["tissue"] == 0]).any()
        np.testing.assert_array_equal(instances > 0, (seg == NETC) | (seg == ET))
        for number in np.unique(instances[instances > 0]):
            _, pieces = ndimage.label(instances == number, np.ones((3, 3, 3)))
            assert pieces == 1
        for scan in SCANS:
            np.testing.assert_array_equal(case[scan] > 0, case["tissue"] > 0)


def test_a_lesion_has_the_volume_of_its_sphere_on_any_grid(patients):
    for patient, lesion in all_lesions(patients)[:12]:
        expected = 4 / 3 * np.pi * lesion.radius_mm**3
        volumes = []
        for spacing in (1.0, 3.0):
            axes = block(lesion, spacing, int(4 * lesion.radius_mm / spacing) + 4)
            (part,) = patient.label([lesion], white_matter(axes), axes).parts
            volumes.append((part.enhancing + part.necrotic).sum() * spacing**3)
        assert volumes[1] == pytest.approx(volumes[0], rel=0.1)
        assert volumes[0] == pytest.approx(expected, rel=0.1)


def test_a_lesion_much_smaller_than_a_voxel_has_no_label(patients):
    patient, lesion = min(all_lesions(patients), key=lambda pair: pair[1].radius_mm)
    axes = block(lesion, 5.0, 8)
    spread = patient.label([lesion], white_matter(axes), axes)
    assert not np.isin(spread.labels, (NETC, ET)).any()
    assert 0 < spread.parts[0].enhancing.max() < 0.5


def test_ring_lesions_hold_their_core_inside_the_rim(patients):
    rings = [pair for pair in all_lesions(patients) if np.isfinite(pair[1].rim_mm) and pair[1].radius_mm > 5][:8]
    assert len(rings) == 8
    cores = 0
    for patient, lesion in rings:
        axes = block(lesion, 1.0, int(4 * lesion.radius_mm) + 4)
        labels = patient.label([lesion], white_matter(axes), axes).labels
        core = labels == NETC
        around = ndimage.binary_dilation(core) & ~core
        assert (labels[around] == ET).mean() > 0.97
        cores += core.any()
    assert cores >= 6


def test_oedema_stays_off_the_cortex(patients):
    patient, lesion = next(
        pair for pair in all_lesions(patients) if 3 < pair[1].radius_mm < 8 and pair[1].oedema_mm > 8
    )
    axes = block(lesion, 1.5, 48)
    anatomy = white_matter(axes)
    side = slice(30, None)
    anatomy.wm[side], anatomy.gm[side] = 0, 1
    labels = patient.label([lesion], anatomy, axes).labels
    oedema = labels == SNFH
    assert oedema[:18].sum() > 5 * oedema[side].sum()  # equally far from the lesion
    without = dataclasses.replace(lesion, oedema_mm=0.0)
    assert not (patient.label([without], anatomy, axes).labels == SNFH).any()


def test_lesions_enhance(head, patients):
    """On t1c brighter than what is around, by a margin; before contrast not, unless they have bled."""
    patient = max(patients, key=lambda one: sum(lesion.radius_mm > 4 for lesion in one.visits[0]))
    seen = 0
    for lesion in patient.visits[0]:
        if lesion.radius_mm < 3:
            continue
        axes = block(lesion, 1.0, int(4 * lesion.radius_mm) + 8)
        anatomy = head.sample(as_axes(axes), 1.0).numpy()
        for bleeding in (False, True):
            spread = patient.label([dataclasses.replace(lesion, bleeding=bleeding)], anatomy, axes)
            lit = spread.labels == ET
            means = {}
            for scan in SCANS:
                signal = np.ones(lit.shape, np.float32)
                patient.paint(signal, spread, scan, 1.6, axes)
                means[scan] = signal[lit].mean()
            assert means["t1c"] > 1.1  # the faintest, with the border voxels that it fills by half
            assert (means["t1n"] > 1.05) == bleeding
            seen += 1
    assert seen >= 6


def test_scans_of_a_whole_case():
    shape = (120, 120, 78)
    index = 7  # a patient with ten lesions, three of them large
    case = make_case(0, index, shape)
    seg, tissue = case["seg"], case["tissue"]
    far = ndimage.distance_transform_edt(seg == 0) > 2
    fluid, grey, white = (far & (tissue == number) for number in (1, 2, 3))
    assert case["t1n"][white].mean() > case["t1n"][grey].mean() > case["t1n"][fluid].mean()
    assert case["t2w"][fluid].mean() > case["t2w"][grey].mean() > case["t2w"][white].mean()
    assert case["t2f"][fluid].mean() < case["t2f"][grey].mean()
    assert case["t2f"][seg == SNFH].mean() > 1.2 * case["t2f"][grey].mean()
    assert case["t1c"][seg == NETC].mean() < 0.8 * case["t1c"][white].mean()
    large = 0
    for number in np.unique(case["instances"][case["instances"] > 0]):
        lesion = case["instances"] == number
        lit = lesion & (seg == ET)
        if lit.sum() < 40:
            continue
        around = ndimage.binary_dilation(lesion, iterations=4) & (case["instances"] == 0) & (tissue > 1)
        assert case["t1c"][lit].mean() > 1.15 * case["t1c"][around].mean()
        assert case["t1n"][lit].mean() < 1.05 * case["t1n"][around].mean()
        large += 1
    assert large >= 3
    # Vessels enhance too, and have no label.
    bright = case["t1c"] > 1.3 * np.median(case["t1c"][white])
    assert (bright & (seg == 0)).sum() > 200
    assert not np.isin(seg[bright & (case["instances"] == 0)], (NETC, ET)).any()


def test_second_visit_is_the_same_head(cohort):
    assert case_name(0, AGAIN)[:-3] == case_name(0, AGAIN - 1)[:-3]
    first, second, other = cohort[AGAIN - 1], cohort[AGAIN], cohort[AGAIN + 1]

    def overlap(one, two):
        a, b = one["tissue"] > 0, two["tissue"] > 0
        return 2 * (a & b).sum() / (a.sum() + b.sum())

    assert overlap(first, second) > 0.99 > overlap(second, other)
    assert (first["tissue"] == second["tissue"]).mean() > 0.98
    for scan in SCANS:
        assert not np.array_equal(first[scan], second[scan])


def test_lesions_grow_shrink_vanish_and_appear(patients):
    changes, gone, new = [], 0, 0
    for patient in patients:
        first, second = ({tuple(lesion.centre): lesion for lesion in visit} for visit in patient.visits)
        changes += [second[place].radius_mm / first[place].radius_mm for place in first.keys() & second.keys()]
        gone += len(first.keys() - second.keys())
        new += len(second.keys() - first.keys())
    assert min(changes) < 0.7
    assert max(changes) > 1.3
    assert gone > 0
    assert new > 0
