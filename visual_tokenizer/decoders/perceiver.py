"""Perceiver IO's decoder: learned position queries read the processed latents by cross-attention, each by itself.

Paper: Perceiver IO: A General Architecture for Structured Inputs & Outputs (Jaegle et al., 2021), arXiv:2107.14795,
section 3.1: self-attention among the latents, then one cross-attention from output queries to them. The grid of answers
is finished by another decoder.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge
from torch import Tensor, nn

from visual_tokenizer.decoders.base import Decoder, DecoderConfig, GridDecoder, GridDecoderConfig
from visual_tokenizer.layers.attention import ReadingBlock
from visual_tokenizer.layers.transformer import Transformer, learned_positions


@dataclass(kw_only=True)
class PerceiverConfig(GridDecoderConfig):
    """Fields of the Perceiver decoder."""

    num_latents: Annotated[int, Ge(1)] = 64

    depth: Annotated[int, Ge(1)] = 6
    """Blocks of self-attention among the latents."""


class Perceiver(GridDecoder):
    """A transformer over the latents, one reading block, another decoder on the grid."""

    Config = PerceiverConfig

    def __init__(self, config: PerceiverConfig, *, image_size: int) -> None:
        super().__init__(config, image_size=image_size)
        self.latent_positions = learned_positions(config.num_latents, config.width)
        self.transformer = Transformer(config.width, config.depth, config.heads)
        self.queries = learned_positions(math.prod(self.grid), config.width)
        self.reading = ReadingBlock(config.width, config.heads)
        self.norm = nn.LayerNorm(config.width)
        self.patches: Decoder = DecoderConfig.family.build(config.patches, image_size=image_size)
        self.patch_projection = nn.Linear(config.width, self.patches.width)

    def forward(self, latents: Tensor, grid: tuple[int, ...]) -> Tensor:
        processed = self.transformer(latents + self.latent_positions.to(latents.dtype))
        queries = self.queries.to(latents.dtype).expand(latents.shape[0], -1, -1)
        answers = self.norm(self.reading(queries, processed))
        return self.patches(self.patch_projection(answers), self.grid)
