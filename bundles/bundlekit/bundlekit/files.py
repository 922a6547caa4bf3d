"""Files that are written whole or not at all."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

from bundlekit.errors import BundleError, Finding


def write_whole(path: str | os.PathLike, write: Callable[[Any], object], private: bool = False) -> None:
    """Write a file so that it is there whole or not at all: beside its place, then renamed.

    Ignite's `DiskSaver` is for checkpoints and does not flush to the disk; `atomicwrites` is no longer maintained.

    Args:
        path: the file; its folder is made if missing.
        write: called with the open binary file.
        private: readable for its owner alone; otherwise for whom the umask says.

    Raises:
        OSError: as the system says it (no space, no permission); the temporary file is gone by then.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{path.name}.{uuid4().hex[:8]}.part"
    try:
        with open(temporary, "xb", opener=partial(os.open, mode=0o600 if private else 0o666)) as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, RuntimeError) and isinstance(error.__context__, OSError):
            raise error.__context__ from None  # torch.save hides a full disk behind a RuntimeError about its positions
        raise


def write_result(path: str | os.PathLike, write: Callable[[Any], object], setting: str, private: bool = False) -> None:
    """`write_whole` for a file that the user waits for.

    Args:
        path: the file.
        write: called with the open binary file.
        setting: name of the config value that names the folder, for the message.
        private: readable for its owner alone.

    Raises:
        BundleError: if the file cannot be written; an earlier file of this name is intact then.
    """
    try:
        write_whole(path, write, private)
    except OSError as error:
        raise BundleError(
            Finding(
                str(path),
                f"cannot be written ({error})",
                "room and permission for it",
                f"free some space, or set --{setting} to another folder; the files written so far are whole "
                "(a training run goes on with configs/resume.yaml)",
            )
        ) from error


def write_content(path: str | os.PathLike, content: bytes | str, setting: str | None = None) -> None:
    """`write_result`, or without `setting` `write_whole`, of what is at hand; text in UTF-8.

    Raises:
        BundleError: with `setting`, as `write_result`.
        OSError: without, as `write_whole`.
    """
    data = content.encode() if isinstance(content, str) else content
    if setting is None:
        write_whole(path, lambda file: file.write(data))
    else:
        write_result(path, lambda file: file.write(data), setting)


def sha256_of(path: str | os.PathLike) -> str:
    """SHA-256 of a file, in hexadecimal digits; MONAI's `check_hash` compares one, but does not tell it."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def default_cache_dir(name: str) -> str:
    """Folder of that name, a bundle's, in `$XDG_CACHE_HOME` or `~/.cache`."""
    return str(Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", name))
