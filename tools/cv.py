"""Cross-validation of a bundle: every fold trained, or resumed, and scored; the scores pooled."""

from __future__ import annotations

import csv
import importlib
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import yaml

from tools.bundles import ROOT, package

_GIVEN = {"dataset_dir", "fold", "num_folds", "fold_seed", "cv_dir", "ckpt_dir", "output_dir"}


def cv(
    bundle: str,
    dataset_dir: str,
    out: str,
    num_folds: int = 5,
    fold_seed: int = 0,
    jobs: int = 1,
    gpus: Sequence[int] = (),
    configs: Sequence[str] = (),
    **options: Any,
) -> None:
    """Train and score all folds of a cross-validation, going on where an earlier call stopped, and pool the scores.

    Leaves in `out`: fold_0 and so on (model.pt, last.pt, datalist.json, scores.csv; log.txt where several run at a
    time), scores.csv (every case, scored by the network that did not see its patient) and summary.json (mean, sd and
    95 % interval over all cases). A fold with scores.csv is finished; another with last.pt is resumed.

    Example: python -m tools cv brats_resunet --dataset_dir DIR --out cv --num_folds 5 --epochs 50

    Args:
        bundle: name of a bundle.
        dataset_dir: folder of labelled cases.
        out: folder of all folds.
        num_folds: 2 or more.
        fold_seed: of the division of the patients.
        jobs: folds that run at a time.
        gpus: numbers of the GPUs that the jobs share out, e.g. "[0,1]" with --jobs 2; empty: as the system has it.
        configs: overlays of train.yaml by name, e.g. "[train_from_labels]".
        options: settings of the bundle, for training, evaluation or both, whichever know them: --epochs 50.
    """
    package(bundle)  # refuses an unknown name
    folder, root = ROOT / bundle / "configs", Path(out).resolve()
    inference = _ids(folder / "inference.yaml")
    evaluation = set(inference) | set(_ids(folder / "evaluate.yaml"))
    evaluation -= set(inference.get("defaults", {}))  # recorded by training
    fixed = sorted(_GIVEN & set(options))
    if fixed:
        raise ValueError(f"--{', --'.join(fixed)}: cross-validation sets this itself, below --out.")
    shared = {"dataset_dir": str(Path(dataset_dir).resolve()), "cv_dir": str(root), "num_folds": num_folds}
    shared |= {"fold_seed": fold_seed}
    training = {**shared, **options}
    scoring = {**shared, **{name: value for name, value in options.items() if name.split("::")[0] in evaluation}}
    overlays = [f"{name}.yaml" for name in configs]

    free: SimpleQueue[int | None] = SimpleQueue()
    for position in range(jobs):
        free.put(gpus[position % len(gpus)] if gpus else None)

    def one(fold: int) -> str:
        place = root / f"fold_{fold}"
        if (place / "scores.csv").is_file():
            return f"fold {fold}: finished before"
        gpu = free.get()
        environment = {**os.environ, **({} if gpu is None else {"CUDA_VISIBLE_DEVICES": str(gpu)})}
        place.mkdir(parents=True, exist_ok=True)
        try:
            resume = ["resume.yaml"] if (place / "last.pt").is_file() else []
            log = place / "log.txt" if jobs > 1 else None
            if not _finished(bundle, place / "last.pt"):
                files = ["train.yaml", *overlays, "cross_validation.yaml", *resume]
                _call("training", [folder / name for name in files], {**training, "fold": fold}, log, environment)
            files = ["inference.yaml", "evaluate.yaml", "cross_validation.yaml"]
            _call("evaluating", [folder / name for name in files], {**scoring, "fold": fold}, log, environment)
        finally:
            free.put(gpu)
        return f"fold {fold}: {'resumed' if resume else 'trained'} and scored"

    with ThreadPoolExecutor(jobs) as pool:
        waiting = [pool.submit(one, fold) for fold in range(num_folds)]
        try:
            for done in as_completed(waiting):
                print(done.result(), flush=True)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    _pool(bundle, root, num_folds)


def _pool(bundle: str, root: Path, num_folds: int) -> None:
    """Write scores.csv and summary.json of all folds together."""
    scoring = importlib.import_module(f"{bundle}.scoring")
    rows: list[dict[str, Any]] = []
    per_fold: dict[str, float | None] = {}
    for fold in range(num_folds):
        with (root / f"fold_{fold}" / "scores.csv").open() as file:
            for row in csv.DictReader(file):
                scores = {name: float(text) if text else float("nan") for name, text in row.items() if name != "case"}
                rows.append({"case": row["case"], "fold": fold, **scores})
        summary = json.loads((root / f"fold_{fold}" / "summary.json").read_text())
        per_fold[f"fold_{fold}"] = summary["metrics"]["mean_dice"]["mean"]
    known = ("n_cases", "metrics", "worst_cases", "best_cases")
    notes = {key: value for key, value in summary.items() if key not in known}
    notes["num_folds"], notes["mean_dice_of_folds"] = num_folds, per_fold
    scored = [{name: value for name, value in row.items() if name != "fold"} for row in rows]
    pooled = scoring.summarise(scored, notes)
    files = {"scores.csv": scoring.csv_text(rows), "summary.json": json.dumps(pooled, indent=2) + "\n"}
    for name, text in files.items():
        scoring.write_result(root / name, lambda file, text=text: file.write(text.encode()), "out")
    print(f"\n{len(rows)} cases in {num_folds} folds, mean (sd) [95 % interval of the mean]")
    for name, found in pooled["metrics"].items():
        if name.startswith(("dice_", "mean_dice")) and found["n"] > 1:
            low, high = found["ci95"]
            print(f"{name:<16} {found['mean']:.3f} ({found['sd']:.3f}) [{low:.3f}, {high:.3f}]")
    print(f"scores   {root / 'scores.csv'}\nsummary  {root / 'summary.json'}")


def _call(
    run_id: str, files: list[Path], settings: dict[str, Any], log: Path | None, environment: dict[str, str]
) -> None:
    """Run a bundle's config; what it prints goes to the terminal, or to a log where several run at a time."""
    command = [sys.executable, "-m", "monai.bundle", "run", run_id, "--config_file", str([str(file) for file in files])]
    command += [part for name, value in settings.items() for part in (f"--{name}", str(value))]
    shown = "$ " + shlex.join(["python", *command[1:]]) + "\n"
    print(f"fold {settings['fold']}: {run_id}" + (f", log in {log}" if log else f"\n{shown}"), flush=True)
    with open(log or os.devnull, "a") as file:
        file.write(shown)
        file.flush()
        out = {"stdout": file, "stderr": subprocess.STDOUT} if log else {}
        done = subprocess.run(command, env=environment, check=False, **out)  # type: ignore[call-overload]
    if done.returncode:
        why = log.read_text().rpartition("\nERROR: ")[2].strip()[-2000:] if log else "see above"
        raise ValueError(f"{run_id} of fold {settings['fold']} failed: {why}\nMend it and call again.")


def _finished(bundle: str, last: Path) -> bool:
    """Whether a run came to its last epoch, or stopped early."""
    if not last.is_file():
        return False
    saved = importlib.import_module(f"{bundle}.checkpoints").read_checkpoint(str(last))
    at = saved["trainer"]
    return bool(at["epoch"] >= at["max_epochs"] or saved.get("early_stop", {}).get("ended"))


def _ids(file: Path) -> dict[str, Any]:
    return {name.lstrip("+").split("::")[0]: value for name, value in yaml.safe_load(file.read_text()).items()}
