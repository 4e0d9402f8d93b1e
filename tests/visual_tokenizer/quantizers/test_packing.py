import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from visual_tokenizer.codebooks import usage
from visual_tokenizer.codebooks.packing import (
    bit_places,
    bits_of,
    pack,
    pack_signs,
    place_values,
    unpack,
    unpack_signs,
)
from visual_tokenizer.codebooks.search import code_counts
from visual_tokenizer.codebooks.usage import batch_metrics, distinct_counts, usage_metrics

LEVELS = st.lists(st.integers(2, 7), min_size=1, max_size=4)


@settings(max_examples=30, deadline=None)
@given(LEVELS)
def test_packing_counts_through_the_product_in_the_declared_order(levels):
    """Property: a bijection, and the order of itertools.product, whose last factor varies fastest."""
    levels_tensor, indices = torch.tensor(levels), torch.arange(math.prod(levels))
    product = torch.tensor(list(itertools.product(*map(range, levels))))
    mirrored = torch.tensor(list(itertools.product(*map(range, reversed(levels))))).flip(1)
    for order, expected in (("last_fastest", product), ("first_fastest", mirrored)):
        places = place_values(levels_tensor, order)
        digits = unpack(indices, places, levels_tensor)
        assert torch.equal(digits, expected)
        assert torch.equal(pack(digits, places), indices)


def test_first_fastest_is_the_published_basis_of_fsq():
    """Closed form of the paper's appendix A: cumprod([1, *levels[:-1]])."""
    assert place_values(torch.tensor([8, 5, 6]), "first_fastest").tolist() == [1, 8, 40]
    assert place_values(torch.tensor([8, 5, 6]), "last_fastest").tolist() == [30, 6, 1]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.booleans(), min_size=1, max_size=62))
def test_signs_are_the_bits_of_the_index(bits):
    """Closed forms: a binary numeral (most significant first) and Σ b_d 2^d (least significant first)."""
    signs = torch.tensor(bits)
    expected = {
        "most_significant_first": int("".join("01"[bit] for bit in bits), 2),
        "least_significant_first": sum(2**position for position, bit in enumerate(bits) if bit),
    }
    for order, index in expected.items():
        places = bit_places(len(bits), order)
        packed = pack_signs(signs, places)
        assert int(packed) == index
        assert torch.equal(unpack_signs(packed, places), signs.float() * 2 - 1)


def test_bits_are_binary_digits():
    """Property: signs pack as mixed-radix digits with two levels do."""
    two = torch.full((6,), 2)
    assert torch.equal(bit_places(6, "most_significant_first"), place_values(two, "last_fastest"))
    assert torch.equal(bit_places(6, "least_significant_first"), place_values(two, "first_fastest"))


def test_only_powers_of_two_have_bits():
    assert [bits_of(size) for size in (2, 4, 2**18, 2**62)] == [1, 2, 18, 62]
    for size in (-4, 0, 1, 3, 1000, 2**63):
        with pytest.raises(ValueError, match=f"codebook_size must be a power of two.*got {size}"):
            bits_of(size)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, 2**62 - 1) | st.integers(0, 3), max_size=20))
def test_distinct_counts_are_those_of_unique(values):
    indices = torch.tensor(values, dtype=torch.int64)
    counts = distinct_counts(indices)
    expected = indices.unique(return_counts=True)[1].float()
    assert counts.shape == (len(values) + 1,)
    assert torch.equal(counts[: expected.numel()], expected)
    assert counts[expected.numel() :].sum() == 0


def test_usage_is_the_same_counted_or_sorted(monkeypatch):
    """Against the metrics of a full table of counts."""
    indices = torch.randint(0, 50, (4, 9))
    expected = batch_metrics(code_counts(indices, 64))
    torch.testing.assert_close(usage_metrics(indices, 64), expected)
    monkeypatch.setattr(usage, "COUNTED_CODES", 32)
    torch.testing.assert_close(usage_metrics(indices, 64), expected)


@pytest.mark.parametrize("codebook_size", [64, 2**62])
def test_usage_of_nothing_is_finite(codebook_size):
    metrics = usage_metrics(torch.zeros(0, dtype=torch.int64), codebook_size)
    assert metrics["perplexity"] == 1
    assert metrics["usage"] == 0
