"""The probe draws as the decoder within it would, and pixel losses train nothing before it."""

from __future__ import annotations

import torch

from visual_tokenizer import VisualTokenizer, VisualTokenizerConfig

PATCH = {"type": "patch", "patch_size": 4, "width": 8}


def tokenizer(decoder):
    torch.manual_seed(0)
    quantizer = {"type": "vq", "codebook_size": 8, "code_dim": 4, "update": {"type": "gradient"}}
    return VisualTokenizer(VisualTokenizerConfig(image_size=16, encoder=PATCH, quantizer=quantizer, decoder=decoder))


def gradients(model):
    model.train()(torch.rand(2, 3, 16, 16) * 2 - 1).pixels.square().mean().backward()
    return {name for name, value in model.named_parameters() if value.grad is not None and value.grad.abs().sum() > 0}


def test_pixel_losses_reach_the_probe_alone():
    model = tokenizer({"type": "probe", "code_channels": 4, "decoder": PATCH})
    decoder = {name for name, _ in model.named_parameters() if name.startswith("decoder.")}
    assert gradients(model) == decoder
    assert any(name.startswith("encoder.") for name in gradients(tokenizer(PATCH)))


def test_it_draws_what_its_decoder_draws_of_the_mapped_codes():
    model = tokenizer({"type": "probe", "code_channels": 4, "decoder": PATCH})
    codes, probe = torch.randn(2, 16, 4), model.decoder
    assert torch.equal(probe(codes, (4, 4)), probe.decoder(probe.projection(codes), (4, 4)))
    assert probe.last_layer is probe.decoder.last_layer
