"""GigaTok's decoder: a grid of queries reads the one-dimensional tokens, then convolutions draw the picture.

Paper: GigaTok: Scaling Visual Tokenizers to 3 Billion Parameters for Autoregressive Image Generation (Xiong et al.,
2025), arXiv:2504.08736, section 3.1, and the authors' code. Every query of the grid begins as the first token, the
average of the whole in the encoder; positions tell them apart.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Annotated

from annotated_types import Ge
from torch import Tensor, nn

from visual_tokenizer.decoders.base import Decoder, DecoderConfig, GridDecoder, GridDecoderConfig
from visual_tokenizer.layers.attention import QueryBlock
from visual_tokenizer.layers.convolution import map_from_tokens, tokens_from_map
from visual_tokenizer.layers.transformer import learned_positions


@dataclass(kw_only=True)
class QFormerConfig(GridDecoderConfig):
    """Fields of the Q-Former decoder; the defaults are GigaTok's base decoder's."""

    num_latents: Annotated[int, Ge(1)] = 256
    width: Annotated[int, Ge(1)] = 768
    depth: Annotated[int, Ge(1)] = 12
    heads: Annotated[int, Ge(1)] = 12
    patches: DecoderConfig = field(default_factory=lambda: DecoderConfig.family.config({"type": "cnn"}))


class QFormer(GridDecoder):
    """The first token on a grid, which reads all tokens block by block; a 3 × 3 convolution; another decoder."""

    Config = QFormerConfig

    def __init__(self, config: QFormerConfig, *, image_size: int) -> None:
        super().__init__(config, image_size=image_size)
        self.latents_norm = nn.LayerNorm(config.width)
        self.latent_projection = nn.Linear(config.width, config.width)
        self.latent_positions = learned_positions(config.num_latents, config.width)
        self.query_positions = learned_positions(math.prod(self.grid), config.width)
        self.blocks = nn.ModuleList(QueryBlock(config.width, config.heads) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width)
        self.patches: Decoder = DecoderConfig.family.build(config.patches, image_size=image_size)
        self.patch_projection = nn.Conv2d(config.width, self.patches.width, 3, padding=1)

    def forward(self, latents: Tensor, grid: tuple[int, ...]) -> Tensor:
        memory = self.latent_projection(self.latents_norm(latents))
        queries = memory[:, :1].expand(-1, math.prod(self.grid), -1)
        for block in self.blocks:
            queries = block(queries, memory, self.query_positions, self.latent_positions)
        features = self.patch_projection(map_from_tokens(self.norm(queries), self.grid))
        return self.patches(tokens_from_map(features), self.grid)
