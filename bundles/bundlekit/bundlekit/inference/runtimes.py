"""What computes a network at inference: PyTorch, or OpenVINO on a CPU, in the precision that the processor has."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import logging
import shutil
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any, cast
from weakref import WeakKeyDictionary

import monai
import torch
from torch import nn

from bundlekit.bfloat16 import computes_bfloat16
from bundlekit.errors import BundleError
from bundlekit.files import default_cache_dir, sha256_of, write_content
from bundlekit.version import __version__, bundle_version

_log = logging.getLogger(__name__)

RUNTIMES = ("auto", "torch", "openvino")
PRECISIONS = ("auto", "f32", "bf16")
_EXAMPLE = 64  # voxels along each axis of the volume that a network is traced with: two at a stride of 32
_SOME_SIZES = "; PyTorch in f32 where OpenVINO does not take the size"
_KEPT = 10  # converted networks of one runtime
# windows that compute side by side, each on a part of the threads: where threads work on one window, each operation
# waits for the slowest of them (two cores, V-Net, windows of 96^3 in bf16: 0.78 s a window, 0.43 s side by side)
_STREAMS = 2
_FILES = ("network.xml", "network.bin")
_IMPORTING = threading.Lock()  # of OpenVINO, by a thread that compiles and by one that reads
_COMPUTING = threading.Lock()  # a queue of OpenVINO takes windows of one thread at a time, and there is one processor


class Runtime:
    """Computes the logits of windows or volumes, by PyTorch or by OpenVINO.

    OpenVINO takes less time than PyTorch on a CPU, with the same logits but for rounding, and much less in bf16 on a
    processor that computes it natively (AMX). Of several windows two are computed side by side. A network is converted
    once, with the weights that it has when it is first used, and kept in `cache_dir`, named by the hash of its code,
    structure and weights; it is compiled once for each shape of a window. The networks of an ensemble, which take turns
    in one module, are each compiled once.

    Args:
        runtime: "auto": OpenVINO on a CPU where it is installed, else PyTorch; "torch"; "openvino".
        precision: on a CPU. "auto": bf16 where the processor computes it natively, else f32; "f32"; "bf16". On a GPU
            the evaluator's `amp` decides instead.
        cache_dir: folder for converted networks; None: "bundlekit/openvino" in the user's cache folder. It may be
            shared between runs and deleted at any time.

    Raises:
        ValueError: for another runtime or precision.
        BundleError: when first used, for what this machine does not have: OpenVINO that was asked for by name, or bf16
            on a processor that would compute it a hundred times slower than single precision.
    """

    def __init__(self, runtime: str = "auto", precision: str = "auto", cache_dir: str | None = None) -> None:
        if runtime not in RUNTIMES:
            raise ValueError(f"runtime must be one of {', '.join(RUNTIMES)}, got {runtime!r}.")
        if precision not in PRECISIONS:
            raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}.")
        self.runtime = runtime
        self.precision = precision
        self.cache_dir = Path(cache_dir or Path(default_cache_dir("bundlekit"), "openvino"))
        self.description = ""  # what has computed, once it has
        self.whose = ""  # of several networks, for the log
        # keys and shapes that OpenVINO does not compute, and sizes that the log has told of
        self._refused: set[tuple[str, tuple[int, ...]]] = set()
        self._told: set[str] = set()
        self._chosen: tuple[str, str, str] | None = None  # device, runtime, precision
        self._converted: dict[str, Any] = {}  # by key of structure and weights
        # shape and queue of requests, by the same key and the number of streams: how many a window gets must not depend
        # on the cases before, for the two round differently
        self._compiled: dict[tuple[str, int], tuple[tuple[int, ...], Any]] = {}
        # versions of the weights, and key
        self._keys: WeakKeyDictionary[nn.Module, tuple[tuple[int, ...], str]] = WeakKeyDictionary()
        self.networks = 1  # that take turns, of an ensemble
        self._computing = ""  # key of the network that computed last
        self._lock = threading.Lock()  # of what is converted and compiled: requests of a server share them
        self._ahead: threading.Thread | None = None

    def prepare(self, network: nn.Module, inputs: torch.Tensor, several: bool) -> None:
        """Import OpenVINO and compile `network` for it in a thread, which `predictor` waits for.

        One that was never converted is left to the first window, since a conversion silences the log; what cannot be
        had is told by that window, too.

        Args:
            network: with its weights, which stay as they are until then.
            inputs: BCHWD, one as the windows will be.
            several: whether windows will come in numbers, to be computed side by side.
        """

        threads = torch.get_num_threads()

        def compile_ahead() -> None:
            torch.set_num_threads(threads)  # a thread may begin with another number
            with contextlib.suppress(Exception):
                runtime, precision = self._choose(network, inputs)
                if runtime == "openvino" and _is_whole(self.cache_dir / (key := self._key(network))):
                    streams = min(_STREAMS, threads) if several else 1
                    self._queue(network, precision, key, _shape_of(inputs), streams)

        self._ahead = threading.Thread(target=compile_ahead)
        self._ahead.start()

    def predictor(self, network: Callable[..., torch.Tensor], inputs: torch.Tensor) -> Callable[..., torch.Tensor]:
        """What to call in place of `network`, for tensors on the device of `inputs`.

        Args:
            network: with its weights. One that is no plain module (a wrapper of several processes, TorchScript) stays
                with PyTorch.
            inputs: BCHWD.

        Returns:
            A callable from BCHWD to logits BNHWD in float32, a fresh tensor on every call.
        """
        ahead = self._ahead
        if ahead is not None:
            ahead.join()
            self._ahead = None
        runtime, precision = self._choose(network, inputs)
        if runtime == "openvino":
            return functools.partial(self._infer, cast("nn.Module", network), precision)
        if precision == "bf16":
            return functools.partial(_autocast, network)
        return network

    @property
    def at_once(self) -> int:
        """Windows that `predictor`'s callable should get at a time; 1 before it is known what computes."""
        return 2 * _STREAMS if self._chosen is not None and self._chosen[1] == "openvino" else 1

    def _choose(self, network: Callable[..., torch.Tensor], inputs: torch.Tensor) -> tuple[str, str]:
        device = inputs.device.type
        if self._chosen is not None and self._chosen[0] == device:
            return self._chosen[1:]
        why = ""
        if device != "cpu":
            if self.runtime == "openvino":
                raise BundleError(
                    f"runtime is openvino, which computes on the CPU, but the device is {inputs.device}: give --device "
                    "cpu, or --runtime auto, which takes PyTorch on a GPU."
                )
            runtime, precision = "torch", "f32"
        else:
            runtime = "torch"
            if self.runtime != "torch":
                why = _why_not_openvino(network)
                runtime = "torch" if why else "openvino"
                if why and self.runtime == "openvino":
                    raise BundleError(f"runtime is openvino, but {why}; give --runtime torch.")
            native = computes_bfloat16()
            if self.precision == "bf16" and not native:
                raise BundleError(
                    "precision is bf16, which this processor has no instructions for: it would take a hundred times as "
                    "long as f32. Give --precision auto, which takes bf16 where it is native."
                )
            precision = "bf16" if native and self.precision != "f32" else "f32"
        self._chosen = (device, runtime, precision)
        openvino_name = f"OpenVINO {openvino().__version__.split('-')[0]}" if runtime == "openvino" else ""
        name = openvino_name or f"PyTorch {torch.__version__}"
        cpu = f", {precision}, {torch.get_num_threads()} threads"
        self.description = f"{name} on {device}" + (cpu if device == "cpu" else "")
        whose = f"{self.whose} " if self.whose else ""
        _log.info("%scomputed by %s%s", whose, self.description, f" ({why})" if why else "")
        return runtime, precision

    def _infer(self, network: nn.Module, precision: str, inputs: torch.Tensor) -> torch.Tensor:
        tried = self._key(network), _shape_of(inputs)
        if tried in self._refused:
            return _one_by_one(network, inputs)
        try:
            streams = min(_STREAMS, torch.get_num_threads(), len(inputs))
            queue = self._queue(network, precision, *tried, streams)
        # of tracing, of a part that OpenVINO does not have, or of a shape that the traced network does not take
        except (RuntimeError, openvino().frontend.OpConversionFailure) as error:
            shape = "x".join(str(n) for n in inputs.shape[2:])
            if self.runtime == "openvino":
                raise BundleError(
                    f"OpenVINO cannot compute this network on {shape} voxels ({str(error).splitlines()[0]}): give "
                    "--runtime torch, or windows whose sides the network's stride divides."
                ) from error
            self._refused.add(tried)
            if shape not in self._told:
                _log.warning("OpenVINO cannot compute this network on %s voxels: PyTorch does", shape)
                self._told.add(shape)
                self.description = self.description.removesuffix(_SOME_SIZES) + _SOME_SIZES
            return _one_by_one(network, inputs)
        windows = [window[None].numpy() for window in inputs.detach().float().contiguous()]
        outputs: dict[int, torch.Tensor] = {}
        with _COMPUTING:
            self._let_go(tried[0])
            for number, window in enumerate(windows):
                queue.start_async([window], (outputs, number), share_inputs=True)
            queue.wait_all()
        return torch.cat([outputs[number] for number in range(len(windows))])

    def _let_go(self, key: str) -> None:
        """Free what the networks before have computed with: those of an ensemble take turns."""
        if key != self._computing:
            for (other, _), (_, queue) in list(self._compiled.items()):
                if other != key:
                    queue[0].get_compiled_model().release_memory()
            self._computing = key

    def _queue(self, network: nn.Module, precision: str, key: str, shape: tuple[int, ...], streams: int) -> Any:
        with self._lock:
            return self._queued(network, precision, key, shape, streams)

    def _queued(self, network: nn.Module, precision: str, key: str, shape: tuple[int, ...], streams: int) -> Any:
        if key not in self._converted:
            self._converted[key] = self._convert(network, key, shape)
        self._converted[key] = self._converted.pop(key)  # the last one to be let go
        known = self._compiled.get((key, streams))
        if known is not None and known[0] == shape:
            return known[1]
        while len(self._converted) > max(_KEPT, self.networks):  # of before a training, in a server
            gone = next(iter(self._converted))
            del self._converted[gone]
            for compiled in [one for one in self._compiled if one[0] == gone]:
                del self._compiled[compiled]
        model = self._converted[key].clone()
        model.reshape([1, *shape])
        options = {
            "INFERENCE_PRECISION_HINT": precision,
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            **({"NUM_STREAMS": streams} if streams > 1 else {"PERFORMANCE_HINT": "LATENCY"}),
        }
        queue = openvino().AsyncInferQueue(_core().compile_model(model, "CPU", options), streams)
        queue.set_callback(_keep_output)
        self._compiled[key, streams] = (shape, queue)  # in place of one for another shape
        return queue

    def _key(self, network: nn.Module) -> str:
        """Hash of code, structure and weights, computed anew where a weight was written to."""
        tensors = [*network.parameters(), *network.buffers()]
        versions = tuple(tensor._version for tensor in tensors)
        known = self._keys.get(network)
        if known is None or known[0] != versions:
            libraries = f"{openvino().__version__} {torch.__version__} {monai.__version__} {sys.version}"
            digest = hashlib.sha256(f"{__version__} {libraries} {network!r}".encode())
            for line in _code_of(network):
                digest.update(line.encode())
            for name, tensor in network.state_dict().items():
                digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
                digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
            known = self._keys[network] = (versions, digest.hexdigest())
        return known[1]

    def _convert(self, network: nn.Module, key: str, shape: tuple[int, ...]) -> Any:
        folder = self.cache_dir / key
        if _is_whole(folder):
            with contextlib.suppress(RuntimeError):  # what cannot be read is made anew
                return _core().read_model(str(folder / _FILES[0]))
        example = torch.zeros(1, shape[0], *(min(n, _EXAMPLE) for n in shape[1:]))
        training = network.training
        try:
            with torch.no_grad(), _quiet():
                model = openvino().convert_model(network.eval(), example_input=example)
        finally:
            network.train(training)
        try:
            _keep(model, folder)
        except (OSError, RuntimeError) as error:  # the second is OpenVINO's, of a full disk
            _log.warning("cannot keep the converted network in %s (%s): going on without", folder, error)
        return model


