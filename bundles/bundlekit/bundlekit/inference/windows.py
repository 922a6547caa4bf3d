"""Logits of a body part that was cropped from its volume: windows where there is something, or one pass."""

from __future__ import annotations

import itertools
import logging
import sys
from collections.abc import Callable, Sequence
from typing import cast

import psutil
import torch
from monai.data import MetaTensor
from monai.inferers import SlidingWindowInferer
from torch import nn

from bundlekit.bfloat16 import BFloat16Inferer
from bundlekit.errors import BundleError
from bundlekit.inference.runtimes import Runtime
from bundlekit.memory import give_back_freed_memory

_log = logging.getLogger(__name__)

# logits of a window that holds nothing: background, as sure as a trained network is of air
_AIR_LOGIT = 10.0


class ForegroundInferer(SlidingWindowInferer):
    """MONAI's sliding window, where there is something, with test-time flips and a single-pass mode.

    Give it the volume cropped to brain or body (`CropForegroundd`). A window in which every voxel of every channel is 0
    is background without a pass through the network. Gaussian blending by default. MONAI's `TestTimeAugmentation` draws
    random transforms and returns mode, mean and deviation of classes; the 8 flips are exact, and their logits are
    averaged.

    Args:
        roi_size: of a window, voxels along H, W, D; usually the size of the training patches.
        overlap: of neighbouring windows, 0 to below 1.
        sw_batch_size: windows in one pass; raise it on a GPU.
        flips: average the logits over the 8 flips of the three axes; 8 times the time.
        whole_brain: one pass over the whole crop instead of windows, three to four times faster, if it is estimated to
            fit into 80 % of the free memory; otherwise, or if it runs out of a GPU's memory all the same, windows, and
            the log says so. The norms then see the whole
            crop instead of a window, which changes the result a little: check it on your own cases first.
        device: where the logits of the whole crop are put together; None: the input's device.
        runtime: "auto", "torch" or "openvino", see `runtimes.Runtime`; None: the network is called as it is, as in the
            validation of a training, whose weights change.
        precision: "auto", "f32" or "bf16", see `runtimes.Runtime`.
        bf16: without a runtime: half precision on a CPU, see `BFloat16Inferer`; None: where the processor computes it.
        background: channel of the background; None: there is none, as in networks whose channels are regions of their
            own (sigmoid), all of which are low in air.
        kwargs: further arguments of `SlidingWindowInferer`, e.g. `mode="constant"`. `progress`, a bar over the windows,
            is on at inference on a terminal.
    """

    def __init__(
        self,
        roi_size: Sequence[int],
        overlap: float = 0.5,
        sw_batch_size: int = 1,
        flips: bool = False,
        whole_brain: bool = False,
        device: torch.device | str | None = None,
        mode: str = "gaussian",
        background: int | None = 0,
        runtime: str | None = None,
        precision: str = "auto",
        bf16: bool | None = False,
        **kwargs: object,
    ) -> None:
        kwargs.setdefault("progress", runtime is not None and sys.stderr.isatty())
        super().__init__(
            roi_size=list(roi_size),
            sw_batch_size=sw_batch_size,
            overlap=overlap,
            mode=mode,
            device=device,
            cache_roi_weight_map=True,
            **kwargs,  # type: ignore[arg-type]
        )
        self.batch_size = sw_batch_size
        self.flips = flips
        self.whole_brain = whole_brain
        self.background = background
        self.runtime = None if runtime is None else Runtime(runtime, precision)
        self.as_trained = BFloat16Inferer(bf16)

    @property
    def computed_by(self) -> str:
        """Runtime, precision and threads that computed; "" before the first volume."""
        return self.runtime.description if self.runtime is not None else ""

    def __call__(  # type: ignore[override]
        self, inputs: torch.Tensor, network: Callable[..., torch.Tensor], *args: object, **kwargs: object
    ) -> torch.Tensor:
        """Logits BNHWD of `inputs` (BCHWD).

        Raises:
            BundleError: if they are NaN at inference, where the argmax would be an empty mask.
        """
        if self.whole_brain and self._fits(inputs, network):
            try:
                return self._logits(inputs, network, True, *args, **kwargs)
            except torch.OutOfMemoryError as error:
                _log.warning("whole_brain: the pass ran out of memory, falling back to windows: %s", error)
        return self._logits(inputs, network, False, *args, **kwargs)

    def prepare(self, network: nn.Module, in_channels: int, several: bool = True) -> None:
        """Have the runtime compile a network for windows, in a thread, where it may: see `Runtime.prepare`.

        Args:
            network: with its weights once it runs, in evaluation mode.
            in_channels: of its windows.
            several: whether most volumes have more than one window: those are computed side by side.
        """
        if self.runtime is not None and not self.whole_brain:
            window = next(network.parameters()).new_empty(1, in_channels, *cast("Sequence[int]", self.roi_size))
            self.runtime.prepare(network, window, several)

    def _logits(
        self,
        inputs: torch.Tensor,
        network: Callable[..., torch.Tensor],
        one_pass: bool,
        *args: object,
        **kwargs: object,
    ) -> torch.Tensor:
        plain = inputs.as_tensor() if isinstance(inputs, MetaTensor) else inputs  # MetaTensor slows every slice
        if self.runtime is not None:
            compute = self.runtime.predictor(network, plain)
            self.sw_batch_size = max(self.batch_size, self.runtime.at_once)
        else:

            def compute(x: torch.Tensor, *more: object, **named: object) -> torch.Tensor:
                return self.as_trained(x, network, *more, **named)

        predict = _without_air(compute, self.background)

        def logits(x: torch.Tensor) -> torch.Tensor:
            if one_pass:
                return compute(x, *args, **kwargs)
            windows = super(ForegroundInferer, self).__call__(x, predict, *args, **kwargs)
            return cast("torch.Tensor", windows)

        axes = [flip for n in range(4) for flip in itertools.combinations((2, 3, 4), n)] if self.flips else [()]
        total: torch.Tensor | None = None
        for flip in axes:
            # flip() copies, even along no axis: adding to the network's own output would not be safe
            out = logits(plain.flip(flip)).flip(flip) if self.flips else logits(plain)
            total = out if total is None else total.add_(out)
        assert total is not None
        total = total.div_(len(axes)) if len(axes) > 1 else total
        if self.runtime is not None and bool(total.isnan().any()):
            raise BundleError(
                "the network gives NaN for this scan, so that there is no mask. Look for extreme values in its files, "
                "or use another checkpoint, --precision f32 or --amp False.",
                one_case=True,
            )
        return MetaTensor(total, meta=dict(inputs.meta)) if isinstance(inputs, MetaTensor) else total

    def _fits(self, inputs: torch.Tensor, network: Callable) -> bool:
        estimate = getattr(getattr(network, "module", network), "inference_bytes", None)
        if estimate is None:
            _log.warning("whole_brain: %s gives no memory estimate; using windows", type(network).__name__)
            return False
        needed = inputs.shape[0] * estimate(inputs.shape[2:]) / 2**30
        free = _free_bytes(inputs.device) / 2**30
        fits = needed < 0.8 * free
        _log.log(
            logging.INFO if fits else logging.WARNING,
            "whole_brain: one pass over %s voxels takes about %.1f GiB, %.1f GiB are free: %s",
            "x".join(str(n) for n in inputs.shape[2:]),
            needed,
            free,
            "one pass" if fits else "falling back to windows",
        )
        return fits


