"""The weights that come with the bundles: whole, of the settings that the cards tell, and loaded by the configs."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose

from bundlekit.brats import region_labels
from bundlekit.inference.windows import argmax_labels
from bundlekit.virtual import brats, metastases, tissue
from bundlekit.virtual.anatomy import grid
from bundlekit.virtual.cohorts import SHAPE
from bundlekit.weights.shipped import check_shipped, shipped_files, shipped_folders, shipped_hash
from tests.bundles import BUNDLES, options
from tests.conftest import ROOT, Run, bundle_run
from tools.bundles import names, parse
from tools.convert import to_h5

SHIPPED = [name for name, row in BUNDLES.items() if row.shipped]


def test_none_is_left_out() -> None:
    assert set(SHIPPED) == {name for name in names() if (ROOT / "bundles" / name / "models" / "model.pt").exists()}


def folders() -> list[tuple[str, str]]:
    """Every bundle with weights, and the folder of each of its networks: that of most is `models/` itself."""
    models = {name: ROOT / "bundles" / name / "models" for name in SHIPPED}
    return [(name, str(one.relative_to(there))) for name, there in models.items() for one in shipped_folders(there)]


@pytest.mark.parametrize(("bundle", "folder"), folders())
def test_the_file_is_whole_and_fits_its_settings(bundle: str, folder: str) -> None:
    models = ROOT / "bundles" / bundle / "models" / folder
    weights = models / "model.pt"
    assert shipped_hash(weights)
    for file in shipped_files(models):
        check_shipped(file)
    recorded = json.loads((models / "settings.json").read_text())
    expected = BUNDLES[bundle].shipped if folder == "." else {"network": folder}
    assert expected.items() <= (recorded | recorded.get("after_training", {})).items()
    parser = parse(bundle, "inference.yaml", ckpt_dir=str(models))
    parser.get_parsed_content("network_def").load_state_dict(torch.load(weights, weights_only=True))
    assert weights.stat().st_size < 50 * 2**20


def test_the_second_network_of_gliomas_sees_what_its_own_bundle_shows_it() -> None:
    """Two pipelines prepare the brain, one of them after a z-score."""
    brain = torch.rand(4, 34, 40, 30, generator=torch.Generator().manual_seed(0)) * torch.tensor([1, 50, 9, 300]).view(
        4, 1, 1, 1
    )
    scan = torch.zeros(4, 40, 44, 40)
    scan[:, 4:38, 2:42, 5:35] = brain + 1
    parsers = [parse(name, "inference.yaml", runtime="torch") for name in ("brats_unet_h5", "brats_resunet")]
    alone, own = (
        Compose(parser.get_parsed_content("preprocessing").transforms[1:])({"image": MetaTensor(scan)})["image"]
        for parser in parsers
    )
    inferer = parsers[1].get_parsed_content("inferer")
    seen: list[torch.Tensor] = []
    inferer.lowres_network.register_forward_pre_hook(lambda network, given: seen.append(given[0][0]))
    with torch.no_grad():
        inferer._at_low_resolution(own.as_tensor()[None])
    assert seen[0].shape == (4, 128, 128, 128)
    torch.testing.assert_close(seen[0], alone.as_tensor(), atol=1e-4, rtol=0)


def test_the_second_network_of_metastases_decides_on_the_whole_tumour_alone() -> None:
    models = ROOT / "bundles" / "brain_metastasis_attention_unet" / "models"
    parser = parse(models.parent.name, "inference.yaml", runtime="torch")
    assert parser.get_parsed_content("weights") == [str(models / name) for name in ("model.pt", "lowres.pt")]
    inferer = parser.get_parsed_content("inferer")
    assert (inferer.core_share, inferer.coarse_to_fine) == (0, 0)
    assert inferer.second(torch.device("cpu")) is inferer.lowres_network, "its weights fit, beside the first's settings"
    for alone in ({"lowres": "$None"}, {"checkpoint": "/own/model.pt"}):
        one = parse(models.parent.name, "inference.yaml", **alone)
        assert one.get_parsed_content("inferer").lowres is None
        assert one.get_parsed_content("weights") == one.get_parsed_content("checkpoint")


def test_the_second_network_of_gliomas_is_that_of_the_bundle_for_hdf5() -> None:
    models = ROOT / "bundles" / "brats_resunet" / "models"
    assert (models / "lowres.pt").read_bytes() == (ROOT / "bundles/brats_unet_h5/models/model.pt").read_bytes()
    parser = parse("brats_resunet", "inference.yaml")
    network = parser.get_parsed_content("lowres_network")
    network.load_state_dict(torch.load(models / "lowres.pt", weights_only=True))
    assert parser.get_parsed_content("weights") == [str(models / name) for name in ("model.pt", "lowres.pt")]
    by_regions = parser.get_parsed_content("labels"), parser.get_parsed_content("temperature")
    assert by_regions == (region_labels, 1.0)
    assert parser.get_parsed_content("checks")["confidence"] == {"WT": 0.8}
    for alone in ({"lowres": "$None"}, {"checkpoint": "/own/model.pt"}):
        one = parse("brats_resunet", "inference.yaml", **alone)
        assert one.get_parsed_content("inferer").lowres is None
        assert one.get_parsed_content("labels") is argmax_labels
        assert one.get_parsed_content("weights") == one.get_parsed_content("checkpoint")
        assert one.get_parsed_content("temperature") == (1.6 if "lowres" in alone else 1.0)
        assert one.get_parsed_content("checks")["confidence"] == {"WT": 0.913}
    other = parse("brats_unet_h5", "inference.yaml")
    inferer = parser.get_parsed_content("inferer")
    assert list(inferer.whole.roi_size) == other.get_parsed_content("uniform_shape")
    assert list(inferer.normalise.percentiles) == other.get_parsed_content("percentiles")
    assert other.get_parsed_content("normalise") == inferer.normalise.method
    x = torch.rand(1, 4, 32, 32, 32)
    same = other.get_parsed_content("network_def")
    same.load_state_dict(network.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(network.eval()(x), same.eval()(x), rtol=1e-4, atol=1e-4)


# --- as good as they were on a virtual case ---------------------------------------------------------------------------


def painted(make: Callable[..., object], root: Path, seed: int, box: tuple[slice, slice, slice]) -> Path:
    """Part of a case of 240x240x155 voxels of 1 mm: the rest, which takes 10 s, is not made."""
    axes, spacing = grid(SHAPE)
    part = tuple(axis[inside] for axis, inside in zip(axes, box, strict=True))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys.modules[make.__module__], "grid", lambda shape: (part, spacing))
        make(str(root), cases=1, seed=seed, shape=[len(axis) for axis in part])
    return root


def glioma(root: Path) -> Path:
    """All of it and the brain around it, 1 window."""
    return painted(brats, root, 7, (slice(93, 189), slice(59, 155), slice(39, 135)))


def glioma_in_hdf5(root: Path) -> Path:
    """A whole brain of 2 mm."""
    brats(str(root / "nifti"), cases=1, seed=7, shape=(120, 120, 78))
    to_h5(str(root / "h5"), **{"from": str(root / "nifti")})
    return root / "h5"


def part_of_a_head(root: Path) -> Path:
    """Around the ventricles."""
    return painted(tissue, root, 7, (slice(70, 166), slice(70, 166), slice(40, 120)))


def stripped_head(root: Path) -> Path:
    tissue(str(root), cases=1, seed=7, shape=(120, 120, 78))
    return root


def metastasis(root: Path) -> Path:
    """The largest one of a case, with a rim and oedema, 1 window."""
    return painted(metastases, root, 4, (slice(100, 196), slice(20, 116), slice(32, 128)))


CASES = {  # by bundle, or by the data that it has elsewhere
    "brain_mask_unet": stripped_head,
    "cohort": glioma,
    "heads": part_of_a_head,
    "metastases": metastasis,
    "h5_cohort": glioma_in_hdf5,
}


@pytest.mark.parametrize(("bundle", "folder"), folders())
def test_golden_scores(bundle: str, folder: str, run: Run, tmp_path: Path) -> None:
    row = BUNDLES[bundle]
    golden = row.golden if folder == "." else row.others[folder]
    where = {
        "ckpt_dir": ROOT / "bundles" / bundle / "models" / folder,
        "dataset_dir": CASES[bundle if bundle in CASES else row.data](tmp_path / "cases"),
        "output_dir": tmp_path,
        "num_workers": 0,
        **({} if row.maps else {"subset": "all"}),  # label maps trained it, and no scan
    }
    files = bundle_run("evaluating", "inference.yaml", "evaluate.yaml", bundle=bundle)
    run(*files, *options(**where, **row.golden_settings))
    metrics = json.loads((tmp_path / "summary.json").read_text())["metrics"]
    assert {name: metrics[name]["mean"] for name in golden} == pytest.approx(golden, abs=row.golden_within)
