"""Cross-validation of a bundle: every fold trained, or resumed, and scored; the scores pooled."""

from __future__ import annotations

import csv
import difflib
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from queue import SimpleQueue
from threading import Event
from typing import Any

import yaml

from bundlekit.cases.datalist import TRAINED_ON, read_record
from bundlekit.cases.split import names_of
from bundlekit.files import write_content
from bundlekit.inference.ensemble import settings_text
from bundlekit.scores.handler import write_picture
from bundlekit.scores.statistics import csv_text, summarise
from bundlekit.training.command import SURROUNDINGS
from bundlekit.weights.loading import read_checkpoint
from tools.bundles import ROOT, folder_of

_NETWORKS = {  # file of a fold, and whose choice its epoch is
    "last": ("last.pt", "the last epoch: the fold that it is scored on has not chosen it"),
    "best": ("model.pt", "the epoch with the best score on the fold that it is scored on: optimistic"),
}
_STEERED = "; the loss on that fold has steered the learning rate and the end of the training"
# `shard` is for inference, which evaluation refuses; the others tell which cases are scored, by which weights
_NOT_OF_A_FOLD = {"shard", "subset", "datalist", "trained", "weights"}
_GIVEN = {"checkpoint", "dataset_dir", "fold", "num_folds", "fold_seed", "cv_dir", "ckpt_dir", "output_dir"}


def cv(
    bundle: str,
    dataset_dir: str,
    out: str,
    num_folds: int = 5,
    fold_seed: int = 0,
    which: str = "last",
    jobs: int = 1,
    gpus: Sequence[int] = (),
    configs: Sequence[str] = (),
    **options: Any,
) -> None:
    """Train and score all folds of a cross-validation, going on where an earlier call stopped, and pool the scores.

    Leaves in `out`: fold_0 and so on (model.pt, last.pt, datalist.json, scores.csv; log.txt where several run at a
    time), scores.csv (every case, scored by a network that was not trained on its patient), scores.png, and
    summary.json (mean, sd and 95 % interval over all cases, and which network was scored). A fold whose scores are no
    older than its network is finished; another with last.pt is resumed. With `time_limit` (minutes, of each fold) a
    fold that is not finished in time is left for the next call.

    Example: python -m tools cv brats_resunet --dataset_dir DIR --out cv --num_folds 5 --epochs 50

    Args:
        bundle: name of a bundle.
        dataset_dir: folder of labelled cases.
        out: folder of all folds.
        num_folds: 2 or more.
        fold_seed: of the division of the patients.
        which: network that is scored: "last": of the last epoch; "best": model.pt, of the epoch that is best on the
            very fold that it is scored on, which makes the scores optimistic.
        jobs: folds that run at a time.
        gpus: numbers of the GPUs that the jobs share out, e.g. "[0,1]" with --jobs 2; empty: as the system has it.
        configs: overlays of train.yaml by name, e.g. "[finetune]".
        options: settings of the bundle, for training, evaluation or both, whichever know them, e.g. --epochs 50.
    """
    folder_of(bundle)  # refuses an unknown name
    folder, root = ROOT / bundle / "configs", Path(out).resolve()
    gpus, configs = _several(gpus), _several(configs)
    overlays = [f"{name}.yaml" for name in configs]
    missing = [name for name in overlays if not (folder / name).is_file()]
    if missing:
        there = ", ".join(sorted(file.stem for file in folder.glob("*.yaml")))
        raise ValueError(f"--configs: {bundle} has no {', '.join(missing)}; there are: {there}.")
    if not (folder / "cross_validation.yaml").is_file():
        raise ValueError(f"{bundle} has no cross-validation: it is trained from label maps alone.")
    painted = [name for name in overlays if "find_label_maps" in str(_ids(folder / name).get("cases"))]
    if painted:
        raise ValueError(f"--configs: {', '.join(painted)} trains on label maps alone, which cannot be evaluated.")
    if num_folds < 2 or jobs < 1:
        raise ValueError(f"num_folds is {num_folds} and jobs {jobs}; expected 2 or more, and 1 or more.")
    if which not in _NETWORKS:
        raise ValueError(f"which is {which!r}; expected {' or '.join(_NETWORKS)}.")
    training, scoring = _settings_of(folder, overlays, options)
    call = {"bundle": bundle, "num_folds": num_folds, "fold_seed": fold_seed, "configs": list(configs)}
    _same_call(root, {**call, "training": _deciding(training), "which": which, "scoring": _deciding(scoring)})
    shared = {"cv_dir": str(root), "num_folds": num_folds, "fold_seed": fold_seed}
    dataset = str(Path(dataset_dir).resolve())

    free: SimpleQueue[int | None] = SimpleQueue()
    for position in range(jobs):
        free.put(gpus[position % len(gpus)] if gpus else None)
    failed = Event()

    def one(fold: int) -> str:
        place = root / f"fold_{fold}"
        if _scored(place, _NETWORKS[which][0]):
            return f"fold {fold}: finished before"
        gpu = free.get()
        try:
            environment = {**os.environ, **({} if gpu is None else {"CUDA_VISIBLE_DEVICES": _visible(gpu)})}
            place.mkdir(parents=True, exist_ok=True)
            log = place / "log.txt" if jobs > 1 else None
            resume = ["resume.yaml"] if (place / "last.pt").is_file() else []
            if failed.is_set():
                return f"fold {fold}: not started"
            if not _finished(place / "last.pt"):
                files = ["train.yaml", *overlays, "cross_validation.yaml", *resume]
                settings = {"dataset_dir": dataset, **shared, **training, "fold": fold}
                _call("training", [folder / name for name in files], settings, log, environment)
                if not _finished(place / "last.pt"):
                    return f"fold {fold}: stopped at its time limit; call again to go on"
            _same_cases(root, num_folds)
            files = ["inference.yaml", "evaluate.yaml", "cross_validation.yaml"]
            network = {"checkpoint": str(place / _NETWORKS[which][0])}
            settings = {"datalist": str(place / "datalist.json"), **shared, **network, **scoring, "fold": fold}
            _call("evaluating", [folder / name for name in files], settings, log, environment)
        except BaseException:
            failed.set()
            raise
        finally:
            free.put(gpu)
        return f"fold {fold}: {'resumed' if resume else 'trained'} and scored"

    with ThreadPoolExecutor(jobs) as pool:
        for done in as_completed([pool.submit(one, fold) for fold in range(num_folds)]):
            print(done.result(), flush=True)
    if all(_scored(root / f"fold_{fold}", _NETWORKS[which][0]) for fold in range(num_folds)):
        file, chosen = _NETWORKS[which]
        values = {id_: value for file_ in ("train.yaml", *overlays) for id_, value in _ids(folder / file_).items()}
        steered = _STEERED if _steered({**values, **training}) else ""
        _pool(root, num_folds, f"{file}, of {chosen}{steered}")


