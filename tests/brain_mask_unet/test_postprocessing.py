"""One brain without holes, and its margin."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from ignite.engine import Engine
from monai.data import Dataset
from torch.utils.data import DataLoader

from brain_mask_unet import OneBraind, WriteStripped
from bundlekit.errors import BundleError


def logits_of(mask: np.ndarray) -> torch.Tensor:
    """2HWD: sure of `mask`."""
    brain = torch.from_numpy(np.where(mask, 10.0, -10.0).astype(np.float32))
    return torch.stack([-brain, brain])


def decided(mask: np.ndarray, **settings: float) -> np.ndarray:
    return OneBraind((2.0, 2.0, 2.0), **settings)({"pred": logits_of(mask)})["pred"].numpy()[0] >= 0.5


def test_the_largest_component_stays_and_its_holes_are_filled() -> None:
    brain = np.zeros((20, 20, 20), bool)
    brain[4:14, 4:14, 4:14] = True
    found = brain.copy()
    found[8, 8, 8] = False
    found[16:18, 16:18, 16:18] = True  # an eye
    np.testing.assert_array_equal(decided(found), brain)


def test_nothing_found_is_nothing() -> None:
    assert not decided(np.zeros((8, 8, 8), bool)).any()


def test_the_probability_of_the_brain_is_left() -> None:
    logits = torch.zeros(2, 4, 4, 4)
    logits[1, :2] = 1.0
    out = OneBraind((2.0, 2.0, 2.0))({"pred": logits})["pred"]
    assert out.shape == (1, 4, 4, 4)
    assert float(out[0, 0, 0, 0]) == pytest.approx(1 / (1 + np.exp(-1)), abs=1e-6)


@pytest.mark.parametrize(("margin_mm", "grows"), [(0.0, 0), (2.0, 1), (4.0, 2), (-2.0, -1)])
def test_the_margin_is_in_millimetres(margin_mm: float, grows: int) -> None:
    """A plane, in voxels of 2 mm."""
    brain = np.zeros((20, 6, 6), bool)
    brain[8:] = True
    expected = np.zeros_like(brain)
    expected[8 - grows :] = True
    np.testing.assert_array_equal(decided(brain, margin_mm=margin_mm), expected)


def test_a_brain_that_is_corrected_while_others_are_computed_stays(tmp_path: Path) -> None:
    source, file = tmp_path / "a.nii.gz", tmp_path / "out" / "a_brain.nii.gz"
    nib.save(nib.Nifti1Image(np.ones((4, 4, 4), np.int16), np.eye(4)), source)

    def step(engine: Engine, case: dict) -> list[dict]:
        engine.state.batch = [case]  # type: ignore[assignment]
        file.parent.mkdir()
        file.write_bytes(source.read_bytes())
        return [{"pred": torch.ones(1, 4, 4, 4)}]

    engine = Engine(step)
    engine.logger.disabled = True
    WriteStripped(tmp_path / "out").attach(engine)
    with pytest.raises(BundleError, match=r"a_brain\.nii\.gz"):
        engine.run(DataLoader(Dataset([{"case": "a", "source": str(source)}]), batch_size=None))
    assert file.read_bytes() == source.read_bytes()


def test_a_brain_that_somebody_corrected_stays(tmp_path: Path) -> None:
    """With the header kept, as tools do that open a scan, change it, and save it."""
    source = tmp_path / "a.nii.gz"
    nib.save(nib.Nifti1Image(np.arange(1, 65, dtype=np.int16).reshape(4, 4, 4), np.eye(4)), source)
    cases = [{"case": "a", "source": str(source)}]

    def step(engine: Engine, case: dict) -> list[dict]:
        engine.state.batch = [case]  # type: ignore[assignment]
        return [{"pred": torch.ones(1, 4, 4, 4)}]

    def strip() -> None:
        engine = Engine(step)
        engine.logger.disabled = True
        WriteStripped(tmp_path / "out").attach(engine)
        engine.run(DataLoader(Dataset(cases), batch_size=None))

    strip()
    file = tmp_path / "out" / "a_brain.nii.gz"
    strip()  # in place of its own
    image = nib.load(file)
    assert image.header["descrip"].item().startswith(b"stripped by brain_mask_unet, CRC-32 ")
    voxels = np.array(image.dataobj)
    voxels[0, 0, 0] = 0
    nib.save(nib.Nifti1Image(voxels, image.affine, image.header), file)
    before = file.read_bytes()
    with pytest.raises(BundleError, match=r"a_brain[\s\S]*a scan whose voxels are not those that were written"):
        strip()
    assert file.read_bytes() == before
