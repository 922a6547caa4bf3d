"""MONAI Label's own Python environment: its versions do not go together with the project's."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_HERE = Path(__file__).resolve().parent
_SITE = _HERE / "site"


def environment(folder: str | os.PathLike = ROOT / ".venv-label") -> Path:
    """The environment's `python`; made, or brought up to date with the requirements, if need be (a few minutes).

    Args:
        folder: of the environment.

    Raises:
        ValueError: if there is no Python that MONAI Label's packages are made for.
        OSError: if a package cannot be installed; pip has said why.
    """
    folder = Path(folder)
    python = folder / "bin" / "python"
    files = [_HERE / "requirements-torch.txt", _HERE / "requirements.txt"]
    ours = sorted(_SITE.rglob("*.py"))
    wanted = hashlib.sha256(b"".join(file.read_bytes() for file in [*files, *ours])).hexdigest()
    done = folder / "installed"
    if python.exists() and done.is_file() and done.read_text() == wanted:
        return python
    done.unlink(missing_ok=True)  # of before, should this one end half-way
    print(f"making MONAI Label's environment in {folder} (once, a few minutes)", flush=True)
    _run([_base_python(), "-m", "venv", str(folder)])
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    _run([*pip, "-r", str(files[0])])
    _run([*pip, "--no-deps", "-r", str(files[1])])
    _stand_in_for_torchvision(python)
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


def _stand_in_for_torchvision(python: Path) -> None:
    """Put `site/torchvision` where a package of that name is looked for.

    MONAI Label imports two of torchvision's functions, which nothing here calls. torchvision itself is not installed:
    its compiled operators fit one build of PyTorch alone, and pip may find the two in different ones (PyTorch without
    CUDA, torchvision with it), so that importing it fails.
    """
    where = "import sysconfig; print(sysconfig.get_path('purelib'))"
    packages = subprocess.run([str(python), "-c", where], capture_output=True, text=True, check=True).stdout.strip()
    shutil.copytree(_SITE, packages, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    _run([str(python), "-c", "from torchvision.utils import make_grid, save_image"])
