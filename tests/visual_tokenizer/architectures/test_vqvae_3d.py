"""VideoGPT's and TATS's networks: clips only, every frame sees every other near enough."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from visual_tokenizer import VisualTokenizer, VisualTokenizerConfig
from visual_tokenizer.decoders.base import DecoderConfig
from visual_tokenizer.encoders.base import EncoderConfig, ResolutionError
from visual_tokenizer.layers.axial_attention import AxialAttention, AxisAttention
from visual_tokenizer.layers.same_convolution import SameConv3d, SameConvTranspose3d, strides_of
from visual_tokenizer.registry import ConfigError

VQVAE_3D = {"type": "vqvae_3d", "width": 8, "blocks": 1, "downsampling": [2, 4, 4]}
TATS = {"type": "tats", "channels": 4, "groups": 4, "downsampling": [2, 4, 4]}
SECTIONS = [VQVAE_3D, TATS]


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)
    torch.manual_seed(0)


@pytest.mark.parametrize("section", SECTIONS, ids=["vqvae_3d", "tats"])
def test_grids_shapes_and_refusals(section):
    encoder = EncoderConfig.family.build(section, image_size=16)
    decoder = DecoderConfig.family.build(section, image_size=16)
    assert encoder.token_grid(16, 8, 4) == (2, 4, 2)
    latents = encoder(torch.randn(2, 3, 4, 16, 8))
    assert latents.shape == (2, 16, encoder.width)
    assert encoder.width == decoder.width
    assert decoder(latents, (2, 4, 2)).shape == (2, 3, 4, 16, 8)
    for frames, got in ((0, "a picture"), (5, "5")):
        with pytest.raises(ResolutionError, match=f"frames must be a multiple of 2 .* got {got}"):
            encoder.token_grid(16, 16, frames)
    with pytest.raises(ResolutionError, match="height must be a multiple of 4"):
        encoder.token_grid(16, 18, 4)
    with pytest.raises(ConfigError, match="downsampling must be"):
        EncoderConfig.family.config({**section, "downsampling": [2, 3, 4]})
    with pytest.raises(ConfigError, match="downsampling must hold 3"):
        EncoderConfig.family.config({**section, "downsampling": [2, 4]})


@pytest.mark.parametrize("section", SECTIONS, ids=["vqvae_3d", "tats"])
def test_without_halving_time_pictures_are_taken_too(section):
    flat = {**section, "downsampling": [1, 4, 4]}
    config = VisualTokenizerConfig(
        image_size=16, encoder=flat, decoder=flat, quantizer={"type": "fsq", "levels": [5, 5]}
    )
    tokenizer = VisualTokenizer(config).eval()
    indices = tokenizer.encode(torch.randn(2, 3, 16, 16))
    assert indices.shape == (2, 4, 4)
    assert tokenizer.decode(indices).shape == (2, 3, 16, 16)


@pytest.mark.parametrize("section", SECTIONS, ids=["vqvae_3d", "tats"])
def test_gradient_reaches_every_parameter(section):
    encoder = EncoderConfig.family.build(section, image_size=8)
    decoder = DecoderConfig.family.build(section, image_size=8)
    for part, output in (
        (encoder, encoder(torch.randn(2, 3, 4, 8, 8))),
        (decoder, decoder(torch.randn(2, 8, decoder.width), (2, 2, 2))),
    ):
        (output * torch.randn(output.shape)).sum().backward()
        assert not [name for name, value in part.named_parameters() if not value.grad.abs().sum() > 1e-6]
    assert any(decoder.last_layer is value for value in decoder.parameters())


@pytest.mark.parametrize("axis", [1, 2, 3])
@torch.no_grad()
def test_axial_attention_is_dense_attention_along_one_line(axis):
    layer = AxisAttention(8, 2, axis)
    hidden = torch.randn(2, 3, 4, 5, 8)
    place = [1, 2, 3, 1]
    del place[axis]
    line = hidden.movedim(axis, 3)[tuple(place)]
    query, key, value = (part.unflatten(-1, (2, 4)) for part in layer.query_key_value(line).chunk(3, dim=-1))
    mixed = [(query[:, h] @ key[:, h].T / 2).softmax(-1) @ value[:, h] for h in range(2)]
    expected = layer.projection(torch.cat(mixed, dim=-1))
    torch.testing.assert_close(layer(hidden).movedim(axis, 3)[tuple(place)], expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_the_three_axes_are_added():
    layer = AxialAttention(4, 2)
    clip = torch.randn(1, 4, 2, 3, 4)
    assert [attention.axis for attention in layer.axes] == [3, 2, 1]
    expected = sum(attention(clip.movedim(1, -1)) for attention in layer.axes).movedim(-1, 1)
    torch.testing.assert_close(layer(clip), expected)


@pytest.mark.parametrize("padding", ["constant", "replicate"])
@torch.no_grad()
def test_convolutions_divide_and_multiply_the_sides(padding):
    clip = torch.randn(1, 2, 4, 6, 8)
    down = SameConv3d(2, 3, 4, (2, 1, 2), padding=padding)
    # Kernel 4: stride 2 leaves 2 to pad, one each side; stride 1 leaves 3, two of them in front.
    expected = F.conv3d(
        F.pad(clip, (1, 1, 2, 1, 1, 1), mode=padding), down.conv.weight, down.conv.bias, stride=(2, 1, 2)
    )
    torch.testing.assert_close(down(clip), expected)
    assert expected.shape == (1, 3, 2, 6, 4)
    up = SameConvTranspose3d(2, 3, 4, (2, 1, 2), padding=padding)
    assert up(clip).shape == (1, 3, 8, 6, 16)


def test_strides():
    assert strides_of([4, 4, 4]) == [(2, 2, 2), (2, 2, 2)]
    assert strides_of([2, 8, 4]) == [(2, 2, 2), (1, 2, 2), (1, 2, 1)]


@torch.no_grad()
def test_copies_of_the_border_hide_where_a_frame_is():
    encoder = EncoderConfig.family.build(TATS, image_size=8).eval()
    still = torch.randn(1, 3, 1, 8, 8).expand(-1, -1, 8, -1, -1)
    tokens = encoder(still).reshape(4, 4, -1)
    torch.testing.assert_close(tokens, tokens[:1].expand_as(tokens), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(encoder(still[:, :, :4])[0, :4], tokens[0], atol=1e-5, rtol=1e-4)
