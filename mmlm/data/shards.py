"""Shards: pictures turned into indices once, with their captions, as a folder that `datasets` reads.

A shard folder is complete or not there: it is written beside and renamed. `header.json` says what made it,
and a reader that expects something else refuses it. `files.json` lists the shard files with size and SHA-256.
"""

from __future__ import annotations

import bisect
import dataclasses
import itertools
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import datasets
import numpy as np
import pyarrow as pa

from mmlm.processing import MultimodalProcessor
from visual_tokenizer.errors import UserError
from visual_tokenizer.registry import PartConfig

HEADER_NAME = "header.json"
FILES_NAME = "files.json"
SHARD_FORMAT = 1
KNOWN_AT_THE_END = ("count", "skipped", "skipped_by_reason", "changed")
VOLATILE_PREPROCESSING = ("processor_class", "image_processor_type", "transformers_version", "_name_or_path")


class ShardError(UserError):
    """A shard folder is not there, unfinished or damaged."""


@dataclass
class ShardHeader:
    """What made the shards, and what they hold."""

    codec_hash: str
    """`tokenizer_hash` of the visual tokenizer."""
    image_size: dict[str, int]
    """Height and width in pixels."""
    preprocessing: dict[str, Any]
    """Settings of the image processor."""
    source: dict[str, Any]
    """The recipe's data.source."""
    split: str
    """Split of the source."""
    codebook_size: int
    """Indices are below it."""
    num_codebooks: int
    """Indices a position."""
    format: int = SHARD_FORMAT
    """Version of this file format."""
    count: int = 0
    """Pictures in the shards."""
    skipped: dict[str, str] = field(default_factory=dict)
    """Unreadable pictures: reason by key."""
    skipped_by_reason: dict[str, int] = field(default_factory=dict)
    """How many pictures were left out for each reason, numbers in it replaced by #."""
    changed: dict[str, int] = field(default_factory=dict)
    """How often something of an item was cut or left out, by what; nothing ever is of a picture."""

    def features(self) -> datasets.Features:
        """Return the columns: `key`, `caption`, `indices` (flat, codebooks of a position side by side) and `grid`."""
        return datasets.Features(
            {
                "key": datasets.Value("string"),
                "caption": datasets.Value("string"),
                "indices": datasets.List(datasets.Value(self.index_type)),
                "grid": datasets.List(datasets.Value("int32")),
            }
        )

    @property
    def index_type(self) -> str:
        """The narrowest type of `datasets` that holds every index."""
        return "uint16" if self.codebook_size <= 2**16 else "int32"


Header = TypeVar("Header", bound=ShardHeader)


def header_provenance(header: ShardHeader) -> dict[str, Any]:
    """Return what made the shards, without what is known only when all are written."""
    return {key: value for key, value in asdict(header).items() if key not in KNOWN_AT_THE_END}


def expected_header(processor: MultimodalProcessor, source: PartConfig, split: str) -> ShardHeader:
    """Return the header that shards of `source` must have to suit `processor`; count and skipped are still empty."""
    settings = processor.image_processor.to_dict()
    settings = {key: value for key, value in settings.items() if key not in VOLATILE_PREPROCESSING}
    return ShardHeader(
        codec_hash=str(processor.codec_hash),
        image_size=dict(settings["size"]),
        preprocessing=json.loads(json.dumps(settings, default=str)),
        source=json.loads(json.dumps(source.to_dict())),
        split=split,
        codebook_size=processor.vocabulary.codebook_size,
        num_codebooks=processor.vocabulary.num_codebooks,
    )


def read_header(folder: str | os.PathLike[str], kind: type[Header] = ShardHeader) -> Header:  # type: ignore[assignment]
    """Return what `header.json` of a shard folder says.

    Args:
        folder: with a header in it.
        kind: what the header is read as: its fields, whatever else the file says.

    Raises:
        ShardError: no such file, or no header of this format.
    """
    path = Path(folder) / HEADER_NAME
    if not path.is_file():
        raise ShardError(
            f"{folder} holds no tokenized pictures (no {HEADER_NAME}): delete it or name another shards_dir"
        )
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        if fields.get("format") != SHARD_FORMAT:
            raise ShardError(f"{path}: format must be {SHARD_FORMAT}, got {fields.get('format')}")
        known = {one.name for one in dataclasses.fields(kind)}
        return kind(**{name: value for name, value in fields.items() if name in known})
    except (TypeError, AttributeError, json.JSONDecodeError) as error:
        raise ShardError(f"{path} is damaged: {error}") from error


