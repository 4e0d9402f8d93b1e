"""The pixels themselves: each pixel's red, green and blue are one latent. Nothing is learned.

Paper: Generative Pretraining from Pixels (Chen et al., 2020), section 3.2.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from visual_tokenizer.encoders.base import Encoder, EncoderConfig
from visual_tokenizer.layers.convolution import tokens_from_map


@dataclass(kw_only=True)
class PixelsConfig(EncoderConfig):
    """The pixels themselves have no fields."""


class Pixels(Encoder):
    """(B, 3, H, W) → (B, HW, 3)."""

    Config = PixelsConfig
    latents_are_codes = True
    width = 3

    def token_grid(self, height: int, width: int) -> tuple[int, ...]:
        return height, width

    def forward(self, pixels: Tensor) -> Tensor:
        return tokens_from_map(pixels)
