"""What a network was trained with, kept beside its weights, so that inference need not be told again."""

# One of the modules that every bundle carries: edit it in tools/vendored/, then `make sync`.
from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .errors import BundleError, Finding
from .files import write_result

SETTINGS = "settings.json"


def write_settings(settings: Mapping[str, Any], ckpt_dir: str, rank: int = 0) -> None:
    """Write `settings.json` beside the checkpoints of a training; by rank 0 alone.

    Args:
        settings: what inference must do as training did: widths, voxel size, normalisation.
        ckpt_dir: folder, made if missing.
        rank: of this process.
    """
    if rank == 0:
        text = json.dumps(dict(settings), indent=2) + "\n"
        write_result(Path(ckpt_dir, SETTINGS), lambda file: file.write(text.encode()), "ckpt_dir")


def recorded_settings(checkpoint: str | os.PathLike, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that a training wrote beside its checkpoints, over the defaults.

    Args:
        checkpoint: `model.pt` or `last.pt`.
        defaults: for what is not recorded; a recorded key that is not among them is ignored.

    Raises:
        BundleError: if the file is there and cannot be read.
    """
    path = Path(checkpoint).parent / SETTINGS
    if not path.is_file():
        return dict(defaults)
    try:
        recorded = json.loads(path.read_text())
        return {key: recorded.get(key, value) for key, value in defaults.items()}
    except (OSError, ValueError, AttributeError) as error:
        raise BundleError(
            Finding(str(path), f"cannot be read as JSON ({error})", "the settings that training wrote", "copy it again")
        ) from error
