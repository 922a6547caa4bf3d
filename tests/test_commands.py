"""Every bundle as a user runs it: MONAI's command line on a folder of virtual cases."""

from __future__ import annotations

import csv
import json
import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch

from bundlekit.errors import BundleError, bundle_error_in
from bundlekit.weights.settings import record_setting
from tests.bundles import BUNDLES, options
from tests.conftest import COMMANDS, ROOT, Run, assert_equal, bundle_run, config, losses, printed, refusal, training
from tools.bundles import parse
from tools.check import check

DataOf = Callable[[str], Path]
Trained = Callable[[str], Path]

FINE_TUNED = [name for name in BUNDLES if (ROOT / "bundles" / name / "configs" / "finetune.yaml").exists()]


def rows_of(file: Path) -> list[dict[str, str]]:
    with file.open() as text:
        return list(csv.DictReader(text))


@pytest.mark.parametrize("bundle", [name for name, row in BUNDLES.items() if not row.maps])
def test_train_evaluate_infer(bundle: str, run: Run, data_of: DataOf, trained: Trained, tmp_path: Path) -> None:
    """The card's three commands, the last two from the folder where the bundle's own name shadows its package.

    What the network was trained with is not given again: it lies beside the weights.
    """
    data, model, row = data_of(bundle), trained(bundle), BUNDLES[bundle]
    found = losses((model / "log.txt").read_text())
    assert len(found) == row.training["epochs"]
    assert found[-1] < found[0] - row.falls
    split = json.loads((model / "datalist.json").read_text())
    assert [len(split[part]) for part in ("training", "validation")] == [4, 1]
    assert not {case["patient"] for case in split["training"]} & {case["patient"] for case in split["validation"]}
    settings = json.loads((model / "settings.json").read_text())
    assert row.small.items() <= settings.items()
    assert settings.keys() == parse(bundle, "train.yaml")["settings"].keys()

    common = ["--ckpt_dir", model, "--num_workers", "0"]
    before = sorted((ROOT / "bundles").iterdir())
    arguments = [*common, "--dataset_dir", data, "--output_dir", tmp_path / "scores"]
    run(*bundle_run("evaluating", "inference.yaml", "evaluate.yaml", bundle=bundle), *arguments, cwd=ROOT / "bundles")
    (scores,) = rows_of(tmp_path / "scores" / "scores.csv")
    (case,) = split["validation"]
    assert scores["case"] == case["case"]
    summary = json.loads((tmp_path / "scores" / "summary.json").read_text())
    assert summary["n_cases"] == 1
    dice = {name: float(value) for name, value in scores.items() if name.startswith("dice_") and value}
    assert dice
    assert all(0 <= value <= 1 for value in dice.values())
    for name, value in dice.items():
        assert summary["metrics"][name]["mean"] == pytest.approx(value, abs=1e-5)

    one = data / os.path.relpath(case["image"][0] if isinstance(case["image"], list) else case["image"], data)
    arguments = [*common, "--dataset_dir", one, "--output_dir", tmp_path / "masks", "--save_probabilities", "True"]
    arguments += ["--report", "True"] if bundle == "brats_unet_h5" else []  # whose scans are no NIfTI files
    run(*bundle_run("inferring", "inference.yaml", bundle=bundle), *arguments, cwd=ROOT / "bundles")
    assert sorted((ROOT / "bundles").iterdir()) == before, "nothing is written to the working directory"
    names = [f"{case['case']}_probabilities.nii.gz", f"{case['case']}_seg.nii.gz"]
    more = ["report"] * ("--report" in arguments) + ["volumes.csv", "volumes.json"]
    assert sorted(file.name for file in (tmp_path / "masks").iterdir()) == [*names, *more]
    assert (tmp_path / "masks" / "report" / f"{case['case']}_planes.png").is_file() == ("report" in more)
    probabilities, mask = (nib.load(tmp_path / "masks" / name) for name in names)
    again = nib.load(tmp_path / "scores" / names[1])
    np.testing.assert_array_equal(np.asarray(mask.dataobj), np.asarray(again.dataobj), "scored is what is written")
    if one.suffix != ".h5":
        source = nib.load(one)
        np.testing.assert_array_equal(mask.affine, source.affine)
        assert mask.shape == source.shape
    assert mask.get_data_dtype() == np.uint8
    assert set(np.unique(mask.dataobj)) <= {0, *case["label_values"]}
    with (tmp_path / "masks" / "volumes.csv").open(newline="") as file:
        volumes = [float(row["ml"]) for row in csv.DictReader(file) if row["kind"] == "class"]
    voxel_ml = abs(np.linalg.det(mask.affine[:3, :3])) / 1000
    counted = [
        np.count_nonzero(np.asarray(mask.dataobj) == value) * voxel_ml for value in list(case["label_values"])[1:]
    ]
    np.testing.assert_allclose(volumes, counted, rtol=1e-4)
    assert probabilities.shape[:3] == mask.shape
    values = np.asarray(probabilities.dataobj)
    if values.shape[-1] == len(case["label_values"]):  # a softmax over the classes
        np.testing.assert_allclose(values.sum(-1), 1, atol=3e-3)
        assert (np.asarray(case["label_values"])[values.argmax(-1)] == np.asarray(mask.dataobj)).mean() > 0.999
    elif bundle != "brats_unet_h5":  # whose sigmoids know nothing of each other
        assert values.shape[-1] == 3
        assert (values[..., 0] >= values[..., 1] - 1e-6).all(), "the core lies in the whole tumour"


