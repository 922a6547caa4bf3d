"""Patches of cached cases, the same for the same seed on any number of workers and processes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ignite.distributed as idist
import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.data import CacheDataset, Dataset
from monai.data.utils import json_hashing
from monai.transforms import Compose, Randomizable
from monai.transforms.traits import RandomizableTrait

from bundlekit.errors import BundleError, Finding, bundle_error_in
from bundlekit.files import default_cache_dir
from bundlekit.patches.cache import CaseCache, plain_tensors, remove_unused


class PatchDataset(torch.utils.data.Dataset):
    """Random patches (or whole volumes, without random transforms) of cases that are decoded and prepared once.

    The transforms before the first random one run once per case and are kept; the others run on every access, with a
    random state that depends only on `seed`, the epoch and the index. An epoch is therefore the same on any number
    of loader workers and processes, and after a resume.

    Args:
        data: cases, as a bundle's `find_cases` gives them; one that is listed several times is seen as often.
        transform: MONAI `Compose`.
        cache: where prepared cases are kept. "disk": MONAI's `PersistentDataset`, with files that are memory-mapped
            (so that a patch reads its own pages only) and written whole; the config says how much per case. "memory":
            MONAI's `CacheDataset`, as much memory. "none": decode on every access.
        cache_dir: folder for "disk"; None is "bundlekit" in `$XDG_CACHE_HOME` or `~/.cache`. It may be shared
            between runs and deleted at any time.
        seed: of the random transforms.
        patches_per_case: how often each case is seen in an epoch.
        samples_per_epoch: patches in an epoch, from cases drawn anew for each epoch (without repeating one before all
            have been drawn), `patches_per_case` from each. None: `patches_per_case` of every case.
        cache_days: prepared cases in `cache_dir` that no run has used for so many days are removed first; None: kept.

    Raises:
        ValueError: for another `cache`, or `patches_per_case` or `samples_per_epoch` below 1.
    """

    def __init__(
        self,
        data: Sequence[dict[str, Any]],
        transform: Compose,
        cache: str = "disk",
        cache_dir: str | None = None,
        seed: int = 0,
        patches_per_case: int = 1,
        samples_per_epoch: int | None = None,
        cache_days: float | None = None,
    ) -> None:
        if cache not in ("disk", "memory", "none"):
            raise ValueError(f'cache must be "disk", "memory" or "none", got {cache!r}.')
        if patches_per_case < 1:
            raise ValueError(f"patches_per_case must be 1 or more, got {patches_per_case}.")
        if samples_per_epoch is not None and samples_per_epoch < 1:
            raise ValueError(f"samples_per_epoch must be 1 or more, or null, got {samples_per_epoch}.")
        self.data = list(data)
        self.seed = int(seed)
        self.patches_per_case = int(patches_per_case)
        self.samples_per_epoch = samples_per_epoch
        self.epoch = 0
        transform = transform.flatten()  # a Compose within it counts as random, whatever it holds
        first_random = transform.get_index_of_first(_is_random)
        steps = list(transform.transforms)
        first_random = len(steps) if first_random is None else first_random
        prepare, self.random = Compose(steps[:first_random]), Compose(steps[first_random:])
        self.cases: torch.utils.data.Dataset
        if cache == "disk":
            cache_dir = cache_dir or default_cache_dir("bundlekit")
            if cache_days is not None:
                remove_unused(cache_dir, cache_days)
            try:
                self.cases = CaseCache(self.data, prepare, cache_dir)
            except OSError as error:
                raise BundleError(
                    Finding(
                        cache_dir, f"cannot be used ({error})", "a folder to write to", "set --cache_dir or --cache"
                    )
                ) from error
        elif cache == "memory":
            # by hash, so that a case that is listed several times is kept once
            self.cases = CacheDataset(
                self.data, prepare, num_workers=2, copy_cache=False, hash_as_key=True, hash_func=json_hashing
            )
        else:
            self.cases = Dataset(self.data, prepare)

    def __len__(self) -> int:
        if self.samples_per_epoch is None or not self.data:
            return len(self.data) * self.patches_per_case
        return int(self.samples_per_epoch)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < len(self):  # ends a `for` loop over the dataset
            raise IndexError(f"index {index} in a dataset of {len(self)}")
        try:
            case = self.cases[self.case_of(index)]
        except RuntimeError as error:
            message = bundle_error_in(error)  # out of MONAI's "applying transform" wrapping, for loader workers too
            if message is not None:
                raise BundleError(message) from error
            raise
        # SeedSequence mixes the three numbers so that neighbouring seeds, epochs and indices have nothing in common
        state = np.random.SeedSequence((self.seed, self.epoch, index)).generate_state(1)[0]
        self.random.set_random_state(seed=int(state))
        with torch.random.fork_rng(devices=[]):  # for transforms that draw from PyTorch's generator, as TorchIO's do
            torch.default_generator.manual_seed(int(state))  # of the CPU alone: the GPU's is the network's
            result = plain_tensors(
                self.random(plain_tensors(case))
            )  # TorchIO gives tensors, MONAI MetaTensors: never a mixed batch
        return {k: v.float() if torch.is_tensor(v) and v.dtype == torch.float16 else v for k, v in result.items()}

    def case_of(self, index: int) -> int:
        """Position in `data` of the case that `index` shows in this epoch."""
        count = len(self.data)
        if self.samples_per_epoch is None:
            return index % count
        turn, position = divmod(index // self.patches_per_case, count)
        order = np.random.default_rng((self.seed, self.epoch, turn, count)).permutation(count)
        return int(order[position])


class EpochSeed:
    """MONAI handler that starts every epoch from a random state of its own, so that a resumed run repeats it.

    It tells a `PatchDataset` the trainer's epoch, from which the patches follow, and seeds PyTorch's generators, from
    which dropout draws, for each process otherwise.

    Args:
        dataset: the training data.
    """

    def __init__(self, dataset: PatchDataset) -> None:
        self.dataset = dataset

    def attach(self, engine: Engine) -> None:
        """Register with a trainer; the loader's workers start after `EPOCH_STARTED` and so see the epoch."""
        engine.add_event_handler(Events.EPOCH_STARTED, self)

    def __call__(self, engine: Engine) -> None:
        """Set the epoch's random state."""
        self.dataset.epoch = engine.state.epoch
        state = np.random.SeedSequence((self.dataset.seed, engine.state.epoch, idist.get_rank()))
        torch.manual_seed(int(state.generate_state(1)[0]))


def _is_random(transform: object) -> bool:
    return isinstance(transform, (RandomizableTrait, Randomizable))
