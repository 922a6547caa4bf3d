"""Weights that give way to others are kept, so that they can be brought back."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from tempfile import mkdtemp

from bundlekit.errors import BundleError
from bundlekit.weights.settings import SETTINGS, companions

EARLIER = "earlier"


def keep_aside(models: Path, names: Sequence[str] = ("model.pt", SETTINGS)) -> Path:
    """Copy a folder's `model.pt`, its `settings.json` and the weights it names, to a new folder in its `earlier/`.

    Args:
        models: the folder; what is in it stays as it is.
        names: of the files that are copied, where they are there.

    Returns:
        The new folder, named by the time; it is there whole or not at all.

    Raises:
        OSError: if the files cannot be copied.
    """
    (models / EARLIER).mkdir(exist_ok=True)
    copy = Path(mkdtemp(prefix=".", dir=models / EARLIER))
    try:
        others: list[str] = []
        with suppress(BundleError):  # a record that cannot be read is kept as it is
            others = companions(models / "model.pt")
        for name in (*names, *others):
            if (models / name).is_file():
                shutil.copyfile(models / name, copy / name)
        copy.chmod(0o755)
        stamp = datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
        kept, count = models / EARLIER / stamp, 1
        while kept.exists():
            count += 1
            kept = models / EARLIER / f"{stamp}_{count}"
        return copy.rename(kept)
    except BaseException:
        shutil.rmtree(copy, ignore_errors=True)
        raise
