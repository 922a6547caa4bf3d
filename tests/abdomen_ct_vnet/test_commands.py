"""What a user of this bundle can run, beside what every bundle has."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from matplotlib import image as png
from monai.transforms import Compose
from monai.transforms.traits import RandomizableTrait

from abdomen_ct_vnet import UPSTREAM_ORGANS, NormaliseCTd, class_weights_of, find_cases, organ_classes
from abdomen_ct_vnet.numberings import label_values
from abdomen_ct_vnet.organs import FLARE22_ORGANS
from bundlekit.weights.settings import write_settings
from tests.abdomen_ct_vnet.conftest import labels, write
from tests.conftest import ROOT, built, config
from tools.check import check
from tools.weights import weights

NAME = "abdomen_ct_vnet"
SHARED = Path(os.environ.get("BRAIN_DATA", ROOT.parent / "shared" / "data")) / "abdomen_ct"


def test_scores_pictures_and_numbers(abdomens: Path, trained, tmp_path: Path) -> None:
    settings = json.loads((trained(NAME) / "settings.json").read_text())
    assert list(settings["organs"].items()) == list(UPSTREAM_ORGANS.items())
    assert settings["output_numbering"] == "flare22"
    assert "val_dice_kidneys" in (trained(NAME) / "log.txt").read_text()
    where = {"dataset_dir": str(abdomens), "ckpt_dir": str(trained(NAME)), "num_workers": 0}
    out = {"output_dir": str(tmp_path), "overlays": True, "output_numbering": "amos"}
    built(NAME, "evaluator", "inference.yaml", "evaluate.yaml", **where, **out).run()
    summary = json.loads((tmp_path / "summary.json").read_text())
    metrics = summary["metrics"]
    assert metrics["dice_liver"]["mean"] > 0.3
    assert 0.9 < metrics["accuracy_of_empty_mask"]["mean"] < 1
    assert {"nsd_spleen", "iou50_kidneys", "mean_iou", "mean_iou50", "hd95_liver", "accuracy"} <= set(metrics)
    assert summary["tolerance_mm"] == {"liver": 5.0, "kidneys": 3.0, "spleen": 3.0}
    picture = png.imread(tmp_path / "FLARE22_Tr_0005_overlay.png")[..., :3]
    assert (picture.max(-1) - picture.min(-1) > 0.1).mean() > 0.005, "organs in colour"
    found = np.asarray(nib.load(tmp_path / "FLARE22_Tr_0005_seg.nii.gz").dataobj)
    assert set(np.unique(found).tolist()) <= {0, 6, 2, 1}
    assert (found == 6).any(), "liver in AMOS' numbers"


def test_class_weights_are_derived_from_the_labels(abdomens: Path, capsys: pytest.CaptureFixture[str]) -> None:
    organs = ["liver", "right kidney", "left kidney", "spleen", "stomach"]  # the others vanish at these voxels
    weights(NAME, str(abdomens), organs=organs)
    told = re.search(r'square root of balanced +--class_weights "\[(.+)\]"', capsys.readouterr().out)
    assert told is not None
    cases = find_cases(abdomens, organs=organs)
    derived = class_weights_of(None, cases[0]["classes"], cases, "sqrt")
    assert [float(v) for v in told[1].split(",")] == pytest.approx(derived, rel=1e-3)


def test_organs_that_flare22_lacks_are_recorded_with_their_numbering(tmp_path: Path) -> None:
    """From the labels to the masks: inference is told neither classes nor numbers, and may be told others."""
    for case in "ab":
        write(tmp_path / "data" / case / "ct.nii.gz")
        write(tmp_path / "data" / case / "segmentations" / "colon.nii.gz", labels((0, 1)))
        write(tmp_path / "data" / case / "segmentations" / "liver.nii.gz", labels((0, 1)))
    data, organs = str(tmp_path / "data"), {"gut": ["colon"], "liver": ["liver"]}
    recorded = built(NAME, "settings", "train.yaml", dataset_dir=data, organs=organs)
    assert recorded["output_numbering"] == "totalsegmentator_v2"
    write_settings(recorded, str(tmp_path))
    assert list(json.loads((tmp_path / "settings.json").read_text())["organs"]) == ["gut", "liver"]
    scan = write(tmp_path / "new.nii.gz")
    for more, values in (({}, [0, 20, 5]), ({"output_numbering": {"colon": 7, "liver": 9}}, [0, 7, 9])):
        (case,) = built(NAME, "cases", "inference.yaml", dataset_dir=str(scan), ckpt_dir=str(tmp_path), **more)
        assert case["label_values"] == values
    chosen = built(NAME, "settings", "train.yaml", dataset_dir=data, organs=organs, output_numbering="dataset")
    assert chosen["output_numbering"] == "dataset"


@pytest.mark.parametrize("normalise", ["unit", "zscore"])
def test_a_small_scan_is_padded_with_air(normalise: str, abdomens: Path) -> None:
    """The same in training, validation and inference; the virtual bodies run through the ends of their scans."""
    settings = {
        "dataset_dir": str(abdomens), "spacing": [8, 8, 8], "patch_size": [32, 32, 48], "normalise": normalise,
    }  # fmt: skip
    volumes = []
    for part, file in (
        ("train::preprocessing", "train.yaml"), ("validate::preprocessing", "train.yaml"),
        ("preprocessing", "inference.yaml"),
    ):  # fmt: skip
        steps = built(NAME, part, file, **settings).flatten().transforms
        fixed = [step for step in steps if not isinstance(step, RandomizableTrait)]
        volumes.append(Compose(fixed[: 1 + max(i for i, s in enumerate(fixed) if isinstance(s, NormaliseCTd))]))
    case = built(NAME, "cases", "train.yaml", **settings)[0]
    done = [volume(case) for volume in volumes]
    image = done[0]["image"]
    assert image.shape[-1] == 48
    assert not done[0]["label"][..., [0, -1]].any()
    for end in (image[..., 0], image[..., -1]):
        assert float(end.min()) == float(end.max()) == float(image.min()), "air, and nothing of the body"
    assert (float(image.min()) == 0) == (normalise == "unit")
    for other in done[1:]:
        np.testing.assert_allclose(other["image"], image, atol=1e-5)


def test_checking_tool_names_each_file(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    check(NAME, str(data), organs="flare22")
    assert "5 complete case(s), files, headers and voxels checked: 0" in capsys.readouterr().out
    file = data / "imagesTr" / "FLARE22_Tr_0002_0000.nii.gz"
    image = nib.load(file)
    nib.save(nib.Nifti1Image(np.abs(np.asarray(image.dataobj)), image.affine), file)
    with pytest.raises(SystemExit):
        check(NAME, str(data))
    assert file.name in capsys.readouterr().out


@pytest.mark.skipif(not SHARED.is_dir(), reason="no real data here")
def test_a_real_ct_goes_through(tmp_path: Path) -> None:
    """A few steps; its labels are a model's, so that the scores mean nothing."""
    parts: dict[str, list[dict[str, str]]] = {"training": [], "validation": []}
    for case, entries in parts.items():  # copies: one file under two patients is refused
        image = str(shutil.copy(SHARED / "example_ct.nii.gz", tmp_path / f"{case}.nii.gz"))
        label = str(SHARED / "example_seg_v1_fullmodel.nii.gz")
        entries.append({"case": case, "image": image, "label": label, "numbering": "totalsegmentator_v1"})
    listed = tmp_path / "list.json"
    listed.write_text(json.dumps(parts))
    common, out = {"datalist": str(listed), "ckpt_dir": str(tmp_path), "num_workers": 0}, tmp_path / "out"
    small = {"channels": [4, 8, 8], "patch_size": [32, 32, 32], "spacing": [8, 8, 8], "epochs": 1, "cache": "none"}
    built(NAME, "train::trainer", "train.yaml", **common, **small, output_dir=str(tmp_path)).run()
    built(NAME, "evaluator", "inference.yaml", "evaluate.yaml", **common, output_dir=str(out)).run()
    mask, scan = nib.load(out / "validation_seg.nii.gz"), nib.load(image)
    np.testing.assert_array_equal(mask.affine, scan.affine)
    assert mask.shape == scan.shape
    summary = json.loads((out / "summary.json").read_text())
    assert summary["metrics"]["volume_truth_ml_liver"]["mean"] > 300


def test_names_of_the_channels_are_the_values_of_the_mask() -> None:
    """A server takes the keys for them; they are the classes' indices by default."""
    meta = json.loads((ROOT / "bundles" / NAME / "configs" / "metadata.json").read_text())
    names = meta["network_data_format"]["outputs"]["pred"]["channel_def"]
    assert list(names.values()) == ["background", *UPSTREAM_ORGANS]
    assert [str(value) for value in label_values(UPSTREAM_ORGANS, "flare22")] == list(names)


def test_defaults_are_upstreams() -> None:
    train_ = config(NAME, "train")
    assert config(NAME, "evaluate")["numbering"] == train_["numbering"]
    assert train_["class_weights"] == [0.26, 22.53, 22.53, 26.21]
    assert train_["channels"] == [16, 32, 64, 128, 128]
    assert (train_["activation"], train_["downsampling"], train_["rescale_weights"]) == ("relu", "max", False)
    assert (train_["learning_rate"], train_["optimizer"]["_target_"]) == (1e-4, "torch.optim.Adam")
    assert train_["organs"] == UPSTREAM_ORGANS
    assert list(organ_classes(config(NAME, "organs13")["organs"])) == list(FLARE22_ORGANS)
