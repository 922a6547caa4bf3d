"""What every run of a config begins with."""

from __future__ import annotations

import logging
import os

import torch
import torch.distributed
from ignite.engine import Engine
from monai.utils import set_determinism

from bundlekit.command_line import refuse_unknown_settings
from bundlekit.errors import BundleError, show_clear_errors
from bundlekit.memory import keep_freed_memory
from bundlekit.version import tell_versions


def prepare_run(
    device: torch.device | str,
    seed: int | None,
    deterministic: bool = True,
    distributed: bool = False,
    bundle_root: str | os.PathLike[str] | None = None,
) -> None:
    """Get the process ready, before any data is looked at.

    A `BundleError` ends the run with its message alone (`show_clear_errors`), settings that no config knows or that
    cannot be are refused (`refuse_unknown_settings`), as is a device that is not there, freed memory is kept on a CPU
    (`keep_freed_memory`), the log is without noise (`drop_noise`) and tells the version (`tell_versions`), and every
    random generator starts from the seed.

    Args:
        device: that computes.
        seed: of Python, NumPy and PyTorch; None leaves them as they are.
        deterministic: cuDNN's algorithms give the same numbers in every run. False: it tries all of them for each
            shape and takes the fastest, which pays where shapes repeat, as of patches and windows.
        distributed: join the other processes that `torchrun` started, by NCCL where there are GPUs, else by Gloo.
        bundle_root: folder of the bundle, which its package need not lie in: pip installs packages alone.

    Raises:
        BundleError: for a setting on the command line that none of the config files has, a value that cannot be, a
            device that is not there, or a bundle that came with another minor version of bundlekit.
    """
    show_clear_errors()
    drop_noise()
    refuse_unknown_settings()
    require_device(device)
    keep_freed_memory(device)
    if distributed and "RANK" not in os.environ:
        start = "torchrun --nproc_per_node N -m monai.bundle run ..."
        raise BundleError(f"multi_gpu.yaml was given to one process; begin with {start}, or leave it out.")
    if distributed:
        torch.distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
        if torch.cuda.is_available():
            torch.cuda.set_device(device)
    if not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0:
        tell_versions(bundle_root)
    set_determinism(seed=seed)
    torch.backends.cudnn.deterministic = bool(deterministic)
    torch.backends.cudnn.benchmark = not deterministic


def loader_workers(device: torch.device | str) -> int:
    """Processes that load while a network trains: 4 beside a GPU, and on a CPU of 8 threads or more; else none.

    On few cores loader and network want the same ones, and PyTorch's threads wait for each other by spinning: on two
    cores a step of the glioma networks without workers takes about three quarters of its time with four.

    Args:
        device: that computes.
    """
    return 0 if str(device).startswith("cpu") and torch.get_num_threads() < 8 else 4


def drop_noise() -> None:
    """Leave out of the log and of the warnings what tells a user nothing.

    Ignite says of every engine that starts that it is resuming from iteration 0.
    """
    for engine in ("AccumulatingTrainer", "SupervisedTrainer", "SupervisedEvaluator"):
        logger = logging.getLogger(f"{Engine.__module__}.{engine}")
        if _is_news not in logger.filters:
            logger.addFilter(_is_news)


def _is_news(record: logging.LogRecord) -> bool:
    return not str(record.msg).startswith("Engine run resuming from")


def require_device(device: torch.device | str) -> None:
    """Refuse a device that PyTorch cannot compute on here.

    Raises:
        BundleError: with the devices that there are.
    """
    try:
        if isinstance(device, int):  # of which mixed precision and others cannot tell whether it is a GPU
            raise TypeError
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, TypeError) as error:
        count = torch.cuda.device_count()
        there = ["cpu", *(f"cuda:{number}" for number in range(count))]
        why = "" if count else "; this PyTorch sees no NVIDIA GPU"
        raise BundleError(f"--device is {str(device)!r}; expected one of {', '.join(there)}{why}.") from error
