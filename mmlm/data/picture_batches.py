"""Batches of preprocessed pictures, unit by unit of a `ShardPlan`; a batch never reaches over the end of its unit.

So a unit is made of the same batches in every run, whichever process makes it and whatever came before.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import datasets
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mmlm.data.shard_plan import ShardPlan
from visual_tokenizer.data.decoding import UnreadableImageError
from visual_tokenizer.data.sources.base import Source


@dataclass
class PictureBatch:
    """Pictures of one unit."""

    unit: int
    """Unit of the plan."""
    is_last: bool
    """Whether the unit ends with it."""
    pixels: Tensor | None
    """(B, 3, H, W) in [-1, 1]; None if no picture is readable."""
    keys: list[str]
    """Of the readable pictures."""
    captions: list[str]
    """Of the readable pictures."""
    unreadable: dict[str, str]
    """Reason by key."""


class RowDecoding:
    """Decodes and preprocesses encoded rows, and sets unreadable pictures aside."""

    def __init__(self, source: Source, image_processor: Any) -> None:
        self.source, self.image_processor = source, image_processor

    def __call__(self, rows: Sequence[dict[str, Any]], unit: int, is_last: bool) -> PictureBatch:
        """Return the batch of these rows."""
        images, keys, captions = [], [], []
        unreadable: dict[str, str] = {}
        for row in rows:
            try:
                sample = self.source.decode(row)
            except UnreadableImageError as error:
                unreadable[str(error.key)] = error.reason
                continue
            images.append(sample["image"])
            keys.append(str(sample["key"]))
            captions.append(sample["caption"])
        pixels = self.image_processor(images, return_tensors="pt")["pixel_values"] if images else None
        return PictureBatch(unit, is_last, pixels, keys, captions, unreadable)


class RangeBatches(Dataset):
    """The batches of some units of a map-style set; items are `PictureBatch`."""

    def __init__(
        self, rows: datasets.Dataset, plan: ShardPlan, units: Sequence[int], decoding: RowDecoding, batch_size: int
    ) -> None:
        self.rows, self.decoding = rows.with_format(None), decoding
        self.places = [
            (unit, range(start, min(start + batch_size, rows_of.stop)), start + batch_size >= rows_of.stop)
            for unit in units
            for rows_of in [plan.range_of(unit)]
            for start in range(rows_of.start, rows_of.stop, batch_size)
        ]

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, place: int) -> PictureBatch:
        unit, numbers, is_last = self.places[place]
        return self.decoding([self.rows[number] for number in numbers], unit, is_last)


def stream_batches(
    rows: datasets.IterableDataset, units: Sequence[int], decoding: RowDecoding, batch_size: int, threads: int
) -> Iterator[PictureBatch]:
    """Yield the batches of some files of a stream: one thread reads, the others decode.

    Loader processes would each read a share of the files of their own choice, and only one where a unit is one file.
    """

    def tasks() -> Iterator[tuple[list[dict[str, Any]], int, bool]]:
        for unit in units:
            stream = iter(rows.shard(num_shards=rows.num_shards, index=unit))
            batch = list(itertools.islice(stream, batch_size))
            while True:
                following = list(itertools.islice(stream, batch_size))
                yield batch, unit, not following
                if not following:
                    break
                batch = following

    if threads == 0:
        yield from itertools.starmap(decoding, tasks())
        return
    waiting: deque[Future[PictureBatch]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        for task in tasks():
            waiting.append(pool.submit(decoding, *task))
            if len(waiting) > 2 * threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def iter_batches(
    rows: Any, plan: ShardPlan, units: Sequence[int], decoding: RowDecoding, batch_size: int, loader_workers: int
) -> Iterator[PictureBatch]:
    """Yield the batches of some units in order, decoded by loader processes, or by threads for a stream."""
    if isinstance(rows, datasets.IterableDataset):
        return stream_batches(rows, units, decoding, batch_size, loader_workers)
    batches = RangeBatches(rows, plan, units, decoding, batch_size)
    return iter(DataLoader(batches, batch_size=None, num_workers=loader_workers, collate_fn=_unchanged))


def _unchanged(batch: Any) -> Any:
    return batch
