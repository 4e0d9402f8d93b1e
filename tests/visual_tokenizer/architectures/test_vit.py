"""ViT-VQGAN's encoder and decoder."""

from __future__ import annotations

import math

import pytest
import torch

from visual_tokenizer.decoders.base import DecoderConfig
from visual_tokenizer.encoders.base import EncoderConfig
from visual_tokenizer.layers.transformer import sinusoidal_positions

FIELDS = {"patch_size": [4, 2], "width": 16, "depth": 2, "heads": 2}


def build(family, **fields):
    torch.manual_seed(0)
    return family.family.build({"type": "vit", **FIELDS, **fields}, image_size=16).eval()


def test_positions_are_those_of_masked_autoencoders():
    found = sinusoidal_positions(3, 5, 24, torch.device("cpu")).view(3, 5, 4, 6)
    for row in range(3):
        for column in range(5):
            for number in range(6):
                frequency = 10000 ** (-number / 6)
                angles = (column * frequency, row * frequency)
                expected = [wave(angle) for angle in angles for wave in (math.sin, math.cos)]
                assert found[row, column, :, number].tolist() == pytest.approx(expected, abs=1e-5)


def test_positions_of_a_grid_are_the_corner_of_a_larger_one():
    large = sinusoidal_positions(6, 7, 8, torch.device("cpu")).view(6, 7, 8)
    small = sinusoidal_positions(3, 5, 8, torch.device("cpu")).view(3, 5, 8)
    torch.testing.assert_close(small, large[:3, :5])
    assert large.flatten(0, 1).unique(dim=0).shape[0] == 42


@pytest.mark.parametrize("family", [EncoderConfig, DecoderConfig])
def test_tokens_without_positions_commute(family):
    """All that tells one token from another is its position: without it a permutation passes through."""
    part = build(family)
    tokens, order = torch.randn(1, 8, 16), torch.randperm(8, generator=torch.Generator().manual_seed(1))
    plain = part.head(part.transformer(tokens))
    torch.testing.assert_close(part.head(part.transformer(tokens[:, order])), plain[:, order], atol=1e-5, rtol=1e-4)
    positions = sinusoidal_positions(2, 4, 16, tokens.device)
    moved = part.head(part.transformer(tokens[:, order] + positions))
    assert not torch.allclose(moved, part.head(part.transformer(tokens + positions))[:, order], atol=1e-3)


def test_the_head_is_two_layers_with_tanh_between_and_nothing_after():
    for family, channels in ((EncoderConfig, 16), (DecoderConfig, 3 * 4 * 2)):
        first, tanh, second = build(family).head
        assert isinstance(tanh, torch.nn.Tanh)
        assert (first.in_features, first.out_features, second.out_features) == (16, 64, channels)


def test_a_patch_is_where_its_token_is():
    """With a transformer that does nothing, changing one patch changes one token, and one token one patch."""
    encoder, decoder = build(EncoderConfig), build(DecoderConfig)
    encoder.transformer = decoder.transformer = torch.nn.Identity()
    pixels = torch.zeros(1, 3, 8, 12)
    changed = pixels.clone()
    changed[:, :, 4:8, 2:4] = 1
    moved = (encoder(pixels) != encoder(changed)).any(dim=2)[0].view(2, 6)
    assert moved.nonzero().tolist() == [[1, 1]]
    latents = torch.zeros(1, 12, 16)
    other = latents.clone()
    other[:, 7] = 1
    difference = (decoder(latents, (2, 6)) != decoder(other, (2, 6))).any(dim=1)[0]
    assert difference[4:8, 2:4].all()
    assert int(difference.sum()) == 8


@pytest.mark.parametrize(
    ("fields", "message"),
    [({"width": 18, "heads": 2}, "width"), ({"width": 12, "heads": 8}, "heads"), ({"patch_size": [4]}, "patch_size")],
)
def test_wrong_fields_are_named(fields, message):
    with pytest.raises(ValueError, match=message):
        build(EncoderConfig, **fields)
