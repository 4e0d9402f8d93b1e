"""Shares of a mixture, that a position reads the same for everybody, and that packing changes nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest

from mmlm.data.mixture import BLOCK, MixtureSequences
from mmlm.data.packing import PackedSequences


class Numbered:
    """Sequences whose tokens say set and position."""

    def __init__(self, number: int) -> None:
        self.number = number

    def lengths(self, positions: Sequence[int]) -> np.ndarray:
        return np.array([1 + (7 * position + self.number) % 13 for position in positions], np.int64)

    def __getitems__(self, positions: Sequence[int]) -> list[dict[str, np.ndarray]]:
        found = []
        for position, length in zip(positions, self.lengths(positions), strict=True):
            ids = np.full(length, 1000 * position + self.number)
            found.append({"input_ids": ids, "labels": ids.copy(), "token_kinds": 0 * ids})
        return found

    def check_length(self, max_positions: int) -> None:
        pass


def mixture(weights: Sequence[float], seed: int = 0, length: int | None = None) -> MixtureSequences:
    return MixtureSequences([Numbered(n) for n in range(len(weights))], weights, seed=seed, length=length)


@pytest.mark.parametrize("weights", [[1.0], [3.0, 1.0], [5.0, 0.003, 2.5, 1e-4], [1, 1, 1]])
def test_shares_are_those_of_the_weights(weights: list[float]) -> None:
    blocks = 40
    rows = mixture(weights)
    places = rows.places(range(blocks * BLOCK))
    exact = np.array(weights) / sum(weights)
    for block in range(blocks):
        found = Counter(member for member, _ in places[block * BLOCK : (block + 1) * BLOCK])
        for member, share in enumerate(exact):
            assert abs(found[member] - share * BLOCK) < 2, "in every block, to one sequence"
    total = Counter(member for member, _ in places)
    for member, share in enumerate(exact):
        assert abs(total[member] - share * blocks * BLOCK) <= 4 * np.sqrt(blocks * 0.25) + 1, "and without drift"
        own = [position for which, position in places if which == member]
        assert own == list(range(len(own))), "each set is read in turn, nothing left out or read twice"


def test_a_position_reads_the_same_whoever_asks_and_in_whatever_order() -> None:
    weights = [2.0, 1.0, 0.5]
    in_turn, far_first = mixture(weights, 3), mixture(weights, 3)
    positions = np.random.default_rng(0).permutation(5 * BLOCK)
    expected = in_turn.places(range(5 * BLOCK))
    late = far_first.places([10_000_000])
    assert far_first.places(positions) == [expected[position] for position in positions]
    assert in_turn.places([10_000_000]) == late
    for processes in (2, 3):  # each process reads every processes-th
        found: list = [None] * 300
        for rank in range(processes):
            own = list(range(rank, 300, processes))
            for position, place in zip(own, mixture(weights, 3).places(own), strict=True):
                found[position] = place
        assert found == expected[:300]
    assert mixture(weights, 4).places(range(BLOCK)) != expected[:BLOCK]


def test_items_are_those_of_the_places() -> None:
    rows = mixture([1.0, 2.0])
    positions = [5, 2000, 5, 77]
    items = rows.__getitems__(positions)
    assert [item["input_ids"][0] for item in items] == [1000 * p + m for m, p in rows.places(positions)]
    assert rows.lengths(positions).tolist() == [len(item["input_ids"]) for item in items]
    assert (rows[77]["input_ids"] == items[3]["input_ids"]).all()
    assert len(rows) == BLOCK


def test_packed_equals_unpacked() -> None:
    rows = mixture([1.0, 2.0, 0.1])
    packed = PackedSequences(rows, capacity=40, buffer=64, count=256)
    seen: Counter[int] = Counter()
    for item in packed.__getitems__(range(packed.full_rows())):
        starts = np.nonzero(item["position_ids"] == 0)[0].tolist()
        for start, stop in zip(starts, [*starts[1:], len(item["input_ids"])], strict=True):
            seen[tuple(item["input_ids"][start:stop])] += 1
    assert seen == Counter(tuple(item["input_ids"]) for item in rows.__getitems__(range(256)))


def test_wrong_weights_are_refused() -> None:
    for members, weights in (([], []), ([Numbered(0)], [0.0]), ([Numbered(0)], [1.0, 2.0])):
        with pytest.raises(ValueError, match="one set or more, each with a weight above 0"):
            MixtureSequences(members, weights)
