"""Tokenize the documents of a mixture's members, each split of each to a folder of shards."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import datasets
import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from mmlm.data.document_batches import DocumentBatch, DocumentDecoding, NumberedRows
from mmlm.data.document_pieces import PieceMaker
from mmlm.data.document_shards import (
    DocumentShardHeader,
    document_columns,
    effective_limits,
    expected_document_header,
)
from mmlm.data.picture_batches import iter_batches
from mmlm.data.shard_files import ShardWriter
from mmlm.data.shard_plan import ShardPlan
from mmlm.data.shard_verification import reopen_if_damaged
from mmlm.data.sharding import write_shards
from mmlm.data.shards import load_shards
from mmlm.documents.base import DocumentSource, DocumentSourceConfig
from mmlm.mixture_recipe import MixtureMember
from mmlm.processing import MultimodalProcessor
from visual_tokenizer.data.decoding import UnreadableImageError
from visual_tokenizer.errors import UserError
from visual_tokenizer.registry import ConfigError


def tokenize_documents(
    processor: MultimodalProcessor,
    member: MixtureMember,
    split: str,
    folder: Path,
    *,
    max_length: int | None = None,
    batch_size: int = 64,
    loader_workers: int = 0,
    rows_per_shard: int | None = None,
) -> DocumentShardHeader:
    """Write the shards of a member's split, or those that an interrupted run left to do.

    Where pictures are tokenized on the fly everything but their indices is written: which documents there are and how
    long they are must be known before training, so that every position reads the same in every run.

    Args:
        processor: with its visual tokenizer.
        member: of the mixture.
        split: "train", "heldout" or "all".
        folder: must not exist; it appears when everything is written.
        max_length: most tokens of a document where its limits do not say.
        batch_size: documents that are decoded, and pictures that are tokenized, at a time.
        loader_workers: processes that decode; threads for a stream.
        rows_per_shard: documents of a shard file, 1 or more; None: by the size of the set.

    Raises:
        ConfigError: a stream is to be tokenized on the fly.
        DataSourceError, ShardError, UserError: see there.
    """
    source: DocumentSource = DocumentSourceConfig.family.build(member.documents)
    if processor.codec is None:
        raise UserError("documents can only be tokenized by a processor with its visual tokenizer")
    header = expected_document_header(processor, member, split, max_length)
    make = PieceMaker(processor.layout, processor.grid, effective_limits(member, max_length))

    def load_rows() -> Any:
        rows = source.load_encoded(split)
        if member.tokenization == "on_the_fly":
            refuse_stream(rows, member)
        return rows

    def write_units(rows: Any, plan: ShardPlan, units: Sequence[int], unfinished: Path) -> Iterator[int]:
        wants_pixels = member.tokenization != "on_the_fly"
        decoding: Any = DocumentDecoding(source, processor.image_processor if wants_pixels else None, make)
        numbered = rows if isinstance(rows, datasets.IterableDataset) else NumberedRows(rows)
        writer: ShardWriter | None = None
        batches: Any = iter_batches(numbered, plan, units, decoding, batch_size, loader_workers)
        for batch in batches:
            writer = ShardWriter(unfinished, header, batch.unit) if writer is None else writer
            _report(source, batch)
            _write(processor, writer, batch, make.block, batch_size)
            if batch.is_last:
                writer.close()
                writer = None
            yield batch.rows

    return write_shards(
        load_rows,
        write_units,
        header,
        folder,
        items="documents",
        batch_size=batch_size,
        rows_per_shard=rows_per_shard,
    )


def refuse_stream(rows: Any, member: MixtureMember) -> None:
    """Raise `ConfigError` if rows cannot be read at any place."""
    if isinstance(rows, datasets.IterableDataset):
        raise ConfigError(
            f"tokenization must be shards for a stream, which can only be read in turn, got {member.tokenization} "
            f"for '{member.documents.type}'"
        )


def _report(source: DocumentSource, batch: DocumentBatch) -> None:
    for _ in range(batch.readable):
        source.report.readable()
    for key, reason in batch.unreadable.items():
        source.report.skip(UnreadableImageError(key, reason))


@torch.no_grad()
def _write(
    processor: MultimodalProcessor, writer: ShardWriter, batch: DocumentBatch, block: int, batch_size: int
) -> None:
    writer.skip(batch.dropped)
    writer.note(batch.changed)
    if not batch.kept:
        return
    indices = None
    if batch.pixels is not None:
        codec: Any = processor.codec
        parts = [codec.encode(part.to(codec.device, codec.dtype)).cpu() for part in batch.pixels.split(batch_size)]
        indices = torch.cat(parts).flatten(1).numpy()
    writer.write_columns(document_columns(batch.kept, indices, processor.grid, block), len(batch.kept))


def document_shards_of(
    processor: MultimodalProcessor,
    member: MixtureMember,
    split: str,
    folder: Path,
    *,
    max_length: int | None,
    batch_size: int,
    loader_workers: int,
    verify: bool = False,
) -> datasets.Dataset:
    """Return the shards of a member's split, tokenized now if they are not there.

    Args:
        processor: with its visual tokenizer.
        member: of the mixture.
        split: "train", "heldout" or "all".
        folder: of the shards.
        max_length: see `tokenize_documents`.
        batch_size: see there.
        loader_workers: see there.
        verify: read all shards, compare their checksums, and make damaged ones again.

    Raises:
        UserError: the folder holds other shards.
    """
    expected = functools.partial(expected_document_header, processor, member, split, max_length)
    # One process looks: the others may see the folder that it is still about to write.
    is_there = broadcast_object_list([folder.exists()])[0]
    if is_there and verify:
        is_there = not reopen_if_damaged(folder, expected())
    if not is_there:
        if processor.codec is not None:
            torch.nn.Module.to(processor.codec, PartialState().device)
        tokenize_documents(
            processor,
            member,
            split,
            folder,
            max_length=max_length,
            batch_size=batch_size,
            loader_workers=loader_workers,
        )
    return load_shards(folder, expected())
