"""Parts of a data set that a plain run computes, for arrays of jobs."""

from __future__ import annotations

import csv
import re
from pathlib import Path

from tests.conftest import ROOT, Run, bundle_run, config, refusal
from tools.bundles import names


def test_every_case_is_in_one_part(run: Run, cases: Path, tiny_model: Path, tmp_path: Path) -> None:
    command = [*bundle_run("inferring", "inference.yaml"), "--ckpt_dir", tiny_model, "--runtime", "torch"]
    command += ["--dataset_dir", cases, "--output_dir", tmp_path / "out", "--num_workers", "0"]
    for part in ("1/2", "2/2"):
        run(*command, "--shard", part)
    whole = sorted(folder.name for folder in cases.iterdir())
    assert sorted(path.name for path in (tmp_path / "out").glob("*.nii.gz")) == [f"{name}_seg.nii.gz" for name in whole]
    tables = [tmp_path / "out" / f"volumes_{part}of2.csv" for part in (1, 2)]
    assert [sorted({row["case"] for row in csv.DictReader(table.open())}) for table in tables] == [
        whole[::2],
        whole[1::2],
    ]
    assert not (tmp_path / "out" / "volumes.csv").exists()
    told = refusal(run(*command, "--shard", "3/2", status=1))
    assert "--shard is '3/2'; expected i/n" in told


def test_the_array_of_the_manual_names_a_part_whichever_are_submitted_again() -> None:
    script = (ROOT / "docs" / "cohorts.md").read_text()
    (parts,) = re.findall(r"--array=1-(\d+)\n", script)
    assert f"\nPARTS={parts} " in script
    assert '--shard "$SLURM_ARRAY_TASK_ID/$PARTS"' in script


def test_every_bundle_takes_a_part() -> None:
    for bundle in names():
        inference = config(bundle, "inference")
        assert inference["shard"] is None
        assert inference["dataset"]["data"] == "$bundlekit.shard_cases(@cases, @shard)"
        tables = [handler["shard"] for handler in inference["handlers"] if "WriteVolumes" in handler["_target_"]]
        assert tables == ["@shard"]
        refusals = "$bundlekit.refuse_shard(@shard)"
        assert refusals in config(bundle, "evaluate")["+initialize"]
