"""Shards of documents: pieces with their text ids, and the indices of their pictures, in a folder for `datasets`.

Where pictures are tokenized on the fly there is everything but their indices.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import datasets
import numpy as np
from transformers import PreTrainedTokenizerBase

from mmlm.data.document_batches import DocumentDecoding, Record
from mmlm.data.document_pieces import PieceMaker
from mmlm.data.shards import RaggedColumn, ShardHeader, expected_header
from mmlm.documents.base import DocumentSource, DocumentSourceConfig
from mmlm.layouts.base import Grid
from mmlm.processing import MultimodalProcessor
from mmlm.recipes.mixture import MixtureMember
from mmlm.vocabulary import IMAGE
from visual_tokenizer.data.sources.base import Split
from visual_tokenizer.registry import ConfigError

VOLATILE_TOKENIZER_STATE = ("truncation", "padding")


@dataclass
class DocumentShardHeader(ShardHeader):
    """What made the shards; `count` and `skipped` are of documents."""

    text_tokenizer: str = ""
    """SHA-256 of the text tokenizer and its chat template."""
    layout: dict[str, Any] = field(default_factory=dict)
    """The layout's config."""
    limits: dict[str, Any] = field(default_factory=dict)
    """What became of documents that are too short or too long."""
    tokenization: str = "shards"
    """Whether the indices of pictures are there."""

    def features(self) -> datasets.Features:
        """Return the columns: `key`; `row` of the split; of each piece `kinds`, `trained` and `lengths` (tokens);
        `ids` of all pieces but pictures; of each picture `indices`, `grids` and its number in the document, `pictures`.
        """
        lists = {"kinds": "int8", "trained": "int8", "lengths": "int32", "ids": "int32"}
        lists |= {"indices": self.index_type, "grids": "int32", "pictures": "int32"}
        columns: dict[str, Any] = {"key": datasets.Value("string"), "row": datasets.Value("int64")}
        return datasets.Features(columns | {name: datasets.List(datasets.Value(kind)) for name, kind in lists.items()})


def tokenizer_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return a SHA-256 of everything by which a text tokenizer makes ids, and of its chat template."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        content: Any = sorted(tokenizer.get_vocab().items())
    else:
        content = json.loads(backend.to_str())
        content = {key: value for key, value in content.items() if key not in VOLATILE_TOKENIZER_STATE}
    special = [tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.sep_token_id]
    whole = json.dumps([content, special, getattr(tokenizer, "chat_template", None)], sort_keys=True)
    return hashlib.sha256(whole.encode()).hexdigest()


class StoredPiece(NamedTuple):
    """A piece of a document, as shards hold it."""

    kind: int
    """A place in `KINDS`."""
    is_trained: bool
    """Whether its tokens count in the loss."""
    length: int
    """Tokens."""
    ids: np.ndarray
    """(length,); none of a picture."""
    picture: int
    """Which of the document's pictures it is; of another piece, the next one."""


class StoredDocuments:
    """Documents as sequences read them from shards."""

    items: ClassVar[str]
    """What they are, in the plural."""
    remedy: ClassVar[str]
    """What helps where one is too long."""
    lengths: np.ndarray
    """Tokens of each document whose pieces all stand (N,) int64."""
    indices: RaggedColumn
    """Of each document, the indices of its pictures one after another; none where they are tokenized on the fly."""

    def __len__(self) -> int:
        return len(self.lengths)

    def grids_of(self, row: int) -> list[Grid]:
        """Return the token grid of each picture of a document."""
        raise NotImplementedError

    def kinds_of(self, row: int) -> tuple[int, ...]:
        """Return the kind of each piece of a document."""
        raise NotImplementedError

    def pieces(self, row: int) -> list[StoredPiece]:
        """Return the pieces of a document in order."""
        raise NotImplementedError


