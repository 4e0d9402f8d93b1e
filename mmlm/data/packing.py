"""Sequences put together in rows of one length, so that next to nothing of a batch is padding.

Best-fit decreasing, as in Ding et al., "Fewer Truncations Improve Language Modeling" (arXiv:2404.10830, section 3.1):
no sequence is cut, and each goes to the fullest row that has room for it, longest first.
"""

from __future__ import annotations

import bisect
import functools
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from torch.utils.data import Dataset

from mmlm.losses.cross_entropy import IGNORED_LABEL
from visual_tokenizer.errors import UserError


class Sequences(Protocol):
    """Where packed sequences come from: as many positions as are asked for, each with one item."""

    def __len__(self) -> int:
        """Return the sequences of an epoch."""

    def lengths(self, positions: Sequence[int]) -> np.ndarray:
        """Return the tokens of each item (n,) int64."""

    def __getitems__(self, positions: Sequence[int]) -> list[dict[str, np.ndarray]]:
        """Return items of `input_ids`, `labels`, `token_kinds`, each (L,)."""


def best_fit_decreasing(lengths: Sequence[int] | np.ndarray, capacity: int) -> list[list[int]]:
    """Return the places in `lengths` that share a row, for each row; O(n log n) but for the shifting of a short list.

    Raises:
        ValueError: a length is below 1 or above `capacity`.
    """
    sizes = np.asarray(lengths, dtype=np.int64)
    if sizes.size and not (sizes.min() >= 1 and sizes.max() <= capacity):
        raise UserError(f"lengths must be in 1 … {capacity}, got {sizes.min()} … {sizes.max()}")
    rows: list[list[int]] = []
    by_room: dict[int, list[int]] = {}
    rooms: list[int] = []  # sorted: the room of the rows in by_room
    for place in np.argsort(-sizes, kind="stable").tolist():
        size = int(sizes[place])
        found = bisect.bisect_left(rooms, size)
        if found == len(rooms):
            row, room = len(rows), capacity
            rows.append([])
        else:
            room = rooms[found]
            row = by_room[room].pop()
            if not by_room[room]:
                del by_room[room], rooms[found]
        rows[row].append(place)
        room -= size
        if room:
            if room not in by_room:
                by_room[room] = []
                bisect.insort(rooms, room)
            by_room[room].append(row)
    return rows


class PackedSequences(Dataset):
    """Rows of sequences, which are read in turn and packed `buffer` at a time.

    Row r is the same whoever asks for it, in whatever order: rows follow from the sequences' lengths, `capacity`,
    `buffer` and `seed` alone, so a run resumes at any row, whatever the number of processes. To find it, the lengths of
    the sequences before it are read, not the sequences. The rows of a buffer come in random order: in that of their
    making, the longest sequences would come first.

    Items are dicts of int64 arrays (L,), L at most `capacity`: those of the sequences one after another, and
    `position_ids`, which begin at 0 with each. A sequence's first token has label -100: nothing before it is its past.

    Args:
        sequences: where they come from.
        capacity: most tokens of a row.
        buffer: sequences among which those that fit together are chosen.
        seed: of the rows' order.
        count: sequences that `full_rows` counts; None: those of one buffer.
    """

    def __init__(
        self, sequences: Sequences, capacity: int, buffer: int = 4096, *, seed: int = 0, count: int | None = None
    ) -> None:
        if capacity < 1 or buffer < 1:
            raise UserError(f"capacity and buffer must be 1 or more, got {capacity} and {buffer}")
        self.sequences, self.capacity, self.buffer, self.seed = sequences, capacity, buffer, seed
        self.count = buffer if count is None else count
        self._starts = [0]  # the first row of each buffer, as far as they are known, and of the one after
        self._plan = functools.lru_cache(maxsize=4)(self._make_plan)

    def __len__(self) -> int:
        return self.full_rows()

    def full_rows(self) -> int:
        """Return the rows that `count` sequences fill, those of a buffer that is not full by its share."""
        buffers, rest = divmod(self.count, self.buffer)
        while len(self._starts) <= buffers:
            self._extend()
        rows = self._starts[buffers]
        return rows + (round(len(self._plan(buffers)) * rest / self.buffer) if rest else 0)

    def documents(self, row: int) -> list[int]:
        """Return the positions of a row's sequences."""
        while self._starts[-1] <= row:
            self._extend()
        buffer = bisect.bisect_right(self._starts, row) - 1
        return self._plan(buffer)[row - self._starts[buffer]]

    def _extend(self) -> None:
        self._starts.append(self._starts[-1] + len(self._plan(len(self._starts) - 1)))

    def _make_plan(self, buffer: int) -> list[list[int]]:
        positions = range(buffer * self.buffer, (buffer + 1) * self.buffer)
        rows = best_fit_decreasing(self.sequences.lengths(positions), self.capacity)
        order = np.random.default_rng((self.seed, buffer)).permutation(len(rows))
        return [[positions[place] for place in sorted(rows[row])] for row in order]

    def __getitem__(self, row: int) -> dict[str, np.ndarray]:
        return self.__getitems__([row])[0]

    def __getitems__(self, rows: Sequence[int]) -> list[dict[str, np.ndarray]]:
        """Return the items of a batch; faster than one by one."""
        documents = [self.documents(int(row)) for row in rows]
        items = iter(self.sequences.__getitems__([position for row in documents for position in row]))
        return [join([next(items) for _ in row]) for row in documents]


def join(items: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Return sequences as one row, with `position_ids`."""
    row: dict[str, Any] = {name: np.concatenate([item[name] for item in items]) for name in items[0]}
    lengths = [len(item["input_ids"]) for item in items]
    row["labels"][np.cumsum([0, *lengths[:-1]])] = IGNORED_LABEL
    row["position_ids"] = np.concatenate([np.arange(length, dtype=np.int64) for length in lengths])
    return row
