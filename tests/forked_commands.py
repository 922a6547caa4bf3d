"""A Python that has imported what every command imports, and forks for each command: 6 s of CPU less than a new one.

The child has its own arguments, environment, working directory, streams and PYTHONPATH, and runs the module as
`python -m` does, or code as `python -c` does, so that a command behaves as on the command line; the bundles' own
packages are not imported beforehand.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import inspect
import json
import os
import runpy
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path

# what every run of a bundle imports, the third by the first optimizer made; none of it starts a thread
RUN_LIBRARIES = ("torch", "ignite.engine", "torch._dynamo", "monai.bundle", "monai.handlers", "fire")
# what some run imports, or some command of `python -m tools`
LIBRARIES = (*RUN_LIBRARIES, "cc3d", "torchio", "nilearn.datasets")


class ForkedCommands:
    """Runs `python -m module arguments...` in forks of one process, which all test processes share.

    It is started on the first call, and ends with the last of the processes that have called.

    Args:
        name: of the process, for this run of the tests.
        python: the interpreter.
        libraries: what it imports before it forks.
        environment: with which it is started.
    """

    def __init__(
        self,
        name: str = "commands",
        python: str = sys.executable,
        libraries: Sequence[str] = LIBRARIES,
        environment: Mapping[str, str] = os.environ,
    ) -> None:
        run = os.environ.get("PYTEST_XDIST_TESTRUNUID", str(os.getpid()))[:12]
        self._folder = Path(tempfile.gettempdir(), f"{name}-{run}")
        self._command = [python, __file__, str(self._folder), *libraries]
        # hashes of its own, so that nothing kept on disk can depend on those of the test process
        self._environment = {**environment, "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "123"}
        self._connection: socket.socket | None = None

    def run(
        self, arguments: list[str], cwd: str, environment: dict[str, str], timeout: float, kill_at: str = ""
    ) -> subprocess.CompletedProcess[str]:
        """Run to the end, or until the file `kill_at` is there; as `subprocess.run` with captured text.

        Args:
            arguments: a module and its arguments, or "-c" and code.
            cwd: working directory.
            environment: all of it; PYTHONPATH is added to what the interpreter had at its start.
            timeout: in seconds.
            kill_at: file.
        """
        if self._connection is None:
            self._connection = self._connect()
        order = {"arguments": arguments, "cwd": cwd, "environment": environment, "timeout": timeout}
        status, *printed = _asked(self._connection, {**order, "kill_at": kill_at})
        if status == -signal.SIGALRM:
            raise subprocess.TimeoutExpired(arguments, timeout, *printed)
        return subprocess.CompletedProcess(arguments, status, *printed)

    def executable(self, file: Path) -> Path:
        """Write a program that runs its arguments (`-m module ...`, or after `-u`) here as `python` does: its path."""
        self.run(["-c", "pass"], "/", {}, timeout=60)
        file.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S "{__file__}" --as-python "{self._folder}" "$@"\n')
        file.chmod(0o755)
        return file

    def _connect(self) -> socket.socket:
        """To the process; whoever makes its folder starts it."""
        process = None
        for _ in range(1200):
            with contextlib.suppress(FileExistsError):
                self._folder.mkdir()
                process = subprocess.Popen(self._command, env=self._environment, start_new_session=True,
                                           stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)  # fmt: skip
            with contextlib.suppress(FileNotFoundError, ConnectionRefusedError):
                return _connected(self._folder)
            if process is not None and process.poll() is not None:
                break
            time.sleep(0.1)
        raise RuntimeError(f"nothing listens at {self._folder}: {self._command} has failed")

    def close(self) -> None:
        """Let the process end, unless another test process needs it."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def _connected(folder: Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.connect(str(folder / "socket"))
    except OSError:
        connection.close()
        raise
    return connection


def _asked(connection: socket.socket, order: dict) -> tuple[int, str, str]:
    """Exit status and what was printed, when an order has been carried out."""
    with tempfile.TemporaryDirectory() as folder, connection.makefile("rw") as talk:
        out, err = Path(folder, "out"), Path(folder, "err")
        talk.write(json.dumps({**order, "out": str(out), "err": str(err)}) + "\n")
        talk.flush()
        return int(talk.readline()), out.read_text(errors="replace"), err.read_text(errors="replace")


