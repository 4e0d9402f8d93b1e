"""Shards: pictures turned into indices once, with their captions, as a folder that `datasets` reads.

A shard folder is complete or not there: it is written beside and renamed. `header.json` says what made it,
and a reader that expects something else refuses it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
from torch import Tensor

from mmlm.processing import MultimodalProcessor
from visual_tokenizer.data.sources.base import SourceConfig

HEADER_NAME = "header.json"
SHARD_FORMAT = 1
ROWS_PER_FILE = 100_000
VOLATILE_PREPROCESSING = ("processor_class", "image_processor_type", "transformers_version", "_name_or_path")


class ShardError(ValueError):
    """A shard folder is not there, unfinished or damaged."""


class ShardMismatchError(ShardError):
    """Shards were made by another visual tokenizer, or of other pictures, than the run asks for."""


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


def expected_header(processor: MultimodalProcessor, source: SourceConfig, split: str) -> ShardHeader:
    """Return the header that shards of `source` must have to suit `processor`; count and skipped are still
    empty."""
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


def shard_features(header: ShardHeader) -> datasets.Features:
    """Return the columns: `key`, `caption`, `indices` (flat, codebooks of a position side by side) and
    `grid`."""
    kind = "uint16" if header.codebook_size <= 2**16 else "int32"
    return datasets.Features(
        {
            "key": datasets.Value("string"),
            "caption": datasets.Value("string"),
            "indices": datasets.List(datasets.Value(kind)),
            "grid": datasets.List(datasets.Value("int32")),
        }
    )


class ShardWriter:
    """Writes one process's rows into an unfinished folder, as `pictures-RRRRR-NNNNN.arrow`."""

    def __init__(self, folder: Path, header: ShardHeader, rank: int) -> None:
        self.folder, self.rank = folder, rank
        self.features = shard_features(header)
        self.files = 0
        self._rows = 0
        self._file: Any = None
        self._stream: Any = None

    def write(self, keys: Sequence[str], captions: Sequence[str], indices: Tensor, grid: Sequence[int]) -> None:
        """Append B pictures: indices (B, *grid) or (B, *grid, num_codebooks)."""
        if self._stream is None or self._rows >= ROWS_PER_FILE:
            self.close()
            self._file = open(self.folder / f"pictures-{self.rank:05d}-{self.files:05d}.arrow", "wb")
            self._stream = pa.ipc.new_stream(self._file, self.features.arrow_schema)
            self.files, self._rows = self.files + 1, 0
        flat = indices.reshape(len(keys), -1).numpy()
        columns = {
            "key": list(keys),
            "caption": list(captions),
            "indices": list(flat),
            "grid": [list(grid)] * len(keys),
        }
        self._stream.write_batch(pa.RecordBatch.from_pydict(columns, schema=self.features.arrow_schema))
        self._rows += len(keys)

    def close(self) -> None:
        """Finish the file, on the disk."""
        if self._stream is not None:
            self._stream.close()
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            self._stream = None


def finish_shards(unfinished: Path, folder: Path, header: ShardHeader) -> None:
    """Write the files that `datasets` and `load_shards` want and give the folder its name.

    Raises:
        ShardError: `folder` came into being meanwhile.
    """
    files = sorted(file.name for file in unfinished.glob("pictures-*.arrow"))
    features = shard_features(header)
    if not files:
        files = ["pictures-00000-00000.arrow"]
        with open(unfinished / files[0], "wb") as file, pa.ipc.new_stream(file, features.arrow_schema):
            pass  # a file without rows, from which the columns are known
    datasets.DatasetInfo(features=features).write_to_directory(str(unfinished))
    state: dict[str, Any] = {
        "_data_files": [{"filename": name} for name in files],
        "_fingerprint": header.codec_hash[:16],
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": None,
    }
    (unfinished / "state.json").write_text(json.dumps(state, indent=2), encoding="utf-8")
    with open(unfinished / HEADER_NAME, "wb") as header_file:
        header_file.write(json.dumps(asdict(header), indent=2, ensure_ascii=False).encode())
        header_file.flush()
        os.fsync(header_file.fileno())
    try:
        os.rename(unfinished, folder)
    except OSError as error:
        raise ShardError(f"{folder} cannot be made from {unfinished}: {error}") from error


def read_header(folder: str | os.PathLike[str]) -> ShardHeader:
    """Return what `header.json` of a shard folder says.

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
        return ShardHeader(**fields)
    except (TypeError, AttributeError, json.JSONDecodeError) as error:
        raise ShardError(f"{path} is damaged: {error}") from error


def check_header(found: ShardHeader, expected: ShardHeader, folder: str | os.PathLike[str]) -> None:
    """Raise `ShardMismatchError` naming every field in which shards are not what a run expects."""
    ours, theirs = asdict(expected), asdict(found)
    different = [
        f"{key} is {_short(theirs[key], ours[key])}, expected {_short(ours[key], theirs[key])}"
        for key in ours
        if key not in ("count", "skipped") and ours[key] != theirs[key]
    ]
    if different:
        raise ShardMismatchError(
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

    Args:
        folder: made by `tokenize_pictures`.
        expected: what must have made it; see `expected_header`.

    Raises:
        ShardError: not there, unfinished or damaged.
        ShardMismatchError: another visual tokenizer, preprocessing, source or split.
    """
    header = read_header(folder)
    if expected is not None:
        check_header(header, expected, folder)
    try:
        rows = datasets.load_from_disk(str(folder))
    except (OSError, pa.ArrowException) as error:
        raise ShardError(f"{folder} is damaged: {error}") from error
    if len(rows) != header.count:
        raise ShardError(f"{folder} is damaged: {len(rows)} pictures, {HEADER_NAME} says {header.count}")
    return rows


class RaggedColumn:
    """Rows of whole numbers of unequal lengths, read without a copy.

    Args:
        chunks: flat values and, one longer than its rows, the offset at which each row begins.
    """

    def __init__(self, chunks: Sequence[tuple[np.ndarray, np.ndarray]]) -> None:
        self.chunks = list(chunks)
        self.starts = np.cumsum([0, *(len(offsets) - 1 for _, offsets in self.chunks)])
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
        return int(self.starts[-1])

    def __getitem__(self, row: int) -> np.ndarray:
        chunk = int(np.searchsorted(self.starts, row, side="right")) - 1
        values, offsets = self.chunks[chunk]
        place = row - self.starts[chunk]
        return values[offsets[place] : offsets[place + 1]]
