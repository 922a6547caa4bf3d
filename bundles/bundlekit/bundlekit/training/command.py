"""The command that started a run, kept beside its checkpoints, so that the run can go on with it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import yaml

from bundlekit.command_line import read_command_line
from bundlekit.errors import BundleError, Finding, other_settings
from bundlekit.files import write_content

RESUME = "resume.json"
RESUME_CONFIG = "resume"
_OVERLAYS = "overlays of train.yaml"
# what resume.yaml sets itself, or what is of one start alone
_NOT_KEPT = {"overwrite", "datalist", "resume_from", "warm_start", "rank", "world_size"}
# where things are, what computes, how long it may take: may change between two starts of one run, and between the
# trainings of one cross-validation
SURROUNDINGS = {
    "dataset_dir", "output_dir", "ckpt_dir", "cv_dir", "cache", "cache_dir", "cache_days", "device", "amp", "bf16",
    "deterministic", "num_workers", "time_limit",
}  # fmt: skip
# and what one run may go on with. Another batch_size takes another number of processes, see `ResumeRun`
_MAY_CHANGE = SURROUNDINGS | {"pretrained", "epochs", "stop_patience", "batch_size"}
_GOES_ON_WITH = ("pretrained", "epochs", "stop_patience", "batch_size", "time_limit")  # from then on


def write_resume(ckpt_dir: str) -> None:
    """Write `resume.json`, which MONAI takes as `--args_file`, with the settings of this process's training.

    A run that is itself resumed keeps the file that it has, with the `ckpt_dir` of now, and what a run may go on with:
    `epochs`, `time_limit`, `stop_patience`, `batch_size`, `pretrained`. Nothing is written of a training that was not
    started by `python -m monai.bundle run`.

    Args:
        ckpt_dir: folder of the checkpoints.
    """
    command = read_command_line()
    if command is None:
        return
    if any(Path(file).stem == RESUME_CONFIG for file in command.files):
        if Path(ckpt_dir, RESUME).is_file():
            before, now = _read(Path(ckpt_dir, RESUME)), command.settings()
            now = {name: now[name] for name in _GOES_ON_WITH if name in now}
            _write(ckpt_dir, {**before, **now, "ckpt_dir": os.path.abspath(ckpt_dir)})
        return
    files = [str(Path(file).absolute()) for file in command.files]
    places = [Path(file).parent for file in files] + [Path("configs").absolute()]  # the first may be a user's own copy
    there = [place / f"{RESUME_CONFIG}.yaml" for place in places if (place / f"{RESUME_CONFIG}.yaml").is_file()]
    files.append(str(there[0] if there else places[0] / f"{RESUME_CONFIG}.yaml"))
    settings = {name: value for name, value in command.settings().items() if name not in _NOT_KEPT}
    _write(
        ckpt_dir,
        {"run_id": command.run_id, "config_file": files, **settings, "ckpt_dir": os.path.abspath(ckpt_dir)},
    )


def how_to_resume(ckpt_dir: str) -> str:
    """The command that goes on with a run, to be shown; several processes, if it had those, are torchrun's to start.

    Args:
        ckpt_dir: folder of the checkpoints, with or without a `resume.json`.
    """
    path = Path(ckpt_dir, RESUME)
    if not path.is_file():
        return "python -m monai.bundle run with configs/resume.yaml added to --config_file"
    try:
        files = _read(path).get("config_file")
    except BundleError:  # who resumes is told
        files = None
    several = any(Path(str(file)).stem == "multi_gpu" for file in files or [])
    return f"{'torchrun --nproc_per_node N' if several else 'python'} -m monai.bundle run --args_file {path}"


def require_own_folder(ckpt_dir: str) -> None:
    """Refuse a `resume.json` that was copied or moved with its folder, and would go on in the one that it was made in.

    Args:
        ckpt_dir: folder that would be written to.

    Raises:
        BundleError: naming both folders.
    """
    command = read_command_line()
    file = command.given.get("args_file") if command is not None else None
    if not isinstance(file, str) or Path(file).name != RESUME:
        return
    own, target = Path(file).resolve().parent, Path(ckpt_dir).resolve()
    if own != target == Path(str(_read(Path(file)).get("ckpt_dir"))).resolve():
        found, fix = f"the command of a run in {target}", f"add --ckpt_dir {own}"
        fix += f"; to go on with the run in {target}, take the {RESUME} there" if (target / RESUME).is_file() else ""
        raise BundleError(Finding(file, found, "that of the run beside it; it was copied or moved", fix))


def recorded_split(ckpt_dir: str, resume_from: str | None = None) -> str | None:
    """The datalist that a training wrote beside its checkpoints; None if there is none yet. For `resume.yaml`.

    Args:
        ckpt_dir: folder where the run goes on.
        resume_from: its checkpoint, which may lie elsewhere: in the folder where it began. None: in `ckpt_dir`.

    Raises:
        BundleError: as `require_own_folder`, before any data are looked for.
    """
    require_own_folder(ckpt_dir)
    folders = [Path(ckpt_dir), Path(resume_from or Path(ckpt_dir, "last.pt")).parent]
    paths = [folder / "datalist.json" for folder in folders]
    return next((str(path) for path in paths if path.is_file()), None)


def require_same_command(ckpt_dir: str) -> None:
    """Refuse to resume a run with other settings than those that `resume.json` has of its start.

    Args:
        ckpt_dir: folder of the checkpoints; without such a file, nothing is asked.

    Raises:
        BundleError: naming the settings that differ, or if the file cannot be read.
    """
    path, command = Path(ckpt_dir, RESUME), read_command_line()
    if command is None or not path.is_file():
        return
    files = {"config_file": command.files}
    before, now = _deciding(_read(path)), _deciding(files | json.loads(json.dumps(command.settings(), default=str)))
    for name in [one for part in (before, now) for one, decides in part[_OVERLAYS].items() if not decides]:
        before[_OVERLAYS].pop(name, None)  # which one of both may no longer lie where it did
        now[_OVERLAYS].pop(name, None)
    before[_OVERLAYS], now[_OVERLAYS] = list(before[_OVERLAYS]), list(now[_OVERLAYS])
    for name in [name for name in {**before, **now} if "::" in name]:  # known only where it was given
        before.setdefault(name, "not given")
        now.setdefault(name, "not given")
    names = [name for name in now if name in before and name not in _MAY_CHANGE | _NOT_KEPT]
    differing = [name for name in names if json.dumps(now[name]) != json.dumps(before[name])]  # order counts too
    if differing:
        fix = f"resume with: {how_to_resume(ckpt_dir)}"
        raise BundleError(other_settings(path, "a run", differing, before, now, fix))


def _deciding(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings with one way to write those that lie deeper, and with the names of the overlays alone."""
    files = settings.get("config_file")
    others = [Path(str(file)) for file in ([files] if isinstance(files, str) else files or [])][1:]
    overlays = {file.stem: _decides(file) for file in others if file.stem not in (RESUME_CONFIG, "multi_gpu")}
    named = {name.replace("#", "::"): value for name, value in settings.items() if name != "config_file"}
    deciding = {name: value for name, value in named.items() if name.rpartition("::")[2] not in SURROUNDINGS}
    return {**deciding, _OVERLAYS: overlays}


def _decides(overlay: Path) -> bool:
    """Whether an overlay sets more than may change between two starts; True where it cannot be read."""
    try:
        names = {str(name).lstrip("+~").rpartition("::")[2] for name in yaml.safe_load(overlay.read_text())}
    except (OSError, yaml.YAMLError, TypeError):
        return True
    return not names <= SURROUNDINGS


def _read(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError, TypeError) as error:
        fix = "copy it again, or remove it and give the settings of the start"
        raise BundleError(Finding(str(path), f"cannot be read ({error})", "what training wrote", fix)) from error


def _write(ckpt_dir: str, content: dict[str, Any]) -> None:
    text = json.dumps(content, indent=2, default=str) + "\n"
    write_content(Path(ckpt_dir, RESUME), text, "ckpt_dir")
