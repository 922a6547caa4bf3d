"""Whether a GPU computes what the bundles ask of it, and in how much memory and time. Needs no data set."""

from __future__ import annotations

import tempfile
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from inspect import signature
from pathlib import Path
from pydoc import locate
from typing import Any, cast

import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.data import DataLoader, Dataset
from monai.inferers import SimpleInferer
from monai.networks.nets import UNet
from monai.transforms import Compose, RandFlipd, Transform
from torch import nn

from bundlekit import (
    AccumulatingTrainer,
    EnsembleInferer,
    ForegroundInferer,
    PatchDataset,
    ResumeRun,
    SaveCheckpoints,
    prepare_run,
)
from bundlekit.brats import LowresEnsembleInferer
from bundlekit.label_maps.numberings import STRUCTURES
from bundlekit.virtual import LabelPainter
from bundlekit.virtual.anatomy import maps_of
from bundlekit.virtual.painting import RIMS
from bundlekit.virtual.patches import Glioma
from tools.bundles import names, parse

_CONTEXT_GIB = 0.5  # that a process takes of a card before its first tensor, which PyTorch does not count
_CHANNELS = (32, 64, 128, 256, 512)


@dataclass(frozen=True)
class Where:
    """The device, how large the tensors are, and a folder for files."""

    device: torch.device
    folder: Path
    patch: tuple[int, ...] = (96, 96, 96)
    brain: tuple[int, ...] = (140, 172, 140)
    batch: int = 4
    limit_gib: float = 8.0
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # of a bundle, instead of its defaults

    @property
    def gpu(self) -> bool:
        """Whether the device is one."""
        return self.device.type == "cuda"

    @property
    def half(self) -> torch.dtype:
        """Type that autocast computes in."""
        return torch.float16 if self.gpu else torch.bfloat16

    def wait(self) -> None:
        """Until the device has done what it was given."""
        if self.gpu:
            torch.cuda.synchronize(self.device)


def check_gpu(
    device: str = "cuda",
    patch_size: Sequence[int] = (96, 96, 96),
    batch_size: int = 4,
    channels: Sequence[int] = _CHANNELS,
    limit_gib: float = 8.0,
) -> None:
    """Check what only a GPU can show: mixed precision, its kernels, several processes, resuming, memory and time.

    Every bundle's network trains two steps and validates a volume; the last check takes training steps of the
    Res-UNet in full width, and segments a brain, and says time and peak memory. All numbers are random: nothing is
    learned. Exit status 0 if everything works, 1 if something failed or there is no GPU.

    Example: python -m tools check_gpu

    Args:
        device: e.g. "cuda:1".
        patch_size: voxels of the patches.
        batch_size: patches in a step of the Res-UNet.
        channels: widths of the Res-UNet.
        limit_gib: memory of the card that the Res-UNet has to fit in.
    """
    chosen = torch.device(device)
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise SystemExit(f"no GPU: PyTorch {torch.__version__} finds none, so nothing was checked.")
    if chosen.type == "cuda":
        chosen = torch.device("cuda", torch.cuda.current_device() if chosen.index is None else chosen.index)
        print(f"{torch.cuda.get_device_name(chosen)}, PyTorch {torch.__version__}")
    with tempfile.TemporaryDirectory() as folder:
        size = tuple(int(n) for n in patch_size)
        settings = {"brats_resunet": {"channels": list(channels)}}
        failed = run_checks(Where(chosen, Path(folder), size, batch=batch_size, limit_gib=limit_gib, settings=settings))
    if failed:
        raise SystemExit(1)


def run_checks(where: Where) -> list[str]:
    """Run all checks, print a line for each, and return the names of those that failed."""
    prepare_run(where.device, 0)
    failed = []
    for check in CHECKS:
        name, start = check.__name__.replace("_", " "), time.perf_counter()
        try:
            said = check(where)
            where.wait()
        except Exception as error:  # whatever it is: the others are still of interest
            failed.append(name)
            traceback.print_exc()
            print(f"FAILED  {name}: {type(error).__name__}: {error}", flush=True)
        else:
            print(f"ok      {name}: {said} ({time.perf_counter() - start:.1f} s)", flush=True)
        if where.gpu:
            torch.cuda.empty_cache()
    summary = f"{len(CHECKS) - len(failed)} of {len(CHECKS)} checks passed"
    print(f"{summary}; failed: {', '.join(failed)}" if failed else summary)
    return failed


