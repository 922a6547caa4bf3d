"""Start MONAI Label's server with the bundles, and stop it with all it has started."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType
from typing import Any
from urllib.error import URLError
from urllib.request import ProxyHandler, build_opener

from filelock import FileLock, Timeout

from tools.label.app_folder import make_app
from tools.label.environment import environment

_HOST = "127.0.0.1"
_DIRECT = build_opener(ProxyHandler({}))  # no proxy of the environment stands between this machine and itself
_PATIENCE = 180  # seconds until the server has to answer


def label(
    studies: str,
    bundles: str | Sequence[str] | None = None,
    weights: str | Sequence[str] | None = None,
    port: int = 8000,
    app: str = "runs/label",
    labels: str | None = None,
    fresh: bool = False,
) -> None:
    """Serve bundles to 3D Slicer and other MONAI Label clients until Ctrl-C, on this machine alone.

    Copies of the bundles are served, so that training from a viewer leaves the originals as they are. Makes MONAI
    Label's own environment (.venv-label) the first time.

    Example: python -m tools label --studies DIR --weights brats_unet_h5=run/model.pt

    Args:
        studies: folder of scans, searched to any depth; or the address of a DICOMweb server.
        bundles: names with commas between them; default: all that have weights.
        weights: NAME=PATH of a trained model.pt (settings.json beside it), several with commas between them. The same
            file again keeps what was fine-tuned from it in `app`; another file replaces it.
        port: of the server.
        app: folder of the served copies, their weights and the log; kept from one start to the next.
        labels: folder for labels and MONAI Label's list of studies; default: the studies folder itself.
        fresh: start from the original weights again; those that were fine-tuned in `app` are kept in models/earlier.
    """
    _require_port(port)
    _require_free(port)  # a server that runs has its copies in `app`
    folder = Path(app).expanduser().resolve()
    with _alone(folder) as lock:
        _label(studies, bundles, weights, port, folder, labels, fresh, lock)


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[int | None]:
    """Keep an app folder to one server: another one would replace the copies that it serves, and what it trains.

    Yields the descriptor that holds the lock, for the server to have: it may live on where this process is killed.

    Raises:
        ValueError: if a server has it.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder.with_name(f".{folder.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ValueError(
            f"{folder} is that of a server that runs; stop it, or give another folder with --app."
        ) from None
    try:
        yield lock._context.lock_file_fd  # filelock has no other name for it
    finally:
        lock.release()


def _label(
    studies: str,
    bundles: str | Sequence[str] | None,
    weights: str | Sequence[str] | None,
    port: int,
    folder: Path,
    labels: str | None,
    fresh: bool,
    lock: int | None,
) -> None:
    where = studies if studies.startswith(("http://", "https://")) else str(_writable(studies, labels))
    served = make_app(folder, _list(bundles) or None, _pairs(_list(weights)), fresh)
    origins = _origins(port, os.environ.get("MONAI_LABEL_CORS_ORIGINS", ""))
    python = environment()
    command = [str(python), "-m", "monailabel.main", "start_server", "--app", str(folder), "--studies", where]
    conf = {"models": ",".join(served), "zoo_source": "local", "sam2": "false"}
    if labels:
        conf["labels"] = str(Path(labels).expanduser().resolve())
    for key, value in conf.items():
        command += ["--conf", key, value]
    command += ["--host", _HOST, "--port", str(port), "--uvicorn_app", "lib.web:app"]
    with TemporaryDirectory(prefix="label-") as sent:  # what clients send, in a folder that only this user can enter
        _serve(command, folder, _variables(python, folder, origins, sent), port, where, lock)


def _serve(
    command: list[str], folder: Path, variables: dict[str, str], port: int, where: str, lock: int | None = None
) -> None:
    """Run the server, with the lock of its folder, until Ctrl-C or until it ends by itself, which is an OSError."""
    log = folder / "server.log"
    with log.open("w") as out:
        # a process group of its own: Ctrl-C reaches this process alone, which stops the server and its trainings
        server = subprocess.Popen(
            command,
            cwd=folder,
            env=variables,
            stdout=out,
            stderr=out,
            start_new_session=True,
            pass_fds=() if lock is None else (lock,),
        )
    heeded = [n for n in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(n) is not signal.SIG_IGN]  # nohup ignores
    previous = {number: signal.signal(number, _interrupt) for number in heeded}
    try:
        _announce(_wait(server, port, log), port, where, log)
        status = server.wait()
        raise OSError(f"the server ended by itself (status {status}); its last words, of {log}:\n{_tail(log)}")
    except KeyboardInterrupt:
        print("stopped", flush=True)
    finally:
        _stop(server)
        for number, handler in previous.items():
            signal.signal(number, handler)


def _list(value: str | Sequence[str] | None) -> list[str]:
    """Fire makes a tuple of what has commas."""
    parts = value.split(",") if isinstance(value, str) else list(value or ())
    return [str(part).strip() for part in parts if str(part).strip()]


