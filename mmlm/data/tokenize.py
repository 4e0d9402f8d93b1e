"""Tokenize the pictures of a source once: `accelerate launch -m mmlm.data.tokenize --config RECIPE`.

Each process takes its slice of the source. `mmlm.train` does the same by itself where shards are missing.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import datasets
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from datasets.distributed import split_dataset_by_node
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from mmlm.data.shards import ShardHeader, ShardWriter, expected_header, finish_shards, load_shards
from mmlm.lm_recipe import LMRecipe
from mmlm.merge_record import MissingCodecError
from mmlm.processing import MultimodalProcessor
from visual_tokenizer.data.decoding import UnreadableImageError
from visual_tokenizer.data.sources.base import Source, SourceConfig

PROGRAM = "accelerate launch -m mmlm.data.tokenize"
ABOUT = """Tokenize the pictures of a recipe's data section to shards; every process takes a slice.

Examples:
  accelerate launch -m mmlm.data.tokenize --config recipes/lm/openmoji_llama.yaml
  accelerate launch --num_processes 8 -m mmlm.data.tokenize --config recipes/lm/openmoji_llama.yaml \\
      --data.tokenize_batch_size 256 --data.loader_workers 8"""


class PictureBatches:
    """Collates encoded rows: decodes, preprocesses and sets unreadable pictures aside, in the loader's
    workers."""

    def __init__(self, source: Source, processor: MultimodalProcessor) -> None:
        self.source = source
        self.image_processor = processor.image_processor

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Return `pixels` (B, 3, H, W) or None, `keys`, `captions` and `unreadable` (key, reason)."""
        images, keys, captions, unreadable = [], [], [], []
        for row in rows:
            try:
                sample = self.source.decode(row)
            except UnreadableImageError as error:
                unreadable.append((error.key, error.reason))
                continue
            images.append(sample["image"])
            keys.append(str(sample["key"]))
            captions.append(sample["caption"])
        pixels = self.image_processor(images, return_tensors="pt")["pixel_values"] if images else None
        return {"pixels": pixels, "keys": keys, "captions": captions, "unreadable": unreadable}


def slice_of_rank(rows: Any, rank: int, processes: int) -> Any:
    """Return a process's part of a source; parts of map-style sets are contiguous, so that order stays."""
    if isinstance(rows, datasets.IterableDataset):
        return split_dataset_by_node(rows, rank, processes)
    first, last = (len(rows) * share // processes for share in (rank, rank + 1))
    return rows.select(range(first, last))


def iter_indices(
    processor: MultimodalProcessor, source: Source, rows: Any, *, batch_size: int, loader_workers: int
) -> Iterator[tuple[list[str], list[str], Tensor]]:
    """Yield keys, captions and indices (B, *grid[, num_codebooks]) int64 on the CPU.

    Raises:
        TooManyUnreadableError: too large a share of the pictures is unreadable.
    """
    codec = processor.codec
    if codec is None:
        raise MissingCodecError(
            "pictures can only be tokenized by a processor that was loaded with its visual tokenizer"
        )
    loader = DataLoader(
        rows, batch_size=batch_size, collate_fn=PictureBatches(source, processor), num_workers=loader_workers
    )
    for batch in loader:
        for _ in batch["keys"]:
            source.report.readable()
        for key, reason in batch["unreadable"]:
            source.report.skip(UnreadableImageError(key, reason))
        if batch["pixels"] is not None:
            indices = codec.encode(batch["pixels"].to(codec.device, codec.dtype))
            yield batch["keys"], batch["captions"], indices.cpu()


def tokenize_pictures(
    processor: MultimodalProcessor,
    source_config: SourceConfig,
    split: str,
    folder: str | os.PathLike[str],
    *,
    batch_size: int = 64,
    loader_workers: int = 0,
) -> ShardHeader:
    """Write the shards of a split; every process calls this, with its codec on its own device.

    Args:
        processor: with its visual tokenizer.
        source_config: the pictures.
        split: "train", "heldout" or "all".
        folder: must not exist; it appears when everything is written.
        batch_size: pictures at a time.
        loader_workers: processes that decode.

    Raises:
        DataSourceError: no pictures.
        ShardError: `folder` exists.
    """
    state = PartialState()
    folder = Path(folder)
    unfinished = folder.with_name(f".{folder.name}.unfinished")
    if state.is_main_process:
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
    state.wait_for_everyone()
    header = expected_header(processor, source_config, split)
    source: Source = SourceConfig.family.build(source_config)
    with state.main_process_first():  # the first reading may rasterise or download
        rows = source.load_encoded(split)
    total = None if isinstance(rows, datasets.IterableDataset) else len(rows)
    part = slice_of_rank(rows, state.process_index, state.num_processes)
    writer = ShardWriter(unfinished, header, state.process_index)
    written = 0
    bar = tqdm(
        total=total,
        desc=f"tokenizing {split}",
        unit="images",
        disable=None if state.is_main_process else True,
    )
    with bar:
        for keys, captions, indices in iter_indices(
            processor, source, part, batch_size=batch_size, loader_workers=loader_workers
        ):
            books = header.num_codebooks > 1
            writer.write(keys, captions, indices, indices.shape[1:-1] if books else indices.shape[1:])
            written += len(keys)
            bar.update(len(keys) * state.num_processes if total is not None else len(keys))
    writer.close()
    parts = gather_object([(written, source.report.reasons)])
    header.count = sum(count for count, _ in parts)
    header.skipped = {key: reason for _, reasons in parts for key, reason in reasons.items()}
    if state.is_main_process:
        finish_shards(unfinished, folder, header)
    state.wait_for_everyone()
    return header


def shards_of(processor: MultimodalProcessor, recipe: LMRecipe, split: str) -> datasets.Dataset:
    """Return the shards of a split that the recipe wants, tokenized now if they are not there.

    Raises:
        ShardMismatchError: the folder holds other shards.
    """
    data = recipe.data
    folder = Path(data.shards_dir) / split
    missing = not folder.exists()
    PartialState().wait_for_everyone()  # nobody may see the folder that the others are still about to write
    if missing:
        codec = processor.codec
        if codec is not None:
            codec.to(PartialState().device)
        tokenize_pictures(
            processor,
            data.source,
            split,
            folder,
            batch_size=data.tokenize_batch_size,
            loader_workers=data.loader_workers,
        )
    return load_shards(folder, expected_header(processor, data.source, split))


def splits_of(recipe: LMRecipe) -> list[str]:
    """Return the splits that training by this recipe reads."""
    return [recipe.data.train_split] + ([recipe.data.heldout_split] if recipe.training.evaluate_every_steps else [])


def main(arguments: Sequence[str] | None = None) -> None:
    """Read a recipe and tokenize the splits it names."""
    from mmlm.user_errors import exit_on_user_error
    from visual_tokenizer.recipe import parse_arguments

    with exit_on_user_error("mmlm.data.tokenize"):
        recipe = parse_arguments(LMRecipe, arguments, program=PROGRAM, about=ABOUT)
        processor = MultimodalProcessor.from_pretrained(recipe.model)
        state = PartialState(**({} if torch.accelerator.is_available() else {"cpu": True, "backend": "gloo"}))
        for split in splits_of(recipe):
            rows = shards_of(processor, recipe, split)
            state.print(f"{recipe.data.shards_dir}/{split}: {len(rows)} pictures")


if __name__ == "__main__":
    main()
