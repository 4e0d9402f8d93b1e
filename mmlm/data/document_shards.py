"""Shards of documents: pieces with their text ids, and the indices of their pictures, in a folder for `datasets`.

They are made, checked and repaired as those of pictures are. Where pictures are tokenized on the fly there is
everything but their indices.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import datasets
import numpy as np
from transformers import PreTrainedTokenizerBase

from mmlm.data.document_batches import KeptDocument
from mmlm.data.pairs import IMAGE
from mmlm.data.shards import RaggedColumn, ShardHeader, expected_header
from mmlm.mixture_recipe import MixtureMember
from mmlm.processing import MultimodalProcessor

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


def expected_document_header(
    processor: MultimodalProcessor, member: MixtureMember, split: str, max_length: int | None
) -> DocumentShardHeader:
    """Return the header that shards of a member must have to suit `processor`.

    Args:
        processor: with its visual tokenizer.
        member: of the mixture.
        split: "train", "heldout" or "all".
        max_length: what the recipe's data.max_length says.
    """
    base = expected_header(processor, member.documents, split)
    limits = effective_limits(member, max_length)
    return DocumentShardHeader(
        **asdict(base),
        text_tokenizer=tokenizer_hash(processor.tokenizer),
        layout=json.loads(json.dumps(processor.layout.config.to_dict())),
        limits=asdict(limits),
        tokenization=member.tokenization,
    )


def effective_limits(member: MixtureMember, max_length: int | None) -> Any:
    """Return a member's limits, `max_tokens` filled in."""
    limits = member.limits
    return dataclasses.replace(limits, max_tokens=max_length if limits.max_tokens is None else limits.max_tokens)


def document_columns(
    documents: Sequence[KeptDocument], indices: np.ndarray | None, grid: Sequence[int], block: int
) -> dict[str, list[Any]]:
    """Return the columns of some documents.

    Args:
        documents: that are kept.
        indices: (P, n) of all their pictures in order; None where they are tokenized on the fly.
        grid: token grid of each picture.
        block: tokens of a picture's block.
    """
    columns: dict[str, list[Any]] = {name: [] for name in ("key", "row", "kinds", "trained", "lengths", "ids")}
    columns |= {name: [] for name in ("indices", "grids", "pictures")}
    done = 0
    for document in documents:
        pieces, count = document.pieces, len(document.pictures)
        columns["key"].append(document.key)
        columns["row"].append(document.row)
        columns["kinds"].append([piece.kind for piece in pieces])
        columns["trained"].append([int(piece.is_trained) for piece in pieces])
        columns["lengths"].append([block if piece.kind == IMAGE else len(piece.ids) for piece in pieces])
        columns["ids"].append([token for piece in pieces for token in piece.ids])
        own: Any = [] if indices is None else indices[done : done + count].reshape(-1)
        columns["indices"].append(own)
        columns["grids"].append(list(grid) * count)
        columns["pictures"].append(document.pictures)
        done += count
    return columns


class DocumentRows:
    """The columns of document shards, memory-mapped.

    Args:
        shards: rows of `load_shards`.
    """

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
        """Tokens of each document whose pieces all stand (N,) int64."""

    def __len__(self) -> int:
        return len(self.lengths)

    def grids_of(self, row: int) -> list[tuple[int, ...]]:
        """Return the token grid of each picture of a document."""
        count = int(self.pictures.lengths[row])
        return [tuple(grid) for grid in self.grids[row].reshape(count, -1).tolist()] if count else []


def _sums(column: RaggedColumn) -> np.ndarray:
    found = [np.zeros(0, np.int64)]
    for values, offsets in column.chunks:
        ends = np.concatenate([[0], np.cumsum(values, dtype=np.int64)])
        found.append(ends[offsets[1:]] - ends[offsets[:-1]])
    return np.concatenate(found)
