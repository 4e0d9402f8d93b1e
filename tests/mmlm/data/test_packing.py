"""Packing: no sequence lost, cut or seen twice, nothing learned across sequences, and rows that are full."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.packing import realistic_lengths
from mmlm.data.packing import PackedSequences, best_fit_decreasing, join
from mmlm.recipes.training import LMRecipe
from mmlm.training.build import build_trainer, load_processor, run_arguments, train
from visual_tokenizer.registry import ConfigError


class Numbered:
    """Sequences whose tokens are all their position."""

    def __init__(self, lengths: Sequence[int]) -> None:
        self.all = np.array(lengths, np.int64)

    def lengths(self, positions: Sequence[int]) -> np.ndarray:
        return self.all[np.array(positions) % len(self.all)]

    def __getitems__(self, positions: Sequence[int]) -> list[dict[str, np.ndarray]]:
        found = []
        for position in positions:
            ids = np.full(self.all[position % len(self.all)], position)
            found.append({"input_ids": ids, "labels": ids.copy(), "token_kinds": 0 * ids})
        return found


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(1, 50), max_size=80), st.integers(50, 90))
def test_every_sequence_is_in_one_row_and_rows_hold_it(lengths: list[int], capacity: int) -> None:
    rows = best_fit_decreasing(lengths, capacity)
    assert sorted(place for row in rows for place in row) == list(range(len(lengths)))
    fill = [sum(lengths[place] for place in row) for row in rows]
    assert all(0 < size <= capacity for size in fill)
    assert sum(size <= capacity / 2 for size in fill) <= 1, "two half-empty rows would have been one"
    fewest = -(-sum(lengths) // capacity)
    assert len(rows) <= 11 / 9 * _optimum_at_least(lengths, capacity, fewest) + 6 / 9


def _optimum_at_least(lengths: list[int], capacity: int, fewest: int) -> int:
    """At least the bound of Martello and Toth: sequences of more than half a row share none, nor do they with those
    that do not fit beside them."""
    best = fewest
    for small in range(capacity // 2 + 1):
        large = [x for x in lengths if x > capacity - small]
        middle = [x for x in lengths if capacity / 2 < x <= capacity - small]
        rest = sum(x for x in lengths if small <= x <= capacity / 2) - (len(middle) * capacity - sum(middle))
        best = max(best, len(large) + len(middle) + max(0, -(-rest // capacity)))
    return best


def test_the_fullest_row_with_room_is_taken() -> None:
    assert best_fit_decreasing([6, 5, 4, 3, 2], 10) == [[0, 2], [1, 3, 4]]
    assert best_fit_decreasing([3, 7, 6, 4], 10) == [[1, 0], [2, 3]]
    for wrong in ([0], [11]):
        with pytest.raises(ValueError, match="lengths must be in 1 … 10"):
            best_fit_decreasing(wrong, 10)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 20), min_size=1, max_size=40), st.integers(1, 16), st.integers(0, 3))
def test_whole_buffers_hold_each_sequence_once(lengths: list[int], buffer: int, seed: int) -> None:
    rows = PackedSequences(Numbered(lengths), 20, buffer, seed=seed, count=3 * buffer)
    items = rows.__getitems__(range(len(rows)))
    seen: Counter[int] = Counter()
    for item in items:
        assert len(item["input_ids"]) <= 20
        starts = item["position_ids"] == 0
        assert (item["labels"][starts] == -100).all()
        assert (item["labels"][~starts] == item["input_ids"][~starts]).all()
        seen.update(item["input_ids"][starts].tolist())
        for position, count in Counter(item["input_ids"].tolist()).items():
            assert count == rows.sequences.lengths([position])[0], "whole"
    assert seen == Counter(range(3 * buffer))


def test_a_row_is_the_same_in_whatever_order_rows_are_read() -> None:
    lengths = np.random.default_rng(0).integers(1, 40, 500)
    in_turn, backwards = (PackedSequences(Numbered(lengths), 64, 32, seed=3) for _ in range(2))
    expected = [in_turn.documents(row) for row in range(150)]
    assert [backwards.documents(row) for row in reversed(range(150))] == expected[::-1]
    other = PackedSequences(Numbered(lengths), 64, 32, seed=4)
    assert [other.documents(row) for row in range(150)] != expected


def test_rows_are_counted_by_their_share_of_the_last_buffer() -> None:
    rows = PackedSequences(Numbered([10]), 20, 8, count=20)
    assert rows.full_rows() == len(rows) == 10
    assert rows.documents(10), "there is more for who asks"


def test_rows_are_full() -> None:
    lengths = realistic_lengths(4096, seed=0)
    rows = PackedSequences(Numbered(lengths), 4096, 1024, count=4096)
    tokens = sum(int(rows.sequences.lengths(rows.documents(row)).sum()) for row in range(len(rows)))
    assert tokens == lengths.sum()
    assert tokens / (len(rows) * 4096) >= 0.97


def test_positions_begin_anew() -> None:
    items = Numbered([3, 1, 2]).__getitems__(range(3))
    row = join(items)
    assert row["position_ids"].tolist() == [0, 1, 2, 0, 0, 1]
    assert row["input_ids"].tolist() == [0, 0, 0, 1, 2, 2]
    assert row["labels"].tolist() == [-100, 0, 0, -100, -100, 2]
    assert items[0]["labels"].tolist() == [0, 0, 0], "the items are as they were"


@pytest.fixture
def packed_fields(recipe_fields: dict[str, Any]) -> dict[str, Any]:
    return {**recipe_fields, "data.packing": True, "data.packing_buffer": 16, "data.max_length": 120}


def test_lengths_are_those_of_the_items(packed_fields: dict[str, Any], make_recipe: Callable[..., LMRecipe]) -> None:
    recipe = make_recipe(packed_fields, data__caption_dropout=0.4)
    rows = build_trainer(recipe, load_processor(recipe.model), run_arguments(recipe)).train_dataset
    assert len(rows) == 6 * 4
    pairs = rows.dataset.sequences
    items = pairs.__getitems__(range(60))
    assert pairs.lengths(range(60)).tolist() == [len(item["input_ids"]) for item in items]


def test_a_packed_run_resumes_where_it_was(
    packed_fields: dict[str, Any], make_recipe: Callable[..., LMRecipe], losses_of: Callable[..., Any]
) -> None:
    recipe = make_recipe(packed_fields)
    train(recipe)
    run = Path(recipe.output_dir)
    whole = losses_of(run)
    assert len(whole) == 6
    (run / "checkpoint-6" / "manifest.json").unlink()
    train(recipe)
    assert losses_of(run) == whole


def test_epochs_count_sequences(packed_fields: dict[str, Any], make_recipe: Callable[..., LMRecipe]) -> None:
    recipe = make_recipe(packed_fields, training__max_steps=None, training__epochs=32, training__batch_size=2)
    args = run_arguments(recipe)
    rows = build_trainer(recipe, load_processor(recipe.model), args).train_dataset
    assert len(rows) == 2 * args.max_steps
    read = [position for row in range(len(rows)) for position in rows.dataset.documents(row)]
    expected = 32 * len(rows.dataset.sequences)
    assert len(read) == pytest.approx(expected, rel=0.02)
    assert len(set(read)) == len(read)


def test_lengths_that_cannot_be_are_refused(
    packed_fields: dict[str, Any], make_recipe: Callable[..., LMRecipe]
) -> None:
    for length, message in ((129, "at most the model's max_position_embeddings = 128"), (20, "more than the 20 of")):
        recipe = make_recipe(packed_fields, data__max_length=length)
        with pytest.raises((ConfigError, ValueError), match=message):
            build_trainer(recipe, load_processor(recipe.model), run_arguments(recipe))