def _visible(gpu: int) -> str:
    """The number of a GPU for a process of its own: that of those which this one may use, where not all are."""
    own = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    if not own:
        return str(gpu)
    if not 0 <= gpu < len(own):
        raise ValueError(f"--gpus has {gpu}; CUDA_VISIBLE_DEVICES leaves {len(own)}, numbered from 0.")
    return own[gpu]


def _several(value: Any) -> tuple[Any, ...]:
    """One value as a tuple; on the command line `--gpus 1` is a number."""
    return tuple(value) if isinstance(value, (list, tuple)) else (value,)


def _settings_of(folder: Path, overlays: Sequence[str], options: dict[str, Any]) -> tuple[dict, dict]:
    """The options that training knows, and those that evaluation knows and does not take from training's record."""
    inference = _ids(folder / "inference.yaml")
    known = {name for file in ("train.yaml", *overlays) for name in _ids(folder / file)}
    recorded = set(_ids(folder / "train.yaml")["settings"])
    scoring = (set(inference) | set(_ids(folder / "evaluate.yaml"))) - recorded - _NOT_OF_A_FOLD
    given = {name: name.split("::")[0] for name in options}
    fixed = sorted(_GIVEN & set(given.values()))
    if fixed:
        raise ValueError(f"--{', --'.join(fixed)}: cross-validation sets this itself, below --out.")
    unknown = [name for name, top in given.items() if top not in known | scoring]
    if set(unknown) & recorded:
        raise ValueError(f"--{', --'.join(unknown)}: an overlay of train.yaml sets it; name that in --configs.")
    if unknown:
        close = difflib.get_close_matches(unknown[0], known | scoring, n=1)
        raise ValueError(f"no setting --{', --'.join(unknown)}" + (f"; did you mean --{close[0]}?" if close else "."))
    return (
        {name: value for name, value in options.items() if given[name] in known},
        {name: value for name, value in options.items() if given[name] in scoring},
    )


