import pytest
import torch

from visual_tokenizer import VisualTokenizer, VisualTokenizerConfig
from visual_tokenizer.errors import UserError
from visual_tokenizer.pretraining.targets import TokenTargets, check_token_grid


def test_targets_are_the_tokenizers_indices_in_reading_order(build_tokenizer):
    tokenizer = build_tokenizer()
    pixels = torch.rand(3, 3, 16, 16) * 2 - 1
    targets = TokenTargets(tokenizer, 16)(pixels)
    assert targets.shape == (3, 16, 1)
    assert torch.equal(targets[:, :, 0], tokenizer.encode(pixels).flatten(1))
    assert torch.equal(targets[:, 4 * 2 + 1, 0], tokenizer.encode(pixels)[:, 2, 1])
    assert len(targets.unique()) > 3


def test_the_tokenizer_takes_no_gradient_and_no_half_precision(build_tokenizer):
    tokenizer = build_tokenizer().train()
    targets = TokenTargets(tokenizer, 16)
    assert not tokenizer.training
    assert not any(parameter.requires_grad for parameter in tokenizer.parameters())
    pixels = torch.rand(2, 3, 16, 16) * 2 - 1
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(targets(pixels), targets(pixels))
        inside = targets(pixels)
    assert torch.equal(inside, targets(pixels))


def test_the_tokenizer_may_see_the_picture_at_another_size(build_tokenizer):
    tokenizer = build_tokenizer()
    constant = torch.full((1, 3, 32, 32), 0.3)
    assert torch.equal(TokenTargets(tokenizer, 16)(constant), TokenTargets(tokenizer, 16)(constant[..., :16, :16]))
    check_token_grid(tokenizer, 32, 8, 16)


def test_several_codebooks_keep_their_order_and_decode(build_tokenizer):
    quantizer = {"type": "residual", "depth": 3, "base": {"type": "fsq", "levels": [4, 4]}}
    tokenizer = build_tokenizer(quantizer=quantizer)
    pixels = torch.rand(2, 3, 16, 16) * 2 - 1
    targets = TokenTargets(tokenizer, 16)
    indices = targets(pixels)
    assert indices.shape == (2, 16, 3)
    assert torch.equal(indices, tokenizer.encode(pixels).flatten(1, 2))
    assert torch.equal(targets.decode(indices), tokenizer.decode(tokenizer.encode(pixels)))


def test_another_grid_is_refused_with_both(build_tokenizer):
    with pytest.raises(UserError, match=r"give 2 × 2 patches, the tokenizer gives 4 × 4 tokens"):
        check_token_grid(build_tokenizer(), 16, 8, 16)
    with pytest.raises(UserError, match="tokenizer_image_size must be one that the tokenizer takes"):
        check_token_grid(build_tokenizer(), 16, 4, 15)


def test_tokens_in_a_sequence_are_refused_with_the_reason():
    patches = {"type": "patch", "patch_size": 4, "width": 16}
    query = {"type": "latent_query", "num_latents": 8, "width": 16, "depth": 1, "heads": 2, "patches": patches}
    fields = {"encoder": query, "quantizer": {"type": "fsq", "levels": [4, 4]}, "decoder": {**query, "grid_size": 4}}
    tokenizer = VisualTokenizer(VisualTokenizerConfig(image_size=16, **fields))
    with pytest.raises(UserError, match="a sequence of 8 tokens that have no place in it"):
        check_token_grid(tokenizer, 16, 4, 16)
