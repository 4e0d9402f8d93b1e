"""SEED's encoder: learned queries read a picture one after another, so that tokens have an order, as words have.

Paper: Planting a SEED of Vision in Large Language Model (Ge et al., 2023), arXiv:2307.08041, section 3.1. The queries
attend causally to one another and freely to the features of `patches`. What comes out is quantized; the losses
`contrastive` (on the last token) and `feature_distillation` give it meaning.

Departs from it in that the blocks are pre-norm, not BERT's, all of them read the features, not every second, and are
trained from scratch, as `patches` is (BLIP-2's frozen ViT-g in the paper).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Annotated

from annotated_types import Ge
from torch import Tensor, nn

from visual_tokenizer.encoders.base import EncoderConfig, QueryEncoder, QueryEncoderConfig
from visual_tokenizer.layers.causal_query import CausalQueryBlock
from visual_tokenizer.layers.transformer import learned_positions


@dataclass(kw_only=True)
class CausalQFormerConfig(QueryEncoderConfig):
    """Fields of the causal Q-Former; the defaults are SEED's."""

    width: Annotated[int, Ge(1)] = 768
    depth: Annotated[int, Ge(1)] = 12
    heads: Annotated[int, Ge(1)] = 12
    patches: EncoderConfig = field(default_factory=lambda: EncoderConfig.family.config({"type": "vit"}))


class CausalQFormer(QueryEncoder):
    """Token i depends on the picture and on queries 0…i."""

    Config = CausalQFormerConfig

    def __init__(self, config: CausalQFormerConfig, *, image_size: int) -> None:
        super().__init__(config, image_size=image_size)
        self.patch_projection = nn.Linear(self.patches.width, config.width)
        self.patch_positions = learned_positions(math.prod(self.patch_grid), config.width)
        self.features_norm = nn.LayerNorm(config.width)
        self.queries = learned_positions(config.num_latents, config.width)
        self.blocks = nn.ModuleList(CausalQueryBlock(config.width, config.heads) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width)

    def forward(self, pixels: Tensor) -> Tensor:
        features = self.features_norm(self.patch_projection(self.patches(pixels)) + self.patch_positions)
        queries = self.queries.expand(pixels.shape[0], -1, -1)
        for block in self.blocks:
            queries = block(queries, features)
        return self.norm(queries)
