"""MONAI Label's own Python environment: its versions do not go together with the project's."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_HERE = Path(__file__).resolve().parent
_OPERATORS = re.compile(
    r"from torchvision import \([^)]*_meta_registrations[^)]*\)|from torchvision import _meta_reg.*"
)


def environment(gpu: bool | None = None, folder: str | os.PathLike = ROOT / ".venv-label") -> Path:
    """The environment's `python`; made, or brought up to date with the requirements, if need be (a few minutes).

    Args:
        gpu: whether PyTorch is to have CUDA; None: if `nvidia-smi` is there.
        folder: of the environment.

    Raises:
        ValueError: if there is no Python that MONAI Label's packages are made for.
        OSError: if a package cannot be installed; pip has said why.
    """
    folder = Path(folder)
    python = folder / "bin" / "python"
    gpu = shutil.which("nvidia-smi") is not None if gpu is None else gpu
    files = [_HERE / f"requirements-{'gpu' if gpu else 'cpu'}.txt", _HERE / "requirements.txt"]
    wanted = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
    done = folder / "installed"
    if python.exists() and done.is_file() and done.read_text() == wanted:
        return python
    print(f"making MONAI Label's environment in {folder} (once, a few minutes)", flush=True)
    _run([_base_python(), "-m", "venv", str(folder)])
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    _run([*pip, "-r", str(files[0])])
    _run([*pip, "--no-deps", "-r", str(files[1])])
    _mend_torchvision(python)
    done.write_text(wanted)
    return python


def _base_python() -> str:
    """A Python that MONAI Label's packages are made for: the one that runs this, else one on the path."""
    own = Path(sys.base_prefix) / "bin" / f"python{sys.version_info[0]}.{sys.version_info[1]}"
    if (3, 11) <= sys.version_info[:2] <= (3, 12) and own.exists():
        return str(own)
    found = shutil.which("python3.11") or shutil.which("python3.12")
    if found is None:
        raise ValueError(
            "MONAI Label's environment needs Python 3.11 or 3.12; install one so that python3.11 is found."
        )
    return found


def _run(command: list[str]) -> None:
    if subprocess.run(command, check=False).returncode:
        raise OSError(f"this failed: {' '.join(command)}")


def _mend_torchvision(python: Path) -> None:
    """Let torchvision be imported where its compiled operators are for another PyTorch than the one installed.

    That is so where pip finds a PyTorch without CUDA and a torchvision with it. MONAI Label uses two of torchvision's
    functions that write pictures, none of its operators.
    """
    if not subprocess.run([str(python), "-c", "import torchvision"], capture_output=True, check=False).returncode:
        return
    where = "import importlib.util as u; print(u.find_spec('torchvision').origin)"
    file = Path(subprocess.run([str(python), "-c", where], capture_output=True, text=True, check=True).stdout.strip())
    text, count = _OPERATORS.subn("from torchvision import utils", file.read_text())
    if not count:
        raise OSError(f"{file} cannot be imported, and is not the torchvision this is written for")
    file.write_text(text)
    _run([str(python), "-c", "import torchvision.utils"])
