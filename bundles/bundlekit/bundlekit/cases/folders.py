"""The files below a folder, through links, none left out without a word; and what lies there instead of scans."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from bundlekit.errors import BundleError, Finding
from bundlekit.images.nifti import is_dicom

CANNOT_BE_LISTED = "a folder that cannot be read"
_left_out: ContextVar[frozenset[tuple[int, int]]] = ContextVar("_left_out", default=frozenset())
_LOOKED_AT = 2000  # files of an unknown ending, when nothing else was found
_PAIR = re.compile(r"\.(hdr|img)(\.gz)?$", re.IGNORECASE)


def absolute(path: object) -> Path:
    """The path from the root on, so that the folders that it lies in have names: `.` and `..` are none.

    Args:
        path: as it was given, with `~` or without. Links stay, where they can: a link may name the case.
    """
    given = Path(str(path)).expanduser()
    plain = Path(os.path.abspath(given))
    if not given.exists() or (plain.exists() and plain.samefile(given)):
        return plain
    return given.resolve() if given.name in ("", "..") else given.parent.resolve() / given.name


def data_set(dataset_dir: object, expected: str = "the data set") -> Path:
    """`absolute` of --dataset_dir; BundleError, with what was `expected`, if there is no such file or folder."""
    root = absolute(dataset_dir)
    if not root.exists():
        raise BundleError(Finding(str(root), "no such file or folder", expected, "check --dataset_dir"))
    return root


def walk(
    root: str | os.PathLike, prune: Callable[[Path, Sequence[str]], bool] | None = None
) -> Iterator[tuple[Path, list[str]]]:
    """Folders below `root`, itself included, each with the names of its files; in sorted order.

    Links are followed. A folder that several links lead to, or that lies above itself by a link, is visited once, by
    the first of its names. Hidden files and folders are left out, and those of `leaving_out`.

    Args:
        root: a folder.
        prune: called with a folder and its files; True leaves out what lies in folders below.

    Raises:
        BundleError: naming every folder that may not be read; after all others, so that a caller who has taken them
            knows that some are missing.
    """
    closed: list[OSError] = []
    visited: set[tuple[int, int]] = set()
    visited |= _left_out.get()
    _first_visit(Path(root), visited)
    for name, folders, files in os.walk(str(root), onerror=closed.append, followlinks=True):
        folder = Path(name)
        kept = sorted(file for file in files if not file.startswith("."))
        yield folder, kept
        below = [] if prune is not None and prune(folder, kept) else sorted(f for f in folders if not f.startswith("."))
        folders[:] = [f for f in below if _first_visit(folder / f, visited)]
    if closed:
        raise BundleError(
            [
                Finding(
                    str(error.filename),
                    f"{CANNOT_BE_LISTED} ({error.strerror})",
                    "a folder that may be listed, so that no case is left out",
                    "give yourself the permission to read it, or take it out of the data set",
                )
                for error in closed
            ]
        )


@contextmanager
def leaving_out(folder: str | os.PathLike) -> Iterator[None]:
    """While this lasts, no search of this thread goes into `folder`, unless it begins there.

    Args:
        folder: that may be there or not.
    """
    try:
        status = os.stat(folder)
        token = _left_out.set(_left_out.get() | {(status.st_dev, status.st_ino)})
    except FileNotFoundError:
        token = _left_out.set(_left_out.get())
    try:
        yield
    finally:
        _left_out.reset(token)


def _first_visit(folder: Path, visited: set[tuple[int, int]]) -> bool:
    try:
        status = folder.stat()
    except OSError:  # named by `os.walk`
        return True
    identity = (status.st_dev, status.st_ino)
    known = identity in visited
    visited.add(identity)
    return not known


def nothing_found(
    root: str | os.PathLike, expected: str, found: str = "no case", fix: str = "check the folder given as --dataset_dir"
) -> Finding:
    """That there is no case, and what lies there instead where it can be told: DICOM, or pairs of .hdr and .img.

    Args:
        root: the folder or file that was given.
        expected: the files that would be cases.
        found: what is said if nothing is recognised.
        fix: what to do then.
    """
    below = list(walk(root)) if os.path.isdir(root) else []
    files = [folder / name for folder, names in below for name in names] or [Path(root)]
    dicom = sum(is_dicom(file) for file in files[:_LOOKED_AT])
    pairs = sum(bool(_PAIR.search(file.name)) for file in files)
    if dicom:
        found += f", but {dicom} DICOM file(s)" + (f" among the first {_LOOKED_AT}" if len(files) > _LOOKED_AT else "")
        fix = "convert them to NIfTI first, e.g. with dcm2niix"
    elif pairs:
        found += f", but {pairs} .hdr and .img file(s)"
        fix = "convert each pair to one .nii.gz file first, e.g. nibabel.save(nibabel.load(X.hdr), X.nii.gz)"
    return Finding(str(root), found, expected, fix)
