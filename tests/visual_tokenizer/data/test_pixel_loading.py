"""Loaders of map-style sources: content, order, resume, two processes."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator, skip_first_batches
from accelerate.data_loader import prepare_data_loader
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from visual_tokenizer.data.loading import EpochSampler, PixelDataset, build_loader, pixel_table
from visual_tokenizer.data.sources.base import DataSourceError, Source, SourceConfig
from visual_tokenizer.data.transforms import TransformConfig

SIZE = 8
COUNT = 22


@pytest.fixture
def source(tmp_path: Path) -> Source:
    """22 pictures of 8 × 8 noise, one of them unreadable."""
    generator = np.random.default_rng(0)
    for number in range(COUNT):
        buffer = io.BytesIO()
        Image.fromarray(generator.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)).save(buffer, format="PNG")
        (tmp_path / f"{number:03d}.png").write_bytes(buffer.getvalue() if number != 5 else b"broken")
    return SourceConfig.family.build({"type": "image_folder", "folder": str(tmp_path)})


def loader(source: Source, **options: Any) -> DataLoader:
    return build_loader(source, "all", **{"image_size": SIZE, "batch_size": 4, "seed": 3, **options})


def prepared(source: Source, process: int, processes: int, **options: Any) -> DataLoader:
    return prepare_data_loader(
        loader(source, **options), num_processes=processes, process_index=process, dispatch_batches=False
    )


def seen(batches: Any) -> list[tuple[int, ...]]:
    return [tuple(batch["index"].tolist()) for batch in batches]


def pixels(batches: Any) -> Tensor:
    return torch.cat([batch["pixels"] for batch in batches])


def test_a_batch_holds_pixels_indices_and_captions(source: Source) -> None:
    batch = next(iter(loader(source, shuffle=False)))
    assert batch["pixels"].shape == (4, 3, SIZE, SIZE)
    assert batch["pixels"].dtype == torch.float32
    assert batch["index"].tolist() == [0, 1, 2, 3]
    assert batch["caption"] == [""] * 4
    image = source.load("all")[1]["image"]
    expected = torch.from_numpy(np.array(image)).permute(2, 0, 1) / 127.5 - 1
    torch.testing.assert_close(batch["pixels"][1], expected)


@pytest.mark.parametrize("transform", [TransformConfig(), TransformConfig(horizontal_flip=True)])
def test_memory_and_disk_give_the_same_batches(source: Source, transform: TransformConfig) -> None:
    fast, slow = (loader(source, transform=transform, cache_megabytes=size) for size in (1, 0))
    assert fast.dataset.table is not None
    assert slow.dataset.table is None
    assert seen(fast) == seen(slow)
    assert torch.equal(pixels(fast), pixels(slow))


@pytest.mark.parametrize("megabytes", [0, 1])
def test_a_batch_says_which_pictures_are_mirrored(source: Source, megabytes: int) -> None:
    plain = next(iter(loader(source, cache_megabytes=megabytes)))
    batch = next(iter(loader(source, transform=TransformConfig(horizontal_flip=True), cache_megabytes=megabytes)))
    assert plain["flipped"].tolist() == [False] * len(plain["pixels"])
    assert batch["flipped"].dtype == torch.bool
    for before, after, flipped in zip(plain["pixels"], batch["pixels"], batch["flipped"].tolist(), strict=True):
        assert torch.equal(before.flip(-1) if flipped else before, after)


def test_workers_change_nothing(source: Source) -> None:
    transform = TransformConfig(crop="random", horizontal_flip=True)
    alone, helped = (loader(source, transform=transform, num_workers=count) for count in (0, 2))
    for epoch in (0, 1):
        alone.sampler.set_epoch(epoch)
        helped.sampler.set_epoch(epoch)
        assert torch.equal(pixels(alone), pixels(helped))


def test_the_budget_decides_whether_pictures_are_kept(source: Source) -> None:
    rows = source.load("all")
    needed = COUNT * 3 * SIZE**2 / 1e6
    assert PixelDataset(rows, SIZE, cache_megabytes=needed).table is not None
    assert PixelDataset(rows, SIZE, cache_megabytes=needed * 0.99).table is None
    assert PixelDataset(rows, SIZE, TransformConfig(crop="random")).table is None


def test_an_unreadable_picture_has_the_pixels_of_the_next(source: Source) -> None:
    table = pixel_table(source.load("all"), SIZE)
    assert table.dtype == torch.uint8
    assert torch.equal(table[5], table[6])
    assert not torch.equal(table[4], table[5])
    assert set(source.report.reasons) == {"005.png"}


def test_order_is_a_permutation_that_depends_on_seed_and_epoch_alone() -> None:
    sampler = EpochSampler(100, seed=1)
    orders = {}
    for epoch in (0, 1):
        sampler.set_epoch(epoch)
        orders[epoch] = [key.sample for key in sampler]
        assert {key.epoch for key in sampler} == {epoch}
        assert sorted(orders[epoch]) == list(range(100))
    assert orders[0] != orders[1]
    sampler.set_epoch(0)
    assert [key.sample for key in sampler] == orders[0]
    assert [key.sample for key in EpochSampler(100, seed=2)] != orders[0]
    assert [key.sample for key in EpochSampler(5, shuffle=False)] == [0, 1, 2, 3, 4]
    assert len(sampler) == 100


def test_augmentation_changes_with_the_epoch(source: Source) -> None:
    transform = TransformConfig(horizontal_flip=True)
    data = PixelDataset(source.load("all"), SIZE, transform, seed=0)
    epochs = [torch.stack([data[(epoch, index)]["pixels"] for index in range(COUNT)]) for epoch in range(2)]
    assert not torch.equal(*epochs)
    plain = PixelDataset(source.load("all"), SIZE)
    for index in range(COUNT):
        original = plain[index]["pixels"]
        assert any(torch.equal(epochs[0][index], version) for version in (original, original.flip(-1)))


@pytest.mark.parametrize("processes", [1, 2])
def test_a_resumed_run_continues_exactly(source: Source, processes: int) -> None:
    transform = TransformConfig(horizontal_flip=True)
    for process in range(processes):
        whole = prepared(source, process, processes, transform=transform)
        whole.set_epoch(3)
        batches = list(whole)
        again = prepared(source, process, processes, transform=transform)
        again.set_epoch(3)
        rest = list(skip_first_batches(again, 1))
        assert seen(rest) == seen(batches)[1:]
        assert torch.equal(pixels(rest), pixels(batches[1:]))
        whole.set_epoch(4)
        assert seen(whole) != seen(batches)


def test_two_processes_divide_an_epoch(source: Source) -> None:
    shares = []
    for process in range(2):
        share = prepared(source, process, 2)
        share.set_epoch(1)
        shares.append([index for batch in seen(share) for index in batch])
    assert len(shares[0]) == len(shares[1]) > 0
    assert not set(shares[0]) & set(shares[1])


def test_the_loader_passes_through_an_accelerator(source: Source) -> None:
    ready = Accelerator(cpu=True).prepare(loader(source, epoch=0))
    assert seen(ready) == seen(loader(source))
    assert ready.batch_sampler.sampler.epoch == 0


def test_too_small_splits_are_refused_by_name(source: Source) -> None:
    with pytest.raises(DataSourceError, match=r"'all' has 22 pictures, too few for batch_size=64"):
        loader(source, batch_size=64)
    assert len(next(iter(loader(source, batch_size=64, drop_last=False)))["caption"]) == COUNT
    source.config.heldout_fraction = 0.0
    with pytest.raises(DataSourceError, match=r"'heldout' has 0 pictures"):
        build_loader(source, "heldout", image_size=SIZE, batch_size=1)


def test_openmoji_fills_the_table_without_loss(openmoji_cache: str) -> None:
    source = SourceConfig.family.build({"type": "openmoji", "resolution": 16, "cache_dir": openmoji_cache})
    rows = source.load("heldout")
    table = pixel_table(rows, 16)
    assert table.shape == (len(rows), 3, 16, 16)
    assert torch.equal(table[7], torch.from_numpy(np.array(rows[7]["image"])).permute(2, 0, 1))
