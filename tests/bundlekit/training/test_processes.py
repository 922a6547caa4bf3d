"""Training and validation in two processes; batch norms keep statistics of each."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
import torch

from tests.bundlekit.training.two_processes import evaluator_of
from tests.conftest import COMMANDS, ROOT

BUNDLES = ["brain_tissue_vnet", "brain_metastasis_attention_unet"]


def test_two_processes_step_and_validate_as_one(environment: dict[str, str], tmp_path: Path) -> None:
    """They have two cases and one, of unequally many windows; what is validated is what is saved."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"}
    command = ["tests.bundlekit.training.two_processes", str(tmp_path), *BUNDLES]
    done = COMMANDS.run(command, str(ROOT), {**environment, **group}, timeout=60)
    assert done.returncode == 0, done.stderr[-3000:]
    for rank in (0, 1):  # batches of 1.5, 3.5 and 5.5 on average
        found = torch.load(tmp_path / f"accumulated_{rank}.pt", weights_only=True)
        assert found == {"weight": pytest.approx(-(2.5 + 5.5)), "exchanges": 2}
    for bundle in BUNDLES:
        evaluator, network = evaluator_of(bundle, "train.yaml")
        network.load_state_dict(torch.load(tmp_path / f"{bundle}.pt", weights_only=True))
        evaluator.run()
        for rank in (0, 1):
            found = torch.load(tmp_path / f"{bundle}_{rank}.pt", weights_only=False)
            assert found == pytest.approx(evaluator.state.metrics, abs=1e-5)
