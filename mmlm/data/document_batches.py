"""Encoded rows of documents → records and pixels: what loader processes do, before the visual tokenizer.

It is done in batches, unit by unit of a `ShardPlan`; a batch never reaches over the end of its unit. So a unit is made
of the same batches in every run, whichever process makes it and whatever came before.
"""

from __future__ import annotations

import itertools
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import datasets
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mmlm.data.shard_plan import ShardPlan
from mmlm.documents.base import BrokenDocumentError, Document, DocumentSource, Turn
from visual_tokenizer.data.decoding import UnreadableImageError, decode_image
from visual_tokenizer.errors import UserError

UNREADABLE = "pictures left out because they are missing or unreadable"


class DroppedDocumentError(UserError):
    """A document is left out; the message says why."""


class Record(NamedTuple):
    """What is written of a document that is part of the data."""

    columns: dict[str, Any]
    """Values by column, but for what only the visual tokenizer can tell."""
    pictures: list[int]
    """Which of the document's pictures belong to it, in their order."""
    changed: Counter[str]
    """How often something was cut or left out, by what."""


@dataclass
class DocumentBatch:
    """Documents of one unit."""

    unit: int
    """Unit of the plan."""
    is_last: bool
    """Whether the unit ends with it."""
    pixels: Tensor | None
    """(P, 3, H, W) in [-1, 1] of all pictures of the records in order; None: there are none, or none wanted."""
    records: list[Record] = field(default_factory=list)
    """Of the documents that are part of the data; `pictures` counts those of the source's document."""
    dropped: dict[str, str] = field(default_factory=dict)
    """Reason by key of the others."""
    readable: int = 0
    """Pictures that were decoded."""
    unreadable: dict[str, str] = field(default_factory=dict)
    """Reason by key of those that could not be; the key ends with the picture's number where there are several."""

    @property
    def rows(self) -> int:
        """Rows that were read."""
        return len(self.records) + len(self.dropped)


def readable_document(document: Document, max_pixels: int) -> tuple[Document, dict[int, Image.Image], dict[str, str]]:
    """Return a document without its unreadable pictures, the others decoded, by number, and reasons by key."""
    images: dict[int, Image.Image] = {}
    unreadable: dict[str, str] = {}
    pictures = document.pictures
    for number, picture in enumerate(pictures):
        key = document.key if len(pictures) == 1 else f"{document.key}#{number}"
        try:
            images[number] = decode_image(picture.data, key=key, max_pixels=max_pixels)
        except UnreadableImageError as error:
            unreadable[key] = error.reason
    numbers = itertools.count()
    turns = [
        Turn(turn.role, tuple(part for part in turn.parts if isinstance(part, str) or next(numbers) in images))
        for turn in document.turns
    ]
    return replace(document, turns=tuple(turns)), images, unreadable


class DocumentDecoding:
    """Makes records of encoded rows, and sets aside what is left out.

    Args:
        source: of the rows.
        image_processor: picture → pixels; None: pixels are not wanted, only whether pictures can be read.
        record: makes the record of a document whose pictures are all readable.
        missing: why a document is left out that goes with its missing picture; None: the picture's own reason.
    """

    def __init__(
        self,
        source: DocumentSource,
        image_processor: Any,
        record: Callable[[Document], Record],
        missing: str | None = None,
    ) -> None:
        self.source, self.image_processor, self.record, self.missing = source, image_processor, record, missing

    def __call__(self, rows: Sequence[Mapping[str, Any]], unit: int, is_last: bool) -> DocumentBatch:
        """Return the batch of these rows."""
        batch = DocumentBatch(unit, is_last, None)
        wanted: list[Image.Image] = []
        for row in rows:
            key = str(row["key"])
            try:
                record, images = self._keep(self.source.document(row), batch)
            except (BrokenDocumentError, DroppedDocumentError) as error:
                while self.missing is not None and key in batch.dropped:  # documents of one key are all counted
                    key += "'"
                batch.dropped[key] = str(error)
                continue
            record.columns["row"] = int(row.get("row", -1))
            batch.records.append(record)
            wanted += images
        if wanted and self.image_processor is not None:
            batch.pixels = self.image_processor(wanted, return_tensors="pt")["pixel_values"]
        return batch

    def _keep(self, document: Document, batch: DocumentBatch) -> tuple[Record, list[Image.Image]]:
        whole, images, unreadable = readable_document(document, self.source.config.max_pixels)
        batch.readable += len(images)
        batch.unreadable.update(unreadable)
        if unreadable and self.source.config.missing_pictures == "drop_document":
            raise DroppedDocumentError(self.missing or next(iter(unreadable.values())))
        record = self.record(whole)
        record.columns["key"] = document.key
        if unreadable:
            record.changed[UNREADABLE] += len(unreadable)
        numbers = [list(images)[place] for place in record.pictures]
        return record._replace(pictures=numbers), [images[number] for number in numbers]


class RangeBatches(Dataset):
    """The batches of some units of a map-style set, whose rows know their number: their key `row`."""

    def __init__(
        self, rows: datasets.Dataset, plan: ShardPlan, units: Sequence[int], decoding: DocumentDecoding, batch_size: int
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

    def __getitem__(self, place: int) -> DocumentBatch:
        unit, numbers, is_last = self.places[place]
        return self.decoding([{**self.rows[number], "row": number} for number in numbers], unit, is_last)


def stream_batches(
    rows: datasets.IterableDataset, units: Sequence[int], decoding: DocumentDecoding, batch_size: int, threads: int
) -> Iterator[DocumentBatch]:
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
    waiting: deque[Future[DocumentBatch]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        for task in tasks():
            waiting.append(pool.submit(decoding, *task))
            if len(waiting) > 2 * threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def iter_batches(
    rows: Any, plan: ShardPlan, units: Sequence[int], decoding: DocumentDecoding, batch_size: int, loader_workers: int
) -> Iterator[DocumentBatch]:
    """Yield the batches of some units in order, decoded by loader processes, or by threads for a stream."""
    if isinstance(rows, datasets.IterableDataset):
        return stream_batches(rows, units, decoding, batch_size, loader_workers)
    batches = RangeBatches(rows, plan, units, decoding, batch_size)
    return iter(DataLoader(batches, batch_size=None, num_workers=loader_workers, collate_fn=_unchanged))


def _unchanged(batch: Any) -> Any:
    return batch