class DocumentRows(StoredDocuments):
    """Rows of document shards, memory-mapped; `shards` are those of `load_shards`."""

    items = "documents"
    remedy = "set data.max_length, or the member's limits.max_tokens"

    def __init__(self, shards: datasets.Dataset) -> None:
        self.kinds = RaggedColumn.of_column(shards, "kinds")
        self.trained = RaggedColumn.of_column(shards, "trained")
        self.piece_lengths = RaggedColumn.of_column(shards, "lengths")
        self.ids = RaggedColumn.of_column(shards, "ids")
        self.indices = RaggedColumn.of_column(shards, "indices")
        self.grids = RaggedColumn.of_column(shards, "grids")
        self.pictures = RaggedColumn.of_column(shards, "pictures")
        self.keys = shards.with_format(None)["key"]
        self.source_rows = np.asarray(shards.with_format("numpy")["row"][:], np.int64).reshape(-1)
        self.lengths = _sums(self.piece_lengths)

    def grids_of(self, row: int) -> list[Grid]:
        count = int(self.pictures.lengths[row])
        return [tuple(grid) for grid in self.grids[row].reshape(count, -1).tolist()] if count else []

    def kinds_of(self, row: int) -> tuple[int, ...]:
        return tuple(self.kinds[row].tolist())

    def pieces(self, row: int) -> list[StoredPiece]:
        columns = (self.kinds, self.trained, self.piece_lengths)
        ids, start, picture = self.ids[row], 0, 0
        found = []
        for kind, is_trained, length in zip(*(column[row].tolist() for column in columns), strict=True):
            end = start if kind == IMAGE else start + length
            found.append(StoredPiece(kind, bool(is_trained), length, ids[start:end], picture))
            start, picture = end, picture + (kind == IMAGE)
        return found


def _sums(column: RaggedColumn) -> np.ndarray:
    found = [np.zeros(0, np.int64)]
    for values, offsets in column.chunks:
        ends = np.concatenate([[0], np.cumsum(values, dtype=np.int64)])
        found.append(ends[offsets[1:]] - ends[offsets[:-1]])
    return np.concatenate(found)


class DocumentShards:
    """Shards of a split of a set of documents: what makes them, what is written of a document, how they are read.

    Args:
        processor: with its visual tokenizer.
        member: the set; its limits are taken as they are.
        split: "train", "heldout" or "all".
        folder: of the shards.
        name: of the set, for messages.
    """

    items = DocumentRows.items

    def __init__(
        self, processor: MultimodalProcessor, member: MixtureMember, split: Split, folder: Path, name: str = "documents"
    ) -> None:
        self.processor, self.member, self.split, self.folder, self.name = processor, member, split, folder, name
        self.source: DocumentSource = DocumentSourceConfig.family.build(member.documents)

    @property
    def is_on_the_fly(self) -> bool:
        """Whether the shards hold no indices."""
        return self.member.tokenization == "on_the_fly"

    def load_encoded(self) -> datasets.Dataset | datasets.IterableDataset:
        """Return the encoded rows of the split.

        Raises:
            ConfigError: they cannot be tokenized on the fly.
        """
        rows = self.source.load_encoded(self.split)
        codec = self.processor.codec
        why = ""
        if isinstance(rows, datasets.IterableDataset):
            why = "for a stream, which can only be read in turn"
        elif codec is not None and codec.has_variable_length:
            why = "where a picture has as many tokens as it needs, which are not known before"
        if self.is_on_the_fly and why:
            raise ConfigError(f"tokenization must be shards {why}, got on_the_fly for '{self.member.documents.type}'")
        return rows

    @cached_property
    def header(self) -> ShardHeader:
        """The header that the shards must have; what is known only when all are written is still empty."""
        return DocumentShardHeader(
            **asdict(expected_header(self.processor, self.member.documents, self.split)),
            text_tokenizer=tokenizer_hash(self.processor.tokenizer),
            layout=json.loads(json.dumps(self.processor.layout.config.to_dict())),
            limits=asdict(self.member.limits),
            tokenization=self.member.tokenization,
        )

    def decoding(self) -> DocumentDecoding:
        """Return what makes records of encoded rows, for loader processes."""
        make = PieceMaker(self.processor.layout, self.processor.grid, self.member.limits)
        image_processor = None if self.is_on_the_fly else self.processor.image_processor
        return DocumentDecoding(self.source, image_processor, make.record, "a picture is missing or unreadable")

    def columns(self, record: Record, pictures: Sequence[tuple[Grid, np.ndarray]]) -> dict[str, Any]:
        """Return a row of the shards: a record with the grid and the flat indices of each of its pictures."""
        blocks = iter([len(self.processor.layout.template(grid)) for grid, _ in pictures])
        pieces = zip(record.columns["kinds"], record.columns["lengths"], strict=True)
        return record.columns | {
            "lengths": [next(blocks) if kind == IMAGE else length for kind, length in pieces],
            "indices": np.concatenate([indices for _, indices in pictures]) if pictures else [],
            "grids": [size for grid, _ in pictures for size in grid],
            "pictures": record.pictures,
        }

    def rows(self, shards: datasets.Dataset) -> StoredDocuments:
        """Return the rows of `load_shards` as documents."""
        return DocumentRows(shards)
