"""Shards of pictures with captions: a picture's indices and its caption as text, read as a document of the two."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import datasets
import numpy as np

from mmlm.data.document_batches import DocumentDecoding, Record
from mmlm.data.document_shards import DocumentShards, StoredDocuments, StoredPiece
from mmlm.data.shards import RaggedColumn, ShardHeader, expected_header
from mmlm.documents.base import Document
from mmlm.layouts.base import Grid, Layout
from mmlm.vocabulary import IMAGE, STRUCTURE, TEXT

CAPTIONS_AT_A_TIME = 1000


def encode_captions(layout: Layout, captions: Sequence[str], max_tokens: int | None) -> RaggedColumn:
    """Return the ids of all captions, as `layout.text_ids` gives them, cut to `max_tokens`."""
    ids: list[list[int]] = []
    for start in range(0, len(captions), CAPTIONS_AT_A_TIME):
        part = list(captions[start : start + CAPTIONS_AT_A_TIME])
        encoded = layout.tokenizer(
            part, add_special_tokens=False, split_special_tokens=True, return_attention_mask=False
        )
        ids += [one[:max_tokens] for one in encoded["input_ids"]]
    return RaggedColumn.of_lists(ids)


class PairRows(StoredDocuments):
    """Rows of pair shards as documents: BOS, caption, picture, EOS.

    Args:
        shards: rows of `load_shards`.
        layout: makes text ids.
        max_caption_tokens: longer captions are cut.
    """

    items = "pictures"
    remedy = "lower data.max_caption_tokens, or take a visual tokenizer with fewer tokens a picture"

    def __init__(self, shards: datasets.Dataset, layout: Layout, max_caption_tokens: int | None = None) -> None:
        self.indices = RaggedColumn.of_column(shards, "indices")
        self.grids = RaggedColumn.of_column(shards, "grid")
        self.captions = encode_captions(layout, shards["caption"][:], max_caption_tokens)
        self.bos, self.eos = np.array(layout.bos_ids, np.int64), np.array([layout.eos_id])
        self.blocks = np.array([len(layout.template(self.grids_of(row)[0])) for row in range(len(shards))], np.int64)
        """Tokens of each row's picture."""
        self.lengths = len(self.bos) + self.captions.lengths + self.blocks + 1

    def grids_of(self, row: int) -> list[Grid]:
        return [tuple(self.grids[row].tolist())]

    def kinds_of(self, row: int) -> tuple[int, ...]:
        return STRUCTURE, TEXT, IMAGE, STRUCTURE

    def pieces(self, row: int) -> list[StoredPiece]:
        caption = self.captions[row]
        return [
            StoredPiece(STRUCTURE, False, len(self.bos), self.bos, 0),
            StoredPiece(TEXT, True, len(caption), caption, 0),
            StoredPiece(IMAGE, True, int(self.blocks[row]), caption[:0], 0),
            StoredPiece(STRUCTURE, True, 1, self.eos, 1),
        ]


def pair_record(document: Document) -> Record:
    """Return what is written of a picture with a caption."""
    return Record({"caption": "".join(part for part in document.parts if isinstance(part, str))}, [0], Counter())


class PairShards(DocumentShards):
    """Shards of a set of type `pictures`: of its limits, max_text_tokens holds when they are read, the others never."""

    items = PairRows.items

    @cached_property
    def header(self) -> ShardHeader:
        return expected_header(self.processor, self.member.documents.source, self.split)  # type: ignore[attr-defined]

    def decoding(self) -> DocumentDecoding:
        return DocumentDecoding(self.source, self.processor.image_processor, pair_record)

    def columns(self, record: Record, pictures: Sequence[tuple[Grid, np.ndarray]]) -> dict[str, Any]:
        ((grid, indices),) = pictures
        return record.columns | {"grid": list(grid), "indices": indices}

    def rows(self, shards: datasets.Dataset) -> StoredDocuments:
        return PairRows(shards, self.processor.layout, self.member.limits.max_text_tokens)