def _as_python(folder: Path, arguments: Sequence[str]) -> int:
    """Run `-m module arguments...` in a fork, with this process's working directory, environment and streams."""
    arguments = arguments[1:] if arguments[0] == "-u" else arguments
    assert arguments[0] == "-m", arguments
    order = {"arguments": arguments[1:], "cwd": os.getcwd(), "environment": dict(os.environ), "timeout": 300}
    status, *printed = _asked(_connected(folder), {**order, "kill_at": ""})
    for stream, text in zip((sys.stdout, sys.stderr), printed, strict=True):
        stream.write(text)
    return status


def _listen(folder: Path, libraries: Sequence[str]) -> None:
    """Import what is needed, then give every test process that connects a fork that forks its commands."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(folder / "socket"))
    listener.listen()  # whoever comes before the imports are done, waits
    with contextlib.suppress(ImportError, AttributeError):  # as tests/conftest.py does
        yaml = importlib.import_module("yaml")
        yaml.SafeLoader = yaml.CSafeLoader
    for name in libraries:
        importlib.import_module(name)
    for _ in range(2):  # finds the files of all modules, which Fire would do in every command; the first imports more
        inspect.getmodule(sys._getframe(), "/of no module")
    inspect.modulesbyfile["<frozen runpy>"] = "runpy"  # of no file, looked for in every module
    for of_library in list(weakref.finalize._registry):  # type: ignore[attr-defined]
        of_library.atexit = False  # this process's to undo, not that of each command
    gc.freeze()  # no command has to look through what is here, which would copy it
    sys.dont_write_bytecode, sys.pycache_prefix = False, str(folder / "compiled")  # the bundles' own code, once
    starter, served, ending = os.getppid(), 0, False
    while True:
        if select.select([listener], [], [], 0.2)[0]:
            connection, _ = listener.accept()
            if not os.fork():
                listener.close()
                _serve(connection)
                os._exit(0)
            connection.close()
            served += 1
        elif ending:
            return
        ended = 0
        while served and os.waitpid(-1, os.WNOHANG)[0]:
            served, ended = served - 1, ended + 1
        if not served and (ended or os.getppid() != starter):  # whoever comes later starts another
            shutil.rmtree(folder, ignore_errors=True)
            ending = True


def _serve(connection: socket.socket) -> None:
    talk = connection.makefile("rw")
    for line in talk:
        order = json.loads(line)
        child = os.fork()
        if not child:
            talk.close()
            connection.close()
            _become(order)
        deadline, status = time.monotonic() + order["timeout"], None
        while status is None:
            done, code = os.waitpid(child, os.WNOHANG)
            if done:
                status = os.waitstatus_to_exitcode(code)
            elif order["kill_at"] and os.path.exists(order["kill_at"]):
                os.killpg(child, signal.SIGKILL)
                order["kill_at"] = ""
            elif time.monotonic() > deadline:
                os.killpg(child, signal.SIGKILL)
                os.waitpid(child, 0)
                status = -signal.SIGALRM
            else:
                time.sleep(0.02)
        talk.write(f"{status}\n")
        talk.flush()


def _become(order: dict) -> None:
    """Be the command; does not return."""
    os.setsid()
    for name, number in (("out", 1), ("err", 2)):
        file = os.open(order[name], os.O_WRONLY | os.O_CREAT)
        os.dup2(file, number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.chdir(order["cwd"])
    os.environ.clear()
    os.environ.update(order["environment"])
    several = 1 if "TORCHELASTIC_RUN_ID" in os.environ else int(os.environ.get("WORLD_SIZE", "1"))
    for rank in range(1, several):  # as torchrun starts them, unless it does; the first is waited for
        if not os.fork():
            os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank))
            break
    module, *sys.argv[1:] = order["arguments"]
    further = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    sys.path[:0] = [order["cwd"], *(path for path in further if path and path not in sys.path)]
    status = 0
    try:
        if module == "-c":
            exec(sys.argv.pop(1), {"__name__": "__main__"})
        else:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException:
        sys.excepthook(*sys.exc_info())  # type: ignore[arg-type]
        status = 1
    with contextlib.suppress(Exception):
        atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    del sys.path[0]  # the folder of this file, which no command has
    if sys.argv[1] == "--as-python":
        sys.exit(_as_python(Path(sys.argv[2]), sys.argv[3:]))
    _listen(Path(sys.argv[1]), sys.argv[2:])
