"""The Perceiver resampler: learned latents read a picture's features by cross-attention.

Papers: Flamingo: a Visual Language Model for Few-Shot Learning (Alayrac et al., 2022), arXiv:2204.14198, section 3.1
and appendix A.1.1 (in each block the keys and values are the features and the latents themselves); Perceiver IO
(Jaegle et al., 2021), arXiv:2107.14795. Cost grows linearly with the features, unlike `latent_query`'s.
Positions of the features are learned ones, added once before the first block.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge
from torch import Tensor, nn

from visual_tokenizer.encoders.base import QueryEncoder, QueryEncoderConfig
from visual_tokenizer.layers.attention import ResamplerBlock
from visual_tokenizer.layers.transformer import learned_positions


@dataclass(kw_only=True)
class PerceiverConfig(QueryEncoderConfig):
    """Fields of the Perceiver resampler."""

    num_latents: Annotated[int, Ge(1)] = 64
    depth: Annotated[int, Ge(1)] = 6


class Perceiver(QueryEncoder):
    """Learned latents, which read the features block by block."""

    Config = PerceiverConfig

    def __init__(self, config: PerceiverConfig, *, image_size: int) -> None:
        super().__init__(config, image_size=image_size)
        self.patch_projection = nn.Linear(self.patches.width, config.width)
        self.patch_positions = learned_positions(math.prod(self.patch_grid), config.width)
        self.queries = learned_positions(config.num_latents, config.width)
        self.blocks = nn.ModuleList(ResamplerBlock(config.width, config.heads) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width)

    def forward(self, pixels: Tensor) -> Tensor:
        features = self.patch_projection(self.patches(pixels))
        features = features + self.patch_positions.to(features.dtype)
        latents = self.queries.to(features.dtype).expand(pixels.shape[0], -1, -1)
        for block in self.blocks:
            latents = block(latents, features)
        return self.norm(latents)