def check_header(found: ShardHeader, expected: ShardHeader, folder: str | os.PathLike[str]) -> None:
    """Raise `UserError` naming every field in which shards are not what a run expects."""
    ours, theirs = header_provenance(expected), header_provenance(found)
    different = [
        f"{key} is {_short(theirs[key], ours[key])}, expected {_short(ours[key], theirs[key])}"
        for key in ours
        if ours[key] != theirs[key]
    ]
    if different:
        raise UserError(
            f"{folder} was made for something else: {'; '.join(different)}. "
            "Delete the folder to tokenize the pictures again, or name another data.shards_dir"
        )


def _short(value: Any, other: Any) -> Any:
    """Return only what differs, of mappings."""
    if isinstance(value, Mapping) and isinstance(other, Mapping):
        return {key: item for key, item in value.items() if other.get(key) != item}
    return value


def load_shards(folder: str | os.PathLike[str], expected: ShardHeader | None = None) -> datasets.Dataset:
    """Return the rows of a shard folder, memory-mapped.

    Sizes of the files are compared with `files.json`; their content, which takes a reading of all, is checked by
    `python -m mmlm.data.tokenize`.

    Args:
        folder: made by `tokenize`.
        expected: what must have made it; see `expected_header`.

    Raises:
        ShardError: not there, unfinished or damaged.
        UserError: another visual tokenizer, preprocessing, source or split.
    """
    header = read_header(folder, ShardHeader if expected is None else type(expected))
    if expected is not None:
        check_header(header, expected, folder)
    check_sizes(Path(folder))
    try:
        rows = datasets.load_from_disk(str(folder))
    except (OSError, pa.ArrowException) as error:
        raise ShardError(f"{folder} is damaged: {error}") from error
    if len(rows) != header.count:
        raise ShardError(f"{folder} is damaged: {len(rows)} pictures, {HEADER_NAME} says {header.count}")
    return rows


def check_sizes(folder: Path) -> None:
    """Raise `ShardError` if a file that `files.json` lists is missing or has another size."""
    if not (folder / FILES_NAME).is_file():  # folders made before there was such a list
        return
    repair = "run mmlm.data.tokenize with the recipe to make it again"
    try:
        listed = json.loads((folder / FILES_NAME).read_text(encoding="utf-8"))
        for entry in listed:
            file = folder / entry["file"]
            size = file.stat().st_size if file.is_file() else None
            if size != entry["size"]:
                found = "is missing" if size is None else f"has {size} bytes instead of {entry['size']}"
                raise ShardError(f"{folder} is damaged: {entry['file']} {found}; {repair}")
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise ShardError(f"{folder / FILES_NAME} is damaged: {error}; {repair}") from error


class RaggedColumn:
    """Rows of whole numbers of unequal lengths, read without a copy.

    Args:
        chunks: flat values and, one longer than its rows, the offset at which each row begins.
    """

    def __init__(self, chunks: Sequence[tuple[np.ndarray, np.ndarray]]) -> None:
        self.chunks = list(chunks)
        self.starts = list(itertools.accumulate((len(offsets) - 1 for _, offsets in self.chunks), initial=0))
        self.lengths = np.concatenate([np.zeros(0, np.int64), *(np.diff(offsets) for _, offsets in self.chunks)])

    @classmethod
    def of_column(cls, rows: datasets.Dataset, name: str) -> RaggedColumn:
        """View a list column of a set of rows."""
        column = rows.with_format("arrow")[name]
        chunked = column if isinstance(column, pa.ChunkedArray) else column[:]
        chunks = chunked.chunks if isinstance(chunked, pa.ChunkedArray) else [chunked]
        return cls([(chunk.values.to_numpy(), chunk.offsets.to_numpy()) for chunk in chunks])

    @classmethod
    def of_lists(cls, lists: Sequence[Sequence[int]]) -> RaggedColumn:
        """Pack lists."""
        offsets = np.cumsum([0, *map(len, lists)])
        flat = np.fromiter((value for one in lists for value in one), dtype=np.int32, count=int(offsets[-1]))
        return cls([(flat, offsets)])

    def __len__(self) -> int:
        return self.starts[-1]

    def __getitem__(self, row: int) -> np.ndarray:
        chunk = bisect.bisect_right(self.starts, row) - 1
        values, offsets = self.chunks[chunk]
        place = row - self.starts[chunk]
        return values[offsets[place] : offsets[place + 1]]