@pytest.mark.parametrize("bundle", BUNDLES)
def test_killed_run_resumes_as_if_it_had_not_stopped(
    bundle: str, run: Run, data_of: DataOf, trained: Trained, tmp_path: Path
) -> None:
    """Bit for bit: patches, painted images and all else follow from seed, epoch and position."""
    files, data = ("train.yaml", *BUNDLES[bundle].resumed), data_of(bundle)
    more: dict[str, Any] = {}
    if bundle == "brain_tissue_vnet":
        data = data / "derivatives" / "labels"
        more = {"samples_per_epoch": 6, "clahe": 0, "epochs": 3}  # not of patches
    if bundle == "abdomen_ct_vnet":  # the other organs vanish at these voxels
        more = {"organs": ["liver", "right kidney", "left kidney", "spleen", "stomach"], "patches_per_case": 2}
    straight, killed = trained(bundle), tmp_path / "killed"
    epochs = more.get("epochs", BUNDLES[bundle].training["epochs"])
    if more:
        straight = tmp_path / "straight"
        log = printed(run(*bundle_run("training", *files, bundle=bundle), *training(bundle, data, straight, **more)))
        assert min(losses(log)[-2:]) < losses(log)[0]
        assert bundle != "abdomen_ct_vnet" or "class weights (sqrt): background 0." in log
    arguments = training(bundle, data, killed, **more)
    run(*bundle_run("training", *files, bundle=bundle), *arguments, kill_at=killed / "last.pt", status=-9)
    reached = torch.load(killed / "last.pt", weights_only=True)["trainer"]["epoch"]
    assert 1 <= reached < epochs, "killed half-way"
    assert "an earlier run" in refusal(run(*bundle_run("training", *files, bundle=bundle), *arguments, status=1))
    log = printed(run(*bundle_run("training", *files, "resume.yaml", bundle=bundle), *arguments))
    assert f"after epoch {reached} of {epochs}" in log
    a, b = (torch.load(folder / "last.pt", weights_only=True) for folder in (straight, killed))
    for part in ("model", "best", "trainer", "lr_scheduler"):
        assert_equal(a[part], b[part])
    assert (straight / "settings.json").read_bytes() == (killed / "settings.json").read_bytes()


