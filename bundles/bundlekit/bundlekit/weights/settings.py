"""What a network was trained with, kept beside its weights, so that inference need not be told again.

`settings.json` holds the settings of the training by name. What was chosen with the trained network, such as the
smallest lesion to believe, is one more entry in it: `AFTER_TRAINING`. It travels with the weights, which may come from
a stranger: expressions in it are refused.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser

from bundlekit.errors import BundleError, Finding, other_settings
from bundlekit.expressions import refuse_expressions
from bundlekit.files import write_content
from bundlekit.values import is_expression, wrong_values

SETTINGS = "settings.json"
AFTER_TRAINING = "after_training"
_GONE = {"white_matter_weight": 1}  # settings of earlier versions, and the value that says the same as none
_log = logging.getLogger(__name__)


def write_settings(settings: Mapping[str, Any], ckpt_dir: str) -> None:
    """Write `settings.json` beside the checkpoints of a training.

    Args:
        settings: what inference must do as training did: widths, voxel size, normalisation.
        ckpt_dir: folder, made if missing.
    """
    write_content(Path(ckpt_dir, SETTINGS), json.dumps(dict(settings), indent=2) + "\n", "ckpt_dir")


def record_setting(checkpoint: str | os.PathLike, name: str, value: Any) -> None:
    """Record a setting that was chosen with a trained network; what the training recorded stays.

    Args:
        checkpoint: `model.pt` or `last.pt`.
        name: of the setting.
        value: what JSON can hold.

    Raises:
        BundleError: if the file is there and cannot be read, or cannot be written.
    """
    folder = Path(checkpoint).parent
    recorded = read_settings(checkpoint)
    chosen = {**recorded.get(AFTER_TRAINING, {}), name: value}
    write_settings({**recorded, AFTER_TRAINING: chosen}, str(folder))


def read_settings(checkpoint: str | os.PathLike) -> dict[str, Any]:
    """All of `settings.json` beside a checkpoint, `AFTER_TRAINING` being one entry; empty if there is no record.

    Args:
        checkpoint: `model.pt` or `last.pt`.

    Raises:
        BundleError: if the file is there and cannot be read, or holds expressions.
    """
    path = Path(checkpoint).parent / SETTINGS
    if not path.is_file():
        return {}
    try:
        recorded = dict(json.loads(path.read_text()))
        after = dict(recorded.get(AFTER_TRAINING, {}))
    except (OSError, ValueError, TypeError) as error:
        raise BundleError(
            Finding(str(path), f"cannot be read as JSON ({error})", "the settings that training wrote", "copy it again")
        ) from error
    refuse_expressions(recorded, str(path))
    wrong = wrong_values({**recorded, **after})
    if wrong:
        expected = "the settings that training wrote"
        raise BundleError(Finding(str(path), "; ".join(wrong), expected, "copy it again, or put the value right"))
    return recorded


def of_second_network(checkpoint: str | os.PathLike) -> dict[str, Any]:
    """What was recorded of the second network beside a checkpoint: `lowres`, its file, and what it was trained for.

    Args:
        checkpoint: `model.pt`, with its `settings.json` beside it.

    Raises:
        BundleError: if the settings are there and cannot be read.
    """
    chosen = read_settings(checkpoint).get(AFTER_TRAINING, {})
    return {name: value for name, value in chosen.items() if name.split("_")[0] == "lowres"}


def companions(checkpoint: str | os.PathLike) -> list[str]:
    """Names of the weight files that belong to a checkpoint and lie beside it: that of `lowres`, where it is recorded.

    Args:
        checkpoint: `model.pt`, with its `settings.json` beside it.

    Raises:
        BundleError: if the settings are there and cannot be read.
    """
    recorded = read_settings(checkpoint)
    name = (recorded | recorded.get(AFTER_TRAINING, {})).get("lowres")
    return [Path(str(name)).name] if name else []


def trained_settings(checkpoint: str | os.PathLike) -> dict[str, Any]:
    """What the training of a checkpoint recorded, without what was chosen after it; empty if there is no record.

    Args:
        checkpoint: `model.pt` or `last.pt`.

    Raises:
        BundleError: if the file is there and cannot be read.
    """
    recorded = read_settings(checkpoint)
    return {name: value for name, value in recorded.items() if name != AFTER_TRAINING}


def recorded_settings(
    checkpoint: str | os.PathLike, bundle_root: str | os.PathLike, must_exist: bool = False
) -> dict[str, Any]:
    """Every setting of a checkpoint by name: as recorded beside it, or as `train.yaml` has it where nothing is.

    Args:
        checkpoint: `model.pt` or `last.pt`.
        bundle_root: folder of the bundle, whose `configs/train.yaml` (or `.json`) counts for what is not recorded:
            its values at the top and those of `settings`, but for expressions and references.
        must_exist: refuse a checkpoint that is not there, as of a training that begins with it.

    Raises:
        BundleError: if the file is there and cannot be read, or holds expressions; if the checkpoint has to exist and
            does not.
    """
    if must_exist and not Path(checkpoint).is_file():
        fix = "give --pretrained FILE with the place where they are; a run that is resumed needs them, too"
        raise BundleError(Finding(str(checkpoint), "no such file", "the weights that the training begins with", fix))
    files = [Path(bundle_root, "configs", name) for name in ("train.yaml", "train.json")]
    train = next((ConfigParser.load_config_file(file) for file in files if file.is_file()), {})
    defaults = {**train, **{k: v for k, v in train.get("settings", {}).items() if not is_expression(v)}}
    recorded = read_settings(checkpoint)
    if Path(checkpoint).is_file() and not Path(checkpoint).with_name(SETTINGS).is_file():
        _log.warning(
            "%s has no %s beside it and is taken as trained with the values of train.yaml; copy the %s of its training",
            checkpoint,
            SETTINGS,
            SETTINGS,
        )
    chosen = {**recorded, **recorded.get(AFTER_TRAINING, {})}
    for name, nothing in _GONE.items():
        if chosen.get(name, nothing) != nothing:
            told = "%s records %s %s, which this version does not apply: masks differ from those of the version before"
            _log.warning(told, Path(checkpoint).parent / SETTINGS, name, chosen[name])
    # earlier versions recorded everything in one level
    known = {
        **{k: v for k, v in defaults.items() if not is_expression(v)},
        **chosen,
    }
    known.pop(AFTER_TRAINING, None)
    return known


def require_as_recorded(checkpoint: str | os.PathLike, settings: Mapping[str, Any], names: Sequence[str]) -> None:
    """Refuse to fine-tune weights with another preprocessing than theirs.

    Args:
        checkpoint: to start from.
        settings: of the new training, as it will record them.
        names: of those that an overlay sets, and that must agree; one that is not recorded does.

    Raises:
        BundleError: naming the settings that differ.
    """
    recorded = trained_settings(checkpoint)
    differing = [name for name in names if recorded.get(name, settings[name]) != settings[name]]
    if differing:
        fix = "name in --config_file the overlays with which it was trained, and no others"
        raise BundleError(other_settings(checkpoint, "a network trained", differing, recorded, settings, fix))