def _code_of(network: nn.Module) -> Iterator[str]:
    """What a network computes beside what its repr shows: plain attributes of its parts, and the code of their classes.

    That of PyTorch and MONAI goes by their versions.
    """
    classes: dict[type, None] = {}
    for name, part in network.named_modules():
        own = {key: value for key, value in vars(part).items() if key[0] != "_" and key != "training"}
        yield f"{name} {sorted((key, repr(value)) for key, value in own.items() if _is_plain(value))}"
        classes.update(dict.fromkeys(type(part).__mro__))
    for one in classes:
        if one is object or one.__module__.partition(".")[0] in ("torch", "monai"):
            continue
        yield f"{one.__module__}.{one.__qualname__} {bundle_version(one.__module__)}"
        for key, value in sorted(vars(one).items()):
            function = getattr(value, "__func__", getattr(value, "fget", value))  # of a classmethod, of a property
            if isinstance(function, FunctionType):
                yield from _lines_of(function)
            elif _is_plain(value) and not key.startswith("__"):
                yield f"{key} {value!r}"


def _lines_of(function: FunctionType) -> Iterator[str]:
    """Code, defaults and plain values of a function, and of those that it closes over."""
    functions = [function]
    for one in functions:
        cells = [cell.cell_contents for cell in one.__closure__ or ()]
        functions += [cell for cell in cells if isinstance(cell, FunctionType) and cell not in functions]
        yield f"{one.__defaults__} {one.__kwdefaults__} {[repr(cell) for cell in cells if _is_plain(cell)]}"
        codes = [one.__code__]
        for code in codes:
            inner = [value for value in code.co_consts if isinstance(value, CodeType)]
            codes += inner
            plain = [repr(value) for value in code.co_consts if value not in inner]
            yield f"{code.co_name} {code.co_code.hex()} {code.co_names} {plain}"


