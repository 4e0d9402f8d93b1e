"""The Perceiver resampler and Perceiver IO's decoder."""

from __future__ import annotations

import torch
from torch import nn

from visual_tokenizer.decoders.base import DecoderConfig
from visual_tokenizer.encoders.base import EncoderConfig
from visual_tokenizer.layers.attention import CrossAttention, ReadingBlock, ResamplerBlock

PATCH = {"type": "patch", "patch_size": 4, "width": 8}
FIELDS = {"type": "perceiver", "num_latents": 3, "width": 16, "depth": 2, "heads": 2, "patches": PATCH}


def build(family, **fields):
    torch.manual_seed(0)
    return family.family.build({**FIELDS, **fields}, image_size=16).eval()


def test_cross_attention_is_that_of_torch():
    torch.manual_seed(0)
    ours, reference = CrossAttention(16, 4), nn.MultiheadAttention(16, 4, batch_first=True)
    reference.in_proj_weight.data = torch.cat([ours.query.weight, ours.key.weight, ours.value.weight])
    reference.in_proj_bias.data = torch.cat([ours.query.bias, torch.zeros(16), ours.value.bias])
    reference.out_proj.load_state_dict(ours.projection.state_dict())
    queries, keys, values = torch.randn(2, 3, 16), torch.randn(2, 5, 16), torch.randn(2, 5, 16)
    torch.testing.assert_close(ours(queries, keys, values), reference(queries, keys, values, need_weights=False)[0])


def test_latents_are_among_their_own_keys():
    """As in Flamingo: a latent reads the features and all latents in one softmax."""
    torch.manual_seed(0)
    block = ResamplerBlock(16, 2)
    latents, features = torch.randn(1, 3, 16), torch.randn(1, 5, 16)
    own = block.latents_norm(latents)
    seen = torch.cat([block.features_norm(features), own], dim=1)
    query, key, value = block.attention.query(own), block.attention.key(seen), block.attention.value(seen)
    heads = []
    for part in (slice(0, 8), slice(8, 16)):
        weights = (query[..., part] @ key[..., part].transpose(1, 2) / 8**0.5).softmax(dim=2)
        heads.append(weights @ value[..., part])
    middle = latents + block.attention.projection(torch.cat(heads, dim=2))
    torch.testing.assert_close(block(latents, features), middle + block.feed_forward(middle))


def test_features_are_a_set_once_they_have_positions():
    encoder = build(EncoderConfig)
    pixels = torch.rand(1, 3, 16, 16) * 2 - 1
    expected = encoder(pixels)
    order = torch.randperm(16, generator=torch.Generator().manual_seed(1))
    patches = encoder.patches(pixels)[:, order]
    encoder.patches.forward = lambda _: patches
    assert not torch.allclose(encoder(pixels), expected, atol=1e-3)
    encoder.patch_positions.data = encoder.patch_positions[:, order]
    torch.testing.assert_close(encoder(pixels), expected, atol=1e-5, rtol=1e-4)


def test_queries_of_the_decoder_do_not_see_one_another():
    torch.manual_seed(0)
    block = ReadingBlock(16, 2)
    queries, latents = torch.randn(1, 4, 16), torch.randn(1, 3, 16)
    torch.testing.assert_close(block(queries, latents)[:, 2:3], block(queries[:, 2:3], latents))


def test_latents_of_the_decoder_have_an_order():
    decoder = build(DecoderConfig, grid_size=4)
    latents = torch.randn(1, 3, 16)
    assert not torch.allclose(decoder(latents, (3,)), decoder(latents.flip(1), (3,)), atol=1e-4)
