from __future__ import annotations

import copy

import pytest
import torch

from visual_tokenizer import VisualTokenizer, VisualTokenizerConfig
from visual_tokenizer.registry import ConfigError
from visual_tokenizer.training.memory import checkpoint_blocks

CNN = {
    "type": "cnn", "channels": 8, "channel_multipliers": [1, 2], "blocks_per_level": 1, "groups": 4,
    "latent_channels": 8, "middle_attention": False, "attention_resolutions": [], "dropout": 0.2,
}  # fmt: skip
ENCODER_QUERY = {
    "type": "latent_query", "num_latents": 4, "width": 8, "depth": 2, "heads": 2,
    "patches": {"type": "patch", "patch_size": 4, "width": 8},
}  # fmt: skip
DECODER_QUERY = {**ENCODER_QUERY, "grid_size": 4}
FSQ = {"type": "fsq", "levels": [4, 4]}


def build(encoder, decoder):
    torch.manual_seed(0)
    return VisualTokenizer(
        VisualTokenizerConfig(image_size=16, encoder=encoder, decoder=decoder, quantizer=FSQ)
    ).train()


def gradients(tokenizer, pixels):
    torch.manual_seed(1)  # dropout
    tokenizer(pixels).pixels.square().mean().backward()
    return {name: parameter.grad for name, parameter in tokenizer.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize(("encoder", "decoder"), [(CNN, CNN), (ENCODER_QUERY, DECODER_QUERY)], ids=["cnn", "query"])
def test_gradients_are_the_same_and_blocks_run_twice(encoder, decoder):
    plain = build(encoder, decoder)
    lean = copy.deepcopy(plain)
    calls = []
    count = checkpoint_blocks(lean)
    assert count > 2
    inner = lean.decoder.layers[0].conv1 if encoder is CNN else lean.decoder.transformer.blocks[0].expand
    inner.register_forward_hook(lambda *_: calls.append(1))
    pixels = torch.rand(2, 3, 16, 16) * 2 - 1
    first, second = gradients(plain, pixels), gradients(lean, pixels)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert len(calls) == 2
    assert plain.state_dict().keys() == lean.state_dict().keys()
    with torch.no_grad():
        lean.eval()(pixels)
    assert len(calls) == 3


def test_without_blocks_it_is_refused():
    pixels = {"type": "pixels"}
    tokenizer = VisualTokenizer(
        VisualTokenizerConfig(image_size=16, encoder=pixels, decoder=pixels, quantizer={**FSQ, "levels": [4, 4, 4]})
    )
    with pytest.raises(ConfigError, match="gradient_checkpointing must be false for Pixels and Pixels"):
        checkpoint_blocks(tokenizer)
