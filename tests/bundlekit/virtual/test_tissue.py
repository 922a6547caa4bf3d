"""Virtual healthy heads: format, repeatability, contrast."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np

from brain_tissue_vnet.cases import find_cases
from brain_tissue_vnet.reading import read_tissue
from bundlekit.label_maps import find_label_maps
from bundlekit.virtual import icbm152
from bundlekit.virtual.tissue import make_head


def test_healthy_heads_are_a_bids_data_set(heads: Path) -> None:
    pairs = find_cases(str(heads))
    assert [case["case"] for case in pairs] == [f"sub-{i:03d}" for i in range(5)]
    assert {case["numbering"] for case in pairs} == {"freesurfer"}
    maps = find_label_maps(heads / "derivatives" / "labels")
    assert len(maps) == 5
    for case in pairs:
        t1, labels = (np.asarray(nib.load(file).dataobj) for file in (case["image"][0], case["label"]))
        np.testing.assert_array_equal(t1 > 0, labels > 0)
        assert set(np.unique(labels).tolist()) == {0, 2, 3, 24}
        medians = [np.median(t1[labels == value]) for value in (24, 3, 2)]
        assert medians == sorted(medians), "CSF dark, grey, white matter bright"


def test_healthy_heads_are_reproducible_and_differ() -> None:
    one, again, other = (make_head(5, index, (48, 48, 36)) for index in (0, 0, 1))
    for key in ("t1", "labels"):
        np.testing.assert_array_equal(one[key], again[key])
        assert (one[key] != other[key]).mean() > 0.01


def test_template_is_a_labelled_case(tmp_path: Path) -> None:
    icbm152(str(tmp_path))
    (case,) = find_cases(str(tmp_path))
    truth, _ = read_tissue(case)
    t1 = np.asarray(nib.load(case["image"][0]).dataobj)
    medians = [np.median(t1[truth == value]) for value in (1, 2, 3)]
    assert medians == sorted(medians)
    assert (truth[t1 == 0] == 0).mean() > 0.999
