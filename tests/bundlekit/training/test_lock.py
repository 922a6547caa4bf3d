"""One training at a time in a folder."""

from __future__ import annotations

import errno
import logging
import os
import re
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path

import ignite.distributed as idist
import pytest

from bundlekit.errors import BundleError
from bundlekit.training import lock
from bundlekit.training.lock import clear_run, lock_run, unlock_run
from bundlekit.training.saving import require_new_run


def in_another_process(work: Callable[[], object]) -> int:
    """Process that does it and then waits to be killed; it has done it on return."""
    there, here = os.pipe()
    child = os.fork()
    if not child:
        try:
            work()
            os.write(here, b"done")
        except BaseException as error:
            os.write(here, repr(error).encode())
            os._exit(1)
        time.sleep(60)
        os._exit(0)
    told = os.read(there, 4096)
    os.close(there)
    os.close(here)
    if told != b"done":
        os.waitpid(child, 0)
    assert told == b"done"
    return child


def end(child: int) -> None:
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def test_a_second_training_is_refused_and_told_who_trains(tmp_path: Path) -> None:
    other = in_another_process(lambda: require_new_run(str(tmp_path / "run")))
    try:
        with pytest.raises(BundleError) as error:
            require_new_run(str(tmp_path / "run"), overwrite=True)
    finally:
        end(other)
    assert re.search(rf"another training: process {other} on {socket.gethostname()}, since 20", str(error.value))
    assert "--ckpt_dir" in str(error.value)


def test_what_a_killed_training_leaves_is_taken_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    other = in_another_process(lambda: lock_run(str(tmp_path)))
    end(other)
    assert (tmp_path / ".lock").exists()
    with caplog.at_level(logging.INFO):
        lock_run(str(tmp_path))
    assert f"taken over from a training that did not end by itself: process {other}" in caplog.text
    with pytest.raises(AssertionError, match="BundleError"):
        in_another_process(lambda: unlock_run(str(tmp_path)) or lock_run(str(tmp_path)))
    unlock_run(str(tmp_path))
    assert list(tmp_path.iterdir()) == []
    end(in_another_process(lambda: lock_run(str(tmp_path))))


def test_one_process_may_train_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock_run(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    lock_run(".")
    unlock_run(str(tmp_path))
    unlock_run(str(tmp_path))


def test_a_folder_is_cleared_for_one_training_alone(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    (tmp_path / "last.pt").touch()
    other = in_another_process(lambda: lock_run(str(tmp_path)))
    try:
        with pytest.raises(BundleError, match="another training"):
            clear_run(str(tmp_path))
        assert {path.name for path in tmp_path.iterdir()} == {"old", "last.pt", ".lock"}
    finally:
        end(other)
    clear_run(str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]
    unlock_run(str(tmp_path))


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_trains_nonetheless(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(lock.fcntl, "lockf", refuse)
    for _ in range(2):
        require_new_run(str(tmp_path / "run"))
    assert caplog.text.count("no locks on this file system") == 1
    unlock_run(str(tmp_path / "run"))
    assert list((tmp_path / "run").iterdir()) == []


def test_rank_0_locks_for_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(idist, "get_rank", lambda: 1)
    lock_run(str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_a_file_is_no_folder_to_train_in(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for place in ("file", "file/run"):
        with pytest.raises(BundleError, match="--ckpt_dir to another folder"):
            require_new_run(str(tmp_path / place))
