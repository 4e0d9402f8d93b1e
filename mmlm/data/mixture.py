"""Sequences of several sets: which set, and which of its sequences, a position reads follows from the position."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from torch.utils.data import Dataset

from mmlm.data.packing import Sequences
from visual_tokenizer.errors import UserError

BLOCK = 1024
"""Positions within which every set has its share, but for a rounding that evens out over the blocks."""


class Member(Sequences, Protocol):
    """A set of sequences of a mixture; it has an item for every position, from 0 on without end."""

    def check_length(self, max_positions: int) -> None:
        """Raise `UserError` if an item may have more than `max_positions` tokens."""


class SequencesOfSets(Dataset):
    """`length` sequences that are read from several sets, `members`."""

    def __init__(self, members: Sequence[Member], length: int) -> None:
        self.members, self.length = list(members), length

    def __len__(self) -> int:
        return self.length

    def places(self, positions: Sequence[int]) -> list[tuple[int, int]]:
        """Return the set, and the position in it, that each position reads."""
        raise NotImplementedError

    def check_length(self, max_positions: int) -> None:
        """Raise `UserError` if an item may have more than `max_positions` tokens."""
        for member in self.members:
            member.check_length(max_positions)

    def lengths(self, positions: Sequence[int]) -> np.ndarray:
        """Return the tokens of each item (n,) int64, without making it."""
        found = np.empty(len(positions), np.int64)
        for member, numbers, own in self._by_member(positions):
            found[numbers] = self.members[member].lengths(own)
        return found

    def _by_member(self, positions: Sequence[int]) -> list[tuple[int, list[int], list[int]]]:
        """Return for each set that is read its number, the places in `positions`, and the positions in the set."""
        chosen: dict[int, tuple[list[int], list[int]]] = {}
        for number, (member, own) in enumerate(self.places(positions)):
            numbers, positions_in = chosen.setdefault(member, ([], []))
            numbers.append(number)
            positions_in.append(own)
        return [(member, *lists) for member, lists in sorted(chosen.items())]

    def __getitem__(self, position: int) -> dict[str, np.ndarray]:
        return self.__getitems__([position])[0]

    def __getitems__(self, positions: Sequence[int]) -> list[dict[str, np.ndarray]]:
        """Return the items of a batch; faster than one by one."""
        items: list[dict[str, np.ndarray]] = [{}] * len(positions)
        for member, numbers, own in self._by_member(positions):
            for number, item in zip(numbers, self.members[member].__getitems__(own), strict=True):
                items[number] = item
        return items


class SequencesInTurn(SequencesOfSets):
    """Each sequence of each set once, set by set."""

    def __init__(self, members: Sequence[Any]) -> None:
        super().__init__(members, sum(len(member) for member in members))
        self._ends = np.cumsum([len(member) for member in members]).tolist()

    def places(self, positions: Sequence[int]) -> list[tuple[int, int]]:
        chosen = [bisect.bisect_right(self._ends, position) for position in positions]
        return [(n, int(p) - (self._ends[n - 1] if n else 0)) for n, p in zip(chosen, positions, strict=True)]


class StagedSequences(SequencesOfSets):
    """Sequences of one set until a position, then of the next, as if each set had been read from the beginning.

    Position p is item p of the set in whose range it falls, so sets of the same pictures in several sizes give the
    pictures in one order, whatever the size.

    Args:
        members: one a stage.
        ends: position at which each stage but the last ends, in ascending order.
    """

    def __init__(self, members: Sequence[Any], ends: Sequence[int]) -> None:
        if len(members) != len(ends) + 1 or list(ends) != sorted(set(ends)):
            raise UserError(f"sets must be one more than the ascending ends, got {len(members)} sets and ends {ends}")
        super().__init__(members, len(members[0]))
        self.ends = list(ends)

    def places(self, positions: Sequence[int]) -> list[tuple[int, int]]:
        return [(bisect.bisect_right(self.ends, position), int(position)) for position in positions]


class MixtureSequences(SequencesOfSets):
    """Sequences of several sets in the shares of their weights.

    Positions come in blocks of `BLOCK`. Within one, a grid of as many even steps with a random start is laid over the
    weights, which gives each set the nearest smaller or larger whole number of its share, its share on average; then
    the places are permuted. The n-th place of a set in all reads the set's position n. There is no state: where a
    position reads is counted from the starts of the blocks before it, so a run resumes anywhere, and every process
    finds the same.

    Args:
        members: the sets.
        weights: of each, above 0.
        seed: of the order.
        length: sequences in all; None: `BLOCK`.
    """

    def __init__(
        self, members: Sequence[Member], weights: Sequence[float], *, seed: int = 0, length: int | None = None
    ) -> None:
        if not members or len(members) != len(weights) or min(weights) <= 0:
            raise UserError(
                f"a mixture needs one set or more, each with a weight above 0; got {len(members)} sets and {weights}"
            )
        super().__init__(members, BLOCK if length is None else length)
        self.seed = seed
        self._edges = np.cumsum(weights)[:-1] / np.sum(weights) * BLOCK
        self._before = np.zeros((1, len(members)), np.int64)  # sequences of each set before each block

    def places(self, positions: Sequence[int]) -> list[tuple[int, int]]:
        blocks, within = np.divmod(np.asarray(positions, np.int64), BLOCK)
        found: list[tuple[int, int]] = [(0, 0)] * len(blocks)
        for block in np.unique(blocks).tolist():
            choice, rank = self._block(block)
            for number in np.nonzero(blocks == block)[0].tolist():
                place = int(within[number])
                member = int(choice[place])
                found[number] = member, int(self._before[block, member] + rank[place])
        return found

    def _block(self, block: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the set of each place of a block (BLOCK,), and how many of that set come before it in the block."""
        if len(self._before) < block + 2:
            self._extend(2 * block + 2)
        counts = self._before[block + 1] - self._before[block]
        order = np.random.default_rng((self.seed, block)).permutation(BLOCK)
        choice = np.repeat(np.arange(len(self.members)), counts)[order]
        rank = np.empty(BLOCK, np.int64)
        for member in range(len(self.members)):
            chosen = choice == member
            rank[chosen] = np.arange(int(chosen.sum()))
        return choice, rank

    def _extend(self, blocks: int) -> None:
        """Count the sequences of each set before each of the first blocks; their starts do not depend on how many."""
        start = np.random.default_rng(self.seed).random(blocks)[:, None]
        edges = np.clip(np.ceil(self._edges - start), 0, BLOCK).astype(np.int64)
        ends = np.concatenate([np.zeros((blocks, 1), np.int64), edges, np.full((blocks, 1), BLOCK)], axis=1)
        counts = np.cumsum(np.diff(ends, axis=1), axis=0)
        self._before = np.concatenate([np.zeros((1, len(self.members)), np.int64), counts])
