"""Virtual gliomas made while a network trains: the same patients as on a whole grid, seen in patches."""

import json
import re
import shutil

import nibabel as nib
import numpy as np
import pytest
import torch
from skimage.graph import MCP_Geometric

from bundlekit.errors import bundle_error_in
from bundlekit.label_maps import find_label_maps
from bundlekit.virtual import DrawPatient, PaintGliomas, patches
from bundlekit.virtual.anatomy import grid, maps_of
from bundlekit.virtual.brats import patient
from bundlekit.virtual.fields import SmoothField, as_axes
from bundlekit.virtual.patches import Glioma
from bundlekit.virtual.tumour import _travel, interpolate
from tests.bundles import BUNDLES, options
from tests.conftest import built, bundle_run
from tools.bundles import parse

SEED = 4
GRID = grid((24, 24, 16))[0]
PRETRAINING = ("train.yaml", "pretrain_label_maps.yaml")
SMALL = options(**BUNDLES["brats_resunet"].small, num_workers=0)


@pytest.fixture(scope="module")
def glioma():
    return Glioma(SEED, maps_of())


def test_a_patch_shows_the_tumour_of_the_whole_grid(glioma):
    """Its extent is measured at 3 mm; here on a whole grid of 2.5 mm, at the same places."""
    axes, _ = grid((96, 96, 62))
    head, tumour, _ = patient(SEED, 0)
    whole = tumour.label(head.sample(axes, 1.0, tumour.pushes), axes)
    part = tumour.label(head.sample(axes, 1.0, tumour.pushes), axes, glioma.extent)
    for region in ((1, 2, 4), (1, 4)):
        a, b = (torch.isin(one.labels, torch.tensor(region)) for one in (whole, part))
        assert 2 * (a & b).sum() / (a.sum() + b.sum()) > 0.9
    corner = tuple(axis[20:60] for axis in axes)
    seen = tumour.label(head.sample(corner, 1.0, tumour.pushes), corner, glioma.extent)
    same = seen.labels == part.labels[20:60, 20:60, 20:60]
    assert same.float().mean() > 0.999, "a part of the grid shows what the whole shows there"


def test_patches_are_normalised_as_whole_images_are():
    """Mean 0 and deviation 1 over the whole brain, which a patch of 150 mm nearly holds."""
    image, label = Glioma(7, maps_of()).patch((150, 176, 140), 0.0)
    assert image.shape == (4, 150, 176, 140)
    assert label.shape == (1, 150, 176, 140)
    assert label.dtype == torch.uint8
    brain = image[0] != 0
    for channel in image:
        assert ((channel != 0) == brain).float().mean() > 0.9999  # a z-score of 0 is rare
        assert abs(float(channel[brain].mean())) < 0.08
        assert 0.93 < float(channel[brain].std()) < 1.07


def test_a_patch_searches_for_the_brain_alone(glioma, waits):
    """In the head and in its scans: a GPU is waited for at each search."""
    with waits() as counted:
        glioma.patch((16, 16, 16), 1.0)
    assert counted.places == 2


def test_numbers_of_all_axes_are_fetched_together(glioma, waits):
    with waits() as counted:
        glioma.head.sample(GRID, 1.0, glioma.tumour.pushes)
    assert not counted.numbers


def test_fields_are_the_same_by_products():
    axes = as_axes([np.linspace(-0.5, 239.5, 20), np.linspace(30, 90, 15), np.linspace(0, 154, 11)])
    for pitch in (3.5, 40.0):
        field = SmoothField.draw(np.random.default_rng(0), pitch)
        products = field._by_products(torch.from_numpy(field.coefficients), axes)
        torch.testing.assert_close(products, field.at(axes), atol=1e-5, rtol=1e-5)


def test_a_field_goes_on_as_at_its_border():
    axes = as_axes([np.linspace(-90, 330, 15), np.linspace(-60, 300, 13), np.linspace(-200, 400, 14)])
    farther = as_axes([axis.numpy() + 500 * np.sign(axis.numpy()) * (abs(axis.numpy() - 120) > 200) for axis in axes])
    for pitch in (3.5, 40.0):
        field = SmoothField.draw(np.random.default_rng(0), pitch)
        torch.testing.assert_close(field.at(axes), field.at(farther), atol=1e-5, rtol=1e-5)
        assert field.at(axes).abs().max() < 6
        products = field._by_products(torch.from_numpy(field.coefficients), axes)
        torch.testing.assert_close(products, field.at(axes), atol=1e-5, rtol=1e-5)


