"""Parts of a data set for arrays of jobs."""

from __future__ import annotations

import pytest

from bundlekit.cases.shard import refuse_shard, shard_cases
from bundlekit.errors import BundleError

CASES = [{"case": name} for name in "abcdefg"]


def names(shard: str | None) -> str:
    return "".join(case["case"] for case in shard_cases(CASES, shard))


def test_the_parts_have_every_case_once() -> None:
    assert [names(f"{part}/3") for part in (1, 2, 3)] == ["adg", "be", "cf"]
    assert names(None) == names("1/1") == "abcdefg"


@pytest.mark.parametrize("shard", ["0/3", "4/3", "1/0", "-1/3", "1", "a/b", "1/3/5", 3, ""])
def test_what_is_no_part_is_refused(shard: object) -> None:
    with pytest.raises(BundleError, match="expected i/n"):
        shard_cases(CASES, shard)  # type: ignore[arg-type]


def test_a_part_without_a_case_is_told() -> None:
    with pytest.raises(BundleError, match="8/9, and there are 7 cases"):
        shard_cases(CASES, "8/9")
    assert shard_cases([], "2/3") == []  # a pipeline without data


def test_a_part_is_not_scored() -> None:
    refuse_shard(None)
    with pytest.raises(BundleError, match="--shard is '1/2', which is for inference"):
        refuse_shard("1/2")