def _is_plain(value: object) -> bool:
    """Whether a value's repr is all there is to it."""
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, (bool, int, float, str, torch.dtype))


@functools.cache
def openvino() -> ModuleType:
    """OpenVINO, without its reports of use.

    `convert_model` tells its vendor's analytics that it was used, through the package `openvino_telemetry`, unless that
    cannot be imported: a hospital's machine reports nothing to anybody.

    Raises:
        ImportError: if it is not installed.
    """
    name = "openvino_telemetry"
    with _IMPORTING:
        before = sys.modules.get(name)
        sys.modules[name] = None  # type: ignore[assignment]  # import fails, and OpenVINO takes its own empty stand-in
        try:
            import openvino as ov

            return ov
        finally:
            if before is None:
                del sys.modules[name]
            else:
                sys.modules[name] = before


@functools.cache
def _core() -> Any:
    return openvino().Core()


def _why_not_openvino(network: object) -> str:
    """Why OpenVINO cannot compute this network here; "" if it can."""
    if not isinstance(network, nn.Module) or isinstance(network, torch.jit.ScriptModule):
        return f"a {type(network).__name__} cannot be converted"
    if hasattr(network, "module"):
        return "a network that is spread over several processes cannot be converted"
    try:
        openvino()
    except ImportError as error:
        return f"OpenVINO cannot be imported ({error})"
    return ""


