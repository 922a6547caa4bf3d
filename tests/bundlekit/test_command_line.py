"""Misspelt settings are refused, everything that MONAI takes is not."""

from __future__ import annotations

from pathlib import Path

import pytest

from bundlekit.command_line import beside_defaults, read_command_line, refuse_unknown_settings
from bundlekit.errors import BundleError
from tests.conftest import ROOT, Run, bundle_run

MONAI = "/somewhere/monai/bundle/__main__.py"
CONFIGS = ROOT / "bundles" / "brats_resunet" / "configs"
TRAIN = str(CONFIGS / "train.yaml")
RESUME = str(CONFIGS / "resume.yaml")
INFER = str(CONFIGS / "inference.yaml")
EVALUATE = str(CONFIGS / "evaluate.yaml")


def check(*more: str, config: str = TRAIN, run_id: str = "training") -> None:
    refuse_unknown_settings([MONAI, "run", run_id, "--config_file", config, *more])


@pytest.mark.parametrize(
    "more",
    [
        ["--epochs", "3"],
        ["--epochs=3"],
        ["-epochs", "3", "-amp", "--weight_decay", "0"],
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
        (["-epoch", "3"], "did you mean --epochs?"),
        (["--wieght_decay=3"], "did you mean --weight_decay?"),
        (["--outputdir", "x"], "did you mean --output_dir?"),
        (["--train::trainr::max_epochs", "5"], "--train::trainr::max_epochs is no setting"),
        (["--split2::x", "5"], "--split2::x is no setting"),
        (["--zzz", "1"], "--zzz is no setting of this bundle\nThe settings"),
        (["--resume_from", "x"], "--resume_from is a setting of resume.yaml, which is not among"),
        (["--prepare::normalise::nonzero", "False"], "would prepare cases otherwise than inference does"),
    ],
)
def test_what_neither_has_is_refused(more: list[str], message: str) -> None:
    with pytest.raises(BundleError) as error:
        check(*more)
    assert message in str(error.value)


@pytest.mark.parametrize(
    "more",
    [
        ["--dataset_dir", "scan#1"],
        ["--output_dir=/res/Pat #7"],
        ["--dataset_dir", "/data/#1", "--epochs", "3"],
        ["--bundle_root", "/data/#1"],
    ],
)
def test_a_path_with_what_fire_takes_for_a_comment_is_refused(more: list[str]) -> None:
    with pytest.raises(BundleError, match=r"#.* expected a path without #, which MONAI reads as ::"):
        check(*more)
    check("--repeats", "{'Case#1': 3}")
    check("--train#trainer#max_epochs", "3", "--learning_rate", "$@epochs#0")


def test_all_are_named_at_once() -> None:
    with pytest.raises(BundleError) as error:
        check("--epoch", "3", "--chanels", "[4,8]")
    assert "--epochs?" in str(error.value)
    assert "--channels?" in str(error.value)


def test_settings_of_overlays_count() -> None:
    check("--resume_from", "x", config=f"['{TRAIN}','{RESUME}']")
    check("--resume_from", "x", config=f"{TRAIN},{RESUME}")
    check("--train::handlers::2::interval", "5", config=f"{TRAIN},{RESUME}")  # its list is added to, not replaced
    check("--subset", "all", "--cases::labelled", "True", config=f"['{INFER}','{EVALUATE}']", run_id="evaluating")


def test_other_programs_are_left_alone() -> None:
    refuse_unknown_settings(["/usr/bin/pytest", "run", "--epoch", "3"])
    refuse_unknown_settings([MONAI, "ckpt_export", "--epoch", "3"])
    refuse_unknown_settings([MONAI])
    refuse_unknown_settings([MONAI, "run", "x", "--epoch", "3"])  # no config file to know anything from


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (["--epochs", "1.5"], "--epochs is 1.5; expected a whole number, 1 or more"),
        (["--epochs", "many"], "--epochs is 'many'; expected a whole number, 1 or more"),
        (["--epochs", "0"], "1 or more"),
        (["--epochs=-2"], "--epochs is -2"),
        (["-epochs", "0"], "--epochs is 0"),  # Fire takes one hyphen, too
        (["-epochs=-2"], "--epochs is -2"),
        (["--batch_size", "0"], "1 or more"),
        (["--accumulation_steps", "0"], "1 or more"),
        (["--val_interval", "-1"], "--val_interval is -1"),
        (["--num_workers", "-1"], "expected a whole number, 0 or more"),
        (["--seed", "-1"], "from 0 to 4294967295"),
        (["--seed", "0.5"], "expected a whole number from 0"),
        (["--learning_rate", "fast"], "--learning_rate is 'fast'; expected a number, 0 or more"),
        (["--learning_rate", "nan"], "--learning_rate is 'nan'"),
        (["--learning_rate", "-1"], "expected a number, 0 or more"),
        (["--weight_decay", "-1"], "expected a number, 0 or more"),
        (["--overlap", "1"], "--overlap is 1; expected a number from 0 to below 1"),
        (["--overlap", "half"], "from 0 to below 1"),
        (["--patch_size", "32"], 'a list of 3 values, each a whole number, 1 or more, such as "[96,96,96]"'),
        (["--patch_size", "[0,0,0]"], "--patch_size is [0, 0, 0]"),
        (["--channels", "[8,0]"], "--channels is [8, 0]"),
        (["--train_fraction", "nan"], "expected a number from 0 to 1"),
        (["--flip_probability", "2"], "expected a number from 0 to 1"),
        (["--cache_days", "0"], "expected a number, more than 0, or null"),
        (["--time_limit", "1h"], "expected a number, more than 0, or null"),
        (["--ckpt_dir", "2024"], "--ckpt_dir is 2024; expected a folder"),
        (["--ckpt_dir", f"{TRAIN}/run"], "expected a folder"),
        # what Fire reads as words, and what MONAI drops
        (["--overwrite", "false"], "--overwrite is 'false'; expected True or False, with a capital letter"),
        (["--overwrite", "no"], "with a capital letter"),
        (["--overwrite=maybe"], "--overwrite is 'maybe'; expected True or False"),
        (["--amp", "true"], "--amp is 'true'; expected True or False, with a capital letter"),
        (["--loss::loss::batch", "true"], "--loss::loss::batch is 'true'; expected True or False"),
        (["--et_label", "null"], "null is written '$None', with the quotes"),
        (["--cache_days", "None"], "--cache_days is None; expected '$None', with the quotes: MONAI drops None"),
        (["--epochs", "None"], "--epochs is None; expected a whole number, 1 or more"),
        (["--epochs", "$None"], "--epochs is '$None'; expected a whole number, 1 or more"),
        (["--patch_size", "$None"], "--patch_size is '$None'; expected a list of 3 values"),
    ],
)
def test_what_a_setting_cannot_be_is_refused(more: list[str], expected: str) -> None:
    with pytest.raises(BundleError) as error:
        check(*more)
    assert expected in str(error.value)


