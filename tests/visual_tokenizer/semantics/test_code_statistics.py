"""Counts of codes, and the choice of those that are shown, by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from visual_tokenizer.evaluation.code_statistics import CodeStatistics, choose_codes, code_statistics
from visual_tokenizer.evaluation.semantic_page import MOST_GAIN, difference_map
from visual_tokenizer.outputs import ABSENT
from visual_tokenizer.semantics.base import SemanticData


def test_counts_by_hand(meaningful: SemanticData) -> None:
    """Two codebooks, three pictures; the second picture is shorter, the last has no class."""
    train = meaningful.train.select([0, 1])
    indices = torch.tensor([[[3, 1], [3, 1]], [[3, 2], [ABSENT, ABSENT]]], dtype=torch.int32)
    train = replace(train, indices=indices, labels=["flags", "food"])
    heldout = replace(meaningful.heldout.select([0]), indices=indices[:1] * 0 + 3, labels=[""])
    found = code_statistics(replace(meaningful, train=train, heldout=heldout))
    expected = [
        CodeStatistics(book=0, index=3, tokens=5, pictures=3, purity=2 / 3, commonest="flags"),
        CodeStatistics(book=1, index=1, tokens=2, pictures=1, purity=1.0, commonest="flags"),
        CodeStatistics(book=1, index=2, tokens=1, pictures=1, purity=1.0, commonest="food"),
        CodeStatistics(book=1, index=3, tokens=2, pictures=1, purity=0.0, commonest=""),
    ]
    assert found == [replace(code, purity=pytest.approx(code.purity)) for code in expected]


def test_each_code_is_shown_once_and_rare_ones_are_not_called_pure() -> None:
    def code(index: int, tokens: int, pictures: int, purity: float) -> CodeStatistics:
        return CodeStatistics(0, index, tokens, pictures, purity, "a")

    statistics = [code(0, 9, 9, 0.4), code(1, 99, 9, 0.9), code(2, 5, 5, 0.8), code(3, 4, 4, 1.0), code(4, 7, 7, 0.5)]
    parts = [[found.index for found in codes] for codes in choose_codes(statistics, 1, seed=0).values()]
    assert parts[:2] == [[1], [2]]
    assert parts[2][0] in (0, 3, 4)
    assert parts == [[found.index for found in codes] for codes in choose_codes(statistics, 1, seed=0).values()]
    shown = [found.index for codes in choose_codes(statistics, 5, seed=0).values() for found in codes]
    assert sorted(shown) == [0, 1, 2, 3, 4]


def test_the_difference_map_is_black_where_nothing_changes() -> None:
    pixels = torch.zeros(3, 2, 2)
    changed = pixels.clone()
    changed[0, 0, 0] = 0.3
    found, gain = difference_map(pixels, changed)
    assert found.shape == (3, 2, 2)
    assert found[:, 1].eq(-1).all()
    assert gain == MOST_GAIN
    torch.testing.assert_close(found[:, 0, 0], torch.full((3,), MOST_GAIN * 0.1 - 1))
    assert difference_map(pixels, changed * 5)[1] == pytest.approx(4)
    assert difference_map(pixels, pixels)[0].eq(-1).all()
