"""OmniTokenizer's attention against dense formulas; causality is tested in test_causal_video.py."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from visual_tokenizer.decoders.base import DecoderConfig
from visual_tokenizer.encoders.base import EncoderConfig, ResolutionError
from visual_tokenizer.layers.space_time_transformer import (
    UnitAttention,
    causal_linear_bias,
    grid_turns,
    rotate,
)
from visual_tokenizer.layers.window_attention import WindowAttention
from visual_tokenizer.registry import ConfigError


@torch.no_grad()
def test_window_attention_is_dense_attention_with_a_mask():
    torch.manual_seed(0)
    layer = WindowAttention(8, heads=2, window=2)
    layer.position_bias.normal_()
    hidden = torch.randn(1, 4, 6, 8)
    tokens = layer.norm(hidden).reshape(24, 8)
    query, key, value = (part.unflatten(-1, (2, 4)) for part in layer.query_key_value(tokens).chunk(3, dim=-1))
    mixed = torch.zeros(24, 2, 4)
    for head in range(2):
        scores = torch.full((24, 24), -torch.inf)
        for i in range(24):
            for j in range(24):
                (row, column), (other_row, other_column) = divmod(i, 6), divmod(j, 6)
                if (row // 2, column // 2) == (other_row // 2, other_column // 2):
                    entry = (row - other_row + 1) * 3 + column - other_column + 1
                    bias = layer.position_bias[entry, head]
                    scores[i, j] = query[i, head] @ key[j, head] / 2 + bias
        mixed[:, head] = scores.softmax(-1) @ value[:, head]
    expected = layer.projection(mixed.flatten(1)).reshape(hidden.shape)
    torch.testing.assert_close(layer(hidden), expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_attention_over_unit_vectors_with_a_causal_bias():
    torch.manual_seed(0)
    layer = UnitAttention(8, heads=2)
    layer.query_scale.uniform_(0.5, 2)
    layer.key_scale.uniform_(0.5, 2)
    hidden = torch.randn(1, 3, 8)
    bias = causal_linear_bias(3, 2, hidden.device)
    query, key, value = (p.unflatten(-1, (2, 4)) for p in layer.query_key_value(layer.norm(hidden[0])).chunk(3, -1))
    mixed = torch.zeros(3, 2, 4)
    for head, slope in enumerate([2**-4, 2**-8]):
        for frame in range(3):
            scores = []
            for other in range(frame + 1):
                left = F.normalize(query[frame, head], dim=0) * layer.query_scale
                right = F.normalize(key[other, head], dim=0) * layer.key_scale
                scores.append(8 * left @ right - slope * (frame - other))
            mixed[frame, head] = torch.stack(scores).softmax(0) @ value[: frame + 1, head]
    torch.testing.assert_close(layer(hidden, bias=bias)[0], layer.projection(mixed.flatten(1)), atol=1e-5, rtol=1e-5)


def test_turned_vectors_know_only_how_far_apart_they_are():
    turns = grid_turns(5, 7, 8, torch.device("cpu"))
    first, second = torch.randn(8), torch.randn(8)

    def score(a: tuple[int, int], b: tuple[int, int]) -> torch.Tensor:
        turned = [rotate(v[None], turns[None, r * 7 + c][:1])[0] for v, (r, c) in ((first, a), (second, b))]
        return turned[0] @ turned[1]

    torch.testing.assert_close(score((0, 0), (2, 3)), score((2, 3), (4, 6)))
    assert not math.isclose(score((0, 0), (2, 3)), score((0, 0), (3, 2)), rel_tol=1e-3)
    assert not math.isclose(score((0, 0), (2, 3)), score((0, 0), (2, 4)), rel_tol=1e-3)


FIELDS = {"patch_size": 2, "temporal_patch_size": 2, "width": 8, "heads": 2, "window_size": 2, "temporal_blocks": 1}


@torch.no_grad()
def test_patches_hold_their_own_pixels_in_one_order():
    torch.manual_seed(0)
    section = {"type": "omnitokenizer", **FIELDS, "spatial_blocks": ["window"]}
    encoder = EncoderConfig.family.build(section, image_size=4)
    encoder.space = encoder.time = torch.nn.Identity()
    clip = torch.randn(1, 3, 3, 4, 4)
    tokens = encoder(clip).reshape(2, 2, 2, 8)
    torch.testing.assert_close(tokens[0, 1, 0], encoder.first_embedding(clip[0, :, 0, 2:, :2].flatten()))
    torch.testing.assert_close(tokens[1, 0, 1], encoder.rest_embedding(clip[0, :, 1:, :2, 2:].flatten()))
    decoder = DecoderConfig.family.build(section, image_size=4)
    decoder.space = decoder.time = torch.nn.Identity()
    pixels = decoder(tokens.reshape(1, 8, 8), (2, 2, 2))
    torch.testing.assert_close(pixels[0, :, 0, 2:, :2].flatten(), decoder.first_head(tokens[0, 1, 0]))
    torch.testing.assert_close(pixels[0, :, 1:, :2, 2:].flatten(), decoder.rest_head(tokens[1, 0, 1]))


def test_windows_must_fit_the_grid():
    windows = EncoderConfig.family.build(
        {"type": "omnitokenizer", **FIELDS, "spatial_blocks": ["window"]}, image_size=8
    )
    with pytest.raises(ResolutionError, match="height must be a multiple of 4"):
        windows.token_grid(6, 8)
    full = EncoderConfig.family.build({"type": "omnitokenizer", **FIELDS, "spatial_blocks": ["full"]}, image_size=8)
    assert full.token_grid(6, 8) == (3, 4)
    with pytest.raises(ConfigError, match=r"spatial_blocks must be .*one of full, window"):
        EncoderConfig.family.config({"type": "omnitokenizer", "spatial_blocks": ["ful"]})
    with pytest.raises(ConfigError, match="spatial_blocks must hold 1 or more"):
        EncoderConfig.family.config({"type": "omnitokenizer", "spatial_blocks": []})
