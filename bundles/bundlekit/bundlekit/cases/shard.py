"""One of several equal parts of a data set, for arrays of jobs."""

from __future__ import annotations

from collections.abc import Sequence

from bundlekit.cases.case import Case
from bundlekit.errors import BundleError
from bundlekit.values import Shard


def shard_cases(cases: Sequence[Case], shard: str | None) -> list[Case]:
    """Every n-th case, from the i-th on: the parts 1/n to n/n have every case once.

    Args:
        cases: of the data set, in an order that is the same for all parts.
        shard: "i/n", i from 1 to n; None: all cases.

    Raises:
        BundleError: for another value, or a part without a case.
    """
    if shard is None:
        return list(cases)
    if not Shard().allows(shard):
        raise BundleError(f"shard is {shard!r}; expected {Shard()}.")
    part, parts = map(int, shard.split("/"))
    if cases and part > len(cases):
        raise BundleError(f"shard is {shard}, and there are {len(cases)} cases: this part has none. Take fewer parts.")
    return list(cases[part - 1 :: parts])


def refuse_shard(shard: str | None) -> None:
    """Refuse to score a part: `scores.csv` and `summary.json` of the parts would be the same files.

    Raises:
        BundleError: for any value but None.
    """
    if shard is not None:
        raise BundleError(
            f"--shard is {shard!r}, which is for inference: scores of one part would take the place of another's. "
            "Leave it out; or segment by parts, and score the masks of all."
        )
