"""The check of a GPU, on the CPU and small: each of its parts does what it says."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bundlekit import run
from tests.bundles import BUNDLES
from tools import check_gpu as module
from tools.check_gpu import CHECKS, Where, check_gpu, run_checks


class Patient:
    """As `Glioma`."""

    def __init__(self, seed: int, maps: torch.Tensor) -> None:
        self.device = maps.device

    def patch(self, size: tuple[int, ...], tumour_probability: float) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.zeros(4, *size, device=self.device), torch.ones(1, *size, device=self.device)


@pytest.fixture
def where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Where:
    """Sizes that take no time; a virtual patient takes some, and is made on the CPU by other tests."""
    monkeypatch.setattr(module, "prepare_run", lambda device, seed: run.set_determinism(seed))
    monkeypatch.setattr(module, "maps_of", lambda: torch.zeros(1))
    monkeypatch.setattr(module, "Glioma", Patient)
    settings = {name: row.narrow for name, row in BUNDLES.items()} | {"brats_resunet": {"channels": [2, 4, 4, 4]}}
    return Where(torch.device("cpu"), tmp_path, (16, 16, 16), (20, 16, 24), batch=2, settings=settings)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_it_passes_on_a_cpu(check, where: Where) -> None:
    assert check(where)


def test_what_fails_is_named(where: Where, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    def broken_kernel(where: Where) -> str:
        raise RuntimeError("not implemented for 'Byte'")

    monkeypatch.setattr(module, "CHECKS", (broken_kernel, module.labels_of_coarser_levels))
    assert run_checks(where) == ["broken kernel"]
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "FAILED  broken kernel: RuntimeError: not implemented for 'Byte'"
    assert out[1].startswith("ok      labels of coarser levels: loss ")
    assert out[2] == "1 of 2 checks passed; failed: broken kernel"
    monkeypatch.setattr(module, "run_checks", lambda where: ["broken kernel"])
    with pytest.raises(SystemExit) as stopped:
        check_gpu("cpu")
    assert stopped.value.code == 1


def test_a_card_that_is_too_small_fails(where: Where, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda device: 7 * 2**30)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 6 * 2**30)
    card = Where(torch.device("cuda", 0), where.folder)
    assert module._peak(card) == "7.50 GiB of the card (6.00 in tensors)"
    with pytest.raises(RuntimeError, match=r"7.50 GiB of the card's memory; it has to fit in 7"):
        module._peak(Where(torch.device("cuda", 0), where.folder, limit_gib=7))


def test_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match=r"no GPU: PyTorch .* finds none, so nothing was checked"):
        check_gpu()
