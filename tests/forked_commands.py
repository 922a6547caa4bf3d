"""A Python that has imported what every command imports, and forks for each command: 6 s of CPU less than a new one.

The child has its own arguments, environment, working directory and streams, and runs the module as `python -m` does, so
that a command behaves as on the command line; the bundles' own packages are not imported beforehand.
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
from pathlib import Path


class ForkedCommands:
    """Runs `python -m module arguments...` in forks of one process; started on the first call."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def run(
        self, arguments: list[str], cwd: str, environment: dict[str, str], timeout: float, kill_at: str = ""
    ) -> subprocess.CompletedProcess[str]:
        """Run to the end, or until the file `kill_at` is there; as `subprocess.run` with captured text."""
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.forked_commands"],
                cwd=Path(__file__).resolve().parents[1],
                env={**os.environ, "OMP_NUM_THREADS": "1"},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            atexit.register(self._process.kill)
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
    sys.path[0] = order["cwd"]
    status = 0
    try:
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
    # what `python -m monai.bundle` and `python -m tools` import; none of it starts a thread
    for name in ("torch", "ignite.engine", "monai.bundle", "monai.handlers", "torchio", "nilearn.datasets"):
        importlib.import_module(name)
    _serve()
