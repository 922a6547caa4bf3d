"""Many cases while workers are killed: `python -m tests.bundlekit.cohort.killing OUT --cases 300 --every 60`.

Makes OUT/data (copies of a few virtual gliomas under as many names), OUT/plain (the masks of a plain run) and OUT/out
(those of a cohort of two workers, one of which is ended by SIGKILL again and again, and once the command itself).
Ends with an error unless every mask is there once, whole and equal to the plain run's, and nothing else is there.
Prints how much memory the workers held and what part of the time was not spent on cases.
"""

from __future__ import annotations

import argparse
import filecmp
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[3]
BUNDLE = "brats_resunet"
SETTINGS = {"channels": [4, 8, 16, 32], "patch_size": [48, 48, 40]}


def write_model(folder: Path) -> None:
    """Untrained weights of the narrowest network, the same ones every time, with their settings."""
    import torch

    from bundlekit.weights.settings import write_settings
    from tools.bundles import parse

    torch.manual_seed(0)
    network = parse(BUNDLE, "inference.yaml", channels=SETTINGS["channels"]).get_parsed_content("network_def")
    folder.mkdir(parents=True, exist_ok=True)
    torch.save({"model": network.state_dict()}, folder / "model.pt")
    write_settings({**SETTINGS, "modality_dropout": 0.0, "allow_unprepared": False}, str(folder))


def make_cases(folder: Path, count: int, different: int = 8) -> None:
    """Virtual gliomas of 48x48x40 voxels; from the ninth on, copies of the first eight under other names."""
    from bundlekit.virtual import brats

    first = sorted(folder.iterdir())[:different] if folder.is_dir() else []
    if len(first) < min(different, count):
        first = [Path(made) for made in brats(str(folder), cases=min(different, count), seed=5, shape=(48, 48, 40))]
    for number in range(len(first), count):
        source = first[number % len(first)]
        name = f"{source.name[:-5]}{number:05}"
        (folder / name).mkdir(exist_ok=True)
        for file in source.iterdir():
            copy = folder / name / file.name.replace(source.name, name)
            if not copy.exists():
                os.link(file, copy)


def settings_of(model: Path) -> list[str]:
    """Arguments that have the network of `write_model` compute."""
    return ["--ckpt_dir", str(model), "--runtime", "torch"]


def plain_run(data: Path, model: Path, plain: Path) -> None:
    """The masks of a plain run, unless they are there."""
    count = len(list(data.iterdir()))
    if len(list(plain.glob("*_seg.nii.gz"))) == count:
        return
    run = [sys.executable, "-m", "monai.bundle", "run", "inferring", "--config_file"]
    run += [str(ROOT / "bundles" / BUNDLE / "configs" / "inference.yaml"), *settings_of(model), "--num_workers", "0"]
    begun = time.monotonic()
    log = plain.with_suffix(".log")
    with log.open("w") as text:
        subprocess.run([*run, "--dataset_dir", str(data), "--output_dir", str(plain)], check=True, cwd=ROOT,
                       stdout=text, stderr=text, env={**os.environ, "OMP_NUM_THREADS": "1"})  # fmt: skip
    print(f"plain run: {time.monotonic() - begun:.0f} s for {count} cases", flush=True)


def worker_processes(command: subprocess.Popen) -> list[Any]:
    """Processes of the workers of a cohort's command."""
    import psutil

    try:
        children = psutil.Process(command.pid).children(recursive=True)
        return [child for child in children if "spawn_main" in " ".join(child.cmdline())]
    except psutil.Error:
        return []


def run_and_kill(command: list[str], every: float, end_at: int, records: Path) -> dict[str, Any]:
    """Run a cohort, killing a worker every so many seconds; and the command where so many records are there."""
    import psutil

    begun, killed, peak = time.monotonic(), 0, []
    process = subprocess.Popen(command, cwd=ROOT)
    last = time.monotonic()
    while process.poll() is None:
        time.sleep(1)
        workers = worker_processes(process)
        held = []
        for worker in workers:
            try:
                held.append(worker.memory_info().rss)
            except psutil.Error:
                continue
        peak.append(max(held, default=0) / 2**20)
        done = len(list(records.glob("*.json"))) if records.is_dir() else 0
        if end_at and done >= end_at:
            os.kill(process.pid, signal.SIGKILL)
            break
        if every and done and workers and time.monotonic() - last > every:
            last = time.monotonic()
            try:
                random.choice(workers).kill()
                killed += 1
            except psutil.Error:
                continue
    return {
        "status": process.wait(),
        "seconds": round(time.monotonic() - begun, 1),
        "killed": killed,
        "computed": len(list(records.glob("*.json"))),
        "largest_worker_mib": {"first half": round(max(peak[: len(peak) // 2], default=0)),
                               "second half": round(max(peak[len(peak) // 2 :], default=0))},
    }  # fmt: skip


def check(out: Path, plain: Path, names: list[str]) -> None:
    """Every mask once, whole, and equal to the plain run's."""
    masks = sorted(path.name for path in out.rglob("*.nii.gz"))
    assert masks == sorted(f"{name}_seg.nii.gz" for name in names), "another set of masks"
    wrong = [name for name in masks if not filecmp.cmp(out / name, plain / name, shallow=False)]
    assert not wrong, f"other masks than a plain run's: {wrong}"
    assert not list(out.rglob(".*")), "remains"
    records = sorted(path.stem for path in (out / "records").iterdir())
    assert records == sorted(names), "another set of records"
    rows = (out / "volumes.csv").read_text().splitlines()
    assert sorted(rows) == sorted((plain / "volumes.csv").read_text().splitlines()), "other volumes than a plain run's"
    assert len((out / "failures.csv").read_text().splitlines()) == 1, "failures"


def main() -> None:
    """Run it all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--cases", type=int, default=40)
    parser.add_argument("--every", type=float, default=60.0, help="seconds between two kills; 0: none")
    parser.add_argument("--cluster", nargs=argparse.REMAINDER, default=[], help="further arguments of the cohort")
    given = parser.parse_args()
    out = given.out.absolute()
    data, plain, model = out / "data", out / "plain", out / "model"
    make_cases(data, given.cases)
    write_model(model)
    names = sorted(folder.name for folder in data.iterdir())
    plain_run(data, model, plain)
    results = out / "out"
    shutil.rmtree(results, ignore_errors=True)
    command = [sys.executable, "-m", "tools", "cohort", BUNDLE, str(data), str(results), *settings_of(model)]
    command += given.cluster or ["--jobs", "2", "--threads", "1"]
    half = len(names) // 2 if given.every else 0
    if half:
        print("killed at half:", json.dumps(run_and_kill(command, given.every, half, results / "records")), flush=True)
    told = run_and_kill(command, given.every, 0, results / "records")
    print("to its end:", json.dumps(told), flush=True)
    assert told["status"] == 0
    check(results, plain, names)
    taken = [json.loads(path.read_text())["seconds"] for path in (results / "records").iterdir()]
    print(f"{len(names)} masks equal to the plain run's; {sum(taken):.0f} s of the workers on them")
    again = run_and_kill(command, 0, 0, results / "records")
    assert again["status"] == 0
    after = [json.loads(path.read_text())["seconds"] for path in (results / "records").iterdir()]
    assert after == taken, "a second run computed something"


if __name__ == "__main__":
    main()
