"""Pairs of caption and picture as training sequences; every choice follows from seed, epoch and index."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from mmlm.cross_entropy import IGNORED_LABEL
from mmlm.data.shards import RaggedColumn, ShardError
from mmlm.layouts.base import Layout
from visual_tokenizer.data.transforms import uniforms
from visual_tokenizer.errors import UserError

KINDS = ("text", "image", "structure")
"""What a token is; its place here is its value in `token_kinds`."""
TEXT, IMAGE, STRUCTURE = range(3)
PADDING = -1
"""Value of `token_kinds` where there is no token."""
CAPTIONS_AT_A_TIME = 1000


@dataclass
class PairOptions:
    """How a pair becomes a sequence."""

    image_to_text_fraction: float = 0.0
    """Share of picture → caption sequences."""
    caption_dropout: float = 0.0
    """Share of the caption → picture sequences that have no caption."""
    loss_on_prompt: bool = True
    """Whether the first of the two is trained too."""
    max_caption_tokens: int = 256
    """Longer captions are cut."""
    seed: int = 0
    """Of order and choices."""


def encode_captions(layout: Layout, captions: Sequence[str], max_tokens: int) -> RaggedColumn:
    """Return the ids of all captions, as `layout.text_ids` gives them, cut to `max_tokens`."""
    ids: list[list[int]] = []
    for start in range(0, len(captions), CAPTIONS_AT_A_TIME):
        part = list(captions[start : start + CAPTIONS_AT_A_TIME])
        encoded = layout.tokenizer(
            part, add_special_tokens=False, split_special_tokens=True, return_attention_mask=False
        )
        ids += [one[:max_tokens] for one in encoded["input_ids"]]
    return RaggedColumn.of_lists(ids)


class PairSequences(Dataset):
    """Sequences of the layout from shards, as often as `length` asks.

    Position p of the set is sample `p % N` of the order of epoch `p // N`, so a run of S steps with B
    sequences each reads the positions 0 … S · B - 1 in turn, whatever the number of processes, and resumes
    anywhere.

    Items are dicts of int64 arrays (L,): `input_ids`; `labels`, which are the ids or -100 where nothing is
    trained; `token_kinds`, a place in `KINDS`.

    Args:
        shards: rows of `load_shards`.
        layout: makes blocks and text ids.
        options: see `PairOptions`.
        length: sequences in all; None: each picture once.
        shuffle: False for the order of the shards, which evaluation wants.

    Raises:
        ShardError: no pictures.
    """

    def __init__(
        self,
        shards: datasets.Dataset,
        layout: Layout,
        options: PairOptions,
        *,
        length: int | None = None,
        shuffle: bool = True,
    ) -> None:
        if len(shards) == 0:
            raise ShardError("there are no tokenized pictures: the split is empty")
        self.layout, self.options, self.shuffle = layout, options, shuffle
        self.size = len(shards)
        self.length = self.size if length is None else length
        self.indices = RaggedColumn.of_column(shards, "indices")
        self.grids = RaggedColumn.of_column(shards, "grid")
        self.captions = encode_captions(layout, shards["caption"][:], options.max_caption_tokens)
        self._order = functools.lru_cache(maxsize=2)(self._make_order)

    def __len__(self) -> int:
        return self.length

    def longest(self) -> int:
        """Return the tokens of the longest sequence that can come."""
        block = int(self._block_lengths.max())
        return len(self.layout.bos_ids) + int(self.captions.lengths.max()) + block + 1

    @functools.cached_property
    def _block_lengths(self) -> np.ndarray:
        """Tokens of each row's picture block."""
        lengths: dict[tuple[int, ...], int] = {}
        found = np.empty(self.size, np.int64)
        for row in range(self.size):
            grid = tuple(self.grids[row].tolist())
            if grid not in lengths:
                lengths[grid] = len(self.layout.template(grid))
            found[row] = lengths[grid]
        return found

    def lengths(self, positions: Sequence[int]) -> np.ndarray:
        """Return the tokens of each item (n,) int64, without making it."""
        places = [self.row_of(int(position)) for position in positions]
        rows = np.array([row for _, row in places], np.int64)
        captions = self.captions.lengths[rows]
        if self.options.caption_dropout:
            captions = captions * ~np.array([self._form(*place)[1] for place in places], bool)
        return captions + self._block_lengths[rows] + len(self.layout.bos_ids) + 1

    def _form(self, epoch: int, row: int) -> tuple[bool, bool]:
        """Return whether the picture comes first, and whether the caption is dropped."""
        direction, dropped, _, _ = uniforms(self.options.seed, epoch, row)
        describes = direction < self.options.image_to_text_fraction
        return describes, not describes and dropped < self.options.caption_dropout

    def check_length(self, max_positions: int) -> None:
        """Raise `UserError` if the longest sequence has more than `max_positions` tokens."""
        if self.longest() > max_positions:
            raise UserError(
                f"the longest sequence has {self.longest()} tokens, more than the {max_positions} of data.max_length "
                f"and the model's positions: lower data.max_caption_tokens (now {self.options.max_caption_tokens}) or "
                "take a visual tokenizer with fewer tokens a picture"
            )

    def _make_order(self, epoch: int) -> np.ndarray:
        if not self.shuffle:
            return np.arange(self.size)
        return np.random.default_rng((self.options.seed, epoch)).permutation(self.size)

    def row_of(self, position: int) -> tuple[int, int]:
        """Return the epoch and the row of the shards that a position stands for."""
        epoch, place = divmod(position, self.size)
        return epoch, int(self._order(epoch)[place])

    def __getitem__(self, position: int) -> dict[str, np.ndarray]:
        return self.__getitems__([position])[0]

    def __getitems__(self, positions: Sequence[int]) -> list[dict[str, np.ndarray]]:
        """Return the items of a batch; faster than one by one."""
        places = [self.row_of(int(position)) for position in positions]
        blocks = self._blocks([row for _, row in places])
        return [self._sequence(epoch, row, *block) for (epoch, row), block in zip(places, blocks, strict=True)]

    def _blocks(self, rows: list[int]) -> list[tuple[np.ndarray, np.ndarray]]:
        """Return picture blocks and their kinds; pictures of one grid go through the vocabulary together."""
        by_grid: dict[tuple[int, ...], list[int]] = {}
        for place, row in enumerate(rows):
            by_grid.setdefault(tuple(self.grids[row].tolist()), []).append(place)
        blocks: list[Any] = [None] * len(rows)
        for grid, members in by_grid.items():
            flat = np.stack([self.indices[rows[place]] for place in members]).astype(np.int64)
            books = self.layout.vocabulary.num_codebooks
            shaped = flat.reshape(len(members), *grid, *([books] if books > 1 else []))
            filled = self.layout.blocks(torch.from_numpy(shaped)).numpy()
            kinds = np.where(self.layout.template(grid).numpy() < 0, IMAGE, STRUCTURE)
            for place, block in zip(members, filled, strict=True):
                blocks[place] = (block, kinds)
        return blocks

    def _sequence(self, epoch: int, row: int, block: np.ndarray, block_kinds: np.ndarray) -> dict[str, np.ndarray]:
        options = self.options
        describes, is_dropped = self._form(epoch, row)
        caption = self.captions[row][:0] if is_dropped else self.captions[row]
        text = (caption, np.full(len(caption), TEXT))
        picture = (block, block_kinds)
        (first, first_kinds), (second, second_kinds) = (picture, text) if describes else (text, picture)
        bos = self.layout.bos_ids
        ids = np.concatenate([bos, first, second, [self.layout.eos_id]]).astype(np.int64)
        kinds = np.concatenate([[STRUCTURE] * len(bos), first_kinds, second_kinds, [STRUCTURE]]).astype(np.int64)
        labels = ids.copy()
        labels[: len(bos) + (0 if options.loss_on_prompt else len(first))] = IGNORED_LABEL
        return {"input_ids": ids, "labels": labels, "token_kinds": kinds}


