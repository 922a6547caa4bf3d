"""A case: what every bundle means by it, and what no data set may lack or double."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, ParamSpec

from bundlekit.errors import BundleError, Finding

Case = dict[str, Any]
_P = ParamSpec("_P")

MOST_MISSING = 2  # modalities of a case that `fill_missing` takes as zeros, at most
_LONGEST = 180  # bytes: with what is added to it, a name of a file has at most 255


def require_cases(cases: Sequence[Case]) -> None:
    """Refuse to run on nothing.

    Raises:
        BundleError: if there is no case.
    """
    if not cases:
        raise BundleError("no data set given. Add --dataset_dir DIR with the folder that holds your cases.")


def refusing(scan: Callable[_P, tuple[list[Case], list[Finding]]]) -> Callable[_P, list[Case]]:
    """The search for cases that raises a `BundleError` with all findings that `scan` returns beside the cases.

    Args:
        scan: `scan_cases` of a bundle; `find_cases` has its arguments.
    """

    @wraps(scan)
    def find(*args: _P.args, **kwargs: _P.kwargs) -> list[Case]:
        cases, findings = scan(*args, **kwargs)
        if findings:
            listed = "\n".join(map(str, findings))
            raise BundleError(f"{len(findings)} problem(s) in the data set; nothing was started.\n{listed}")
        return cases

    find.__name__ = find.__qualname__ = scan.__name__.replace("scan", "find")
    return find


def check_names(cases: Sequence[Case], where: str) -> list[Finding]:
    """Findings for names that are no file's name, and for cases of one name: their results would be one file.

    Args:
        cases: of one data set; their names become those of masks and scores.
        where: data set or datalist, for the message.
    """
    findings = []
    first_files: dict[str, list[str]] = {}
    for case in cases:
        name = case["case"]
        first_files.setdefault(name, []).append(([file for file in case["image"] if file] or [case["label"]])[0])
        reason = unsafe_name(name)
        if reason:
            fix = 'rename the file, or give the entry of the datalist another "case"'
            found = f"the case name {name[:_LONGEST]!r} of {first_files[name][0]}, which {reason}"
            findings.append(Finding(where, found, "the name of a file, without folders", fix, name))
    return findings + [
        Finding(
            where,
            f"case {name} more than once: {', '.join(files)}",
            "unique case names",
            'rename the files, or give a datalist whose entries have a "case" key',
            name,
        )
        for name, files in first_files.items()
        if len(files) > 1
    ]


def unsafe_name(name: str) -> str:
    """Why a name cannot be that of a result; "" if it can."""
    if not name.strip():
        return "is empty"
    if "/" in name or "\\" in name or name in (".", ".."):
        return "leads to another folder"
    if not name.isprintable():
        return "has characters that cannot be printed"
    return f"is longer than {_LONGEST} bytes" if len(name.encode(errors="replace")) > _LONGEST else ""