def _deciding(settings: dict[str, Any]) -> dict[str, Any]:
    """Those of the settings that scores depend on."""
    return {name: value for name, value in settings.items() if name not in SURROUNDINGS}


def _same_call(root: Path, call: dict[str, Any]) -> None:
    """Record what divides the cases, trains and scores at the first call, in cv.json; refuse a call that differs."""
    record = root / "cv.json"
    call = json.loads(json.dumps(call))  # as it is recorded: Fire makes a tuple of what has commas
    begun = any((place / name).is_file() for place in root.glob("fold_*") for name in ("last.pt", "scores.csv"))
    if record.is_file() and begun:  # a call that failed before it trained binds nobody
        # earlier versions scored the best network, and did not record by which settings
        before: dict[str, Any] = {"which": "best", "scoring": call.get("scoring"), **json.loads(record.read_text())}
        if "training" in call and "val_interval" not in before.get("training", {}):  # nor when a fold was validated
            told = {name: value for name, value in call["training"].items() if name == "val_interval"}
            before["training"] = before.get("training", {}) | told
        differing = [name for name in call if before.get(name) != call[name]]
        if differing:
            was = ", ".join(f"{name} {before.get(name)}" for name in differing)
            now = ", ".join(f"{name} {call[name]}" for name in differing)
            raise ValueError(f"{root} holds a cross-validation with {was}; now {now}. Go on as before, or set --out.")
    root.mkdir(parents=True, exist_ok=True)
    write_content(record, json.dumps(call, indent=2) + "\n")


def _same_cases(root: Path, num_folds: int) -> dict[int, list[str]]:
    """Cases that each trained fold left out; ValueError if the folds are not of one division of one data set."""
    trained = [root / f"fold_{fold}" for fold in range(num_folds) if (root / f"fold_{fold}" / "model.pt").is_file()]
    settings = {place.name: settings_text(place / "model.pt") for place in trained}
    if len(set(settings.values())) > 1:
        raise ValueError(f"the folds of {root} were trained with different settings: {settings}. Set another --out.")
    parts: dict[int, list[str]] = {}
    whole: dict[int, set[str]] = {}
    for fold in range(num_folds):
        file = root / f"fold_{fold}" / "datalist.json"
        if file.is_file():
            datalist = json.loads(file.read_text())
            parts[fold] = [entry["case"] for entry in datalist["validation"]]
            whole[fold] = {entry["case"] for part in datalist.values() for entry in part}
    first = min(whole)
    for fold, cases in whole.items():
        if cases != whole[first]:
            some = ", ".join(sorted(cases ^ whole[first])[:5])
            raise ValueError(
                f"fold {fold} was trained on other cases than fold {first} ({some}). Give all folds the same data set: "
                f"remove {root / f'fold_{fold}'} and call again, or begin anew with another --out."
            )
    left_out = [case for cases in parts.values() for case in cases]
    if len(set(left_out)) < len(left_out):
        raise ValueError(f"some cases of {root} were left out by several folds. Begin anew with another --out.")
    return parts


def _steered(train: dict[str, Any]) -> bool:
    """Whether a training goes by its validation loss on the way, not only for the choice of an epoch."""
    stops = "early_stop" in train and train.get("stop_patience") not in (None, "$None")
    return stops or train.get("schedule") == "plateau" or "ReduceLROnPlateau" in str(train.get("lr_scheduler"))