@pytest.mark.parametrize("bundle", BUNDLES)
def test_two_processes_train_like_one(
    bundle: str, run: Run, data_of: DataOf, trained: Trained, tmp_path: Path, environment: dict[str, str]
) -> None:
    """Same cases, patches and steps; the sums of gradients differ by rounding alone."""
    one, two, row = trained(bundle), tmp_path / "two", BUNDLES[bundle]
    arguments = training(bundle, data_of(bundle), two, batch_size=row.training["batch_size"] // 2)
    command = [*bundle_run("training", "train.yaml", "multi_gpu.yaml", bundle=bundle), *arguments]
    if bundle == "brats_resunet":  # by the launcher itself, whose interpreters are forks too
        environment["PYTHON_EXEC"] = str(COMMANDS.executable(tmp_path / "python"))
        start = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
        log = printed(run(*start, *command))
    else:  # as it would start them, from the process that has imported already
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"}
        environment.update(group)
        log = printed(run(*command))
    found, expected = losses(log), losses((one / "log.txt").read_text())
    assert found == pytest.approx(expected, abs=row.like_one["loss"])
    a, b = (torch.load(folder / "last.pt", weights_only=True)["model"] for folder in (one, two))
    keys = [key for key in a if "weights" in row.like_one or ("kernels" in row.like_one and a[key].ndim == 5)]
    for key in keys:
        within = row.like_one.get("weights", row.like_one.get("kernels"))
        torch.testing.assert_close(a[key], b[key], rtol=0, atol=within, msg=key)
    assert a.keys() == b.keys()
    assert (one / "settings.json").read_bytes() == (two / "settings.json").read_bytes()


@pytest.mark.parametrize("bundle", FINE_TUNED)
def test_fine_tuning_goes_on_from_weights_and_leaves_them(
    bundle: str, run: Run, data_of: DataOf, trained: Trained, tmp_path: Path
) -> None:
    """With the settings of the weights, and with those chosen after their training that the bundle hands on."""
    first, tuned = Path(shutil.copytree(trained(bundle), tmp_path / "first")), tmp_path / "tuned"
    handed_on = config(bundle, "finetune").get("handed_on", [])
    settings = json.loads((first / "settings.json").read_text())
    chosen = {name: True if name == "fill_core" else 0.01 for name in handed_on}
    for name, value in chosen.items():
        record_setting(first / "model.pt", name, value)
    more: dict[str, Any] = {"norm": "instance", "dropout": 0} if bundle == "brain_tissue_vnet" else {}
    before = (first / "model.pt").read_bytes()
    arguments = {"dataset_dir": data_of(bundle), "ckpt_dir": tuned, "output_dir": tuned, "num_workers": 0, "epochs": 1}
    arguments["learning_rate"] = 0
    log = printed(run(
        *bundle_run("training", "train.yaml", "finetune.yaml", bundle=bundle),
        *options(pretrained=first / "model.pt", batch_size=2, patches_per_case=2, **arguments, **more),
    ))  # fmt: skip
    assert len(losses(log)) == 1
    start, end = torch.load(first / "model.pt", weights_only=True), torch.load(tuned / "last.pt", weights_only=True)
    kernels = [key for key, value in start.items() if value.ndim == 5]
    assert kernels
    for key in kernels:  # nothing has been learned: these are the weights that the training began with
        assert torch.equal(start[key], end["model"][key]), key
    assert ("of another normalisation are left out" in log) == bool(more)
    assert (first / "model.pt").read_bytes() == before
    settings |= {"norm": "instance"} if more else {}
    after = {"after_training": {name: chosen[name] for name in handed_on}} if handed_on else {}
    assert json.loads((tuned / "settings.json").read_text()) == {**settings, **after}


# --- what is refused --------------------------------------------------------------------------------------------------

GLIOMA = "VirtualGlioma_0000{0}/VirtualGlioma_0000{0}_{1}.nii.gz"
T1, LABEL = "sub-00{0}/anat/sub-00{0}_T1w.nii.gz", "derivatives/labels/sub-00{0}/anat/sub-00{0}_desc-aseg_dseg.nii.gz"


def rewrite(file: Path, change: Callable[[np.ndarray], Any]) -> None:
    image = nib.load(file)
    nib.save(nib.Nifti1Image(change(np.asarray(image.dataobj).copy()), image.affine), file)


def with_voxels(values: int | float, dtype: type, count: int = 1) -> Callable[[np.ndarray], np.ndarray]:
    def change(array: np.ndarray) -> np.ndarray:
        array = array.astype(dtype)
        array[20 : 20 + count, 20, 18] = values
        return array

    return change


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-2000])


def truncated(name: str) -> dict[str, Any]:
    return {name: (truncate, "cannot be decoded to its end")}


