"""Batches of streamed sources: order, epochs, bad pictures, workers, two processes."""

from __future__ import annotations

import io
import itertools
import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch
from encoded_pictures import picture_bytes

from visual_tokenizer.data.batches import DataSection, PictureSet, Share, training_batches
from visual_tokenizer.data.sources.base import Source, SourceConfig
from visual_tokenizer.data.streaming import key_number
from visual_tokenizer.data.transforms import TransformConfig
from visual_tokenizer.errors import UserError

COUNT = 24
ALONE = Share(process=0, processes=1, passes=1, size=4)


def write_shards(folder: Path, bad: set[int]) -> Source:
    for shard in range(4):
        with tarfile.open(folder / f"s-{shard}.tar", "w") as tar:
            for number in range(6 * shard, 6 * shard + 6):
                pictures = {"png": b"broken" if number in bad else picture_bytes((10 * number, 0, 0), (9, 8))}
                for extension, content in {**pictures, "txt": str(number).encode()}.items():
                    info = tarfile.TarInfo(f"{number:04d}.{extension}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
    return SourceConfig.family.build({"type": "webdataset", "shards": str(folder / "s-*.tar"), "heldout_fraction": 0.0})


@pytest.fixture
def source(tmp_path: Path) -> Source:
    return write_shards(tmp_path, bad={5})


def batches(source: Source, first_step: int = 0, steps: int = 6, share: Share = ALONE, **data: Any) -> list[dict]:
    section = DataSection(source=source.config, **data)
    endless = training_batches(source, section, image_size=8, seed=3, share=share, first_step=first_step)
    return list(itertools.islice(endless, steps))


def in_order(source: Source, size: int = 4) -> list[dict]:
    section = DataSection(source=source.config)
    return list(PictureSet(source, "all", section, image_size=8, max_pictures=None).batches(size))


def captions(found: list[dict]) -> list[list[str]]:
    return [batch["caption"] for batch in found]


def test_batches_are_full_and_a_bad_picture_is_replaced_in_its_batch(source: Source) -> None:
    found = in_order(source)
    assert [batch["pixels"].shape for batch in found] == [(4, 3, 8, 8)] * 6
    assert captions(found)[1] == ["4", "6", "6", "7"]
    assert found[1]["index"][1] == key_number("0006")
    red = (found[2]["pixels"][:, 0, 4, 4] + 1) * 127.5
    assert red.round().tolist() == [80, 90, 100, 110]
    assert set(source.report.reasons) == {"0005"}


def test_each_epoch_has_its_own_order_and_new_batches_repeat_it(source: Source) -> None:
    found = captions(batches(source, steps=12))
    epochs = found[:6], found[6:]
    assert epochs[0] != epochs[1]
    assert captions(batches(source, first_step=6)) == epochs[1]
    flat = [caption for batch in epochs[1] for caption in batch]
    assert set(flat) == {str(number) for number in range(COUNT)} - {"5"}


def test_augmentation_follows_the_sample_not_its_place(source: Source) -> None:
    transform = TransformConfig(crop="random", horizontal_flip=True)
    shares = ALONE, Share(process=0, processes=1, passes=1, size=8)
    first, second = (
        {
            int(index): picture
            for batch in batches(source, steps=COUNT // share.size, share=share, transform=transform)
            for index, picture in zip(batch["index"], batch["pixels"], strict=True)
        }
        for share in shares
    )
    assert first.keys() == second.keys()
    assert all(torch.equal(first[index], second[index]) for index in first)


def test_workers_divide_the_shards_and_see_new_epochs(source: Source) -> None:
    share = Share(process=0, processes=1, passes=1, size=3)
    found = captions(batches(source, steps=16, share=share, num_workers=2))
    epochs = [[caption for batch in part for caption in batch] for part in (found[:8], found[8:])]
    for flat in epochs:
        assert len(flat) == COUNT
        assert set(flat) == {str(number) for number in range(COUNT)} - {"5"}
    assert epochs[0] != epochs[1]


def test_two_processes_divide_the_stream_and_decode_only_their_share(tmp_path: Path) -> None:
    shares = []
    for process in range(2):
        source = write_shards(tmp_path, bad=set())
        share = Share(process=process, processes=2, passes=1, size=4)
        found = captions(batches(source, first_step=3, steps=3, share=share))
        shares.append([caption for batch in found for caption in batch])
        assert source.report.tried == len(shares[-1]) == COUNT // 2
    assert sorted(map(int, shares[0] + shares[1])) == list(range(COUNT))


def test_a_stream_without_a_readable_start_aborts(tmp_path: Path) -> None:
    source = write_shards(tmp_path, bad=set(range(COUNT)))
    with pytest.raises(UserError, match="none of the first 4 pictures"):
        batches(source, steps=1)
