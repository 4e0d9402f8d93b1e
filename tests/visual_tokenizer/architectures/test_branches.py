"""Several encoders side by side."""

from __future__ import annotations

import pytest
import torch

from visual_tokenizer import VisualTokenizer, VisualTokenizerConfig
from visual_tokenizer.encoders.base import EncoderConfig, ResolutionError
from visual_tokenizer.registry import ConfigError

PATCH = {"type": "patch", "patch_size": 8, "width": 8}
QUERIES = {"type": "latent_query", "num_latents": 4, "width": 16, "depth": 1, "heads": 2, "patches": PATCH}
QUANTIZER = {"type": "product", "groups": 2, "base": {"type": "vq", "codebook_size": 8, "code_dim": 3}}
DECODER = {**QUERIES, "grid_size": 2}


def section(*branches):
    return {"type": "branches", "branches": list(branches), "branch_dim": 3}


def build(*branches):
    torch.manual_seed(0)
    return EncoderConfig.family.build(section(*branches), image_size=16)


def tokenizer(quantizer=QUANTIZER):
    torch.manual_seed(0)
    sections = {"encoder": section(QUERIES, QUERIES), "quantizer": quantizer, "decoder": DECODER}
    return VisualTokenizer(VisualTokenizerConfig(image_size=16, **sections)).eval()


def test_channels_are_the_branches_in_order():
    encoder = build(PATCH, {"type": "vit", "patch_size": [8, 8], "width": 8, "depth": 1, "heads": 1})
    pixels = torch.rand(2, 3, 16, 24) * 2 - 1
    latents = encoder(pixels)
    assert encoder.width == latents.shape[2] == 6
    for number, (branch, projection) in enumerate(zip(encoder.branches, encoder.projections, strict=True)):
        torch.testing.assert_close(latents[..., 3 * number : 3 * number + 3], projection(branch(pixels)))


def test_branches_may_give_different_channels():
    encoder = EncoderConfig.family.build({**section(PATCH, PATCH), "branch_dims": [4, 1]}, image_size=16)
    pixels = torch.rand(1, 3, 16, 16) * 2 - 1
    latents = encoder(pixels)
    assert encoder.width == latents.shape[2] == 5
    torch.testing.assert_close(latents[..., 4:], encoder.projections[1](encoder.branches[1](pixels)))
    for dims, message in (
        ([4], "branch_dims must be 2 numbers, or null"),
        ([4, 0], r"branch_dims\[1\] must be 1 or more"),
        ([], "branch_dims must be 2 numbers, or null"),
    ):
        with pytest.raises(ValueError, match=message):
            EncoderConfig.family.build({**section(PATCH, PATCH), "branch_dims": dims}, image_size=16)


def test_each_branch_has_indices_of_its_own():
    """Another second branch changes the second index of every token and never the first."""
    model = tokenizer()
    pixels = torch.rand(8, 3, 16, 16) * 2 - 1
    before = model.encode(pixels)
    assert before.shape == (8, 4, 2)
    with torch.no_grad():
        for parameter in model.encoder.branches[1].parameters():
            parameter.copy_(torch.randn_like(parameter))
    after = model.encode(pixels)
    assert torch.equal(after[..., 0], before[..., 0])
    assert not torch.equal(after[..., 1], before[..., 1])


def test_branches_of_multi_scale_codes_as_in_imagefolder():
    base = {"type": "vq", "codebook_size": 8, "code_dim": 3, "update": {"type": "gradient"}}
    scales = {"type": "multi_scale", "scales": [1, 2], "base": base}
    model = tokenizer({"type": "product", "groups": 2, "base": scales})
    pixels = torch.rand(2, 3, 16, 16) * 2 - 1
    assert model.encode(pixels).shape == (2, 1 + 4, 2)
    assert model.decode(model.encode(pixels)).shape == pixels.shape


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="equal token grids"):
        build(PATCH, QUERIES)
    with pytest.raises(ResolutionError, match="16 × 16"):
        build(QUERIES, QUERIES).token_grid(16, 32)
    with pytest.raises(ValueError, match="branches must hold 1 or more"):
        build()
    with pytest.raises(ConfigError, match="code_dim must be 6, got 4"):
        tokenizer({"type": "vq", "codebook_size": 8, "code_dim": 4})
