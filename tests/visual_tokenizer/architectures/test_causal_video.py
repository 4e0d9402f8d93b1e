"""What holds for every architecture in which no frame sees a later one."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch

from visual_tokenizer import VisualTokenizer, VisualTokenizerConfig
from visual_tokenizer.decoders.base import DecoderConfig
from visual_tokenizer.encoders.base import EncoderConfig, ResolutionError

SIZE = 16
CAUSAL_CNN = {
    "type": "causal_cnn",
    "channels": 8,
    "channel_multipliers": [1, 2, 2],
    "temporal_downsampling": [False, True],
    "blocks_per_level": 1,
    "groups": 4,
    "latent_channels": 6,
}
COSMOS = {
    "type": "cosmos",
    "channels": 8,
    "channel_multipliers": [1, 2],
    "spatial_downsampling": [True],
    "temporal_downsampling": [True],
    "wavelet_levels": 1,
    "blocks_per_level": 1,
    "attention_resolutions": [8],
    "latent_channels": 6,
}
OMNITOKENIZER = {
    "type": "omnitokenizer",
    "patch_size": 4,
    "temporal_patch_size": 2,
    "width": 16,
    "heads": 2,
    "window_size": 2,
    "temporal_blocks": 1,
    "spatial_blocks": ["full", "window"],
}
# Sections, frames a token after the first frame, pixels a token.
CASES: dict[str, tuple[dict[str, Any], int, int]] = {
    "causal_cnn": (CAUSAL_CNN, 2, 4),
    "causal_cnn with copies before the first frame": ({**CAUSAL_CNN, "time_padding": "replicate"}, 2, 4),
    "cosmos": (COSMOS, 4, 4),
    "omnitokenizer": (OMNITOKENIZER, 2, 4),
}


@pytest.fixture(params=CASES, autouse=True)
def case(request: pytest.FixtureRequest) -> tuple[Any, Any, int, int]:
    """Encoder, decoder, frames and pixels a token; weights that start at zero are drawn, so that they matter."""
    torch.set_num_threads(1)
    section, frames, pixels = CASES[request.param]
    torch.manual_seed(0)
    encoder = EncoderConfig.family.build(copy.deepcopy(section), image_size=SIZE)
    decoder = DecoderConfig.family.build(copy.deepcopy(section), image_size=SIZE)
    with torch.no_grad():
        for part in (encoder, decoder):
            for value in part.parameters():
                if not value.any():
                    value.normal_(std=0.3)
    return encoder.eval(), decoder.eval(), frames, pixels


def clip(frames: int, height: int = SIZE, width: int = SIZE) -> torch.Tensor:
    return torch.rand(2, 3, frames, height, width, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_grids_and_shapes_of_pictures_and_clips_square_and_not(case):
    encoder, decoder, frames, pixels = case
    sides = (SIZE // pixels, 2 * SIZE // pixels)
    for count, expected in {0: sides, 1: (1, *sides), 1 + 2 * frames: (3, *sides)}.items():
        assert encoder.token_grid(SIZE, 2 * SIZE, count) == expected
        video = clip(max(1, count), SIZE, 2 * SIZE)
        given = video if count else video[:, :, 0]
        latents = encoder(given)
        assert latents.shape == (2, math.prod(expected), encoder.width)
        assert decoder(latents[..., : decoder.width], expected).shape == given.shape


def test_wrong_sizes_are_refused(case):
    encoder, _, frames, pixels = case
    with pytest.raises(ResolutionError, match=rf"frames must be 1 more than a multiple of {frames} .* got {frames}$"):
        encoder.token_grid(SIZE, SIZE, frames)
    with pytest.raises(ResolutionError, match=rf"got {SIZE + 1} × {SIZE}"):
        encoder.token_grid(SIZE + 1, SIZE, 1)
    with pytest.raises(ResolutionError, match="height must be a multiple"):
        encoder.token_grid(SIZE, SIZE + pixels // 2)


@torch.no_grad()
def test_tokens_do_not_depend_on_later_frames(case):
    encoder, _, frames, pixels = case
    whole = clip(1 + 2 * frames)
    places = (SIZE // pixels) ** 2
    before = encoder(whole)
    for known in (0, 1):  # latent frames whose pixels stay
        changed = whole.clone()
        changed[:, :, 1 + known * frames :] = -changed[:, :, 1 + known * frames :] * 0.3 + 0.5
        after = encoder(changed)
        first = (1 + known) * places
        torch.testing.assert_close(after[:, :first], before[:, :first], atol=1e-5, rtol=1e-5)
        later = (after[:, first : first + places] - before[:, first : first + places]).abs().amax(-1)
        assert later.amin() > 1e-4, "the next tokens do see the changed frames"


@torch.no_grad()
def test_a_shorter_clip_has_the_first_tokens_of_a_longer_one(case):
    encoder, _, frames, _ = case
    whole = clip(1 + 2 * frames)
    shorter = encoder(whole[:, :, : 1 + frames])
    torch.testing.assert_close(encoder(whole)[:, : shorter.shape[1]], shorter, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_picture_is_the_first_frame_of_a_clip(case):
    encoder, decoder, frames, pixels = case
    whole = clip(1 + frames)
    picture = encoder(whole[:, :, 0])
    places = picture.shape[1]
    torch.testing.assert_close(encoder(whole[:, :, :1]), picture)
    torch.testing.assert_close(encoder(whole)[:, :places], picture, atol=1e-5, rtol=1e-5)
    grid = (SIZE // pixels, SIZE // pixels)
    latents = torch.randn(2, 2 * places, decoder.width)
    alone = decoder(latents[:, :places], grid)
    torch.testing.assert_close(decoder(latents[:, :places], (1, *grid)).squeeze(2), alone)
    torch.testing.assert_close(decoder(latents, (2, *grid))[:, :, 0], alone, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_frames_are_decoded_without_later_tokens(case):
    _, decoder, frames, pixels = case
    grid = (3, SIZE // pixels, SIZE // pixels)
    places = grid[1] * grid[2]
    latents = torch.randn(2, 3 * places, decoder.width)
    changed = latents.clone()
    changed[:, 2 * places :] = torch.randn(2, places, decoder.width)
    before, after = decoder(latents, grid), decoder(changed, grid)
    known = 1 + frames
    torch.testing.assert_close(after[:, :, :known], before[:, :, :known], atol=1e-5, rtol=1e-5)
    assert ((after - before)[:, :, known:].abs().amax(dim=(1, 3, 4)) > 1e-4).all()


def test_gradient_reaches_every_parameter_of_a_clip(case):
    encoder, decoder, frames, pixels = case
    grid = (2, SIZE // pixels, SIZE // pixels)
    outputs = {
        encoder: encoder.train()(clip(1 + frames)),
        decoder: decoder.train()(torch.randn(2, math.prod(grid), decoder.width), grid),
    }
    for part, output in outputs.items():
        (output * torch.randn(output.shape)).sum().backward()
        assert not [name for name, value in part.named_parameters() if not value.grad.abs().sum() > 1e-6]
    last = decoder.last_layer
    assert any(last is value for value in decoder.parameters())


def test_one_tokenizer_takes_clips_and_pictures(case, tmp_path):
    encoder, decoder, frames, pixels = case
    config = VisualTokenizerConfig(
        image_size=SIZE,
        num_frames=1 + frames,
        encoder=encoder.config.to_dict(),
        decoder=decoder.config.to_dict(),
        quantizer={"type": "fsq", "levels": [5, 5, 5]},
    )
    VisualTokenizer(config).eval().save_pretrained(tmp_path)
    tokenizer = VisualTokenizer.from_pretrained(tmp_path).eval()
    video = clip(1 + frames)
    indices = tokenizer.encode(video)
    side = SIZE // pixels
    assert indices.shape == (2, 2, side, side)
    assert torch.equal(tokenizer.encode(video[:, :, 0]), indices[:, 0])
    assert tokenizer.decode(indices).shape == video.shape
    torch.testing.assert_close(
        tokenizer.decode(indices[:, 0]), tokenizer.decode(indices)[:, :, 0], atol=1e-5, rtol=1e-5
    )