@pytest.mark.parametrize(
    "more",
    [
        ["--overwrite"],
        ["--overwrite", "False", "--amp=True"],
        ["--bf16", "$None", "--cache_days", "$None", "--seed", "0"],
        ["--et_label", "None"],  # as it is
        ["--learning_rate", "1e-3", "--weight_decay", "0"],
        ["--epochs", "$2 * 3", "--patch_size", "(32,32,32)", "--channels", "[4,8]"],
        ["--cache", "none", "--dataset_dir", "none"],
    ],
)
def test_what_a_setting_can_be_passes(more: list[str]) -> None:
    check(*more)


def test_values_of_files_and_of_args_file_count(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("epochs: 0\n")
    with pytest.raises(BundleError, match=r"^epochs is 0; expected a whole number, 1 or more$"):
        check(config=f"['{TRAIN}','{tmp_path / 'mine.yaml'}']")
    check("--epochs", "2", config=f"['{TRAIN}','{tmp_path / 'mine.yaml'}']")
    (tmp_path / "args.yaml").write_text(f"config_file: {TRAIN}\nepochs: 3\nseed: -1\nrun_id: training\n")
    with pytest.raises(BundleError, match="--seed is -1"):
        refuse_unknown_settings([MONAI, "run", "--args_file", str(tmp_path / "args.yaml")])
    (tmp_path / "args.json").write_text(f'{{"config_file": ["{TRAIN}"], "weight_decay": 1e-05, "time_limit": null}}')
    refuse_unknown_settings([MONAI, "run", "--args_file", str(tmp_path / "args.json")])


def test_a_run_that_is_not_there_is_named() -> None:
    with pytest.raises(BundleError, match="'trainin' is nothing that can be run; expected training"):
        check(run_id="trainin")


@pytest.mark.parametrize("file", sorted((ROOT / "bundles").glob("*/configs/train.yaml")), ids=lambda f: f.parts[-3])
def test_values_of_the_bundles_pass(file: Path) -> None:
    for other in sorted(file.parent.glob("*.yaml")):
        base = "inference.yaml" if other.name.startswith(("inference", "evaluate", "choose")) else "train.yaml"
        check(config=f"['{file.parent / base}','{other}']", run_id="run")


def test_settings_of_a_run() -> None:
    command = read_command_line(
        [MONAI, "run", "training", f"--config_file={TRAIN}", "--epochs", "3", "--loss::loss::batch", "True",
         "--dataset_dir", "some/data"]
    )  # fmt: skip
    assert command is not None
    assert command.files == [TRAIN]
    found = command.settings()
    assert found["epochs"] == 3
    assert found["cross_entropy"] == 0
    assert found["loss::loss::batch"] is True
    assert found["dataset_dir"] == str(Path("some/data").absolute())
    assert not {"loss", "optimizer", "settings", "initialize", "imports", "amp", "config_file"} & found.keys()


def test_what_decides_about_a_mask_is_told_as_it_is_typed() -> None:
    given = {"run_id": "evaluating", "config_file": "x", "overlap": 0.5, "inferer::mode": "constant", "flips": True}
    paths = {"dataset_dir": "/patients", "lowres": "$None", "checkpoint": "a.pt", "shard": "1/2", "report": True}
    files = ["/bundle/configs/inference.yaml", "/bundle/configs/whole_head.yaml"]
    expected = "whole_head.yaml --overlap 0.5 --inferer::mode constant --flips True"
    assert beside_defaults(files, {**given, **paths}) == expected
    assert beside_defaults(files[:1], {}) == ""


def test_through_the_real_command_line(run: Run, cohort: Path, tmp_path: Path) -> None:
    done = run(
        *bundle_run("training", "train.yaml"), "--dataset_dir", cohort, "--ckpt_dir", tmp_path, "--epoch", "1", status=1
    )
    assert "did you mean --epochs?" in done.stderr.partition("\nERROR: ")[2]
    assert "Traceback" not in done.stderr
    assert list(tmp_path.glob("*.pt")) == []
