"""Shards of a split made once: planned, shared among processes, restartable."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from tqdm.auto import tqdm

from mmlm.data.document_batches import DocumentBatch, iter_batches
from mmlm.data.document_shards import DocumentShards
from mmlm.data.shard_files import ShardWriter, read_manifest, shard_name
from mmlm.data.shard_plan import ShardPlan, finish_shards, open_unfinished, plan_shards, read_plan
from mmlm.data.shard_verification import reopen_if_damaged, unfinished_folder, wait_for, whole_units
from mmlm.data.shards import ShardError, ShardHeader, load_shards, read_header
from mmlm.layouts.base import Grid
from visual_tokenizer.data.decoding import UnreadableImageError
from visual_tokenizer.errors import UserError
from visual_tokenizer.outputs import own_tokens

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_LINES = 15
"""In a log file; a terminal's bar is drawn at once."""
VISIBLE_SECONDS = 60
"""How long a shared disk may take until a process sees what another has written."""


def tokenize(
    shards: DocumentShards, *, batch_size: int = 64, loader_workers: int = 0, rows_per_shard: int | None = None
) -> ShardHeader:
    """Write the shards of a split, or those that an interrupted run left to do, and return their header.

    Every process calls this, with its codec on its own device; all must see the same disk. The folder must not exist;
    it appears when everything is written. Where pictures are tokenized on the fly everything but their indices is
    written: which documents there are and how long they are must be known before training, so that every position
    reads the same in every run.

    Args:
        shards: what is written, and where.
        batch_size: rows that are decoded, and pictures that are tokenized, at a time.
        loader_workers: processes that decode; threads for a stream.
        rows_per_shard: rows of a shard file, 1 or more; None: by the size of the set. A file of a stream is always
            one shard. An interrupted run keeps what it began with.

    Raises:
        DataSourceError: nothing there.
        ShardError: the folder exists, or the processes do not share a disk.
        UserError: `rows_per_shard` below 1, no visual tokenizer, or too large a share of the pictures is unreadable.
    """
    header, folder = shards.header, shards.folder
    if rows_per_shard is not None and rows_per_shard < 1:
        raise UserError(f"rows_per_shard must be 1 or more, got {rows_per_shard}")
    if shards.processor.codec is None:
        raise UserError("pictures can only be tokenized by a processor that was loaded with its visual tokenizer")
    state = PartialState()
    if folder.exists():
        raise ShardError(f"{folder} cannot be created: it already exists")
    unfinished = unfinished_folder(folder)
    with state.main_process_first():  # the first reading may rasterise or download
        rows = shards.load_encoded()
    shared: list[Any] = [None]
    if state.is_main_process:
        shared = [open_unfinished(unfinished, plan_shards(rows, header, batch_size, rows_per_shard))]
    plan: ShardPlan = broadcast_object_list(shared)[0]
    if not wait_for(lambda: read_plan(unfinished) == plan, VISIBLE_SECONDS):
        raise ShardError(f"{unfinished} is not what the first process wrote: all processes must share its disk")
    done = set(whole_units(unfinished, plan))
    missing = [unit for unit in range(plan.units) if unit not in done]
    manifests = [manifest for unit in done if (manifest := read_manifest(unfinished, unit)) is not None]
    before = sum(manifest.count + len(manifest.skipped) for manifest in manifests)
    if state.is_main_process:
        for unit in missing:  # what is damaged must not look finished
            (unfinished / f"{shard_name(unit)}.json").unlink(missing_ok=True)
        if done:
            logger.warning("%s: resuming, %d of %d shards are done", folder, len(done), plan.units)
    state.wait_for_everyone()
    bar = tqdm(
        total=plan.rows,
        initial=before,
        desc=f"tokenizing {header.split}",
        unit=f" {shards.items}",
        disable=not state.is_main_process,
        mininterval=0.1 if sys.stderr.isatty() else SECONDS_BETWEEN_LINES,
    )
    with bar:
        mine = missing[state.process_index :: state.num_processes]
        batches = iter_batches(rows, plan, mine, shards.decoding(), batch_size, loader_workers)
        for read in _write_units(shards, batches, unfinished, batch_size):
            # The other processes are as fast, on average; the last of them end when all shards are there.
            everywhere = read * state.num_processes
            bar.update(everywhere if plan.rows is None else max(0, min(everywhere, plan.rows - bar.n)))
        if state.is_main_process:
            wanted = {f"{shard_name(unit)}.json" for unit in missing}
            wait_for(lambda: wanted.issubset(os.listdir(unfinished)))
            finish_shards(unfinished, folder, header, plan.units)
        wait_for(folder.is_dir)
    state.wait_for_everyone()
    found = read_header(folder, type(header))
    if state.is_main_process:
        if found.skipped:
            logger.warning("%s: %d %s left out: %s", folder, len(found.skipped), shards.items, found.skipped_by_reason)
        if found.changed:
            logger.warning("%s: %s", folder, found.changed)
    return found


def _write_units(
    shards: DocumentShards, batches: Iterable[DocumentBatch], folder: Path, batch_size: int
) -> Iterator[int]:
    """Write the shard files of some units; yield, after each batch, how many rows it had."""
    writer: ShardWriter | None = None
    for batch in batches:
        writer = ShardWriter(folder, shards.header, batch.unit) if writer is None else writer
        for _ in range(batch.readable):
            shards.source.report.readable()
        for key, reason in batch.unreadable.items():
            shards.source.report.skip(UnreadableImageError(key, reason))
        writer.skip(batch.dropped)
        for record in batch.records:
            writer.note(record.changed)
        pictures = iter(_encode(shards, batch, batch_size))
        writer.write([shards.columns(one, [next(pictures) for _ in one.pictures]) for one in batch.records])
        if batch.is_last:
            writer.close()
            writer = None
        yield batch.rows


@torch.no_grad()
def _encode(shards: DocumentShards, batch: DocumentBatch, batch_size: int) -> list[tuple[Grid, np.ndarray]]:
    """Return grid and flat indices of each picture of a batch: where pictures have as many tokens as they need, their
    own; where they are tokenized on the fly, none."""
    processor = shards.processor
    if batch.pixels is None:
        count = sum(len(record.pictures) for record in batch.records)
        return [(processor.grid, np.empty(0, np.int64))] * count
    codec: Any = processor.codec
    found: list[tuple[Grid, np.ndarray]] = []
    for part in batch.pixels.split(batch_size):
        indices = codec.encode(part.to(codec.device, codec.dtype)).cpu()
        rank = indices.ndim - (2 if processor.vocabulary.num_codebooks > 1 else 1)
        own = own_tokens(indices) if rank == 1 else indices
        found += [(tuple(one.shape[:rank]), one.flatten().numpy()) for one in own]
    return found


def open_shards(
    shards: DocumentShards, *, batch_size: int = 64, loader_workers: int = 0, verify: bool = False
) -> datasets.Dataset:
    """Return the shards of a split, tokenized now if they are not there.

    Args:
        shards: which, and where.
        batch_size: see `tokenize`.
        loader_workers: see there.
        verify: read all shards, compare their checksums, and make damaged ones again.
    """
    # One process looks: the others may see the folder that it is still about to write.
    is_there = broadcast_object_list([shards.folder.exists()])[0]
    if is_there and verify:
        is_there = not reopen_if_damaged(shards.folder, shards.header)
    if not is_there:
        if shards.processor.codec is not None:
            torch.nn.Module.to(shards.processor.codec, PartialState().device)
        tokenize(shards, batch_size=batch_size, loader_workers=loader_workers)
    return load_shards(shards.folder, shards.header)
