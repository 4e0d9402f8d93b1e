"""GigaTok's encoder and decoder."""

from __future__ import annotations

import pytest
import torch

from visual_tokenizer.decoders.base import DecoderConfig
from visual_tokenizer.encoders.base import EncoderConfig
from visual_tokenizer.layers.attention import QueryBlock

PATCH = {"type": "patch", "patch_size": 4, "width": 8}
FIELDS = {"type": "q_former", "num_latents": 8, "width": 16, "depth": 2, "heads": 2, "patches": PATCH}


def build(family, **fields):
    torch.manual_seed(0)
    return family.family.build({**FIELDS, **fields}, image_size=16).eval()


def test_levels_are_the_whole_twice_then_doublings_columns_first():
    levels = {
        2: [(1, 1), (1, 1)],
        8: [(1, 1), (1, 1), (1, 2), (2, 2)],
        64: [(1, 1), (1, 1), (1, 2), (2, 2), (2, 4), (4, 4), (4, 8)],
    }
    for count, expected in levels.items():
        config = EncoderConfig.family.config({**FIELDS, "num_latents": count})
        assert config.levels == expected
        assert sum(rows * columns for rows, columns in expected) == count


def test_queries_are_averages_over_blocks():
    encoder = build(EncoderConfig)
    features = torch.randn(2, 16, 16)
    grid = features.view(2, 4, 4, 16)
    blocks = [
        grid,
        grid,
        grid[:, :, :2],
        grid[:, :, 2:],
        grid[:, :2, :2],
        grid[:, :2, 2:],
        grid[:, 2:, :2],
        grid[:, 2:, 2:],
    ]
    expected = torch.stack([block.mean(dim=(1, 2)) for block in blocks], dim=1)
    torch.testing.assert_close(encoder.averages(features), expected)


def test_positions_are_added_to_queries_and_keys_not_to_values():
    """With equal scores everywhere attention is the mean of the values, which positions must not change."""
    torch.manual_seed(0)
    block = QueryBlock(8, 2)
    for attention in (block.self_attention, block.cross_attention):
        attention.key.weight.data.zero_()
    queries, memory = torch.randn(1, 4, 8), torch.randn(1, 6, 8)
    own, none = block.self_attention, torch.zeros(1)
    middle = queries + own.projection(own.value(block.self_norm(queries)).mean(dim=1, keepdim=True))
    cross = block.cross_attention
    middle = middle + cross.projection(cross.value(memory).mean(dim=1, keepdim=True))
    expected = middle + block.feed_forward(middle)
    for positions in ((none, none), (torch.randn(1, 4, 8), torch.randn(1, 6, 8))):
        torch.testing.assert_close(block(queries, memory, *positions), expected)


def test_positions_change_where_queries_look():
    torch.manual_seed(0)
    block = QueryBlock(8, 2)
    queries, memory = torch.randn(1, 4, 8), torch.randn(1, 6, 8)
    zeros = torch.zeros(1, 4, 8), torch.zeros(1, 6, 8)
    plain = block(queries, memory, *zeros)
    assert not torch.allclose(block(queries, memory, torch.randn(1, 4, 8), zeros[1]), plain, atol=1e-3)
    assert not torch.allclose(block(queries, memory, zeros[0], torch.randn(1, 6, 8)), plain, atol=1e-3)


def test_the_grid_begins_as_the_first_token_and_positions_tell_it_apart():
    decoder = build(DecoderConfig, grid_size=4)
    latents = torch.randn(1, 8, 16)
    seen = []
    decoder.blocks[0].register_forward_hook(lambda _, arguments, __: seen.append(arguments[0]))
    pixels = decoder(latents, (8,))
    memory = decoder.latent_projection(decoder.latents_norm(latents))
    torch.testing.assert_close(seen[0], memory[:, :1].expand(-1, 16, -1))
    patches = pixels.unfold(2, 4, 4).unfold(3, 4, 4)
    assert not torch.allclose(patches[:, :, 1, 1], patches[:, :, 2, 2], atol=1e-4)


def test_counts_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="power of two"):
        build(EncoderConfig, num_latents=12)
    with pytest.raises(ValueError, match="4 rows and 8 columns"):
        build(EncoderConfig, num_latents=64)
    assert build(EncoderConfig, num_latents=32).token_grid(16, 16) == (32,)