def _pool(root: Path, num_folds: int, network: str) -> None:
    """Write scores.csv, scores.png and summary.json of all folds together; `network` says what was scored."""
    parts = _same_cases(root, num_folds)
    rows: list[dict[str, Any]] = []
    per_fold: dict[str, float | None] = {}
    notes: dict[str, Any] = {}
    for fold in range(num_folds):
        with (root / f"fold_{fold}" / "scores.csv").open() as file:
            for row in csv.DictReader(file):
                scores = {name: float(text) if text else float("nan") for name, text in row.items() if name != "case"}
                rows.append({"case": row["case"], "fold": fold, **scores})
        if sorted(row["case"] for row in rows if row["fold"] == fold) != sorted(parts.get(fold, [])):
            place = root / f"fold_{fold}"
            raise ValueError(f"{place / 'scores.csv'} is not of the cases that {place / 'datalist.json'} leaves out.")
        summary = json.loads((root / f"fold_{fold}" / "summary.json").read_text())
        per_fold[f"fold_{fold}"] = summary["metrics"]["mean_dice"]["mean"]
        known = ("n_cases", "metrics", "worst_cases", "best_cases")
        for key, note in summary.items():
            if key not in known:
                notes[key] = _both(notes[key], note) if key in notes else note
    notes |= {"network": network, "num_folds": num_folds, "mean_dice_of_folds": per_fold}
    known_before = _known_to_the_pretraining(root, num_folds)
    if known_before:
        notes["known_to_the_pretraining"] = known_before
        some = ", ".join(known_before[:5]) + (", ..." if known_before[5:] else "")
        print(f"{len(known_before)} of the cases, or others of their patients, had trained the weights that the folds "
              f"began with, which flatters their scores: {some}")  # fmt: skip
    scored = [{name: value for name, value in row.items() if name != "fold"} for row in rows]
    pooled = summarise(scored, notes)
    files = {"scores.csv": csv_text(rows), "summary.json": json.dumps(pooled, indent=2) + "\n"}
    for name, text in files.items():
        write_content(root / name, text, "out")
    write_picture(rows, root, "out")
    print(f"\n{len(rows)} cases in {num_folds} folds, mean (sd) [95 % interval of the mean]")
    for name, found in pooled["metrics"].items():
        if name.startswith(("dice_", "mean_dice")) and found["n"] > 1:
            low, high = found["ci95"]
            print(f"{name:<16} {found['mean']:.3f} ({found['sd']:.3f}) [{low:.3f}, {high:.3f}]")
    print(f"scores   {root / 'scores.csv'}\nsummary  {root / 'summary.json'}")


def _known_to_the_pretraining(root: Path, num_folds: int) -> list[str]:
    """Cases of which the weights that their fold began with had seen a scan of the patient."""
    known = []
    for place in (root / f"fold_{fold}" for fold in range(num_folds)):
        if (place / TRAINED_ON).is_file():
            seen = {name for entry in read_record(place / TRAINED_ON)["training"] for name in names_of(entry)}
            left_out = read_record(place / "datalist.json")["validation"]
            known += [str(entry["case"]) for entry in left_out if names_of(entry) & seen]
    return known


def _both(one: Any, other: Any) -> Any:
    """What two folds note of their scores: lists, such as cases that chose a limit, together; else what differs."""
    if one == other:
        return one
    if isinstance(one, list) and isinstance(other, list):
        return one + [value for value in other if value not in one]
    return f"{one}; {other}" if str(other) not in str(one).split("; ") else one


def _call(
    run_id: str, files: list[Path], settings: dict[str, Any], log: Path | None, environment: dict[str, str]
) -> None:
    """Run a bundle's config; what it prints goes to the terminal, or to a log where several run at a time."""
    command = [sys.executable, "-m", "monai.bundle", "run", run_id, "--config_file", str([str(file) for file in files])]
    command += [part for name, value in settings.items() for part in (f"--{name}", str(value))]
    shown = "$ " + shlex.join(["python", *command[1:]]) + "\n"
    print(f"fold {settings['fold']}: {run_id}" + (f", log in {log}" if log else f"\n{shown}"), flush=True)
    before = log.stat().st_size if log and log.is_file() else 0
    with open(log or os.devnull, "a") as file:
        file.write(shown)
        file.flush()
        out = {"stdout": file, "stderr": subprocess.STDOUT} if log else {}
        done = subprocess.run(command, env=environment, check=False, **out)  # type: ignore[call-overload]
    if done.returncode:
        told = log.read_bytes()[before:].decode(errors="replace") if log else ""
        why = told.rpartition("\nERROR: ")[2].strip()[-2000:] if log else "see above"
        raise ValueError(f"{run_id} of fold {settings['fold']} failed: {why}\nMend it and call again.")


def _scored(place: Path, network: str) -> bool:
    """Whether the scores of a fold are there, and none older than the network: it may have been trained again."""
    scores = [place / name for name in ("scores.csv", "summary.json")]
    if not all(file.is_file() for file in [place / "model.pt", *scores]):
        return False
    trained = place / network  # somebody may have removed last.pt
    return not trained.is_file() or trained.stat().st_mtime <= min(file.stat().st_mtime for file in scores)


def _finished(last: Path) -> bool:
    """Whether a run came to its last epoch, or stopped early."""
    if not last.is_file():
        return False
    return bool(read_checkpoint(str(last))["trainer"].get("ended"))


def _ids(file: Path) -> dict[str, Any]:
    return {name.lstrip("+").split("::")[0]: value for name, value in yaml.safe_load(file.read_text()).items()}