def skull(array: np.ndarray) -> np.ndarray:
    """A head: tissue in the whole field of view but for its corners."""
    return np.where(np.indices(array.shape).sum(0) > 50, np.maximum(array, 300), 0)


# bundle, file -> (what is done to it, what is said of it); what headers tell comes at once, voxels are read one by one
SPOILT: dict[str, tuple[str, dict[str, tuple[Callable[[Path], Any], str]]]] = {
    "gliomas, headers": ("brats_resunet", {
        GLIOMA.format(1, "t2"): (Path.unlink, "add the missing file"),
        GLIOMA.format(2, "flair"): (lambda f: rewrite(f, lambda a: a[:-1]), "resample the files of a case to one grid"),
        GLIOMA.format(3, "t1"): (lambda f: rewrite(f, lambda a: a[..., 10]), "2-D image"),
    }),
    "gliomas, label": ("brats_resunet", {
        GLIOMA.format(2, "seg"): (lambda f: rewrite(f, with_voxels(5, np.uint8, 3)), "label value(s) 5 in 3 voxel(s)"),
    }),
    "gliomas, NaN": ("brats_resunet", {
        GLIOMA.format(3, "t1ce"): (lambda f: rewrite(f, with_voxels(np.nan, np.float32)),
                                   "1 voxel(s) that are NaN or infinite"),
    }),
    "gliomas, truncated": ("brats_resunet", truncated(GLIOMA.format(0, "t1"))),
    "gliomas, none": ("brats_resunet", {".": (shutil.rmtree, "no case")}),
    "heads, headers": ("brain_tissue_vnet", {
        T1.format(1): (Path.unlink, "fix:"),
        LABEL.format(2): (lambda f: rewrite(f, lambda a: a[:-1]), "resample the files of a case to one grid"),
        T1.format(3): (lambda f: rewrite(f, lambda a: a[..., 10]), "2-D image"),
    }),
    "heads, numbering": ("brain_tissue_vnet", {
        LABEL.format(2): (lambda f: rewrite(f, lambda a: np.where(a == 3, 199, a).astype(np.uint8)), "199"),
    }),
    "heads, NaN": ("brain_tissue_vnet", {
        T1.format(1): (lambda f: rewrite(f, with_voxels(np.nan, np.float32)), "1 voxel(s) that are NaN or infinite"),
    }),
    "heads, truncated": ("brain_tissue_vnet", truncated(T1.format(1))),
    "heads, none": ("brain_tissue_vnet", {".": (shutil.rmtree, "no case")}),
    "heads, skull": ("brain_tissue_vnet", {
        T1.format(1): (lambda f: rewrite(f, skull), "a head with its skull"),
    }),
    "abdomens, MRI": ("abdomen_ct_vnet", {
        "imagesTr/FLARE22_Tr_0002_0000.nii.gz": (lambda f: rewrite(f, np.abs), "a CT in Hounsfield units"),
    }),
}  # fmt: skip


