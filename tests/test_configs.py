"""Every bundle's configs, alone and with their overlays, as MONAI's own check of a bundle's properties sees them."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import pytest
import torch
from monai.bundle import ConfigParser, ConfigWorkflow
from monai.bundle.utils import merge_kv
from monai.transforms import Compose, RandGaussianNoised, RandScaleIntensityd, RandShiftIntensityd

from bundlekit.patches.dataset import PatchDataset
from bundlekit.weights.settings import record_setting
from tests.bundles import BUNDLES
from tests.conftest import ROOT, config, content_of
from tools.bundles import names, parse

CONFIGS = ROOT / "bundles"

TRAINING = ("", "multi_gpu", "resume", "cross_validation", "cross_validation+resume")
INFERENCE = ("", "evaluate", "evaluate+cross_validation")
NEEDS_NETWORKS = {"inference_ensemble"}  # of a cross-validation, see tests/tools/test_cv.py


def overlays() -> list[tuple[str, str, list[str]]]:
    return [
        (bundle, kind, [first, *filter(None, more.split("+"))])
        for bundle in names()
        for kind, first, lists in (
            ("train", "train", (*TRAINING, *BUNDLES[bundle].train_overlays)),
            ("infer", "inference", (*INFERENCE, *BUNDLES[bundle].inference_overlays)),
        )
        for more in lists
        if not (BUNDLES[bundle].maps and "cross_validation" in more)  # scans that are scored do not train
    ]


@pytest.mark.parametrize(
    ("bundle", "kind", "files"), overlays(), ids=lambda part: part if isinstance(part, str) else "+".join(part)
)
def test_properties_are_complete(
    bundle: str, kind: str, files: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configs = ROOT / "bundles" / bundle / "configs"
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "model.pt").touch()
    workflow = ConfigWorkflow(
        [str(configs / f"{name}.yaml") for name in files],
        workflow_type=kind,
        meta_file=str(configs / "metadata.json"),
        logging_file=False,
        output_dir=str(tmp_path),
        ckpt_dir=str(tmp_path),
        **BUNDLES[bundle].narrow,
        # weights of the bundle's own have another preprocessing
        **({"pretrained": str(tmp_path / "weights" / "model.pt")} if {"pad", "native"} & set(files) else {}),
    )
    # Ignite remembers the process group that an earlier test had
    monkeypatch.setattr(idist.utils, "_model", idist.utils._SerialModel())
    monkeypatch.setattr(idist.utils, "_need_to_sync", True)
    if "multi_gpu" in files:  # one process is a group too
        for name, value in {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0", "RANK": "0", "WORLD_SIZE": "1"}.items():
            monkeypatch.setenv(name, value)
    workflow.initialize()
    try:
        assert workflow.check_properties() == []
    finally:
        workflow.finalize()


FINE_TUNED = [bundle for bundle in names() if (CONFIGS / bundle / "configs" / "finetune.yaml").exists()]


@pytest.mark.parametrize("bundle", FINE_TUNED)
def test_fine_tuning_takes_every_setting_of_the_weights(bundle: str) -> None:
    train, tuned = config(bundle, "train"), config(bundle, "finetune")
    (checked,) = [line for line in tuned.get("+initialize", []) if "require_as_recorded" in line] or [""]
    for key in train["settings"].keys() - {"channel_order"}:  # which is about the files, not about the network
        assert tuned.get(key, "").startswith("$@recorded") or f"'{key}'" in checked


@pytest.mark.parametrize("bundle", FINE_TUNED)
def test_fine_tuning_hands_on_what_inference_reads(bundle: str) -> None:
    handed_on = config(bundle, "finetune").get("handed_on", [])
    assert bool(handed_on) == (bundle != "brain_tissue_vnet"), "nothing is chosen after its training"
    infer = config(bundle, "inference")
    for name in handed_on:
        assert infer[name].startswith(f"$@settings.get('{name}', ")


@pytest.mark.parametrize("bundle", FINE_TUNED)
def test_what_is_handed_on_is_recorded_again(bundle: str, tmp_path: Path) -> None:
    handed_on = config(bundle, "finetune").get("handed_on", [])
    chosen = {name: True if name == "fill_core" else 0.25 for name in handed_on}
    for name, value in chosen.items():
        record_setting(tmp_path / "model.pt", name, value)
    (tmp_path / "model.pt").touch()
    parser = parse(bundle, "train.yaml", "finetune.yaml", pretrained=str(tmp_path / "model.pt"))
    recorded = parser.get_parsed_content("settings").get("after_training", {})
    assert recorded == {name: chosen[name] for name in handed_on}


def value_in(bundle: str, name: str, folder: Path, **given: Any) -> Any:
    return parse(bundle, "inference.yaml", ckpt_dir=str(folder), **given).get_parsed_content(name)


@pytest.mark.parametrize("bundle", names())
def test_inference_does_as_training_did(bundle: str, tmp_path: Path) -> None:
    train = config(bundle, "train")
    infer = config(bundle, "inference")
    names_read = {name for name in train["settings"] if name != "channel_order"}  # the file's own word comes first
    assert all(infer[name].startswith("$@settings") for name in names_read)
    for name in names_read:  # nothing recorded: as train.yaml has it
        expected = train[name] if str(train["settings"][name])[:1] in ("@", "$") else train["settings"][name]
        assert value_in(bundle, name, tmp_path) == expected
    name, value, other = ("channels", [6, 12], [10, 20]) if "channels" in names_read else ("init_filters", 6, 10)
    (tmp_path / "settings.json").write_text(json.dumps({name: value}))
    assert value_in(bundle, name, tmp_path) == value
    assert value_in(bundle, name, tmp_path, **{name: other}) == other, "the command line's"


@pytest.mark.parametrize(
    ("bundle", "name"),
    [(bundle, name) for bundle in FINE_TUNED for name, value in config(bundle, "inference").items()
     if isinstance(value, str) and value.startswith("$@settings.get(")
     and name not in ("patch_size", "minimum_lesion_cases")],
)  # fmt: skip
def test_what_was_chosen_after_training_is_used(bundle: str, name: str, tmp_path: Path) -> None:
    default = value_in(bundle, name, tmp_path)
    assert default == (1 if name == "temperature" else 0)
    value, other = (True, False) if name == "fill_core" else (0.5, 0.75)
    record_setting(tmp_path / "model.pt", name, value)
    assert value_in(bundle, name, tmp_path) == value
    assert value_in(bundle, name, tmp_path, **{name: other}) == other


@pytest.mark.parametrize("bundle", [bundle for bundle in names() if not BUNDLES[bundle].maps])
def test_scores_are_of_the_split_that_training_made(bundle: str, tmp_path: Path) -> None:
    parser = parse(bundle, "inference.yaml", "evaluate.yaml", ckpt_dir=str(tmp_path))
    for name in ("train_cases", "train_fraction"):
        assert parser.get_parsed_content(name) == config(bundle, "train")[name]


FILES = sorted(CONFIGS.glob("*/configs/*.yaml"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: f"{file.parts[-3]}-{file.stem}")
def test_the_text_reads_well(file: Path) -> None:
    text = file.read_text()
    assert max(map(len, text.splitlines())) <= 120
    assert text.startswith("# "), "what it is, and its command"
    assert "bundles/" not in text, "commands are for the bundle's own folder"
    if "upstream" in text.lower():
        assert '"upstream" is the write-up' in text.partition("\n\n")[0]


@pytest.mark.parametrize("file", FILES, ids=lambda file: f"{file.parts[-3]}-{file.stem}")
def test_what_is_run_are_calls(file: Path) -> None:
    content = content_of(file)
    for key in ("initialize", "training", "run", "inferring", "evaluating", "finalize"):
        for name, lines in content.items():
            if name.lstrip("+").split("::")[0] != key or (isinstance(lines, str) and lines[0] == "%"):
                continue
            for line in [lines] if isinstance(lines, str) else lines:
                code = line.removeprefix("$").replace("@", "").replace("::", ".")
                assert isinstance(ast.parse(code, mode="eval").body, ast.Call), line


def conditions(content: Any) -> Iterator[str]:
    for key, value in content.items() if isinstance(content, dict) else enumerate(content):
        if key == "_disabled_":
            yield str(value)
        elif isinstance(value, (dict, list)):
            yield from conditions(value)


@pytest.mark.parametrize("file", FILES, ids=lambda file: f"{file.parts[-3]}-{file.stem}")
def test_no_step_is_off_by_a_double_negation(file: Path) -> None:
    content = content_of(file)
    for condition in conditions(content):
        assert len(re.findall(r"\bnot\b|!=", condition)) <= 1, condition
        assert not condition.startswith("%"), "the condition stands where the step is"
        for name in re.findall(r"@(\w+)", condition):
            assert not re.search(r"\bnot\b|!=", str(content.get(name, ""))), condition


@pytest.mark.parametrize(
    ("bundle", "files"),
    [(bundle, files) for bundle, _, files in overlays() if len(files) > 1],
    ids=lambda part: part if isinstance(part, str) else "+".join(part),
)
def test_overlays_change_what_they_name(bundle: str, files: list[str]) -> None:
    under = ConfigParser(config=config(bundle, files[0]))
    for name in files[1:]:
        overlay = config(bundle, name)
        for key, value in overlay.items():
            if len(files) == 2 and key in under:  # with more files, the last one decides
                assert under[key] != value, f"{name}.yaml repeats {key}"
            merge_kv(under, key, value)


def test_a_nested_compose_draws_as_its_steps_would() -> None:
    """The steps of a `Compose` that may be off have the random states that they would have beside the others."""
    steps = [RandGaussianNoised("image", prob=1.0), RandScaleIntensityd("image", factors=0.5, prob=1.0)]
    shift = RandShiftIntensityd("image", offsets=1.0, prob=1.0)
    data = [{"image": torch.ones(1, 4, 4, 4)}]
    flat = PatchDataset(data, Compose([*steps, shift]), cache="none", seed=3)[0]["image"]
    nested = PatchDataset(data, Compose([Compose(steps), shift]), cache="none", seed=3)[0]["image"]
    assert torch.equal(flat, nested)
    worse = parse("brats_resunet", "train.yaml", degrade_probability=0.2).get_parsed_content("train::preprocessing")
    plain = parse("brats_resunet", "train.yaml", degrade_probability=0.0).get_parsed_content("train::preprocessing")
    added = [type(step).__name__ for step in worse.flatten().transforms[len(plain.flatten().transforms) :]]
    assert added == [
        "CopyItemsd", "RandGaussianNoised", "RandGaussianSmoothd", "RandSimulateLowResolutiond", "RandAdjustContrastd",
        "MaskIntensityd", "DeleteItemsd",
    ]  # fmt: skip


@pytest.mark.parametrize("bundle", ["brats_resunet", "brats_unet_h5", "brain_metastasis_attention_unet"])
def test_low_resolution_does_not_move_the_image(bundle: str) -> None:
    steps = parse(bundle, "train.yaml", degrade_probability=1.0).get_parsed_content("train::preprocessing").flatten()
    (step,) = [step for step in steps.transforms if type(step).__name__ == "RandSimulateLowResolutiond"]
    away = (torch.stack(torch.meshgrid(*[torch.arange(64.0)] * 3, indexing="ij")) - 31.5).square().sum(0)
    blob = torch.exp(-away / 50)[None]
    for seed in range(4):
        moved = step.set_random_state(seed)({"image": blob.clone()})["image"][0]
        along = (moved.sum((1, 2)) * torch.arange(64.0)).sum() / moved.sum()
        assert float(along) == pytest.approx(31.5, abs=0.05)


def test_augmentation_of_hdf5_cases_leaves_air_alone() -> None:
    strong = {
        "scale_range": 0.15,
        "intensity_probability": 1.0,
        "degrade_probability": 1.0,
        "case": {"_target_": "Compose"},
    }
    steps = parse("brats_unet_h5", "train.yaml", **strong).get_parsed_content("train::preprocessing").flatten()
    none = parse("brats_unet_h5", "train.yaml", case={"_target_": "Compose"}).get_parsed_content("train::preprocessing")
    assert not {"RandScaleIntensityd", "RandGaussianNoised"} & {type(s).__name__ for s in none.flatten().transforms}
    brain = torch.zeros(4, 32, 32, 32)
    brain[:, 8:24, 8:24, 8:24] = torch.rand(4, 16, 16, 16) * 0.9 + 0.1
    out = steps.set_random_state(3)({"image": brain, "label": (brain[:1] > 0).to(torch.uint8)})
    inside = out["label"][0] > 0
    assert 0.5 < float(inside.sum()) / 16**3 < 1.6  # turned and scaled, still there
    away = torch.nn.functional.max_pool3d(inside[None].float(), 3, 1, 1)[0] == 0
    assert not out["image"][:, away].any()
    assert not torch.equal(out["image"], brain)


@pytest.mark.parametrize("bundle", names())
def test_training_leaves_shipped_weights_alone(bundle: str, tmp_path: Path) -> None:
    def goes_to() -> str:
        parser = ConfigParser()
        parser.read_config(ROOT / "bundles" / bundle / "configs" / "train.yaml")
        parser["bundle_root"] = str(tmp_path)
        return parser.get_parsed_content("ckpt_dir")

    assert goes_to() == str(tmp_path / "models")
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "SHA256SUMS").touch()
    assert goes_to() == str(tmp_path / "eval" / "trained")


@pytest.mark.parametrize("bundle", names())
def test_no_config_is_left_out(bundle: str) -> None:
    there = {path.stem for path in (ROOT / "bundles" / bundle / "configs").glob("*.yaml")}
    assert there - NEEDS_NETWORKS == {name for b, _, files in overlays() if b == bundle for name in files}


@pytest.mark.parametrize("bundle", names())
def test_every_run_is_prepared_first(bundle: str) -> None:
    given = "@device, @seed, @deterministic, bundle_root=@bundle_root"
    for name in ("train", "inference"):
        assert config(bundle, name)["initialize"][0] == f"$bundlekit.prepare_run({given})"
    several = config(bundle, "multi_gpu")["initialize::0"]
    assert several == f"$bundlekit.prepare_run({given}, distributed=True)"


@pytest.mark.parametrize("bundle", names())
def test_a_training_takes_nan_for_no_result(bundle: str) -> None:
    train = config(bundle, "train")
    assert "bundlekit.StopAtNaN" in [handler["_target_"] for handler in train["train"]["handlers"]]
    assert train["train"]["trainer"]["metric_cmp_fn"] == "$bundlekit.is_lower"
    (score,) = train["validate"]["key_metric"]
    better = "$bundlekit.is_lower" if score == "val_loss" else "$bundlekit.is_higher"
    assert train["validate"]["evaluator"]["metric_cmp_fn"] == better


@pytest.mark.parametrize("bundle", BUNDLES)
def test_loader_processes_can_be_sent_the_transforms(bundle: str) -> None:
    """Where processes are not forked (macOS, Windows) they are pickled, which a lambda cannot be."""

    def components(part: Any) -> Iterator[dict[str, Any]]:
        """All of a config but handlers and what follows the network, which stay in the main process."""
        for key, value in part.items() if isinstance(part, dict) else enumerate(part):
            if key not in ("handlers", "val_handlers", "postprocessing") and isinstance(value, (dict, list)):
                yield from components(value)
        if isinstance(part, dict) and "_target_" in part:
            yield part

    for name in ("train", "inference"):
        found = list(components(config(bundle, name)))
        assert any("Load" in part["_target_"] for part in found)
        assert [part for part in found if "$lambda" in str(part.values())] == [], name
