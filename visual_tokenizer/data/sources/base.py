"""What every source of pictures or clips has in common.

A source reads *encoded* rows: `image` as `{"bytes", "path"}` (or `clip`, in a form of its own), `caption`, `key` and
perhaps more columns. The base class splits them, and decodes a picture only when it is fetched. A bad picture never
stops a run:

- map-style: it is replaced by the next readable one of the split, so length and order stay what they were;
- streaming: it is left out.

Both count and log it (`source.report`), and abort above `max_unreadable_fraction`.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, get_args

import datasets
import numpy as np
from annotated_types import Interval

from visual_tokenizer.data.decoding import (
    DEFAULT_MAX_PIXELS,
    LARGEST_MAX_PIXELS,
    SkipReport,
    UnreadableImageError,
    decode_image,
)
from visual_tokenizer.errors import UserError
from visual_tokenizer.registry import PartConfig

Split = Literal["train", "heldout", "all"]
SPLITS = get_args(Split)


class DataSourceError(UserError):
    """A source is not there, is empty, or lacks a column or file that the recipe names."""


@dataclass(kw_only=True)
class SourceConfig(PartConfig, package="visual_tokenizer.data.sources"):
    """Fields that every source has."""

    heldout_fraction: Annotated[float, Interval(ge=0, lt=1)] = 0.05
    """Share of the samples kept out of training, chosen by a hash of their key. Unused where the source has a held-out
    part of its own."""
    max_pixels: Annotated[int, Interval(ge=1, le=LARGEST_MAX_PIXELS)] = DEFAULT_MAX_PIXELS
    """Largest width × height that is decoded. Larger pictures are skipped."""
    max_unreadable_fraction: Annotated[float, Interval(ge=0, le=1)] = 0.5
    """Abort when more than this share of the pictures is unreadable (judged from the 20th on)."""

    @property
    def clip_frames(self) -> int:
        """Frames of each clip; 0: pictures."""
        return 0


def hash_fraction(key: str) -> float:
    """Map a key to [0, 1), evenly and the same on every machine."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:7], "big") / 2**56