def _pairs(items: Sequence[str]) -> dict[str, str]:
    pairs = {}
    for item in items:
        name, equals, path = item.partition("=")
        if not equals or not path:
            raise ValueError(f"--weights {item}: expected NAME=PATH, e.g. brats_unet_h5=run/model.pt")
        pairs[name] = path
    return pairs


def _writable(studies: str, labels: str | None) -> Path:
    folder = Path(studies).expanduser().resolve()
    if not folder.is_dir():
        raise ValueError(f"--studies {studies}: no such folder; expected the folder with your scans.")
    target = Path(labels).expanduser() if labels else folder
    if labels:
        target.mkdir(parents=True, exist_ok=True)
    if not os.access(target, os.W_OK):
        raise ValueError(f"{target} cannot be written to; give --labels DIR, where labels are to be kept.")
    return folder


def _require_port(port: object) -> None:
    """Fire hands on whatever it was given: abc as a string, 80.5 as a float."""
    if isinstance(port, bool) or not isinstance(port, int) or not 1 <= port <= 65535:
        raise ValueError(f"--port {port}: expected a whole number from 1 to 65535, e.g. --port 8001")


def _require_free(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((_HOST, port))
        except OSError as error:
            raise ValueError(
                f"port {port} cannot be used ({error}); give another one, e.g. --port {port % 65535 + 1}"
            ) from None


def _origins(port: int, more: str) -> list[str]:
    """Origins of the web pages whose requests are answered: the server's own, and those that the user names.

    Raises:
        ValueError: if `more` is no JSON list.
    """
    try:
        named = json.loads(more or "[]")
        if not isinstance(named, list) or not all(str(origin).startswith(("http://", "https://")) for origin in named):
            raise ValueError
    except ValueError:
        example = '["http://localhost:3000"]'
        raise ValueError(f"MONAI_LABEL_CORS_ORIGINS is {more}; expected a list in JSON, e.g. {example}") from None
    return [*(f"http://{host}:{port}" for host in (_HOST, "localhost")), *map(str, named)]


def _variables(python: Path, folder: Path, origins: Sequence[str], sent: str) -> dict[str, str]:
    # MONAI Label 0.8.5 cannot start with MONAI_LABEL_CORS_ORIGINS: lib.web tells them to it
    left = ("PYTHONPATH", "VIRTUAL_ENV", "PYTHONHOME", "MONAI_LABEL_CORS_ORIGINS")
    kept = {key: value for key, value in os.environ.items() if key not in left}
    return {
        **kept,
        "PATH": os.pathsep.join([str(python.parent), kept.get("PATH", "")]),
        "PYTHONPATH": str(folder),
        "PYTHONUNBUFFERED": "1",
        "MONAI_LABEL_AUTO_UPDATE_SCORING": "false",  # would segment every case at each start, and after each sample
        "MONAI_LABEL_SESSION_PATH": str(Path(sent) / "sessions"),  # as private, and gone with the server
        "LABEL_ORIGINS": json.dumps(origins),
        "TMPDIR": sent,
    }


def _wait(server: subprocess.Popen, port: int, log: Path) -> Mapping[str, Any]:
    """What the server says about itself, as soon as it answers."""
    deadline = time.monotonic() + _PATIENCE
    while time.monotonic() < deadline:
        if server.poll() is not None:
            raise OSError(f"the server did not start; its last words, of {log}:\n{_tail(log)}")
        try:
            with _DIRECT.open(f"http://{_HOST}:{port}/info/", timeout=10) as answer:
                return dict(json.load(answer))
        except (URLError, OSError):
            time.sleep(0.3)
    raise OSError(f"the server does not answer after {_PATIENCE} s; see {log}")


def _announce(info: Mapping[str, Any], port: int, studies: str, log: Path) -> None:
    print(f"\nMONAI Label is up: http://{_HOST}:{port}    (enter this address in 3D Slicer's MONAI Label module)")
    for name, model in info["models"].items():
        print(f"  {name:<34} {', '.join(model['labels'])}")
    print(f"studies  {studies}: {info['datastore'].get('total', '?')} case(s)")
    print(f"log      {log}\nCtrl-C stops it.", flush=True)


def _stop(server: subprocess.Popen) -> None:
    """End the server's whole process group, with trainings that run."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(server.pid, number)
        except ProcessLookupError:
            return
        try:
            server.wait(timeout=10)
        except subprocess.TimeoutExpired:
            continue


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _tail(log: Path) -> str:
    """What the log ends on: what a bundle refused, without the way it took there, else its last lines."""
    text = log.read_text(errors="replace")
    refused = text.rpartition("BundleError: ")[2].partition("\n\n")[0]
    return refused if "BundleError: " in text else "\n".join(text.splitlines()[-25:])
