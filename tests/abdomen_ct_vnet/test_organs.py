"""Numberings and classes: every published number where it belongs."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from abdomen_ct_vnet.numberings import (
    NUMBERINGS,
    check_organs,
    label_values,
    numbering_of,
    output_numbering_of,
    to_classes,
)
from abdomen_ct_vnet.organs import (
    FLARE22_ORGANS,
    FLARE22_TOLERANCE_MM,
    UPSTREAM_ORGANS,
    organ_classes,
    segmentation_file,
    tolerance_of,
)
from bundlekit.errors import BundleError
from tests.conftest import ROOT

SHARED = Path(os.environ.get("BRAIN_DATA", ROOT.parent / "shared" / "data"))


def numbers(name: str, organs: list[str]) -> list[int]:
    of = {organ: number for number, organ in NUMBERINGS[name].organs.items()}
    return [of[organ] for organ in organs]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("flare22", [1, 2, 13, 3, 4, 5, 6, 7, 8, 9, 10, 11]),
        ("btcv", [6, 2, 3, 1, 11, 8, 9, 12, 13, 4, 5, 7]),
        ("amos", [6, 2, 3, 1, 10, 8, 9, 11, 12, 4, 5, 7]),
        ("totalsegmentator_v1", [5, 2, 3, 1, 10, 7, 8, 11, 12, 4, 42, 6]),
        ("totalsegmentator_v2", [5, 2, 3, 1, 7, 52, 63, 8, 9, 4, 15, 6]),
    ],
)
def test_each_numbering_has_its_numbers(name: str, expected: list[int]) -> None:
    order = ["liver", "right kidney", "left kidney", "spleen", "pancreas", "aorta", "inferior vena cava"]
    order += ["right adrenal gland", "left adrenal gland", "gallbladder", "esophagus", "stomach"]
    assert numbers(name, order) == expected
    duodenum = {"flare22": 12, "amos": 13, "totalsegmentator_v1": 56, "totalsegmentator_v2": 19}
    assert ("duodenum" in NUMBERINGS[name].organs.values()) == (name in duodenum)
    if name in duodenum:
        assert numbers(name, ["duodenum"]) == [duodenum[name]]


@pytest.mark.skipif(not (SHARED / "abdomen_ct").is_dir(), reason="no real data here")
def test_totalsegmentators_own_table_agrees() -> None:
    table = json.loads((SHARED / "abdomen_ct" / "class_map_v1.json").read_text())["total"]
    ours = NUMBERINGS["totalsegmentator_v1"]
    assert {number: segmentation_file(organ) for number, organ in ours.organs.items()} == {
        number: table[str(number)] for number in ours.organs
    }
    assert ours.last == len(table)


def test_three_ways_to_say_the_classes() -> None:
    assert organ_classes("flare22") == {name: [name] for name in FLARE22_ORGANS}
    assert organ_classes(["liver", "spleen"]) == {"liver": ["liver"], "spleen": ["spleen"]}
    assert organ_classes({"kidneys": ("right kidney", "left kidney"), "x": "liver"}) == {
        "kidneys": ["right kidney", "left kidney"],
        "x": ["liver"],
    }


@pytest.mark.parametrize(
    "organs", [{}, [], ["liver", "liver"], {"a": ["liver"], "b": ["liver"]}, {"a": []}, ["background"]]
)
def test_classes_that_are_none(organs: object) -> None:
    with pytest.raises(BundleError, match="--organs"):
        organ_classes(organs)  # type: ignore[arg-type]


def test_classes_of_a_label_map() -> None:
    found = np.array([[[0, 1, 2, 3, 4, 13]]])
    classes = to_classes(found, NUMBERINGS["flare22"], UPSTREAM_ORGANS, "f")
    assert classes.tolist() == [[[0, 1, 2, 3, 0, 2]]]
    assert (
        to_classes(found.astype(np.float32), NUMBERINGS["flare22"], UPSTREAM_ORGANS, "f").tolist() == classes.tolist()
    )
    assert to_classes(np.array([[[104, 50, 5]]]), NUMBERINGS["totalsegmentator_v1"], UPSTREAM_ORGANS, "f").tolist() == [
        [[0, 0, 1]]
    ]
    own = numbering_of({"liver": 7, "spleen": 2, "tumour": 3}, "--numbering")
    assert to_classes(np.array([[[7, 2, 3, 0]]]), own, {"spleen": ["spleen"]}, "f").tolist() == [[[0, 1, 0, 0]]]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 14], r"14 \(1 voxels\)"),
        ([0, -1], r"-1 \(1 voxels\)"),
        ([0.0, 1.5], "whole numbers"),
        ([0, np.nan], "whole"),
    ],
)
def test_unknown_numbers(labels: list, message: str) -> None:
    with pytest.raises(BundleError, match=message):
        to_classes(np.array([[labels]]), NUMBERINGS["flare22"], UPSTREAM_ORGANS, "file.nii")


def test_a_numbering_without_a_wanted_organ() -> None:
    assert check_organs(UPSTREAM_ORGANS, NUMBERINGS["btcv"], "f") == []
    (finding,) = check_organs(organ_classes("flare22"), NUMBERINGS["btcv"], "f")
    assert "no duodenum" in finding.found


def test_results_are_written_in_a_numbering() -> None:
    assert label_values(UPSTREAM_ORGANS, "flare22") == [0, 1, 2, 3]
    assert label_values(UPSTREAM_ORGANS, "amos") == [0, 6, 2, 1]
    assert label_values(organ_classes("flare22"), "flare22") == list(range(14))
    with pytest.raises(BundleError, match="no number for bladder"):
        label_values(organ_classes(["bladder"]), "flare22")
    for wrong in ("flare", {"liver": 300}, {"liver": 1, "spleen": 1}, {}):
        with pytest.raises(BundleError, match="one of flare22"):
            numbering_of(wrong, "--numbering")


@pytest.mark.parametrize(
    ("organs", "own", "expected"),
    [
        (["liver"], ["amos", "amos"], "flare22"),
        (["liver"], [], "flare22"),
        (["bladder"], ["amos", "", "amos"], "amos"),
        ({"a": ["tumour"], "b": ["liver"]}, [{"tumour": 9, "liver": 2}], {"tumour": 9, "liver": 2}),
        (["colon"], ["amos"], {"colon": 1}),
        (["bladder", "liver"], ["amos", "totalsegmentator_v2"], {"bladder": 1, "liver": 2}),
        ({"gut": ["colon", "small bowel"], "liver": ["liver"]}, [], {"colon": 1, "liver": 2}),
    ],
)
def test_a_numbering_of_results_is_found_that_has_every_class(organs: list, own: list, expected: object) -> None:
    classes = organ_classes(organs)
    assert output_numbering_of(None, classes, own) == expected
    assert len(label_values(classes, expected)) == len(classes) + 1  # type: ignore[arg-type]


def test_a_numbering_of_results_that_is_set_stays() -> None:
    assert output_numbering_of("amos", UPSTREAM_ORGANS, ["btcv"]) == "amos"
    assert output_numbering_of("dataset", organ_classes(["colon"]), ["amos"]) == "dataset"
    with pytest.raises(BundleError, match=r"flare22, which has no number for colon[\s\S]*or null"):
        output_numbering_of("flare22", organ_classes(["colon"]), ["amos"])


def test_tolerances_are_flare22s() -> None:
    assert set(FLARE22_TOLERANCE_MM) == set(FLARE22_ORGANS)
    assert [tolerance_of(organs) for organs in UPSTREAM_ORGANS.values()] == [5, 3, 3]
    assert tolerance_of(["colon"]) == 3
