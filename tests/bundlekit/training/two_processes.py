"""Run by `test_processes.py` in two processes: accumulated steps, validation of networks that keep statistics."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from monai.data import DataLoader, Dataset
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

from bundlekit.training.accumulating import AccumulatingTrainer
from tests.bundles import BUNDLES
from tools.bundles import parse

SHAPES = [(16, 16, 16), (16, 40, 16), (16, 16, 72)]  # unequally many windows


def evaluator_of(bundle: str, *configs: str) -> tuple[Any, Any]:
    """The evaluator of a training's config, for three cases, and the network as it is trained."""
    parser = parse(bundle, *configs, **BUNDLES[bundle].narrow, patch_size=[16, 16, 16], num_workers=0)
    channels = parser["network_def"]["in_channels"]
    noise = torch.Generator().manual_seed(0)
    parser["validate::dataset"] = Dataset(
        [
            {
                "image": torch.rand(channels, *shape, generator=noise) + 0.1,
                "label": torch.randint(0, 4, (1, *shape), generator=noise, dtype=torch.uint8),
            }
            for shape in SHAPES
        ]
    )
    network = parser.get_parsed_content("model" if bundle == "brain_metastasis_attention_unet" else "network")
    return parser.get_parsed_content("validate::evaluator"), network


def accumulated() -> dict[str, Any]:
    """Weight after steps of 2 and 1 batches, see `test_accumulating.py`, and how often gradients were exchanged."""
    rank = torch.distributed.get_rank()
    network = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(network.weight)
    wrapped, exchanged = DistributedDataParallel(network), []
    wrapped.register_comm_hook(None, lambda _, bucket: exchanged.append(1) or allreduce_hook(None, bucket))
    data = [{"image": torch.tensor([2.0 * i + rank + 1]), "label": torch.zeros(1)} for i in range(3)]
    AccumulatingTrainer(
        device=torch.device("cpu"),
        max_epochs=1,
        train_data_loader=DataLoader(Dataset(data), batch_size=1),
        network=wrapped,
        optimizer=torch.optim.SGD(network.parameters(), lr=1.0),
        loss_function=lambda pred, label: pred - label,
        accumulation_steps=2,
    ).run()
    return {"weight": float(network.weight.detach()), "exchanges": len(exchanged)}


def main(out: str, *bundles: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    rank = torch.distributed.get_rank()
    torch.save(accumulated(), Path(out, f"accumulated_{rank}.pt"))
    for bundle in bundles:
        torch.manual_seed(0)
        evaluator, network = evaluator_of(bundle, "train.yaml", "multi_gpu.yaml")
        channels = next(network.parameters()).shape[1]
        network.train()(torch.rand(2, channels, 32, 32, 32) * (1 + rank))  # a step's running statistics
        evaluator.run()
        torch.save(dict(evaluator.state.metrics), Path(out, f"{bundle}_{rank}.pt"))
        if rank == 0:
            torch.save(network.module.state_dict(), Path(out, f"{bundle}.pt"))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
