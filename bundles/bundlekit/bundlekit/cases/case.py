"""A case: what every bundle means by it, and what no data set may lack or double."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bundlekit.errors import BundleError, Finding

Case = dict[str, Any]


def require_cases(cases: Sequence[Case]) -> None:
    """Refuse to run on nothing.

    Raises:
        BundleError: if there is no case.
    """
    if not cases:
        raise BundleError("no data set given. Add --dataset_dir DIR with the folder that holds your cases.")


def refuse_findings(cases: list[Case], findings: Sequence[Finding]) -> list[Case]:
    """The cases, if nothing was found wrong with any.

    Args:
        cases: complete ones.
        findings: what is wrong with the others.

    Raises:
        BundleError: with all findings at once.
    """
    if findings:
        raise BundleError(
            f"{len(findings)} problem(s) in the data set; nothing was started.\n" + "\n".join(map(str, findings))
        )
    return cases


def doubled_cases(cases: Sequence[Case], where: str) -> list[Finding]:
    """Findings for cases of one name: their results would be one file."""
    first_files: dict[str, list[str]] = {}
    for case in cases:
        first_files.setdefault(case["case"], []).append((case["image"] or [case["label"]])[0])
    return [
        Finding(
            where,
            f"case {name} more than once: {', '.join(files)}",
            "unique case names",
            'rename the files, or give a datalist whose entries have a "case" key',
        )
        for name, files in first_files.items()
        if len(files) > 1
    ]
