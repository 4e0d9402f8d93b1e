"""Tokenize pictures, or the documents of a mixture, once: `accelerate launch -m mmlm.data.tokenize --config RECIPE`.

The work is divided into units that do not depend on the number of processes (`ShardPlan`); each becomes a shard file
that is there as a whole or not at all. A run that was killed goes on, with any number of processes, when the same
command is given again. `mmlm.train` does the same by itself where shards are missing.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import datasets
import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from torch import Tensor

from mmlm.data.mixture_sets import iter_shards
from mmlm.data.picture_batches import RowDecoding, iter_batches
from mmlm.data.shard_files import ShardWriter
from mmlm.data.shard_plan import ShardPlan
from mmlm.data.shard_verification import reopen_if_damaged
from mmlm.data.sharding import write_shards
from mmlm.data.shards import ShardHeader, expected_header, load_shards
from mmlm.lm_recipe import LMRecipe
from mmlm.processing import MultimodalProcessor
from visual_tokenizer.data.decoding import UnreadableImageError
from visual_tokenizer.data.sources.base import Source, SourceConfig, Split
from visual_tokenizer.errors import UserError, program
from visual_tokenizer.recipe import parse_arguments
from visual_tokenizer.registry import ConfigError
from visual_tokenizer.runs.processes import leave_process_group

logger = logging.getLogger(__name__)

PROGRAM = "accelerate launch -m mmlm.data.tokenize"
ABOUT = """Tokenize the pictures, or documents, of a recipe's data section to shards; the processes share the work.

A run that was killed goes on when the command is given again, also with another number of processes. On finished
shards the command verifies their checksums and makes damaged ones again.

Examples:
  accelerate launch -m mmlm.data.tokenize --config recipes/lm/openmoji_llama.yaml
  accelerate launch --num_processes 8 -m mmlm.data.tokenize --config recipes/lm/openmoji_llama.yaml \\
      --data.tokenize_batch_size 256 --data.loader_workers 8"""


def tokenize_units(
    processor: MultimodalProcessor,
    source: Source,
    rows: Any,
    plan: ShardPlan,
    units: Sequence[int],
    header: ShardHeader,
    folder: Path,
    *,
    batch_size: int,
    loader_workers: int,
) -> Iterator[int]:
    """Write the shard files of some units; yield, after each batch, how many pictures it had.

    Raises:
        UserError: the processor has no visual tokenizer.
        UserError: too large a share of the pictures is unreadable.
    """
    codec = processor.codec
    if codec is None:
        raise UserError("pictures can only be tokenized by a processor that was loaded with its visual tokenizer")
    decoding = RowDecoding(source, processor.image_processor)
    writer: ShardWriter | None = None
    for batch in iter_batches(rows, plan, units, decoding, batch_size, loader_workers):
        writer = ShardWriter(folder, header, batch.unit) if writer is None else writer
        for _ in batch.keys:
            source.report.readable()
        for key, reason in batch.unreadable.items():
            source.report.skip(UnreadableImageError(key, reason))
        writer.skip(batch.unreadable)
        if batch.pixels is not None:
            indices: Tensor = codec.encode(batch.pixels.to(codec.device, codec.dtype)).cpu()
            grid = indices.shape[1:-1] if header.num_codebooks > 1 else indices.shape[1:]
            writer.write(batch.keys, batch.captions, indices, grid)
        if batch.is_last:
            writer.close()
            writer = None
        yield len(batch.keys) + len(batch.unreadable)


def tokenize_pictures(
    processor: MultimodalProcessor,
    source_config: SourceConfig,
    split: str,
    folder: str | os.PathLike[str],
    *,
    batch_size: int = 64,
    loader_workers: int = 0,
    rows_per_shard: int | None = None,
) -> ShardHeader:
    """Write the shards of a split, or those that an interrupted run left to do.

    Every process calls this, with its codec on its own device; all must see the same disk.

    Args:
        processor: with its visual tokenizer.
        source_config: the pictures.
        split: "train", "heldout" or "all".
        folder: must not exist; it appears when everything is written.
        batch_size: pictures at a time.
        loader_workers: processes that decode; threads for a stream.
        rows_per_shard: pictures of a shard file, 1 or more; None: by the size of the set. A file of a stream is always
            one shard. An interrupted run keeps what it began with.

    Raises:
        DataSourceError: no pictures.
        ShardError: `folder` exists, or the processes do not share a disk.
        ValueError: `rows_per_shard` below 1.
    """
    header = expected_header(processor, source_config, split)
    source: Source = SourceConfig.family.build(source_config)

    def write_units(rows: Any, plan: ShardPlan, units: Sequence[int], unfinished: Path) -> Iterator[int]:
        return tokenize_units(
            processor,
            source,
            rows,
            plan,
            units,
            header,
            unfinished,
            batch_size=batch_size,
            loader_workers=loader_workers,
        )

    return write_shards(
        lambda: source.load_encoded(split),
        write_units,
        header,
        Path(folder),
        items="pictures",
        batch_size=batch_size,
        rows_per_shard=rows_per_shard,
    )


def shards_of(
    processor: MultimodalProcessor, recipe: LMRecipe, split: str, *, verify: bool = False
) -> datasets.Dataset:
    """Return the shards of a split that the recipe wants, tokenized now if they are not there.

    Args:
        processor: with its visual tokenizer.
        recipe: its data section is read.
        split: "train", "heldout" or "all".
        verify: read all shards, compare their checksums, and make damaged ones again.

    Raises:
        ConfigError: the recipe has a mixture.
        UserError: the folder holds other shards.
    """
    data = recipe.data
    source = data.source
    if source is None:
        raise ConfigError("data.source must be given: data.mixture has no pictures of its own")
    folder = Path(data.shards_dir) / split
    # One process looks: the others may see the folder that it is still about to write.
    is_there = broadcast_object_list([folder.exists()])[0]
    if is_there and verify:
        is_there = not reopen_if_damaged(folder, expected_header(processor, source, split))
    if not is_there:
        codec = processor.codec
        if codec is not None:
            codec.to(PartialState().device)
        tokenize_pictures(
            processor,
            source,
            split,
            folder,
            batch_size=data.tokenize_batch_size,
            loader_workers=data.loader_workers,
        )
    return load_shards(folder, expected_header(processor, source, split))


def splits_of(recipe: LMRecipe) -> list[Split]:
    """Return the splits that training by this recipe reads."""
    return [recipe.data.train_split] + ([recipe.data.heldout_split] if recipe.training.evaluate_every_steps else [])


@program(PROGRAM)
def main(arguments: Sequence[str]) -> int:
    """Tokenize the splits that a recipe names, or verify what is there; return the exit code."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    recipe = parse_arguments(LMRecipe, arguments, program=PROGRAM, about=ABOUT)
    processor = MultimodalProcessor.from_pretrained(recipe.model)
    is_launched = int(os.environ.get("LOCAL_RANK", -1)) >= 0  # only a launcher sets it
    on_cpu = not torch.accelerator.is_available()
    state = PartialState(**({"cpu": True, "backend": "gloo"} if on_cpu and is_launched else {"cpu": on_cpu}))
    for split in splits_of(recipe):
        if recipe.data.mixture:
            for name, _, documents in iter_shards(processor, recipe, split, verify=True):
                state.print(f"{recipe.data.shards_dir}/{name}/{split}: {len(documents)} documents")
        else:
            rows = shards_of(processor, recipe, split, verify=True)
            state.print(f"{recipe.data.shards_dir}/{split}: {len(rows)} pictures")
    leave_process_group()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
