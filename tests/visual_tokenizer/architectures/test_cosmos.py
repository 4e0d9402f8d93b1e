"""Cosmos's wavelets, factorised convolutions and resampling; causality is tested in test_causal_video.py."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch.nn import functional as F

from visual_tokenizer.encoders.base import EncoderConfig
from visual_tokenizer.layers.convolution import SpatialAttention
from visual_tokenizer.layers.factorized import (
    CausalTemporalAttention,
    HybridDownsample,
    HybridUpsample,
    factorized_convolution,
)
from visual_tokenizer.layers.wavelet import causal_patches, causal_pixels, haar, inverse_haar
from visual_tokenizer.registry import ConfigError


@pytest.mark.parametrize("levels", [1, 2])
@pytest.mark.parametrize("blocks", [0, 2])
def test_wavelets_lose_nothing(levels, blocks):
    side = 2**levels
    clip = torch.randn(2, 3, 1 + blocks * side, 2 * side, 3 * side, dtype=torch.float64)
    bands = causal_patches(clip, levels)
    assert bands.shape == (2, 3 * 8**levels, 1 + blocks, 2, 3)
    torch.testing.assert_close(causal_pixels(bands, levels), clip)


def test_each_band_is_a_mean_of_signed_pixels():
    clip = torch.randn(1, 2, 2, 2, 2, dtype=torch.float64)
    bands = haar(clip).flatten(1)[0]
    torch.testing.assert_close(inverse_haar(haar(clip)), clip)
    for band, (time, height, width) in enumerate(itertools.product((0, 1), repeat=3)):
        for channel in range(2):
            expected = sum(
                (-1) ** (time * t + height * h + width * w) * clip[0, channel, t, h, w]
                for t, h, w in itertools.product((0, 1), repeat=3)
            )
            torch.testing.assert_close(bands[2 * band + channel], expected / 8)


def test_a_still_clip_has_no_change_over_time():
    still = torch.randn(1, 3, 1, 4, 4).expand(-1, -1, 5, -1, -1)
    low, high = causal_patches(still, 2).chunk(2, dim=1)
    assert high.abs().max() < 1e-6
    assert low.abs().max() > 0.1


@torch.no_grad()
def test_factorised_convolution_is_one_in_space_then_one_in_time():
    torch.manual_seed(0)
    space, time = layers = factorized_convolution(2, 3)
    clip = torch.randn(1, 2, 4, 5, 5)
    frames = [F.conv2d(clip[:, :, t], space.weight[:, :, 0], space.bias, padding=1) for t in range(4)]
    for t in range(4):
        expected = time.bias[None, :, None, None] + sum(
            torch.einsum("oi,bihw->bohw", time.weight[:, :, tap, 0, 0], frames[max(0, t - 2 + tap)]) for tap in range(3)
        )
        torch.testing.assert_close(layers(clip)[:, :, t], expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_attention_over_time_is_dense_attention_with_a_mask():
    torch.manual_seed(0)
    layer = CausalTemporalAttention(4)
    clip = torch.randn(2, 4, 5, 2, 3)
    line = layer.norm(clip)[1, :, :, 1, 2].T
    query, key, value = layer.query_key_value(line).chunk(3, dim=-1)
    scores = (query @ key.T / 2).masked_fill(torch.ones(5, 5).triu(1).bool(), -torch.inf)
    expected = clip[1, :, :, 1, 2] + layer.projection(scores.softmax(-1) @ value).T
    torch.testing.assert_close(layer(clip)[1, :, :, 1, 2], expected, atol=1e-5, rtol=1e-5)
    assert SpatialAttention(4, groups=1).norm.num_groups == 1


@torch.no_grad()
def test_without_its_convolutions_resampling_averages_and_repeats():
    down, up = (kind(2, in_space=True, in_time=True) for kind in (HybridDownsample, HybridUpsample))
    for layer in (down, up):
        for convolution in (layer.space, layer.time):
            convolution.weight.zero_()
            convolution.bias.zero_()
        layer.mix.weight.copy_(torch.eye(2)[..., None, None, None])
        layer.mix.bias.zero_()
    clip = torch.randn(1, 2, 5, 4, 4)
    halved = F.avg_pool2d(clip.flatten(0, 1), 2).unflatten(0, (1, 2))
    expected = torch.stack([halved[:, :, 0], *(halved[:, :, [i, i + 1]].mean(2) for i in (1, 3))], dim=2)
    torch.testing.assert_close(down(clip), expected)
    doubled = up(expected)
    assert doubled.shape == clip.shape
    for frame, source in enumerate([0, 1, 1, 2, 2]):
        torch.testing.assert_close(doubled[:, :, frame, 1::2, ::2], expected[:, :, source])


def test_the_published_layout_has_16_by_16_pixels_and_8_frames_a_token():
    fields = {"channels": 8, "blocks_per_level": 1, "attention_resolutions": []}
    encoder = EncoderConfig.family.build({"type": "cosmos", **fields}, image_size=64)
    assert encoder.stem[0].in_channels == 192
    assert encoder.token_grid(64, 32, 49) == (7, 4, 2)
    with pytest.raises(ConfigError, match="temporal_downsampling must have one entry less"):
        EncoderConfig.family.config({"type": "cosmos", "temporal_downsampling": [True]})