def _shape_of(inputs: torch.Tensor) -> tuple[int, ...]:
    """CHWD of BCHWD."""
    return tuple(int(n) for n in inputs.shape[1:])


def _one_by_one(network: Callable[..., torch.Tensor], inputs: torch.Tensor) -> torch.Tensor:
    """By PyTorch, with the memory of one window."""
    return torch.cat([network(window).float() for window in inputs.split(1)])


def _keep_output(request: Any, place: tuple[dict[int, torch.Tensor], int]) -> None:
    outputs, number = place
    outputs[number] = torch.from_numpy(request.get_output_tensor().data.copy())


def _autocast(network: Callable[..., torch.Tensor], inputs: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    # weights are converted for each window: the cache would keep those of another network of an ensemble
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        return network(inputs, *args, **kwargs).float()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the tracer's remarks on branches that depend on a shape; and the root logger stays as it is.

    OpenVINO sets the root logger to errors alone while it converts, and leaves it so where it fails.
    """
    root = logging.getLogger()
    level, handlers = root.level, list(root.handlers)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=torch.jit.TracerWarning)
            warnings.filterwarnings("ignore", message="`torch.jit")
            yield
    finally:
        root.setLevel(level)
        root.handlers[:] = handlers


def _keep(model: Any, folder: Path) -> None:
    """Write a converted network so that it is there whole or not at all."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name[:8]}."))
    try:
        openvino().save_model(model, str(scratch / _FILES[0]), compress_to_fp16=False)
        _core().read_model(str(scratch / _FILES[0]))  # a file that was cut off raises here, and is not kept
        sums = "".join(f"{sha256_of(scratch / name)}  {name}\n" for name in _FILES).encode()
        write_content(scratch / "SHA256SUMS", sums)
        shutil.rmtree(folder, ignore_errors=True)
        with contextlib.suppress(OSError):  # another process was faster
            scratch.rename(folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _is_whole(folder: Path) -> bool:
    try:
        listed = (folder / "SHA256SUMS").read_text().splitlines()
        return listed == [f"{sha256_of(folder / name)}  {name}" for name in _FILES]
    except (OSError, ValueError):
        return False
