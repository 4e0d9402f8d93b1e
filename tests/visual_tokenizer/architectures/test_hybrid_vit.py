"""The transformer on another encoder's features."""

from __future__ import annotations

import pytest
import torch

from visual_tokenizer.encoders.base import EncoderConfig
from visual_tokenizer.layers.transformer import sinusoidal_positions

FIELDS = {"type": "hybrid_vit", "width": 16, "depth": 2, "heads": 2}
PATCH = {"type": "patch", "patch_size": 4, "width": 8}


def build(**fields):
    torch.manual_seed(0)
    return EncoderConfig.family.build({**FIELDS, "patches": PATCH, **fields}, image_size=16).eval()


def test_features_are_embedded_placed_and_transformed():
    encoder, pixels = build(), torch.rand(2, 3, 16, 8) * 2 - 1
    features = encoder.patches(pixels)
    positions = sinusoidal_positions(4, 2, 16, pixels.device)
    expected = encoder.transformer(features @ encoder.embedding.weight.T + encoder.embedding.bias + positions)
    torch.testing.assert_close(encoder(pixels), expected)


def test_a_frozen_network_under_it_is_as_the_package_has_it():
    encoder = build(patches={"type": "backbone", "level": 1})
    encoder(torch.rand(1, 3, 16, 16) * 2 - 1).square().sum().backward()
    assert all(weight.grad is not None for weight in encoder.transformer.parameters())
    assert not any(name.startswith("patches.") for name, _ in encoder.named_parameters())
    assert not any(name.startswith("patches.") for name in encoder.state_dict())


def test_wrong_fields():
    with pytest.raises(ValueError, match=r"width must be a multiple of heads \(3\)"):
        build(width=16, heads=3)
    with pytest.raises(ValueError, match="width must be 1 or more and a multiple of 4, got 18"):
        build(width=18, heads=3)
    with pytest.raises(ValueError, match="depth must be 1 or more, got 0"):
        build(depth=0)
    queries = {"type": "latent_query", "num_latents": 4, "width": 16, "depth": 1, "heads": 2, "patches": PATCH}
    with pytest.raises(ValueError, match=r"patches must be an encoder of rows and columns, got a token grid of \(4,\)"):
        build(patches=queries)