# --- the checks -------------------------------------------------------------------------------------------------------


def ensembles_in_half_precision(where: Where) -> str:
    """Weights that autocast has cast for one network must not serve the next."""
    network, files = nn.Conv3d(1, 2, 1).to(where.device), []
    for number, values in enumerate(([8.0, 0.0], [0.0, 8.0], [0.0, 8.0])):
        state = {"weight": torch.tensor(values).view(2, 1, 1, 1, 1), "bias": torch.zeros(2)}
        files.append(str(where.folder / f"network_{number}.pt"))
        torch.save(state, files[-1])
    inferer = EnsembleInferer(SimpleInferer(), network, files)
    with torch.no_grad(), torch.autocast(where.device.type, where.half):
        found = inferer(torch.ones(1, 1, 2, 2, 2, device=where.device), network).softmax(1)[0, 1, 0, 0, 0]
    _require(abs(float(found) - 2 / 3) < 1e-2, f"two of three networks are sure, but their mean is {float(found):.3f}")
    return "each network computes with its own weights"


def bundles_in_mixed_precision(where: Where) -> str:
    """Two steps of every bundle's training, and its validation, as their configs have them."""
    said = []
    for bundle in names():
        parser = _parser(bundle, where)
        trainer = _trainer(parser, where, batches=2)
        trainer.run()
        _require(_finite(trainer.state.output[0]["loss"]), f"{bundle}: the loss is {trainer.state.output[0]['loss']}")
        parser["validate::evaluator"].pop("prepare_batch", None)  # which paints label maps
        parser["validate::dataset"] = Dataset([_item(parser, tuple(n + n // 4 for n in where.patch), 9)])
        evaluator = parser.get_parsed_content("validate::evaluator")
        evaluator.run()
        loss = evaluator.state.metrics["val_loss"]
        _require(_finite(loss), f"{bundle}: the validation loss is {loss}")
        said.append(f"{bundle} {float(trainer.state.output[0]['loss']):.2f}, {float(loss):.2f}")
    return "losses of training and validation " + "; ".join(said)


def labels_of_coarser_levels(where: Where) -> str:
    """Labels of any type are resampled for deep supervision."""
    parser, found = _parser("brats_resunet", where), []
    loss = parser.get_parsed_content("loss")
    label = _item(parser, where.patch, 0)["label"][None].to(where.device)
    logits = [torch.randn(1, 4, *(n // 2**k for n in where.patch), device=where.device) for k in range(3)]
    for kind in (torch.uint8, torch.float32):
        outputs = [out.clone().requires_grad_() for out in logits]
        value = loss(outputs, label.to(kind))
        value.backward()
        _require(all(_finite(out.grad.sum()) for out in outputs if out.grad is not None), f"no gradient from {kind}")
        found.append(float(value.detach()))
    _require(found[0] == found[1], f"uint8 labels give {found[0]}, float32 labels {found[1]}")
    return f"loss {found[0]:.3f} from uint8 and float32"


def virtual_gliomas(where: Where) -> str:
    """A patient and a patch of it, made on the device."""
    glioma = Glioma(4, maps_of().to(where.device))
    image, label = glioma.patch(where.patch, 1.0)
    _require(_finite(image.sum()) and bool(label.any()), "a patch on the tumour has none, or is not finite")
    return f"{int((label > 0).sum())} voxels of tumour in a patch"


def painted_images(where: Where) -> str:
    """What label maps train on: every step of the painter, on the device; a seed gives one image."""
    every: dict[str, Any] = {name: 1.0 for name in signature(LabelPainter).parameters if name.endswith("_probability")}
    either = dict.fromkeys(("strip_probability", "t1_probability", "cut_probability"), 0.5)  # this or that step
    painter = LabelPainter(**every | either)
    structures = torch.randint(0, len(STRUCTURES), (1, *where.patch), device=where.device)
    counts = np.ones((RIMS + 1, len(STRUCTURES)))
    for seed in range(6):  # stripped or not, T1 or any contrast, thick slices or large voxels, cut or not
        image, label = painter.paint(structures, painter.draw(counts, seed))
        again, _ = painter.paint(structures, painter.draw(counts, seed))
        _require(_finite(image.sum()) and bool(label.any()), f"the image of seed {seed} has no brain, or is not finite")
        _require(torch.equal(image, again), f"seed {seed} gives two images")
    return "six images, each the same twice"


def several_processes(where: Where) -> str:
    """A group of one process, on one GPU: channels last, wrapped batch norms, gradients kept back and exchanged."""
    backend = "nccl" if where.gpu else "gloo"
    torch.distributed.init_process_group(backend, store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        parser = _parser("brain_tissue_vnet", where, "multi_gpu.yaml")
        network, loss = parser.get_parsed_content("network"), parser.get_parsed_content("loss")
        optimizer = parser.get_parsed_content("optimizer")
        item = [_item(parser, where.patch, number) for number in range(2)]
        image, label = (torch.stack([one[key] for one in item]).to(where.device) for key in ("image", "label"))
        for accumulating in (True, False):
            network.require_backward_grad_sync = not accumulating
            with torch.autocast(where.device.type, where.half, enabled=where.gpu):
                value = loss(network.train()(image).float(), label)
            value.backward()
        optimizer.step()
        with torch.no_grad():
            network.module.eval()(image)
    finally:
        torch.distributed.destroy_process_group()
    _require(_finite(value.detach()), f"the loss is {float(value.detach())}")
    return f"{backend}, loss {float(value.detach()):.3f}"


def resuming_in_mixed_precision(where: Where) -> str:
    """The factor by which losses are scaled goes on from where it was."""
    scalers = []
    for number, epochs in enumerate((1, 2)):
        network = nn.Conv3d(1, 1, 3, padding=1).to(where.device)
        optimizer = torch.optim.AdamW(network.parameters())
        schedule = torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)
        state = (network, optimizer, schedule)
        handlers: list[Any] = [SaveCheckpoints(str(where.folder / f"run_{number}"), *state)]
        if number:
            handlers.append(ResumeRun(str(where.folder / "run_0" / "last.pt"), *state))
        data = [{"image": torch.ones(1, 8, 8, 8), "label": torch.zeros(1, 8, 8, 8)}] * 2
        trainer = AccumulatingTrainer(
            device=where.device,
            max_epochs=epochs,
            train_data_loader=DataLoader(Dataset(data), batch_size=1),
            network=network,
            optimizer=optimizer,
            loss_function=nn.MSELoss(),
            train_handlers=handlers,
            amp=True,
        )
        scaler = torch.amp.GradScaler(where.device.type, init_scale=2.0**16 if number else 2.0**10)
        _at_start(trainer, partial(setattr, trainer, "scaler", scaler))
        trainer.run()
        scalers.append(scaler)
    found = scalers[1].get_scale()
    _require(found == 2.0**10, f"the first run scaled by 1024, the resumed one by {found:g}")
    return f"scaled by {found:g} before and after"


def pinned_batches(where: Where) -> str:
    """Cases that are memory-mapped in the cache reach the device through a loader process, unchanged."""
    cases = [{"case": name, "image": [], "label": ""} for name in "ab"]
    steps = Compose([_Volume(where.patch), RandFlipd("image", prob=0.0)])
    data = PatchDataset(cases, steps, cache_dir=str(where.folder / "cache"))
    expected = torch.stack([_Volume(where.patch)(case)["image"].float() for case in cases])
    for _ in range(2):  # prepared, then mapped
        (batch,) = DataLoader(data, batch_size=2, num_workers=1, pin_memory=where.gpu)
        _require(batch["image"].is_pinned() == where.gpu, "the batch is not in pinned memory")
        found = batch["image"].to(where.device, non_blocking=True)
        where.wait()
        _require(torch.equal(found.cpu(), expected), "a batch is not what was prepared")
    return "as prepared"


def one_pass_over_the_brain(where: Where) -> str:
    """The case after another fits where that one did; a pass that does not fit is done in windows."""
    parser = _parser("brats_resunet", where)
    network = parser.get_parsed_content("network").eval()
    brain = _item(parser, tuple(2 * n for n in where.patch[:1]) + where.patch[1:], 0)["image"][None].to(where.device)
    inferer = ForegroundInferer(where.patch, whole_brain=True)
    with torch.no_grad(), torch.autocast(where.device.type, where.half, enabled=where.gpu):
        first, second = inferer(brain, network), inferer(brain, network)
        windows = ForegroundInferer(where.patch)(brain, network)
        fallen_back = inferer(brain, _TooLarge(network, brain.shape))
    _require(torch.equal(first, second), "the second pass differs from the first")
    _require(not torch.equal(first, windows), "it was not one pass")
    _require(torch.equal(fallen_back, windows), "a pass that ran out of memory is not done in windows")
    return "twice alike"


def two_networks_on_one_brain(where: Where) -> str:
    """The means of two networks, of gliomas and of tissues, are the same as on the CPU."""
    far = 0.0
    tissues = locate(str(parse("brain_tissue_vnet", "inference.yaml")["inferer"]["_target_"]))
    for kind, channels, settings in (
        (LowresEnsembleInferer, (4, 4, 3), {"lowres_shape": (16, 16, 16)}),
        (cast("type[LowresEnsembleInferer]", tissues), (1, 4, 5), {"lowres_window": (16, 16, 16)}),
    ):
        torch.manual_seed(0)
        first, second = (UNet(3, channels[0], out, [4, 8], [2]).eval() for out in channels[1:])
        file = str(where.folder / "lowres.pt")
        torch.save(second.state_dict(), file)
        brain = torch.rand(1, channels[0], 24, 20, 16) + 0.5
        inferer = kind((16, 16, 16), lowres=file, lowres_network=second, **settings)  # type: ignore[arg-type]
        with torch.no_grad():
            expected = inferer(brain, first)
            found = inferer(brain.to(where.device), first.to(where.device)).cpu()
        far = max(far, float((found - expected).abs().max()))
        _require(far < 1e-2, f"logits of {kind.__name__} differ by {far:.4f}")
    return f"logits differ by at most {far:.1e}"


def the_resunet_in_full_width(where: Where) -> str:
    """Training steps and a brain, in how much time and memory."""
    parser, said = _parser("brats_resunet", where), []
    for deterministic in (True, False):
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = deterministic, not deterministic
        trainer = _trainer(parser, where, batches=4, batch=where.batch)
        starts: list[float] = []
        trainer.add_event_handler(Events.ITERATION_STARTED, partial(_note, where, starts))
        trainer.add_event_handler(Events.COMPLETED, partial(_note, where, starts))
        _reset_peak(where)
        trainer.run()
        step = (starts[-1] - starts[1]) / (len(starts) - 2)  # the first one prepares
        how = "deterministic" if deterministic else "fastest"
        said.append(f"a step {step:.3f} s ({how}), {_peak(where)}")
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    parser["validate::dataset"] = Dataset([_item(parser, where.brain, 0)])
    evaluator = parser.get_parsed_content("validate::evaluator")
    _reset_peak(where)
    start = time.perf_counter()
    evaluator.run()
    where.wait()
    said.append(f"a brain of {'x'.join(map(str, where.brain))} {time.perf_counter() - start:.1f} s, {_peak(where)}")
    shape = f"{where.batch} x 4 x {'x'.join(map(str, where.patch))}"
    return f"{shape}, channels {parser.get_parsed_content('channels')}: " + "; ".join(said)


CHECKS: tuple[Callable[[Where], str], ...] = (
    ensembles_in_half_precision,
    bundles_in_mixed_precision,
    labels_of_coarser_levels,
    virtual_gliomas,
    painted_images,
    several_processes,
    resuming_in_mixed_precision,
    pinned_batches,
    one_pass_over_the_brain,
    two_networks_on_one_brain,
    the_resunet_in_full_width,
)


# --- what they share --------------------------------------------------------------------------------------------------


class _Volume(Transform):
    """A case's image, from its name: the same every time."""

    def __init__(self, shape: Sequence[int]) -> None:
        self.shape = tuple(shape)

    def __call__(self, data: Mapping[Any, Any]) -> dict[Any, Any]:
        noise = torch.Generator().manual_seed(ord(data["case"]))
        return {**data, "image": torch.randn(1, *self.shape, generator=noise).half()}


class _TooLarge(nn.Module):
    """A network that runs out of memory for volumes of a shape."""

    def __init__(self, network: nn.Module, shape: torch.Size) -> None:
        super().__init__()
        self.network, self.shape = network, shape
        self.inference_bytes = network.inference_bytes

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.shape == self.shape:
            raise torch.OutOfMemoryError("as a card that is too small says")
        return self.network(x)


def _parser(bundle: str, where: Where, *overlays: str) -> Any:
    """A bundle's training, without a data set."""
    small = {"patch_size": list(where.patch), "uniform_shape": list(where.patch), "num_workers": 0, "fit": "none"}
    files = {"output_dir": str(where.folder), "ckpt_dir": str(where.folder), "cache_dir": str(where.folder)}
    given = {**small, **files, **where.settings.get(bundle, {})}
    if bundle == "brain_metastasis_attention_unet":
        given["fit"] = "native"
    parser = parse(bundle, "train.yaml", *overlays, **given)
    parser["device"] = where.device
    return parser


def _item(parser: Any, shape: Sequence[int], seed: int) -> dict[str, torch.Tensor]:
    """A volume of random intensities with a label of four classes, or two: boxes of different size."""
    noise = torch.Generator().manual_seed(seed)
    label = torch.zeros(1, *shape, dtype=torch.uint8)
    for value in (1, 2, 3):
        h, w, d = (slice(n // 8 * value, n // 8 * (value + 2)) for n in shape)
        label[0, h, w, d] = value
    if parser["network_def"].get("out_channels") == 2:
        label = (label > 0).to(torch.uint8)
    channels = parser["network_def"]["in_channels"]
    return {"image": torch.randn(channels, *shape, generator=noise) + label, "label": label}


def _trainer(parser: Any, where: Where, batches: int, batch: int = 2) -> AccumulatingTrainer:
    """The training of a config for one epoch of random patches, without its files."""
    data = [_item(parser, where.patch, seed) for seed in range(batches * batch)]
    network = parser.get_parsed_content("train::trainer::network")
    return AccumulatingTrainer(
        device=where.device,
        max_epochs=1,
        train_data_loader=DataLoader(Dataset(data), batch_size=batch),
        network=network,
        optimizer=parser.get_parsed_content("optimizer"),
        loss_function=parser.get_parsed_content("loss"),
        inferer=parser.get_parsed_content("train::inferer"),
        amp=where.gpu,
        decollate=True,
    )


def _at_start(engine: Engine, act: Callable[[], object]) -> None:
    """Have something done when a run starts, before its handlers see it."""
    engine._event_handlers[Events.STARTED].insert(0, (act, (), {}))


def _note(where: Where, times: list[float]) -> None:
    """Note when all work until now is done."""
    where.wait()
    times.append(time.perf_counter())


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise RuntimeError(message)


def _finite(value: Any) -> bool:
    return bool(torch.isfinite(torch.as_tensor(value)).all())


def _reset_peak(where: Where) -> None:
    if where.gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(where.device)


def _peak(where: Where) -> str:
    """Memory that the card needed at most, in words; RuntimeError if it is more than allowed."""
    if not where.gpu:
        return "memory not measured"
    gib = torch.cuda.max_memory_reserved(where.device) / 2**30 + _CONTEXT_GIB
    _require(gib <= where.limit_gib, f"{gib:.2f} GiB of the card's memory; it has to fit in {where.limit_gib:g}")
    used = torch.cuda.max_memory_allocated(where.device) / 2**30
    return f"{gib:.2f} GiB of the card ({used:.2f} in tensors)"
