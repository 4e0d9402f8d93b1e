"""Batches of map-style sources: content, order, resume, two processes."""

from __future__ import annotations

import io
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from visual_tokenizer.data.batches import DataSection, PictureSet, Share, StepSampler, training_batches
from visual_tokenizer.data.loading import PixelDataset, epoch_order, pixel_table
from visual_tokenizer.data.sources.base import DataSourceError, Source, SourceConfig
from visual_tokenizer.data.transforms import TransformConfig

SIZE = 8
COUNT = 22
ALONE = Share(process=0, processes=1, passes=1, size=4)
STEPS = COUNT // 4


@pytest.fixture
def source(tmp_path: Path) -> Source:
    """22 pictures of 8 × 8 noise, one of them unreadable."""
    generator = np.random.default_rng(0)
    for number in range(COUNT):
        buffer = io.BytesIO()
        Image.fromarray(generator.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)).save(buffer, format="PNG")
        (tmp_path / f"{number:03d}.png").write_bytes(buffer.getvalue() if number != 5 else b"broken")
    return SourceConfig.family.build({"type": "image_folder", "folder": str(tmp_path), "heldout_fraction": 0.0})


def batches(source: Source, share: Share = ALONE, first_step: int = 0, steps: int = STEPS, **data: Any) -> list[dict]:
    section = DataSection(source=source.config, **data)
    endless = training_batches(source, section, image_size=SIZE, seed=3, share=share, first_step=first_step)
    return list(itertools.islice(endless, steps * share.passes))


def seen(found: list[dict]) -> list[tuple[int, ...]]:
    return [tuple(batch["index"].tolist()) for batch in found]


def pixels(found: list[dict]) -> Tensor:
    return torch.cat([batch["pixels"] for batch in found])


def test_a_batch_holds_pixels_indices_and_captions(source: Source) -> None:
    part = PictureSet(source, "all", DataSection(source=source.config), image_size=SIZE, max_pictures=None)
    batch = next(part.batches(4))
    assert batch["pixels"].shape == (4, 3, SIZE, SIZE)
    assert batch["pixels"].dtype == torch.float32
    assert batch["index"].tolist() == [0, 1, 2, 3]
    assert batch["caption"] == [""] * 4
    image = source.load("all")[1]["image"]
    expected = torch.from_numpy(np.array(image)).permute(2, 0, 1) / 127.5 - 1
    torch.testing.assert_close(batch["pixels"][1], expected)


@pytest.mark.parametrize("transform", [TransformConfig(), TransformConfig(horizontal_flip=True)])
def test_memory_and_disk_give_the_same_batches(source: Source, transform: TransformConfig) -> None:
    fast, slow = (batches(source, transform=transform, cache_megabytes=size) for size in (1, 0))
    assert seen(fast) == seen(slow)
    assert torch.equal(pixels(fast), pixels(slow))


@pytest.mark.parametrize("megabytes", [0, 1])
def test_a_batch_says_which_pictures_are_mirrored(source: Source, megabytes: int) -> None:
    (plain,) = batches(source, steps=1, cache_megabytes=megabytes)
    (batch,) = batches(source, steps=1, cache_megabytes=megabytes, transform=TransformConfig(horizontal_flip=True))
    assert plain["flipped"].tolist() == [False] * len(plain["pixels"])
    assert batch["flipped"].dtype == torch.bool
    for before, after, flipped in zip(plain["pixels"], batch["pixels"], batch["flipped"].tolist(), strict=True):
        assert torch.equal(before.flip(-1) if flipped else before, after)


def test_workers_change_nothing(source: Source) -> None:
    transform = TransformConfig(crop="random", horizontal_flip=True)
    alone, helped = (batches(source, steps=2 * STEPS, transform=transform, num_workers=count) for count in (0, 2))
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
    orders = [epoch_order(100, seed=1, epoch=epoch).tolist() for epoch in (0, 1)]
    assert all(sorted(order) == list(range(100)) for order in orders)
    assert orders[0] != orders[1]
    assert epoch_order(100, seed=1, epoch=0).tolist() == orders[0]
    assert epoch_order(100, seed=2, epoch=0).tolist() != orders[0]
    keys = next(iter(StepSampler(100, seed=1, share=Share(0, 1, 1, 100), first_step=1)))
    assert [key.sample for key in keys] == orders[1]
    assert {key.epoch for key in keys} == {1}


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
        share = Share(process, processes, passes=1, size=4)
        steps = COUNT // share.step_size
        whole = batches(source, share, 3 * steps, 2 * steps, transform=transform)
        rest = batches(source, share, 3 * steps + 1, 2 * steps - 1, transform=transform)
        assert seen(rest) == seen(whole)[1:]
        assert torch.equal(pixels(rest), pixels(whole[1:]))
        assert seen(whole[:steps]) != seen(whole[steps:])


def test_two_processes_divide_an_epoch(source: Source) -> None:
    shares = []
    for process in range(2):
        share = Share(process, 2, passes=1, size=4)
        steps = COUNT // share.step_size
        shares.append([index for batch in seen(batches(source, share, steps, steps)) for index in batch])
    assert len(shares[0]) == len(shares[1]) > 0
    assert not set(shares[0]) & set(shares[1])


def test_too_small_splits_are_refused_by_name(source: Source) -> None:
    with pytest.raises(DataSourceError, match=r"'train' has 22 pictures, too few for training.batch_size = 64"):
        batches(source, Share(0, 1, passes=1, size=64))
    section = DataSection(source=source.config)
    part = PictureSet(source, "all", section, image_size=SIZE, max_pictures=None)
    assert len(next(part.batches(64))["caption"]) == COUNT
    with pytest.raises(DataSourceError, match=r"'heldout' holds no picture"):
        PictureSet(source, "heldout", section, image_size=SIZE, max_pictures=None)


def test_openmoji_fills_the_table_without_loss(openmoji_cache: str) -> None:
    source = SourceConfig.family.build({"type": "openmoji", "resolution": 16, "cache_dir": openmoji_cache})
    rows = source.load("heldout")
    table = pixel_table(rows, 16)
    assert table.shape == (len(rows), 3, 16, 16)
    assert torch.equal(table[7], torch.from_numpy(np.array(rows[7]["image"])).permute(2, 0, 1))
