"""Files that are written whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any


def write_whole(path: str | os.PathLike, write: Callable[[Any], object]) -> None:
    """Write a file so that it is there whole or not at all: beside its place, then renamed.

    Args:
        path: the file; its folder is made if missing.
        write: called with the open binary file.

    Raises:
        OSError: as the system says it (no space, no permission); the temporary file is gone by then.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = NamedTemporaryFile(  # noqa: SIM115 (renamed after it is closed)
        dir=path.parent, prefix=f".{path.name}.", suffix=".part", delete=False
    )
    try:
        with temporary:
            write(temporary)
            temporary.flush()
            os.fsync(temporary.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary.name, 0o666 & ~umask)  # NamedTemporaryFile is private; a result is not
        os.replace(temporary.name, path)
    except BaseException as error:
        Path(temporary.name).unlink(missing_ok=True)
        if isinstance(error, RuntimeError) and isinstance(error.__context__, OSError):
            raise error.__context__ from None  # torch.save hides a full disk behind a RuntimeError about its positions
        raise
