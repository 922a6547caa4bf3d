"""One training at a time in a folder of checkpoints."""

from __future__ import annotations

import atexit
import contextlib
import errno
import json
import logging
import os
import shutil
import socket
import time
from pathlib import Path

import ignite.distributed as idist

from bundlekit.errors import BundleError, Finding

try:
    import fcntl
except ImportError:  # not a POSIX system
    fcntl = None  # type: ignore[assignment]

_log = logging.getLogger(__name__)
_LOCK = ".lock"
# what a file system without locks says: NFS without its lock service, some of Lustre, FUSE
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}
_warned: set[str] = set()  # folders of which that was said
# open files, and whether the folder was made for them, by folder and by process: a fork has none
_held: dict[tuple[str, int], tuple[int, bool]] = {}


def lock_run(ckpt_dir: str) -> None:
    """Keep other trainings out of a folder until this one ends; by rank 0 for all processes of a training.

    A file `.lock` there says who trains: process, host and start. It is locked by the system, which lets go of it when
    the process ends, however that is: what a killed one leaves is taken over. `filelock` says nothing of the owner, and
    its locks outlive a killed process as long as loader processes of it do.

    Without the locks of POSIX (Windows) nothing is locked; nor where the file system has none, which a warning says.

    Args:
        ckpt_dir: folder, made if missing.

    Raises:
        BundleError: if another process trains there, or the folder cannot be written to.
    """
    folder = os.path.abspath(ckpt_dir)
    if fcntl is None or idist.get_rank() != 0 or (folder, os.getpid()) in _held:
        return
    path = Path(folder, _LOCK)
    try:
        made = not Path(folder).exists()
        Path(folder).mkdir(parents=True, exist_ok=True)
        descriptor = _open(path)
    except BlockingIOError:
        found = f"another training{_owner(path.read_bytes())}"
        fix = "wait for it, end it, or set --ckpt_dir to another folder"
        raise BundleError(Finding(ckpt_dir, found, "one training at a time", fix)) from None
    except OSError as error:
        if error.errno in _NO_LOCKS:
            if folder not in _warned:
                _log.warning("%s: no locks on this file system (%s): start one training there at a time", folder, error)
            _warned.add(folder)
            return
        fix = "set --ckpt_dir to another folder"
        raise BundleError(Finding(ckpt_dir, f"cannot be used ({error})", "a folder to write to", fix)) from error
    before = os.pread(descriptor, 4096, 0)  # opening and closing the file again would let go of it
    if before:
        _log.info("%s: taken over from a training that did not end by itself%s", ckpt_dir, _owner(before))
    os.ftruncate(descriptor, 0)
    owner = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
    os.write(descriptor, json.dumps(owner).encode())
    _held[folder, os.getpid()] = descriptor, made
    atexit.register(unlock_run, folder)


def clear_run(ckpt_dir: str) -> None:
    """Lock a folder as `lock_run` does, and remove all that an earlier training left in it.

    Args:
        ckpt_dir: as in `lock_run`.

    Raises:
        BundleError: as `lock_run`; nothing is removed then.
    """
    lock_run(ckpt_dir)
    for entry in Path(ckpt_dir).iterdir() if Path(ckpt_dir).is_dir() else ():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        elif entry.name != _LOCK:
            entry.unlink()


def unlock_run(ckpt_dir: str) -> None:
    """Let other trainings into the folder again; nothing happens if this process does not hold it.

    A folder that it made, and in which nothing was written, is removed.

    Args:
        ckpt_dir: as in `lock_run`.
    """
    folder = os.path.abspath(ckpt_dir)
    descriptor, made = _held.pop((folder, os.getpid()), (None, False))
    if descriptor is not None:
        Path(folder, _LOCK).unlink(missing_ok=True)
        os.close(descriptor)
        if made:
            with contextlib.suppress(OSError):  # it holds what was written
                os.rmdir(folder)


def _open(path: Path) -> int:
    """The lock file, open and locked; `BlockingIOError` if another process has it."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if path.exists() and os.fstat(descriptor).st_ino == path.stat().st_ino:
                return descriptor
        except OSError as error:
            os.close(descriptor)
            if error.errno in _NO_LOCKS:
                path.unlink(missing_ok=True)
            raise
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # its owner has removed it in between


def _owner(content: bytes) -> str:
    """What a lock file says of its owner, to be put behind a sentence."""
    try:
        owner = json.loads(content)
        return f": process {owner['pid']} on {owner['host']}, since {owner['since']}"
    except (ValueError, KeyError, TypeError):
        return ""
