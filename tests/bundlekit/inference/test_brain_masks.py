"""The skull is taken as the bundle of brain masks itself takes it, and only where there is one."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose

from bundlekit import CaseDataset, StripSkulld
from bundlekit.errors import BundleError
from tests.conftest import ROOT
from tools.bundles import parse

BUNDLE = "brain_mask_unet"
AFFINE = np.array([[0, -4.0, 0, 90], [4.0, 0, 0, -90], [0, 0, 5.0, -60], [0, 0, 0, 1]])


@pytest.fixture(scope="module")
def bundle(trained: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its folder, with a tiny network."""
    folder = tmp_path_factory.mktemp("masks") / BUNDLE
    shutil.copytree(ROOT / "bundles" / BUNDLE / "configs", folder / "configs")
    (folder / "models").mkdir()
    for name in ("model.pt", "settings.json"):
        shutil.copy(trained(BUNDLE) / name, folder / "models" / name)
    return folder


@pytest.fixture
def head(tmp_path: Path) -> Path:
    """Noise with a bright ball: no air of one value."""
    axes = np.ogrid[-1:1:48j, -1:1:48j, -1:1:40j]
    ball = sum(axis**2 for axis in axes) < 0.4
    noise = np.random.default_rng(0).uniform(1, 20, ball.shape)
    nib.save(nib.Nifti1Image((noise + 300 * ball).astype(np.float32), AFFINE), tmp_path / "head.nii.gz")
    return tmp_path / "head.nii.gz"


def item(file: Path) -> dict[str, object]:
    image = nib.load(file)
    voxels = torch.from_numpy(image.get_fdata(dtype=np.float32))[None]
    return {"image": MetaTensor(voxels, affine=torch.from_numpy(image.affine)), "source": str(file)}


def test_a_head_loses_what_the_other_bundle_does_not_call_brain(bundle: Path, head: Path, tmp_path: Path) -> None:
    out = StripSkulld(bundle, settings={"runtime": "torch", "precision": "f32"})(item(head))["image"]
    parser = parse(
        BUNDLE, "inference.yaml",
        dataset_dir=str(head), output_dir=str(tmp_path / "out"), ckpt_dir=str(bundle / "models"), num_workers=0,
        runtime="torch", precision="f32", device="cpu",
    )  # fmt: skip
    parser.get_parsed_content("evaluator").run()
    mask = np.asarray(nib.load(tmp_path / "out" / "head_seg.nii.gz").dataobj) > 0
    assert 0 < mask.mean() < 1
    np.testing.assert_array_equal(out[0].numpy(), np.where(mask, nib.load(head).get_fdata(dtype=np.float32), 0))
    assert out.meta["skull_stripped"]
    torch.testing.assert_close(out.affine, torch.from_numpy(AFFINE))


def test_a_stripped_scan_stays_as_it_is(tmp_path: Path, heads: Path) -> None:
    scan = item(heads / "sub-000" / "anat" / "sub-000_T1w.nii.gz")
    assert StripSkulld(tmp_path / "none")(scan)["image"] is scan["image"]


def test_a_folder_that_is_not_the_bundle_ends_the_run(tmp_path: Path, head: Path) -> None:
    strip, message = StripSkulld(tmp_path / "none"), r"none[\s\S]*no configs/inference.yaml[\s\S]*--mask_bundle"
    with pytest.raises(BundleError, match=message) as caught:
        strip(item(head))
    assert caught.value.ends_run
    with pytest.raises(RuntimeError, match="applying transform"):  # not passed over as a case that cannot be read
        CaseDataset([item(head)], Compose(strip))[0]


def test_weights_that_are_missing_end_the_run(bundle: Path, tmp_path: Path, head: Path) -> None:
    copy = Path(shutil.copytree(bundle, tmp_path / BUNDLE))
    (copy / "models" / "model.pt").unlink()
    with pytest.raises(BundleError, match=r"model\.pt[\s\S]*the weights of the brain masks") as caught:
        StripSkulld(copy)(item(head))
    assert caught.value.ends_run


def test_a_head_without_brain_is_refused(bundle: Path, head: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(bundle, tmp_path / BUNDLE))
    state = torch.load(copy / "models" / "model.pt", weights_only=True)
    *_, last = (name for name in state if name.endswith("bias"))
    state[last] = torch.tensor([100.0, -100.0])
    torch.save(state, copy / "models" / "model.pt")
    with pytest.raises(BundleError, match=r"head\.nii\.gz[\s\S]*no brain") as caught:
        StripSkulld(copy)(item(head))
    assert not caught.value.ends_run, "another head may have one"
