"""Of every registered metric: sums over two processes, cut unevenly, give what one process computes on all data."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, distributed, multiprocessing

from visual_tokenizer.backbones.base import Backbone, BackboneConfig
from visual_tokenizer.errors import UserError
from visual_tokenizer.evaluation.reconstruction import build_metrics
from visual_tokenizer.metrics import _text, face_fidelity, feature_distance, fid, fvd, lpips, text_fidelity
from visual_tokenizer.metrics.base import Metric, MetricConfig

CLIPS = {"fvd"}
FIELDS: dict[str, dict[str, Any]] = {"face_fidelity": {"weights": "stub"}}


class Stub(Backbone):
    """Stands in for a network whose weights are not here: means of quarters."""

    Config = BackboneConfig
    feature_dims = (12,)
    embedding_dim = 12
    embedding_size = 8

    def __init__(self, takes_clips: bool = False) -> None:
        super().__init__(BackboneConfig())
        self.takes_clips = takes_clips  # type: ignore[misc]

    def embedding(self, pixels: Tensor, size: int | None = None) -> Tensor:
        if pixels.ndim == 5:
            pixels = pixels.mean(2)
        return torch.tanh(torch.nn.functional.adaptive_avg_pool2d(pixels, 2).flatten(1) * 3)


class StubLpips:
    """Stands in for LPIPS."""

    weights_digest = "stub"

    def __init__(self, config: Any) -> None:
        pass

    def to(self, device: Any) -> StubLpips:
        return self

    def distance(self, pixels: Tensor, reconstruction: Tensor) -> Tensor:
        return (pixels - reconstruction).square().mean((1, 2, 3))


class StubReader:
    """Reads one letter in each half of a picture, by its brightness."""

    name = "stub"

    def find(self, picture: np.ndarray) -> list[np.ndarray]:
        return [np.zeros((4, 2)), np.ones((4, 2))]

    def read(self, picture: np.ndarray, regions: list[np.ndarray]) -> list[str]:
        middle = len(picture) // 2
        return [
            "".join(map(chr, 97 + half.mean((0, 2)).astype(int) // 20)) for half in (picture[:middle], picture[middle:])
        ]


@pytest.fixture(autouse=True)
def stubs(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (feature_distance, face_fidelity, fid):
        monkeypatch.setattr(module, "load_backbone", lambda *_: Stub())
    monkeypatch.setattr(fvd, "load_backbone", lambda *_: Stub(takes_clips=True))
    monkeypatch.setattr(lpips, "Lpips", StubLpips)
    monkeypatch.setattr(text_fidelity, "RapidReader", lambda _: StubReader())


def data(name: str) -> tuple[Tensor, Tensor, Tensor]:
    side = 176 if name == "ms_ssim" else 16
    generator = torch.Generator().manual_seed(0)
    pixels = torch.rand(5, 3, *([2] if name in CLIPS else []), side, side, generator=generator) * 2 - 1
    noise = torch.randn(pixels.shape, generator=generator)
    strength = torch.linspace(0.01, 1, 5).view(5, *[1] * (pixels.ndim - 1))
    return pixels, pixels + noise * strength, torch.randint(64, (5, 30), generator=generator)


def build(name: str) -> Metric:
    return build_metrics([{"type": name, **FIELDS.get(name, {})}], 64, 1)[0]


def measure(name: str, rows: slice, size: int = 5) -> dict[str, float]:
    metric = build(name)
    for batch in zip(*(values[rows].split(size) for values in data(name)), strict=True):
        if len(batch[0]):
            metric.observe(*batch)
    # Twice: computing must leave the process's own sums alone.
    assert metric.compute() == metric.compute()
    return metric.compute()


def work(rank: int, folder: str, cut: int) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/group", rank=rank, world_size=2)
    rows = slice(0, cut) if rank == 0 else slice(cut, None)
    found = {name: measure(name, rows) for name in MetricConfig.family.names()}
    torch.save(found, Path(folder) / f"{rank}.pt")
    distributed.destroy_process_group()


@pytest.mark.parametrize("cut", [3, 5], ids=["uneven", "one_process_without_data"])
def test_two_processes_equal_one(cut: int, tmp_path: Path) -> None:
    # Forked, because importing everything anew in each process would take far longer than the test itself.
    torch.set_num_threads(1)
    processes = multiprocessing.start_processes(work, (str(tmp_path), cut), nprocs=2, join=False, start_method="fork")
    deadline = time.monotonic() + 60
    while not processes.join(timeout=1):
        if time.monotonic() > deadline:
            for process in processes.processes:
                process.kill()
            pytest.fail("the two processes did not finish within 60 s")
    found = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    for name in MetricConfig.family.names():
        wanted = measure(name, slice(None))
        assert found[0][name] == pytest.approx(wanted, rel=1e-6), name
        assert found[1][name] == found[0][name], name


@pytest.mark.parametrize("name", MetricConfig.family.names())
def test_the_batch_size_changes_nothing(name: str) -> None:
    wanted = measure(name, slice(None))
    assert wanted
    assert all(np.isfinite(value) for value in wanted.values())
    for size in (1, 2):
        assert measure(name, slice(None), size) == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize("name", MetricConfig.family.names())
def test_reset_forgets_and_no_data_is_an_error(name: str) -> None:
    metric = build(name)
    metric.observe(*data(name))
    metric.reset()
    with pytest.raises(UserError, match=r"no process|needs 2 pictures|no text"):
        metric.compute()


@pytest.mark.parametrize("name", MetricConfig.family.names())
def test_the_protocol_says_what_is_measured(name: str) -> None:
    protocol = build(name).protocol()
    assert protocol["type"] == name
    assert len(protocol["measures"]) > 10
    assert not {"weights", "heads"} & protocol.keys()


def test_the_reader_needs_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "rapidocr_onnxruntime", None)
    with pytest.raises(FileNotFoundError, match="pip install rapidocr-onnxruntime"):
        _text.RapidReader(0.5)
