"""SEED's encoder: order among the tokens."""

from __future__ import annotations

import torch

from visual_tokenizer.encoders.base import EncoderConfig

PATCH = {"type": "patch", "patch_size": 4, "width": 8}


def encoder():
    torch.manual_seed(0)
    fields = {"num_latents": 5, "width": 16, "depth": 2, "heads": 2, "patches": PATCH}
    return EncoderConfig.family.build({"type": "causal_q_former", **fields}, image_size=16).eval()


@torch.no_grad()
def test_a_token_does_not_depend_on_later_queries_and_does_on_earlier_ones():
    part, pixels = encoder(), torch.rand(2, 3, 16, 16) * 2 - 1
    before = part(pixels)
    part.queries[:, 2].normal_()
    after = part(pixels)
    torch.testing.assert_close(after[:, :2], before[:, :2])
    assert ((after - before)[:, 2:].abs().amax((0, 2)) > 1e-3).all()


@torch.no_grad()
def test_every_token_sees_every_patch():
    part = encoder()
    pixels = torch.rand(1, 3, 16, 16) * 2 - 1
    before = part(pixels)
    for row in range(0, 16, 4):
        for column in range(0, 16, 4):
            changed = pixels.clone()
            changed[..., row : row + 4, column : column + 4] *= -1
            assert ((part(changed) - before).abs().amax((0, 2)) > 1e-6).all()
