"""Missing modalities: training for them by modality dropout, and what the log says of a case that lacks some."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from monai.transforms import RandomizableTransform

from bundlekit.brats.naming import MODALITIES
from bundlekit.cases.case import Case

_log = logging.getLogger(__name__)


def tell_filled(cases: Sequence[Case], modality_dropout: float = 0.0) -> None:
    """Log which modalities of which cases are missing, and whether the network was trained for that.

    Args:
        cases: as `find_cases` gives them with `fill_missing`.
        modality_dropout: probability with which the training of the network left modalities out.
    """
    trained = "was trained for that" if modality_dropout else "was NOT trained for that: its mask may be far off"
    for case in cases:
        missing = missing_in(case)
        if missing:
            _log.warning(
                "%s has no %s: zeros in its place; the network %s", case["case"], " and no ".join(missing), trained
            )


def missing_in(case: Case) -> list[str]:
    """Names of the modalities for which a case has no file, or of whose file no channel.

    Args:
        case: as `find_cases` of a bundle gives it with `fill_missing`.
    """
    without_file = [n for n, file in enumerate(case["image"]) if not file]
    without_channel = [n for n, channel in enumerate(case.get("channels", ())) if int(channel) < 0]
    return [MODALITIES[n] for n in without_file or without_channel]


class RandDropModalitiesd(RandomizableTransform):
    """Set one or two modalities of a patch to 0, which is what `fill_missing` gives the network for a missing one.

    How many, 1 to `most`, and which ones are drawn uniformly from those that the patch has: one that is all zeros is
    missing already. At least one of them stays. Belongs behind the z-score and behind every augmentation that adds to
    the image. MONAI's dropouts blank regions of all channels (`RandCoarseDropoutd`), none blanks channels. After Havaei
    et al., HeMIS, MICCAI 2016 (arXiv 1607.05194), who train one network for any subset of the modalities.

    Args:
        prob: that a patch loses modalities, 0 to 1.
        most: how many it loses at most.
        image_key: CxHWD, a channel is a modality.

    Raises:
        ValueError: for a probability outside 0..1, or `most` below 1.
    """

    def __init__(self, prob: float = 0.3, most: int = 2, image_key: str = "image") -> None:
        if not 0 <= prob <= 1:
            raise ValueError(f"prob must be from 0 to 1, got {prob}.")
        if most < 1:
            raise ValueError(f"most must be at least 1, got {most}.")
        super().__init__(prob)
        self.most = most
        self.image_key = image_key
        self.dropped: tuple[int, ...] = ()

    def randomize(self, channels: Sequence[int]) -> None:
        """Draw `self.dropped`, the channels that are blanked, from `channels`, those that are there."""
        super().randomize(None)
        self.dropped = ()
        if self._do_transform and len(channels) > 1:
            number = self.R.randint(1, min(self.most, len(channels) - 1) + 1)
            self.dropped = tuple(int(i) for i in self.R.choice(channels, number, replace=False))

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Blank what is drawn, in a copy of the image."""
        image = data[self.image_key]
        self.randomize(image.flatten(1).any(1).nonzero()[:, 0].tolist())
        if not self.dropped:
            return dict(data)
        image = image.clone()
        image[list(self.dropped)] = 0
        return {**data, self.image_key: image}
