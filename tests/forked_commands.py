"""A Python that has imported what every command imports, and forks for each command: 6 s of CPU less than a new one.

The child has its own arguments, environment, working directory, streams and PYTHONPATH, and runs the module as
`python -m` does, or code as `python -c` does, so that a command behaves as on the command line; the bundles' own
packages are not imported beforehand.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib
import json
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

# what every run of a bundle imports, the third by the first optimizer made; none of it starts a thread
RUN_LIBRARIES = ("torch", "ignite.engine", "torch._dynamo", "monai.bundle", "monai.handlers", "fire")
# what some run imports, or some command of `python -m tools`
LIBRARIES = (*RUN_LIBRARIES, "cc3d", "torchio", "nilearn.datasets")


class ForkedCommands:
    """Runs `python -m module arguments...` in forks of one process; started on the first call.

    Args:
        python: the interpreter.
        libraries: what it imports before it forks.
        environment: with which it is started.
    """

    def __init__(
        self,
        python: str = sys.executable,
        libraries: Sequence[str] = LIBRARIES,
        environment: Mapping[str, str] = os.environ,
    ) -> None:
        self._command = [python, __file__, *libraries]
        # hashes of its own, so that nothing kept on disk can depend on those of the test process
        self._environment = {**environment, "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "123"}
        self._process: subprocess.Popen[str] | None = None

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
        if self._process is None:
            self._process = subprocess.Popen(
                self._command,
                env=self._environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            atexit.register(self.close)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with tempfile.TemporaryDirectory() as folder:
            out, err = Path(folder, "out"), Path(folder, "err")
            order = {"arguments": arguments, "cwd": cwd, "environment": environment, "timeout": timeout,
                     "kill_at": kill_at}  # fmt: skip
            self._process.stdin.write(json.dumps({**order, "out": str(out), "err": str(err)}) + "\n")
            self._process.stdin.flush()
            status = int(self._process.stdout.readline())
            printed = out.read_text(errors="replace"), err.read_text(errors="replace")
        if status == -signal.SIGALRM:
            raise subprocess.TimeoutExpired(arguments, timeout, *printed)
        return subprocess.CompletedProcess(arguments, status, *printed)

    def close(self) -> None:
        """End the process; the next call starts another."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None


def _serve() -> None:
    for line in sys.stdin:
        order = json.loads(line)
        child = os.fork()
        if not child:
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
        print(status, flush=True)


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
    for rank in range(1, int(os.environ.get("WORLD_SIZE", "1"))):  # as torchrun starts several; the first is waited for
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
    for name in sys.argv[1:]:
        importlib.import_module(name)
    _serve()