@dataclass
class PairCollator:
    """Pads items on the right to the longest: `input_ids`, `labels`, `token_kinds`, each int64 (B, L).

    Packed items have `position_ids` too; their padding is a document of its own, which nothing is trained on.
    There is no attention mask: under causal attention no token sees the padding that follows it.
    """

    pad_id: int
    """Id of the padding; its label is -100, its kind -1."""
    pad_to_multiple_of: int = 1
    """L is rounded up to a multiple of this."""

    def __call__(self, items: Sequence[dict[str, np.ndarray]]) -> dict[str, Tensor]:
        """Return the batch."""
        longest = max(len(item["input_ids"]) for item in items)
        width = -(-longest // self.pad_to_multiple_of) * self.pad_to_multiple_of
        fills = {"input_ids": self.pad_id, "labels": IGNORED_LABEL, "token_kinds": PADDING}
        batch = {name: np.full((len(items), width), fill, dtype=np.int64) for name, fill in fills.items()}
        if "position_ids" in items[0]:
            lengths = np.array([len(item["input_ids"]) for item in items])
            batch["position_ids"] = np.maximum(np.arange(width) - lengths[:, None], 0)
        for row, item in enumerate(items):
            for name, rows in batch.items():
                rows[row, : len(item[name])] = item[name]
        return {name: torch.from_numpy(rows) for name, rows in batch.items()}
