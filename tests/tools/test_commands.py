"""The tools as a user calls them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import fire
import nibabel as nib
import numpy as np
import pytest
import torch

from tests.conftest import Run
from tools.__main__ import COMMANDS, _checked, _refuse_unknown
from tools.bench import loader, memory
from tools.bench.case import _ZOO, _dice, _regions, _run
from tools.bench.memory import counted
from tools.bundles import parse
from tools.demo import demo


def test_help_names_every_command_and_argument(run: Run) -> None:
    text = run("-m", "tools", "--help").stderr
    for command in ("demo", "check", "virtual", "bench"):
        assert command in text
    text = run("-m", "tools", "virtual", "brats", "--help").stderr
    for argument in ("out", "cases", "seed", "shape"):
        assert argument in text
    assert "METADATA" not in text  # Fire's own attribute


def test_bad_argument_ends_with_one_line(run: Run, tmp_path: Path) -> None:
    done = run("-m", "tools", "virtual", "brats", "--out", tmp_path / "x", "--cases", "0", status=1)
    assert "ERROR: " in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("name", ["12_3", "0012", "1e5", "[a]", "True", "2026-11-30"])
def test_texts_stay_as_they_were_typed(name: str) -> None:
    def command(folder: str, cases: int = 1, out: str | None = "x", **settings: object) -> object:
        return folder, cases, out, settings

    given = [name, "--cases", "1_0", "--out", name, "--case", name, "--flips", "True"]
    assert fire.Fire(_checked(command), given) == (name, 10, name, {"case": name, "flips": True})
    assert fire.Fire(_checked(command), [name, "--out=None"]) == (name, 1, None, {})


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("12e4", "12e4"),
        ("[01,12e4]", ["01", "12e4"]),
        ("['a.yaml', \"b.yaml\"]", ["a.yaml", "b.yaml"]),
        ("--exclude=a,b", "--exclude=a,b"),
        ("('ab')", ["ab"]),
        ("(5)", ["5"]),
        ("['--exclude=a,b', '--gres=gpu:1,shard:2']", ["--exclude=a,b", "--gres=gpu:1,shard:2"]),
        ("[]", []),
    ],
)
def test_several_texts_stay_as_they_were_typed(given: str, expected: object) -> None:
    def command(names: str | Sequence[str] = ()) -> object:
        return names

    assert fire.Fire(_checked(command), [f"--names={given}"]) == expected


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (
            ["virtual", "brats", "--out", "x", "--casses", "1"],
            "--casses is no option of this command; did you mean --cas",
        ),
        (["card", "--zzz=3"], "--zzz is no option of this command; there are: --"),
        (["virtual", "brats", "--out", "x", "--cases=1", "--seed", "2", "--", "--trace"], ""),
        (["virtual", "ct", "--help"], ""),
        (["cv", "brats_resunet", "--anything", "1"], ""),  # of the bundle
        (["virtual"], ""),
        ([], ""),
    ],
)
def test_unknown_options_are_refused_before_anything_is_done(arguments: list[str], told: str) -> None:
    if not told:
        _refuse_unknown(arguments)
        return
    with pytest.raises(ValueError, match=told):
        _refuse_unknown(arguments)


@pytest.mark.parametrize("flag", ["false", "no", 0, "True"])
def test_words_are_no_flags(flag: object) -> None:
    """Fire hands them on as text, which counts as true."""
    with pytest.raises(ValueError, match=f"--fresh is {flag!r}; expected True or False"):
        _checked(COMMANDS)["label"]("studies", fresh=flag)
    with pytest.raises(ValueError, match=f"--half is {flag!r}; expected True or False"):
        _checked(COMMANDS)["ship"]("brats_resunet", "model.pt", flag)


def test_words_are_no_numbers() -> None:
    with pytest.raises(ValueError, match="--num_folds is 'five'; expected a whole number"):
        _checked(COMMANDS)["cv"]("brats_resunet", "data", "out", num_folds="five")
    with pytest.raises(ValueError, match=r"--num_workers is 1\.5; expected a whole number"):
        _checked(COMMANDS)["check"]("brats_resunet", "x", num_workers=1.5)


def test_the_folder_of_a_conversion_stays_as_it_was_typed(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="12_3"):
        fire.Fire(_checked(COMMANDS), ["convert", "h5", "--from", "12_3", "--to", str(tmp_path)])


def test_flags_and_other_values_reach_the_command() -> None:
    def command(out: str, half: bool = True, gpu: bool | None = None, **more: object) -> tuple:
        """Told by --help."""
        return out, half, gpu, more

    command.__annotations__.update(half="bool", gpu="bool | None")
    checked = _checked(command)
    assert checked("false", False, word="false") == ("false", False, None, {"word": "false"})
    assert checked("x", gpu=None) == ("x", True, None, {})
    assert checked("x", gpu=True) == ("x", True, True, {})
    assert checked.__doc__ == "Told by --help."


def test_a_word_on_the_command_line_ends_with_one_line(run: Run, tmp_path: Path) -> None:
    done = run("-m", "tools", "check", "brats_resunet", "--dataset_dir", tmp_path, "--voxels", "false", status=1)
    assert "ERROR: --voxels is 'false'; expected True or False, with a capital letter" in done.stderr


def test_benchmarks_print_their_rows(cohort: Path, capsys: pytest.CaptureFixture[str]) -> None:
    loader(str(cohort), patch_size=(16, 16, 16), patches=5, rounds=1)
    rows = capsys.readouterr().out
    assert rows.count("patches per CPU second") == 7
    memory(channels=(4, 8, 16, 32), patch_size=(32, 32, 32), batch_size=1)
    assert "together 0.01 GiB" in capsys.readouterr().out


def test_memory_of_a_step_is_counted() -> None:
    small = {"channels": (4, 8, 16, 32), "patch_size": (32, 32, 32), "half": False}
    network, loss, state = counted(**small, batch_size=1)
    twice = counted(**small, batch_size=2)
    parts = parse("brats_resunet", "train.yaml", channels=[4, 8, 16, 32]).get_parsed_content("network_def")
    assert state == twice[2] == 16 * sum(parameter.numel() for parameter in parts.parameters())
    assert twice[0] == pytest.approx(2 * network, rel=0.05)
    assert 0 < loss < network
    assert network > 4 * 4 * 4 * 32**3  # at full resolution at least four convolutions keep their input
    assert counted(**{**small, "half": True}, batch_size=1)[0] < 0.8 * network


def test_a_case_is_written_by_the_zoos_way_and_the_bundles_own(cohort: Path, tmp_path: Path) -> None:
    scan = nib.load(cohort / "VirtualGlioma_00001" / "VirtualGlioma_00001_t1.nii.gz")
    for way in (_ZOO, "auto"):
        out = str(tmp_path / way)
        seconds, gib, mask = _run(way, "brats_resunet", str(cohort), 1, 0.0, torch.get_num_threads(), out)
        assert seconds > 0
        assert gib > 0.1
        assert "VirtualGlioma_00001" in mask
        assert nib.load(mask).shape == scan.shape
        np.testing.assert_allclose(nib.load(mask).affine, scan.affine)


def test_masks_are_compared_by_region(cohort: Path) -> None:
    file = cohort / "VirtualGlioma_00000" / "VirtualGlioma_00000_seg.nii.gz"
    truth = _regions("brats_resunet", file)
    assert truth["WT"].sum() > truth["TC"].sum() > truth["ET"].sum() > 0
    assert _dice(truth, truth) == "WT 1.0000 TC 1.0000 ET 1.0000"
    assert _dice({**truth, "ET": ~truth["ET"]}, truth) == "WT 1.0000 TC 1.0000 ET 0.0000"
    without = {**truth, "ET": truth["ET"] & ~truth["ET"]}
    assert _dice(without, without) == "WT 1.0000 TC 1.0000 ET 1.0000", "empty in both"
    assert _dice({}, _regions("brain_tissue_vnet", file)) == "1 0.0000 2 0.0000 4 0.0000"


def test_demo_replaces_only_what_a_demo_made(tmp_path: Path) -> None:
    (tmp_path / "cases").mkdir()
    (tmp_path / "cases" / "mine.nii.gz").write_text("a scan")
    with pytest.raises(ValueError, match=r"holds files that no demo .* made; remove it or give another --out"):
        demo(str(tmp_path))
    (tmp_path / ".made_by_demo").touch()
    (tmp_path / "cases" / "labels").mkdir()
    with pytest.raises(ValueError, match="labels saved in a viewer; move them away"):
        demo(str(tmp_path))
    for number in ({"cases": 0}, {"seed": 0}):
        with pytest.raises(ValueError, match=f"{next(iter(number))} is 0; expected"):
            demo(str(tmp_path), **number)
    assert (tmp_path / "cases" / "mine.nii.gz").is_file()