def _free_bytes(device: torch.device) -> int:
    """Memory that a pass can take: on a GPU also what PyTorch keeps of the case before."""
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + kept
    give_back_freed_memory()  # of the case before
    return int(psutil.virtual_memory().available)


def argmax_labels(logits: torch.Tensor) -> torch.Tensor:
    """Index of the largest channel, NHWD to 1HWD uint8; ties go to the lower class.

    On CPU `torch.argmax` over the first axis walks the memory across the channels: this walks along them, eight times
    faster.

    Args:
        logits: NHWD, N up to 255.
    """
    best = logits[0].clone()
    label = torch.zeros_like(best, dtype=torch.uint8)
    for index in range(1, logits.shape[0]):
        label.masked_fill_(logits[index] > best, index)
        torch.maximum(best, logits[index], out=best)
    return label[None]


def _without_air(network: Callable[..., torch.Tensor], background: int | None = 0) -> Callable[..., torch.Tensor]:
    """`network`, called only for the windows of a batch that hold tissue."""
    classes = 0  # known after the first pass

    def predict(windows: torch.Tensor, *args: object, **kwargs: object) -> torch.Tensor:
        nonlocal classes
        tissue = windows.flatten(1).any(dim=1).tolist()  # a GPU is waited for here, and nowhere below
        if all(tissue):
            out = network(windows, *args, **kwargs)
            classes = out.shape[1]
            return out
        full = [number for number, holds in enumerate(tissue) if holds]
        found = network(torch.stack([windows[number] for number in full]), *args, **kwargs) if full else None
        if found is not None:
            classes = found.shape[1]
        elif not classes:  # air comes first: one window of it, only to learn the number
            classes = network(windows[:1], *args, **kwargs).shape[1]
        out = windows.new_full((len(windows), classes, *windows.shape[2:]), -_AIR_LOGIT)
        if background is not None:
            out[:, background] = _AIR_LOGIT
        if found is not None:
            out = out.to(found.dtype)
            for number, logits in zip(full, found, strict=True):
                out[number] = logits
        return out

    return predict
