"""What becomes of the network's logits."""

from __future__ import annotations

import torch

from brain_tissue_vnet.postprocessing import AirIsBackgroundd
from bundlekit import NormaliseForegroundd


def test_fluid_that_the_normalisation_clips_is_no_air() -> None:
    """The darkest 0.5 % of the brain is as dark as air after "percentile"."""
    image = torch.zeros(1, 24, 24, 24)
    image[:, 4:20, 4:20, 4:20] = torch.linspace(10, 100, 16**3).reshape(1, 16, 16, 16)
    data = NormaliseForegroundd("percentile")({"image": image, "pred": torch.zeros(4, 24, 24, 24)})
    certain = AirIsBackgroundd()(data)["pred"][0] > 0
    torch.testing.assert_close(certain, image[0] == 0)
