"""Sums over two processes give what one process computes on all data."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch
from torch import Tensor, distributed, multiprocessing

from visual_tokenizer.metrics.codebook_usage import CodebookUsage
from visual_tokenizer.metrics.psnr import PSNR


def data() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.rand(5, 3, 8, 8, generator=generator) * 2 - 1
    noise = torch.randn(pixels.shape, generator=generator) * torch.linspace(0.01, 1, 5)[:, None, None, None]
    return pixels, pixels + noise, torch.randint(64, (5, 30), generator=generator)


def measure(rows: slice) -> dict[str, float]:
    pixels, reconstruction, indices = data()
    quality, usage = PSNR(), CodebookUsage(64)
    if len(pixels[rows]):
        quality.update(pixels[rows], reconstruction[rows])
        usage.update(indices[rows])
    # Twice: computing must leave the process's own sums alone.
    assert quality.compute() == quality.compute()
    return {**quality.compute(), **usage.compute()}


def work(rank: int, folder: str, cut: int) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/group", rank=rank, world_size=2)
    rows = slice(0, cut) if rank == 0 else slice(cut, None)
    torch.save(measure(rows), Path(folder) / f"{rank}.pt")
    distributed.destroy_process_group()


@pytest.mark.parametrize("cut", [3, 5], ids=["uneven", "one_process_without_data"])
def test_two_processes_equal_one(cut: int, tmp_path: Path) -> None:
    # Forked, because importing everything anew in each process would take far longer than the test itself.
    processes = multiprocessing.start_processes(work, (str(tmp_path), cut), nprocs=2, join=False, start_method="fork")
    deadline = time.monotonic() + 60
    while not processes.join(timeout=1):
        if time.monotonic() > deadline:
            for process in processes.processes:
                process.kill()
            pytest.fail("the two processes did not finish within 60 s")
    wanted = measure(slice(None))
    for rank in range(2):
        assert torch.load(tmp_path / f"{rank}.pt", weights_only=True) == pytest.approx(wanted, rel=1e-9)
