"""MAGVIT-2's layers against slow formulas; causality is tested in test_causal_video.py."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from visual_tokenizer.decoders.base import DecoderConfig
from visual_tokenizer.encoders.base import EncoderConfig
from visual_tokenizer.layers.causal_convolution import (
    AdaptiveFrameNorm,
    CausalConv3d,
    DepthToSpaceTime,
    FrameGroupNorm,
)
from visual_tokenizer.registry import ConfigError


@pytest.mark.parametrize("padding", ["zeros", "replicate"])
@pytest.mark.parametrize("stride", [1, 2])
@torch.no_grad()
def test_each_output_frame_is_a_sum_over_frames_up_to_its_own(padding, stride):
    torch.manual_seed(0)
    convolution = CausalConv3d(2, 3, (3, 1, 1), (stride, 1, 1), time_padding=padding)
    clip = torch.randn(1, 2, 5, 2, 2)
    output = convolution(clip)
    assert output.shape[2] == 1 + 4 // stride
    weights = convolution.weight[..., 0, 0]
    for frame in range(output.shape[2]):
        expected = convolution.bias[None, :, None, None].clone()
        for tap in range(3):
            source = frame * stride - 2 + tap
            if source >= 0 or padding == "replicate":
                picked = clip[:, :, max(source, 0)]
                expected = expected + torch.einsum("oi,bihw->bohw", weights[:, :, tap], picked)
        torch.testing.assert_close(output[:, :, frame], expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_each_frame_has_its_own_statistics():
    clip = torch.randn(2, 4, 3, 5, 5) * torch.tensor([1.0, 5.0, 0.1])[None, None, :, None, None] + 3
    output = FrameGroupNorm(2, 4)(clip)
    groups = output.reshape(2, 2, 2, 3, 25).permute(0, 1, 3, 2, 4).flatten(3)
    torch.testing.assert_close(groups.mean(-1), torch.zeros(2, 2, 3), atol=1e-5, rtol=0)
    torch.testing.assert_close(groups.var(-1, correction=0), torch.ones(2, 2, 3), atol=1e-3, rtol=0)


@torch.no_grad()
def test_doubling_lays_channels_out_in_space_and_time():
    layer = DepthToSpaceTime(2, doubles_time=True, time_padding="zeros")
    clip = torch.randn(1, 2, 3, 2, 2)
    wide, output = layer.conv(clip), layer(clip)
    assert output.shape == (1, 2, 5, 4, 4)
    for channel, frame, row, column in [(0, 0, 0, 0), (1, 1, 3, 2), (0, 2, 1, 1), (1, 4, 2, 3)]:
        time = frame + 1  # the frame before the first is dropped
        source = ((channel * 2 + time % 2) * 2 + row % 2) * 2 + column % 2
        assert output[0, channel, frame, row, column] == wide[0, source, time // 2, row // 2, column // 2]


@torch.no_grad()
def test_latents_steer_the_frames_that_they_stand_for():
    torch.manual_seed(0)
    norm = AdaptiveFrameNorm(4, 3, groups=2)
    hidden, latents = torch.randn(1, 4, 5, 2, 2), torch.randn(1, 3, 3, 2, 2)
    torch.testing.assert_close(norm(hidden, latents), norm.norm(hidden))  # it starts at the identity
    norm.scale.weight.normal_()
    norm.shift.weight.normal_()
    output = norm(hidden, latents)
    for frame, source in enumerate([0, 1, 1, 2, 2]):
        values = latents[0, :, source].flatten(1)
        scale = 1 + norm.scale.weight @ values.std(dim=1, correction=0)
        shift = norm.shift.weight @ values.mean(dim=1)
        expected = norm.norm(hidden)[0, :, frame] * scale[:, None, None] + shift[:, None, None]
        torch.testing.assert_close(output[0, :, frame], expected, atol=1e-4, rtol=1e-4)


def test_the_published_layout_has_8_by_8_pixels_and_4_frames_a_token():
    encoder = EncoderConfig.family.build(
        {"type": "causal_cnn", "channels": 32, "blocks_per_level": 1, "latent_channels": 18}, image_size=128
    )
    assert encoder.token_grid(128, 128, 17) == (5, 16, 16)
    strides = [layer.stride for layer in encoder.layers if isinstance(layer, CausalConv3d)]
    assert strides == [(1, 2, 2), (2, 2, 2), (2, 2, 2)]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"temporal_downsampling": [True]}, "temporal_downsampling must have one entry less"),
        ({"groups": 3}, "groups must divide the channels"),
        ({"patch_size": [2]}, "patch_size must hold 2"),
        ({"time_padding": "mirror"}, "time_padding"),
    ],
)
def test_wrong_fields_are_named(fields, message):
    with pytest.raises(ConfigError, match=message):
        DecoderConfig.family.config({"type": "causal_cnn", **fields})


@torch.no_grad()
def test_spatial_padding_is_that_of_the_picture_network():
    torch.manual_seed(0)
    convolution = CausalConv3d(2, 2, (1, 3, 3), (1, 2, 2))
    clip = torch.randn(1, 2, 2, 6, 6)
    expected = F.conv2d(F.pad(clip[:, :, 1], (0, 1, 0, 1)), convolution.weight[:, :, 0], convolution.bias, stride=2)
    torch.testing.assert_close(convolution(clip)[:, :, 1], expected)
