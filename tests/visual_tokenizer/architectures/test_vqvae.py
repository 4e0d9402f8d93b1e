"""VQ-VAE's encoder and decoder."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from visual_tokenizer.decoders.base import DecoderConfig
from visual_tokenizer.encoders.base import EncoderConfig
from visual_tokenizer.layers.vqvae import ResidualStack


def build(family, **fields):
    torch.manual_seed(0)
    return family.family.build({"type": "vqvae", **fields}, image_size=16)


def convolutions(part):
    """Return (kind, in, out, side, stride) of each convolution in order."""
    return [
        (type(module).__name__, module.in_channels, module.out_channels, module.kernel_size[0], module.stride[0])
        for module in part.modules()
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d)
    ]


def test_the_published_layers():
    encoder = convolutions(build(EncoderConfig))
    assert encoder[:3] == [("Conv2d", 3, 64, 4, 2), ("Conv2d", 64, 128, 4, 2), ("Conv2d", 128, 128, 3, 1)]
    assert sorted(encoder[3:]) == [("Conv2d", 32, 128, 1, 1)] * 2 + [("Conv2d", 128, 32, 3, 1)] * 2
    decoder = convolutions(build(DecoderConfig))
    assert decoder[0] == ("Conv2d", 128, 128, 3, 1)
    assert decoder[-2:] == [("ConvTranspose2d", 128, 64, 4, 2), ("ConvTranspose2d", 64, 3, 4, 2)]


@pytest.mark.parametrize("halvings", [1, 2, 3])
def test_each_strided_convolution_halves(halvings):
    encoder, decoder = (build(family, channels=8, halvings=halvings) for family in (EncoderConfig, DecoderConfig))
    side = 16 // 2**halvings
    assert encoder.token_grid(16, 32) == (side, 2 * side)
    latents = encoder(torch.zeros(1, 3, 16, 32))
    assert latents.shape == (1, 2 * side**2, 8)
    assert decoder(latents, (side, 2 * side)).shape == (1, 3, 16, 32)


def test_a_residual_block_is_relu_3_relu_1_and_leaves_its_input_alone():
    torch.manual_seed(0)
    stack = ResidualStack(6, 3, 2)
    hidden = torch.randn(1, 6, 5, 5)
    before = hidden.clone()
    expected = hidden
    for number in range(2):
        inner = F.conv2d(expected.relu(), stack.spatial[number].weight, stack.spatial[number].bias, padding=1)
        expected = expected + F.conv2d(inner.relu(), stack.pointwise[number].weight, stack.pointwise[number].bias)
    torch.testing.assert_close(stack(hidden), expected.relu())
    assert torch.equal(hidden, before)


def test_the_decoder_is_linear_at_its_end():
    """Pixels may have either sign and any size: no ReLU after the last transposed convolution."""
    decoder = build(DecoderConfig, channels=8)
    output = decoder(100 * torch.randn(1, 4, 8, generator=torch.Generator().manual_seed(1)), (2, 2))
    assert output.min() < -1
    assert output.max() > 1


def test_wrong_fields_are_named():
    for field, value in (("channels", 7), ("halvings", 0), ("residual_channels", 0), ("residual_blocks", -1)):
        with pytest.raises(ValueError, match=field):
            build(EncoderConfig, **{field: value})
