"""Misspelt settings are refused, everything that MONAI takes is not."""

from __future__ import annotations

from pathlib import Path

import pytest

from bundlekit.command_line import refuse_unknown_settings
from bundlekit.errors import BundleError
from tests.conftest import ROOT, Run, bundle_run

MONAI = "/somewhere/monai/bundle/__main__.py"
CONFIGS = ROOT / "bundles" / "brats_resunet" / "configs"
TRAIN = str(CONFIGS / "train.yaml")
RESUME = str(CONFIGS / "resume.yaml")
INFER = str(CONFIGS / "inference.yaml")
EVALUATE = str(CONFIGS / "evaluate.yaml")


def check(*more: str, config: str = TRAIN) -> None:
    refuse_unknown_settings([MONAI, "run", "training", "--config_file", config, *more])


@pytest.mark.parametrize(
    "more",
    [
        ["--epochs", "3"],
        ["--epochs=3"],
        ["--batch-size", "2"],
        ["--loss::loss::batch", "True"],
        ["--optimizer::betas", "[0.9,0.99]"],  # a component takes what its class takes
        ["--optimizer#amsgrad", "True"],
        ["--train::trainer::max_epochs", "5"],
        ["--train::handlers::2::interval", "5"],
        ["--network::anything", "1"],  # an expression: unknown until it is evaluated
        ["--meta_file", "x.json", "--logging_file", "False", "--tracking", "mlflow", "--init_id", "initialize"],
    ],
)
def test_what_the_config_or_the_runner_has_passes(more: list[str]) -> None:
    check(*more)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--epoch", "3"], "--epoch is no setting of this bundle; did you mean --epochs?"),
        (["--wieght_decay=3"], "did you mean --weight_decay?"),
        (["--outputdir", "x"], "did you mean --output_dir?"),
        (["--train::trainr::max_epochs", "5"], "--train::trainr::max_epochs is no setting"),
        (["--split2::x", "5"], "--split2::x is no setting"),
        (["--zzz", "1"], "--zzz is no setting of this bundle\nThe settings"),
        (["--resume_from", "x"], "--resume_from is a setting of resume.yaml, which is not among"),
    ],
)
def test_what_neither_has_is_refused(more: list[str], message: str) -> None:
    with pytest.raises(BundleError) as error:
        check(*more)
    assert message in str(error.value)


def test_all_are_named_at_once() -> None:
    with pytest.raises(BundleError) as error:
        check("--epoch", "3", "--chanels", "[4,8]")
    assert "--epochs?" in str(error.value)
    assert "--channels?" in str(error.value)


def test_settings_of_overlays_count() -> None:
    check("--resume_from", "x", config=f"['{TRAIN}','{RESUME}']")
    check("--resume_from", "x", config=f"{TRAIN},{RESUME}")
    check("--subset", "all", "--cases::labelled", "True", config=f"['{INFER}','{EVALUATE}']")


def test_other_programs_are_left_alone() -> None:
    refuse_unknown_settings(["/usr/bin/pytest", "run", "--epoch", "3"])
    refuse_unknown_settings([MONAI, "ckpt_export", "--epoch", "3"])
    refuse_unknown_settings([MONAI])
    refuse_unknown_settings([MONAI, "run", "x", "--epoch", "3"])  # no config file to know anything from


def test_through_the_real_command_line(run: Run, cohort: Path, tmp_path: Path) -> None:
    done = run(
        *bundle_run("training", "train.yaml"), "--dataset_dir", cohort, "--ckpt_dir", tmp_path, "--epoch", "1", status=1
    )
    assert "did you mean --epochs?" in done.stderr.partition("\nERROR: ")[2]
    assert "Traceback" not in done.stderr
    assert list(tmp_path.glob("*.pt")) == []
