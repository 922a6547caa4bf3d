"""What a network sees of a scan does not depend on the number that its air has."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from bundlekit.brats import find_cases
from tests.bundlekit.conftest import write_nifti
from tests.conftest import built


def z_scored(voxels: np.ndarray) -> np.ndarray:
    """With the air, which is not 0 then."""
    return (voxels - voxels.mean()) / voxels.std()


def z_scored_without_air(voxels: np.ndarray) -> np.ndarray:
    brain = voxels[voxels != 0]
    return np.where(voxels != 0, (voxels - brain.mean()) / brain.std(), 0)


def set_to(air: float) -> Callable[[np.ndarray], np.ndarray]:
    return lambda voxels: np.where(voxels == 0, air, voxels)


@pytest.mark.parametrize("bundle", ["brats_resunet", "brain_metastasis_attention_unet"])
@pytest.mark.parametrize(
    "change",
    [z_scored, z_scored_without_air, set_to(-1000), lambda voxels: voxels + 1],
    ids=["z-scored", "z-scored, air 0", "-1000", "+1"],
)
def test_prepared_as_the_plain_file_is(
    bundle: str, change: Callable[[np.ndarray], np.ndarray], cohort: Path, tmp_path: Path
) -> None:
    (plain, *_) = find_cases(cohort)
    image = []
    for file in plain["image"]:
        scan = nib.load(file)
        voxels = change(np.asarray(scan.dataobj).astype(np.float64)).astype(np.float32)
        image.append(str(write_nifti(tmp_path / Path(file).name, voxels, scan.affine)))
    for part, configs in (("preprocessing", ["inference.yaml"]), ("prepared", ["train.yaml"])):
        prepare = built(bundle, part, *configs)
        expected, got = prepare(plain), prepare({**plain, "image": image})
        torch.testing.assert_close(got["image"].float(), expected["image"].float(), atol=2e-3, rtol=2e-3)
        assert torch.equal(got["image"] != 0, expected["image"] != 0)
        if part == "prepared":
            assert torch.equal(got["label"], expected["label"])
