"""The pixels themselves: each latent is one pixel's red, green and blue. Nothing is learned.

Paper: Generative Pretraining from Pixels (Chen et al., 2020), section 3.2.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from visual_tokenizer.decoders.base import Decoder, DecoderConfig
from visual_tokenizer.layers.convolution import map_from_tokens


@dataclass(kw_only=True)
class PixelsConfig(DecoderConfig):
    """The pixels themselves have no fields."""


class Pixels(Decoder):
    """(B, HW, 3) → (B, 3, H, W)."""

    Config = PixelsConfig
    latents_are_codes = True
    width = 3

    def forward(self, latents: Tensor, grid: tuple[int, ...]) -> Tensor:
        return map_from_tokens(latents, grid)