@pytest.mark.parametrize("kind", SPOILT)
def test_bad_data_gives_one_clear_message(
    kind: str, run: Run, data_of: DataOf, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle, spoilt = SPOILT[kind]
    data, out = Path(shutil.copytree(data_of(bundle), tmp_path / "data")), tmp_path / "out"
    for name, (spoil, _) in spoilt.items():
        spoil(data / name)
    data.mkdir(exist_ok=True)
    arguments = training(bundle, data, out, epochs=1)
    error = refusal(run(*bundle_run("training", "train.yaml", bundle=bundle), *arguments, status=1))
    told = error
    if kind != "heads, skull":  # which is the network's matter, not the data set's
        with pytest.raises((SystemExit, BundleError)) as stopped:
            check(bundle, str(data))
        told = capsys.readouterr().out + str(stopped.value)
    for name, (_, message) in spoilt.items():
        file = Path(name).name.removesuffix("_T1w.nii.gz") if message == "fix:" else Path(name).name
        assert (file or str(data)) in error
        assert message in error
        assert (file or str(data)) in told
        assert message in told
    assert "expected:" in error
    assert "fix:" in error
    written = sorted(p.name for p in out.rglob("*")) if out.exists() else []
    assert not [n for n in written if n.endswith((".pt", ".part", ".csv", ".nii.gz"))], written


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("brats_resunet", {"patch_size": [64, 64, 64]}, "at least patch_size 64x64x64"),
    ("brats_resunet", {"draw": "tumour"}, 'draw must be "voxel", "region" or "lesion", got \'tumour\''),
    ("brain_tissue_vnet", {"normalise": "minmax"}, "normalise must be one of zscore, percentile"),
    ("brain_tissue_vnet", {"init_filters": 5}, "init_filters must be even"),
    ("brain_tissue_vnet", {"clahe": 3}, "clahe (the clip limit) must be from 0 to 1"),
    ("brain_tissue_vnet", {"fit": "pad"}, "add configs/pad.yaml"),
    ("brain_tissue_vnet", {"numbering": "aseg"}, "aseg"),
    ("brain_metastasis_attention_unet", {"network": "vnet"}, "network must be one of attention_unet, unet, resunet"),
    ("brain_metastasis_attention_unet", {"class_weights": [-1, 1, 1, 1]}, "expected 4 numbers, 0 or more"),
    ("brain_metastasis_attention_unet", {"patch_size": [30, 32, 32]}, "patch_size must divide by 4"),
    ("brain_metastasis_attention_unet", {"fit": "rezise"}, "fit is 'rezise'; expected native or resize"),
    ("brain_metastasis_attention_unet", {"slab": 8}, "Add --fit resize"),
    ("abdomen_ct_vnet", {"class_weights": [1, 2]}, "4: background, liver, kidneys, spleen"),
]


@pytest.mark.parametrize(("bundle", "settings", "message"), REFUSED, ids=[f"{b}-{s}" for b, s, _ in REFUSED])
def test_bad_settings_are_refused(
    bundle: str, settings: dict[str, Any], message: str, data_of: DataOf, tmp_path: Path
) -> None:
    """By the run itself, here in this process; the message alone is shown, see tests/bundlekit/test_errors.py."""
    row = BUNDLES[bundle]
    where = {
        "dataset_dir": str(data_of(bundle)),
        "ckpt_dir": str(tmp_path / "out"),
        "output_dir": str(tmp_path / "out"),
    }
    given = {**where, "num_workers": 0, "cache_dir": str(tmp_path / "cache"), **row.small, **row.training, **settings}
    parser = parse(bundle, "train.yaml", **given)
    parser["initialize::0"] = "$None"  # which changes the process
    parser["training"] = [*parser["initialize"], *parser["training"]]
    with pytest.raises(Exception) as caught:  # noqa: PT011 (MONAI wraps what goes wrong)
        parser.get_parsed_content("training")
    assert message in str(bundle_error_in(caught.value) or caught.value)
    assert not list((tmp_path / "out").rglob("*.pt"))


@pytest.mark.parametrize("bundle", BUNDLES)
def test_bad_settings_give_one_clear_message(
    bundle: str, run: Run, data_of: DataOf, trained: Trained, tmp_path: Path
) -> None:
    name = next(iter(BUNDLES[bundle].small))
    data = ["--dataset_dir", data_of(bundle), "--ckpt_dir", trained(bundle), "--output_dir", tmp_path / "masks"]
    infer = [*bundle_run("inferring", "inference.yaml", bundle=bundle), *data, "--num_workers", "0"]
    width = BUNDLES[bundle].small[name]
    other = 2 * width if isinstance(width, int) else [2 * n for n in width]
    error = refusal(run(*infer, *options(**{name: other}), status=1)).replace('"', "").replace(", ", ",")
    told = "first width 4" if bundle == "brain_metastasis_attention_unet" else f"--{name} {width}".replace(", ", ",")
    assert told in error
    assert "nowhere.pt" in refusal(run(*infer, "--checkpoint", "nowhere.pt", status=1))
    error = refusal(run(*infer, "--overlpa", "0.1", status=1))
    assert "did you mean --overlap?" in error
    assert "Add --dataset_dir DIR" in refusal(run(*bundle_run("training", "train.yaml", bundle=bundle), status=1))
    assert not (tmp_path / "masks").exists()
