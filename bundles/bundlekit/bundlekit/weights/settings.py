"""What a network was trained with, kept beside its weights, so that inference need not be told again."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bundlekit.errors import BundleError, Finding
from bundlekit.files import write_result

SETTINGS = "settings.json"
# recorded after training, not by it; fine-tuning hands on what is about the disease, not about one set of labels
HANDED_ON = ("minimum_lesion_ml", "minimum_core_ml", "minimum_enhancing_ml", "fill_core")
CHOSEN_LATER = (*HANDED_ON, "white_matter_weight")


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


def record_setting(checkpoint: str | os.PathLike, name: str, value: Any) -> None:
    """Set one of the settings beside a checkpoint, for those that are chosen after training; the rest stays.

    Args:
        checkpoint: `model.pt` or `last.pt`.
        name: of the setting.
        value: what JSON can hold.

    Raises:
        BundleError: if the file is there and cannot be read, or cannot be written.
    """
    folder = Path(checkpoint).parent
    write_settings({**_read(folder / SETTINGS), name: value}, str(folder))


def recorded_settings(checkpoint: str | os.PathLike, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that a training wrote beside its checkpoints, over the defaults.

    Args:
        checkpoint: `model.pt` or `last.pt`.
        defaults: for what is not recorded; a recorded key that is not among them is ignored.

    Raises:
        BundleError: if the file is there and cannot be read.
    """
    recorded = _read(Path(checkpoint).parent / SETTINGS)
    return {key: recorded.get(key, value) for key, value in defaults.items()}


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise BundleError(
            Finding(str(path), f"cannot be read as JSON ({error})", "the settings that training wrote", "copy it again")
        ) from error