class Source:
    """A set of pictures, or clips, with captions.

    Samples are `{"image": PIL.Image (RGB), "caption": str, "keywords": list[str], "key": str}`; map-style
    sets add `row`, the sample's place in the unsplit set. A source of clips has `clip`, a list of its frames, in place
    of `image`, sets `content`, and its config says how many frames (`clip_frames`).

    A source may say to which class a picture belongs: it names the columns in `label_columns`, and each sample holds
    a string in each, empty where the picture has no class. Only `visual_tokenizer.evaluate --semantic` reads them.
    """

    Config: ClassVar[type[SourceConfig]]

    attribution: ClassVar[str] = ""
    """What the licence of the pictures asks to be named on a model card."""

    content: ClassVar[str] = "image"
    """The column that is decoded: image or clip."""

    reads_place: ClassVar[bool] = False
    """Whether a row's `place` in [0, 1), if it has one, says where in a longer video the clip starts."""

    parts_named_by: ClassVar[str | None] = None
    """Field that names the samples; that of the held-out ones, `heldout_…` before it, is null where there are none."""

    label_columns: tuple[str, ...] = ()
    """Columns of classes, the one that is meant by default first."""

    def __init__(self, config: SourceConfig) -> None:
        self.config: Any = config
        self.report = SkipReport(config.max_unreadable_fraction)

    @property
    def has_own_heldout(self) -> bool:
        """Whether the source names a held-out part itself, so that nothing is split by hash."""
        return self.parts_named_by is not None and getattr(self.config, f"heldout_{self.parts_named_by}") is not None

    def name_of(self, part: str) -> str:
        """Return what the config names the "main" or the "heldout" part by."""
        name: str = getattr(self.config, f"{'' if part == 'main' else 'heldout_'}{self.parts_named_by}")
        return name

    def read(self, part: str) -> datasets.Dataset | datasets.IterableDataset:
        """Return the encoded rows of `part`, "main" or (where the source has one) "heldout"."""
        raise NotImplementedError

    def split_key(self, key: str) -> str:
        """Return what is hashed to place a sample; samples with one split key are never separated."""
        return key

    def load_encoded(self, split: str) -> datasets.Dataset | datasets.IterableDataset:
        """Return the rows of a split with `image` still encoded as `{"bytes", "path"}`.

        Raises:
            DataSourceError: an unknown split, or nothing there.
        """
        if split not in SPLITS:
            raise DataSourceError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
        if self.has_own_heldout:
            if split != "all":
                return self._numbered(self.read("main" if split == "train" else "heldout"))
            both = [self.read("main"), self.read("heldout")]
            return self._numbered(datasets.concatenate_datasets(both))
        rows = self._numbered(self.read("main"))
        if split == "all":
            return rows
        if isinstance(rows, datasets.IterableDataset):
            return rows.filter(functools.partial(self._in_split, split=split), input_columns="key")
        chosen = [row for row, key in enumerate(rows.with_format(None)["key"]) if self._in_split(key, split)]
        return rows.select(chosen)

    def load(self, split: str = "train") -> datasets.Dataset | datasets.IterableDataset:
        """Return the samples of "train", "heldout" or "all", decoded when they are fetched; see `load_encoded`."""
        return self.decoded(self.load_encoded(split))

    def decoded(self, rows: datasets.Dataset | datasets.IterableDataset) -> Any:
        """Return what `load_encoded` returned with pictures decoded when they are fetched."""
        if isinstance(rows, datasets.IterableDataset):
            return rows.map(self._decode_stream, batched=True, batch_size=8)
        return rows.with_transform(RowDecoder(rows, self))

    def decode(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Turn one encoded row into a sample; see `decode_content`."""
        content = self.decode_content(row)
        caption = row.get("caption")
        if isinstance(caption, list):  # several captions for one picture: the first
            caption = caption[0] if caption else None
        sample = {**row, self.content: content, "caption": "" if caption is None else str(caption)}
        sample.setdefault("keywords", [])
        return sample

    def labels(self, sample: Mapping[str, Any]) -> dict[str, str]:
        """Return the classes of a row or sample by column."""
        return {name: str(sample.get(name) or "") for name in self.label_columns}

    def decode_content(self, row: Mapping[str, Any]) -> Any:
        """Return the picture, or the list of frames, of an encoded row.

        Raises:
            UnreadableImageError: it can't be decoded, or may not be.
        """
        return decode_image(row["image"], key=row["key"], max_pixels=self.config.max_pixels)

    def _in_split(self, key: str, split: str) -> bool:
        return (hash_fraction(self.split_key(key)) < self.config.heldout_fraction) == (split == "heldout")

    def _numbered(self, rows: Any) -> Any:
        if isinstance(rows, datasets.IterableDataset):
            return rows
        if len(rows) == 0:
            raise DataSourceError(f"the source '{self.config.type}' has no pictures: {self.config}")
        return rows.add_column("row", np.arange(len(rows)))

    def _decode_stream(self, batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        samples = []
        for position in range(len(batch["key"])):
            try:
                samples.append(self.decode({name: column[position] for name, column in batch.items()}))
                self.report.readable()
            except UnreadableImageError as error:
                self.report.skip(error)
        names = list(samples[0]) if samples else [*batch, *(["keywords"] if "keywords" not in batch else [])]
        return {name: [sample[name] for sample in samples] for name in names}


class RowDecoder:
    """Transform of a map-style set: decodes fetched rows, and takes the next readable one for a bad one."""

    def __init__(self, rows: datasets.Dataset, source: Source) -> None:
        self.rows = rows.with_format(None)
        self.source = source
        self.order = np.asarray(self.rows["row"][:], dtype=np.int64)

    def __call__(self, batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        """Decode a batch of columns; without the column `image` or `clip` there is nothing to do."""
        if self.source.content not in batch:
            return batch
        if "key" not in batch or "row" not in batch:
            raise DataSourceError(f"the columns 'key' and 'row' are needed to decode '{self.source.content}'")
        count = len(batch["row"])
        samples = [self._sample({name: column[i] for name, column in batch.items()}) for i in range(count)]
        return {name: [sample[name] for sample in samples] for name in samples[0]}

    def _sample(self, row: dict[str, Any]) -> dict[str, Any]:
        start = int(np.searchsorted(self.order, row["row"]))
        for step in range(len(self.order)):
            if step:
                placed = {"place": row["place"]} if "place" in row else {}
                row = {**self.rows[(start + step) % len(self.order)], **placed}
            try:
                sample = self.source.decode(row)
                self.source.report.readable()
                return sample
            except UnreadableImageError as error:
                self.source.report.skip(error)
        raise UserError(f"none of the {len(self.order)} pictures is readable; reasons: {self.source.report.reasons}")


def row_decoder(rows: datasets.Dataset) -> RowDecoder:
    """Return what decodes the rows that `Source.load` returned for a map-style set, or a selection of them."""
    return rows.format["format_kwargs"]["transform"]


PART = Source
