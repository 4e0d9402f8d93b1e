"""Loaders of streamed sources: order, epochs, bad pictures, workers, two processes."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.data_loader import prepare_data_loader
from encoded_pictures import picture_bytes
from torch.utils.data import DataLoader

from visual_tokenizer.data.loading import build_loader
from visual_tokenizer.data.sources.base import Source, SourceConfig
from visual_tokenizer.data.streaming import key_number
from visual_tokenizer.data.transforms import TransformConfig
from visual_tokenizer.errors import UserError

COUNT = 24


def write_shards(folder: Path, bad: set[int]) -> Source:
    for shard in range(4):
        with tarfile.open(folder / f"s-{shard}.tar", "w") as tar:
            for number in range(6 * shard, 6 * shard + 6):
                pictures = {"png": b"broken" if number in bad else picture_bytes((10 * number, 0, 0), (9, 8))}
                for extension, content in {**pictures, "txt": str(number).encode()}.items():
                    info = tarfile.TarInfo(f"{number:04d}.{extension}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
    return SourceConfig.family.build({"type": "webdataset", "shards": str(folder / "s-*.tar")})


@pytest.fixture
def source(tmp_path: Path) -> Source:
    return write_shards(tmp_path, bad={5})


def loader(source: Source, **options: Any) -> DataLoader:
    return build_loader(source, "all", **{"image_size": 8, "batch_size": 4, "seed": 3, **options})


def captions(batches: Any) -> list[list[str]]:
    return [batch["caption"] for batch in batches]


def test_batches_are_full_and_a_bad_picture_is_replaced_in_its_batch(source: Source) -> None:
    batches = list(loader(source, shuffle=False))
    assert [batch["pixels"].shape for batch in batches] == [(4, 3, 8, 8)] * 6
    assert captions(batches)[1] == ["4", "6", "6", "7"]
    assert batches[1]["index"][1] == key_number("0006")
    red = (batches[2]["pixels"][:, 0, 4, 4] + 1) * 127.5
    assert red.round().tolist() == [80, 90, 100, 110]
    assert set(source.report.reasons) == {"0005"}


def test_each_epoch_has_its_own_order_and_a_new_loader_repeats_it(source: Source) -> None:
    first = loader(source)
    epochs = []
    for epoch in (0, 1):
        first.dataset.set_epoch(epoch)
        epochs.append(captions(first))
    assert epochs[0] != epochs[1]
    assert captions(loader(source, epoch=1)) == epochs[1]
    flat = [caption for batch in epochs[1] for caption in batch]
    assert set(flat) == {str(number) for number in range(COUNT)} - {"5"}


def test_augmentation_follows_the_sample_not_its_place(source: Source) -> None:
    options = {"transform": TransformConfig(crop="random", horizontal_flip=True), "epoch": 2}
    first, second = (
        {
            int(index): picture
            for batch in loader(source, shuffle=shuffle, **options)
            for index, picture in zip(batch["index"], batch["pixels"], strict=True)
        }
        for shuffle in (True, False)
    )
    assert first.keys() == second.keys()
    assert all(torch.equal(first[index], second[index]) for index in first)


def test_workers_divide_the_shards_and_see_new_epochs(source: Source) -> None:
    workers = loader(source, num_workers=2, batch_size=3)
    epochs = []
    for epoch in (0, 1):
        workers.dataset.set_epoch(epoch)
        epochs.append([caption for batch in captions(workers) for caption in batch])
    for flat in epochs:
        assert len(flat) == COUNT
        assert set(flat) == {str(number) for number in range(COUNT)} - {"5"}
    assert epochs[0] != epochs[1]


@pytest.mark.parametrize("drop_last", [True, False])
def test_two_processes_divide_the_stream_and_decode_only_their_share(tmp_path: Path, drop_last: bool) -> None:
    shares = []
    for process in range(2):
        source = write_shards(tmp_path, bad=set())
        ready = prepare_data_loader(
            loader(source, drop_last=drop_last),
            num_processes=2,
            process_index=process,
            dispatch_batches=False,
        )
        ready.set_epoch(1)
        shares.append([caption for batch in captions(ready) for caption in batch])
        assert source.report.tried == len(shares[-1]) == COUNT // 2
    assert sorted(map(int, shares[0] + shares[1])) == list(range(COUNT))


def test_a_stream_without_a_readable_start_aborts(tmp_path: Path) -> None:
    source = write_shards(tmp_path, bad=set(range(COUNT)))
    with pytest.raises(UserError, match="none of the first 4 pictures"):
        list(loader(source))
