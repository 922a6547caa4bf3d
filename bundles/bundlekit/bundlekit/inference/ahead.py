"""What a network needs before its first window, while the first case is still being read."""

from __future__ import annotations

from ignite.engine import Engine, Events
from torch import nn

from bundlekit.inference.second import TwoNetworkInferer
from bundlekit.inference.windows import ForegroundInferer


class CompileAhead:
    """MONAI handler of inference: OpenVINO is imported, and the network compiled, while the first case is read.

    The first window waits for it where it is not ready by then. A network that PyTorch computes, and those of an
    ensemble, whose weights change, are left alone. A second network is loaded before all that, so that one which cannot
    be had is told before any result is written. Put it after `LoadWeights` and before the writers.

    Args:
        network: with its weights once the evaluator runs.
        in_channels: of its windows.
        several: whether most cases have more than one window: those are computed side by side.
    """

    def __init__(self, network: nn.Module, in_channels: int, several: bool = True) -> None:
        self.network = network
        self.in_channels = in_channels
        self.several = several

    def attach(self, engine: Engine) -> None:
        """Register with an evaluator."""
        engine.add_event_handler(Events.STARTED, self._load_second)
        # a loader's processes are forked by then: no thread of OpenVINO is in the way
        engine.add_event_handler(Events.GET_BATCH_STARTED, self)

    def _load_second(self, engine: Engine) -> None:
        inferer = getattr(engine, "inferer", None)
        if isinstance(inferer, TwoNetworkInferer) and inferer.lowres is not None:
            inferer.second(next(self.network.parameters()).device)

    def __call__(self, engine: Engine) -> None:
        """Begin, once."""
        engine.remove_event_handler(self, Events.GET_BATCH_STARTED)
        inferer = getattr(engine, "inferer", None)
        if isinstance(inferer, ForegroundInferer):
            self.network.eval()  # as the evaluator has it; from another thread it is in nobody's way then
            inferer.prepare(self.network, self.in_channels, self.several)