def test_tumour_probability(glioma):
    centres = {}
    for probability in (0.0, 1.0):
        labels = [glioma.patch((8, 8, 8), probability)[1] for _ in range(30)]
        centres[probability] = np.mean([bool(label[0, 2:6, 2:6, 2:6].any()) for label in labels])
        assert all(label.max() <= 3 for label in labels)
    assert centres[1.0] > 0.9
    assert centres[0.0] < 0.5


def test_the_same_seed_gives_the_same_patches(label_map, tmp_path):
    paint = PaintGliomas([{"label": label_map}], (24, 24, 24), patches_per_case=2, cache_dir=str(tmp_path))
    batch = {"head": [label_map, label_map], "patient": torch.tensor([1, 2])}
    images, labels = paint(batch, "cpu")
    assert images.shape == (4, 4, 24, 24, 24)
    assert labels.shape == (4, 1, 24, 24, 24)
    again = PaintGliomas([{"label": label_map}], (24, 24, 24), patches_per_case=2, cache_dir=str(tmp_path))(
        batch, "cpu"
    )
    assert torch.equal(images, again[0])
    assert torch.equal(labels, again[1])
    assert not torch.equal(images[0], images[1]), "two places of one patient"
    assert not torch.equal(images[0], images[2]), "two patients"
    (kept,) = tmp_path.iterdir()
    assert kept.stat().st_size > 50e6, "the map is prepared once"


class FullPatch:
    """A patient of whom every patch is the same."""

    def __init__(self, seed, maps):
        pass

    def patch(self, size, tumour_probability):
        return torch.ones(4, *size), torch.ones(1, *size, dtype=torch.uint8)


def test_modality_dropout_reaches_painted_patches(monkeypatch):
    monkeypatch.setattr(patches, "Glioma", FullPatch)
    missing = {}
    for dropout in (0.0, 0.5, 1.0):
        settings = {"modality_dropout": dropout, "heads": [], "patch_size": [2, 2, 2]}
        paint = built("brats_resunet", "painter", *PRETRAINING, **settings)
        paint._maps = {"head": torch.zeros(1)}
        batch = {"head": ["head"] * 50, "patient": torch.arange(50)}
        images, _ = paint(batch, "cpu")
        assert torch.equal(images, paint(batch, "cpu")[0]), "by the patient's seed"
        missing[dropout] = 4 - images.flatten(2).any(2).sum(1)
    assert not missing[0.0].any()
    assert set(missing[1.0].tolist()) == {1, 2}
    assert float((missing[0.5] > 0).float().mean()) == pytest.approx(0.5, abs=0.15)
    validator = "validate::evaluator::prepare_batch"
    assert "modality_dropout" not in parse("brats_resunet", *PRETRAINING)[validator], "whole patients validate"


def test_patients_are_drawn():
    draw = DrawPatient()
    draw.set_random_state(0)
    found = [draw({"label": "a"})["patient"] for _ in range(3)]
    draw.set_random_state(0)
    assert [draw({"label": "a"})["patient"] for _ in range(3)] == found
    assert len(set(found)) == 3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"patches_per_case": 0}, "patches_per_case must be 1 or more, got 0"),
        ({"patch_size": (8, 8)}, "patch_size must be three numbers of voxels"),
        ({"tumour_probability": 70}, "tumour_probability must be from 0 to 1, got 70"),
        ({"flip_probability": -1}, "flip_probability must be from 0 to 1, got -1"),
        ({"modality_dropout": 3}, "prob must be from 0 to 1, got 3"),
    ],
)
def test_numbers_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        PaintGliomas([], **{"patch_size": (8, 8, 8), **settings})


