"""The run that makes the shards of a split, whatever their items are: planned, shared among processes, restartable."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from tqdm.auto import tqdm

from mmlm.data.shard_files import read_manifest, shard_name
from mmlm.data.shard_plan import ShardPlan, finish_shards, open_unfinished, plan_shards, read_plan
from mmlm.data.shard_verification import unfinished_folder, wait_for, whole_units
from mmlm.data.shards import Header, ShardError, read_header
from visual_tokenizer.errors import UserError

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_LINES = 15
"""In a log file; a terminal's bar is drawn at once."""
VISIBLE_SECONDS = 60
"""How long a shared disk may take until a process sees what another has written."""

LoadRows = Callable[[], Any]
WriteUnits = Callable[[Any, ShardPlan, Sequence[int], Path], Iterator[int]]


def write_shards(
    load_rows: LoadRows,
    write_units: WriteUnits,
    header: Header,
    folder: Path,
    *,
    items: str,
    batch_size: int,
    rows_per_shard: int | None = None,
) -> Header:
    """Write the shards of a split, or those that an interrupted run left to do; every process calls this.

    Args:
        load_rows: returns the encoded rows; the main process calls it first.
        write_units: writes the files of some units (rows, plan, units, folder) and yields, now and then, how many rows
            it has read since.
        header: what the shards will be.
        folder: must not exist; it appears when everything is written.
        items: what a row is, in the plural, for logs.
        batch_size: a unit has a multiple of it.
        rows_per_shard: rows of a shard file, 1 or more; None: by the size of the set.

    Raises:
        ShardError: `folder` exists, or the processes do not share a disk.
        ValueError: `rows_per_shard` below 1.
    """
    if rows_per_shard is not None and rows_per_shard < 1:
        raise UserError(f"rows_per_shard must be 1 or more, got {rows_per_shard}")
    state = PartialState()
    if folder.exists():
        raise ShardError(f"{folder} cannot be made: it is there")
    unfinished = unfinished_folder(folder)
    with state.main_process_first():  # the first reading may rasterise or download
        rows = load_rows()
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
            logger.warning("%s: going on, %d of %d shards are done", folder, len(done), plan.units)
    state.wait_for_everyone()
    bar = tqdm(
        total=plan.rows,
        initial=before,
        desc=f"tokenizing {header.split}",
        unit=f" {items}",
        disable=not state.is_main_process,
        mininterval=0.1 if sys.stderr.isatty() else SECONDS_BETWEEN_LINES,
    )
    with bar:
        for read in write_units(rows, plan, missing[state.process_index :: state.num_processes], unfinished):
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
            logger.warning("%s: %d %s left out: %s", folder, len(found.skipped), items, found.skipped_by_reason)
        if found.changed:
            logger.warning("%s: %s", folder, found.changed)
    return found
