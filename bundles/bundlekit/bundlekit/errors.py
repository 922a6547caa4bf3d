"""Errors that a user is meant to read, and the hook that prints them without MONAI's expression traceback."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

# of a file that a folder or a datalist names and that is not there
FIND_MOVED = "check the folder; a datalist whose files have moved also takes --dataset_dir, where they lie now"


@dataclass(frozen=True)
class Finding:
    """One thing wrong with one file, in the four parts that a user needs to mend it.

    Args:
        file: the file or folder concerned.
        found: what is there.
        expected: what has to be there.
        fix: what to do about it.
        case: name of the case that it keeps from being computed; "" where the file tells, or there is none.
    """

    file: str
    found: str
    expected: str
    fix: str
    case: str = ""

    def __str__(self) -> str:
        return f"{self.file}\n    found:    {self.found}\n    expected: {self.expected}\n    fix:      {self.fix}"


class BundleError(ValueError):
    """Bad input, described by findings: nothing has been computed or written from it.

    Args:
        findings: one finding, several, or a ready message.
        ends_run: no other case can be computed either, as where weights are missing.
        one_case: it lies in this case alone, though it was read, as where the network gives NaN.
    """

    def __init__(
        self, findings: Finding | Iterable[Finding] | str, ends_run: bool = False, one_case: bool = False
    ) -> None:
        self.ends_run = ends_run
        self.one_case = one_case
        if isinstance(findings, Finding):
            findings = [findings]
        self.findings = [] if isinstance(findings, str) else list(findings)
        super().__init__(findings if isinstance(findings, str) else "\n".join(str(f) for f in self.findings))


def other_settings(
    file: str | os.PathLike,
    what: str,
    names: Iterable[str],
    before: Mapping[str, Any],
    now: Mapping[str, Any],
    fix: str,
) -> Finding:
    """That settings are not those of before.

    Args:
        file: that says what they were.
        what: had them, e.g. "a run".
        names: of those that differ.
        before: values by name, then.
        now: values by name.
        fix: what to do.
    """
    names = list(names)
    found, expected = (", ".join(f"{name} {values[name]}" for name in names) for values in (before, now))
    return Finding(str(file), f"{what} with {found}", f"the same; now {expected}", fix)


def printable(text: str) -> str:
    """Text with what no file in UTF-8 can hold, of file names in another encoding, as escapes: "\\udce9"."""
    return text.encode(errors="backslashreplace").decode()


def bundle_error_in(error: BaseException | None) -> str | None:
    """Message of the bad input or setting that `error` is, was caused by, or carries from a loader's worker, if any.

    MONAI wraps what goes wrong in a transform or a config expression in `RuntimeError`s, and PyTorch re-raises
    what goes wrong in a worker process as text. Both hide the one line the user needs. Counted as such are
    `BundleError`, `ValueError` that this package raises about an argument, and what PyTorch says of a loader process
    that ran out of memory.
    """
    for cause in _causes(error):
        text = str(cause)
        if _MARKER in text:
            return text.rpartition(_MARKER)[2].split("\n\nThe above exception")[0].strip()
        ended = [line for line in text.splitlines() if any(part in line for part in _LOADER_ENDED)]
        if ended:
            return f"{ended[0].strip().removeprefix('RuntimeError: ')}\n{_LOADER_ADVICE}"
        if isinstance(cause, BundleError) or (isinstance(cause, ValueError) and _raised_here(cause)):
            return text
    return None


def ends_run(error: BaseException) -> bool:
    """Whether `error` is, or was caused by, a `BundleError` that holds for every case."""
    return any(isinstance(cause, BundleError) and cause.ends_run for cause in _causes(error))


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """`error`, what it was raised from or while, and so on."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def show_clear_errors() -> None:
    """Let the interpreter end on a `BundleError` with its message alone (exit status 1 as before).

    Set MONAI_DEBUG=True to see the whole traceback. Called by the configs' `initialize`; a program that only
    imports the package keeps its own hook.
    """
    previous = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        message = bundle_error_in(error)
        if message is None or debugging():
            previous(kind, error, trace)
        else:
            print(f"\nERROR: {message}\n(MONAI_DEBUG=True shows the traceback)", file=sys.stderr)

    sys.excepthook = hook
    make_record = logging.getLogRecordFactory()

    def without_trace(*args: Any, **kwargs: Any) -> logging.LogRecord:
        """MONAI's and Ignite's loggers print the trace of what they pass on; the hook has the message."""
        record = make_record(*args, **kwargs)
        if debugging():
            return record
        cause = record.exc_info[1] if record.exc_info else None
        if "terminating due to exception" in str(record.msg):  # Ignite's, while it passes the exception on
            cause = sys.exc_info()[1]
        if cause is not None and bundle_error_in(cause) is not None:
            record.msg, record.args, record.exc_info = _TOLD_BELOW, (), None
        if _MARKER in str(record.msg):  # of a loader process, whose trace is part of the message
            record.msg, record.args = str(record.msg).partition("\n")[0], ()
        return record

    logging.setLogRecordFactory(without_trace)


_TOLD_BELOW = "the run ends with the error below"
# how PyTorch says that a loader process could not go on
_LOADER_ENDED = ("unable to allocate shared memory", "unable to open shared memory", "DataLoader worker (pid")
_LOADER_ADVICE = (
    "A loader process had not enough memory, or not enough shared memory (/dev/shm; a Docker container has 64 MB). "
    "Give --num_workers 0, or a smaller number; Docker takes --shm-size 8g."
)
# how a trace that comes as text names the error
_MARKER = f"{BundleError.__module__}.{BundleError.__name__}: "


def debugging() -> bool:
    """Whether the user asked for tracebacks, with MONAI_DEBUG."""
    return os.environ.get("MONAI_DEBUG", "").lower() in ("1", "true")


def _raised_here(error: BaseException) -> bool:
    """Whether the statement that raised `error` lies in this package or in a bundle's."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return False
    folders = Path(trace.tb_frame.f_code.co_filename).parents
    return Path(__file__).parent in folders or any((f / "configs" / "metadata.json").is_file() for f in folders[1:3])