def test_label_maps_that_cannot_be_used_are_named_at_once(run, tmp_path):
    """Before training starts, without a traceback."""
    files = bundle_run("training", "train.yaml", "pretrain_label_maps.yaml")
    maps, out = tmp_path / "maps", tmp_path / "out"
    data = ["--dataset_dir", maps, "--ckpt_dir", out, "--cache_dir", tmp_path / "cache"]
    maps.mkdir()
    done = run(*files, *data, *SMALL, status=1)
    assert "\nERROR: " in done.stderr
    assert str(maps) in done.stderr.rpartition("\nERROR: ")[2]
    for name, value in (("a", 9999), ("b", 2)):
        labels = np.zeros((40, 40, 40), np.int16)
        labels[10:30, 10:30, 10:30] = value
        nib.save(nib.Nifti1Image(labels, np.eye(4)), maps / f"{name}.nii.gz")
    (maps / "c.nii.gz").write_bytes((maps / "b.nii.gz").read_bytes()[:-40])
    where = {"dataset_dir": maps, "ckpt_dir": out, "output_dir": tmp_path / "scores", "cache_dir": tmp_path / "cache"}
    settings = {**BUNDLES["brats_resunet"].small, **{name: str(path) for name, path in where.items()}}
    with pytest.raises(RuntimeError) as caught:  # in this process, which has the template
        built("brats_resunet", "training", "train.yaml", "pretrain_label_maps.yaml", **settings)
    told = str(bundle_error_in(caught.value))
    assert "a.nii.gz: the numbers [9999] are not FreeSurfer's" in told
    assert "b.nii.gz: hardly any grey and white matter" in told
    assert re.search(r"c\.nii\.gz\s+found:\s+cannot be decoded to its end", told)
    assert not out.exists()


def test_travel_costs_are_those_of_scikit_image():
    rng = np.random.default_rng(0)
    cost = rng.uniform(1, 12, (14, 11, 9))
    cost[rng.random(cost.shape) < 0.2] = np.inf
    start = np.zeros(cost.shape, bool)
    start[3, 4, 5] = True
    cost[3, 4, 5] = 1
    step = [3.0, 2.0, 2.5]
    expected, _ = MCP_Geometric(np.where(np.isinf(cost), -1, cost), sampling=step).find_costs([[3, 4, 5]])
    found = _travel(torch.from_numpy(cost), torch.from_numpy(start), step)
    np.testing.assert_allclose(found.numpy(), np.minimum(expected, 150), rtol=1e-6)


def test_interpolation_is_linear_and_repeats_the_border():
    source = as_axes([np.linspace(0, 10, 6), np.linspace(-3, 3, 4), np.linspace(5, 6, 2)])
    axes = as_axes([np.linspace(-1, 11, 13), np.linspace(-3, 3, 5), [5.0, 5.5, 7.0]])
    x, y, z = torch.meshgrid(*source, indexing="ij")
    a, b, c = torch.meshgrid(*(p.clamp(s[0], s[-1]) for p, s in zip(axes, source, strict=True)), indexing="ij")
    torch.testing.assert_close(interpolate(2 * x - y + 3 * z, source, axes), 2 * a - b + 3 * c, check_dtype=False)


def test_a_network_trains_on_them_and_resumes(run, label_map, tmp_path):
    """The recipe of the Res-UNet, as its first lines give it, with a time limit that leaves a whole epoch."""
    maps, out = tmp_path / "maps", tmp_path / "out"
    maps.mkdir()
    for name in ("a", "b"):
        shutil.copy(label_map, maps / f"{name}.nii.gz")
    heads = [{"label": case["label"]} for case in find_label_maps(maps)]
    PaintGliomas(heads, (8, 8, 8), cache_dir=str(tmp_path / "cache"))  # here the template is at hand
    files = ("train.yaml", "compact.yaml", "pretrain_label_maps.yaml")
    data = ["--dataset_dir", maps, "--ckpt_dir", out, "--output_dir", out, "--cache_dir", tmp_path / "cache"]
    settings = [*SMALL, "--epochs", "2", "--val_interval", "1", "--batch_size", "1", "--samples_per_epoch", "2"]
    settings += ["--validate::dataset::patches_per_case", "2"]
    done = run(*bundle_run("training", *files), *data, *settings, "--time_limit", "0.001")
    assert "time limit: ended after epoch 1 of 2" in done.stdout + done.stderr
    split = json.loads((out / "datalist.json").read_text())
    assert [len(split[part]) for part in ("training", "validation")] == [1, 1]
    first = torch.load(out / "model.pt", weights_only=True)
    done = run(*bundle_run("training", *files, "resume.yaml"), *data, *settings)
    assert "Epoch[2] Complete" in done.stderr
    assert "Epoch[1] Complete" not in done.stderr
    last = torch.load(out / "last.pt", weights_only=True)
    assert last["trainer"]["epoch"] == 2
    assert any(not torch.equal(first[key], last["model"][key]) for key in first)
